-- Health of an idtoken.dev IdTokenRequest: https://argo-cd.readthedocs.io/en/stable/operator-manual/health/
local function condition(type)
  local conditions = obj.status ~= nil and obj.status.conditions or {}
  for _, condition in ipairs(conditions) do
    if condition.type == type then
      return condition
    end
  end
  return {}
end

if obj.metadata.deletionTimestamp ~= nil then
  return { status = "Progressing", message = "Being deleted" }
end
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "The operator has not seen this spec yet" }
end
local ready, stalled, failing = condition("Ready"), condition("Stalled"), condition("RenewalFailing")
if stalled.status == "True" then
  return { status = "Degraded", message = stalled.message }
end
if ready.reason == "Suspended" then
  return { status = "Suspended", message = ready.message }
end
if ready.status == "True" then
  if failing.status == "True" then
    return { status = "Healthy", message = "The token is valid, its renewal fails: " .. failing.message }
  end
  return { status = "Healthy", message = ready.message }
end
return { status = "Progressing", message = ready.message }
