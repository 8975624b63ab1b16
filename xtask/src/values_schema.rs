//! The chart's values.schema.json, which rejects unknown keys: from values.yaml, Kubernetes' types and the schema of IdTokenGrant.

use anyhow::{Context, Result};
use idtoken_operator::api;
use k8s_openapi::api::apps::v1::DeploymentStrategy;
use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, LocalObjectReference, PodDNSConfig, PodSecurityContext, Probe, ResourceRequirements,
    SecurityContext, Toleration, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyPeer};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use crate::values::Entry;

/// The action of a probe, which the chart sets.
const HANDLERS: [&str; 5] = [
    "exec",
    "grpc",
    "httpGet",
    "tcpSocket",
    "terminationGracePeriodSeconds",
];

/// The schema of `entries`.
///
/// # Errors
/// An entry has an unknown type.
pub(crate) fn schema(entries: &[Entry]) -> Result<Value> {
    let mut generator = SchemaSettings::draft07().into_generator();
    let mut root = json!({"type": "object", "additionalProperties": false, "properties": {}});
    for entry in entries {
        let schema = value_schema(entry, &mut generator).with_context(|| entry.path.join("."))?;
        let mut parent = &mut root;
        for key in &entry.path[..entry.path.len() - 1] {
            parent = &mut parent["properties"][key.as_str()];
        }
        let key = entry.path.last().context("no key")?.as_str();
        parent["properties"][key] = schema;
        if !may_be_null(entry) {
            let required = parent["required"].as_array_mut().map(std::mem::take);
            let required: Vec<Value> = required.into_iter().flatten().chain([json!(key)]).collect();
            parent["required"] = json!(required);
        }
    }
    root["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    // Keys that Helm and parent charts add to the values.
    root["properties"]["global"] = json!({"description": "Not used here.", "type": "object"});
    root["properties"]["enabled"] =
        json!({"description": "The condition of a chart that depends on this one.", "type": "boolean"});
    let mut definitions = Value::Object(generator.take_definitions(true));
    strict(&mut definitions);
    if let Some(probe) = definitions["io.k8s.api.core.v1.Probe"]["properties"].as_object_mut() {
        probe.retain(|key, _| !HANDLERS.contains(&key.as_str()));
    }
    root["definitions"] = definitions;
    prune_unused(&mut root);
    Ok(root)
}

/// Whether null, by which Helm removes a value with its default, means the same as its empty default, or none of what a type of Kubernetes
/// describes. Any other value has to be there: without it, a switch would be off and a flag without a value.
fn may_be_null(entry: &Entry) -> bool {
    let is_empty = match &entry.default {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    let kind = entry.kind.as_deref().unwrap_or_default();
    is_empty || kind.starts_with("core/") || ["labels", "metadata server[]"].contains(&kind)
}

fn value_schema(entry: &Entry, generator: &mut SchemaGenerator) -> Result<Value> {
    let mut schema = match &entry.kind {
        Some(kind) => typed(kind, generator)?,
        None => match &entry.default {
            Value::Bool(_) => json!({"type": "boolean"}),
            Value::Number(_) => json!({"type": "integer"}),
            Value::String(_) => json!({"type": "string"}),
            Value::Array(_) => json!({"type": "array"}),
            Value::Object(_) if entry.is_map() => {
                json!({"type": "object", "additionalProperties": false, "properties": {}})
            }
            _ => anyhow::bail!("its type does not follow from its default: give it an @type"),
        },
    };
    let fields = schema.as_object_mut().context("a schema is an object")?;
    fields.extend(entry.schema.clone());
    if !entry.comment.is_empty() {
        // This draft ignores what is beside $ref.
        match fields.remove("$ref") {
            Some(reference) => fields.insert("allOf".to_owned(), json!([{"$ref": reference}])),
            None => None,
        };
        fields.insert("description".to_owned(), json!(entry.comment));
    }
    Ok(schema)
}

/// The schema of a type that `@type` names.
fn typed(kind: &str, generator: &mut SchemaGenerator) -> Result<Value> {
    if let Some(item) = kind.strip_suffix("[]") {
        return Ok(json!({"type": "array", "items": typed(item, generator)?}));
    }
    Ok(match kind {
        "string" | "integer" => json!({"type": kind}),
        "port" => json!({"type": "integer", "minimum": 1, "maximum": 65535}),
        "labels" => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        "quantity or percentage" => json!({"type": ["integer", "string"]}),
        "object or text" => json!({"type": ["object", "string"]}),
        "IdTokenGrant" => grant()?,
        "monitoring/v1.RelabelConfig" => relabel_config(),
        "metadata server" => {
            json!({"type": "object", "additionalProperties": false, "required": ["cidr", "ports"],
            "properties": {"cidr": {"type": "string"}, "ports": typed("port[]", generator)?}})
        }
        "apps/v1.DeploymentStrategy" => schema_of::<DeploymentStrategy>(generator),
        "core/v1.Affinity" => schema_of::<Affinity>(generator),
        "core/v1.EnvVar" => schema_of::<EnvVar>(generator),
        "core/v1.LocalObjectReference" => schema_of::<LocalObjectReference>(generator),
        "core/v1.PodDNSConfig" => schema_of::<PodDNSConfig>(generator),
        "core/v1.PodSecurityContext" => schema_of::<PodSecurityContext>(generator),
        "core/v1.Probe" => schema_of::<Probe>(generator),
        "core/v1.ResourceRequirements" => schema_of::<ResourceRequirements>(generator),
        "core/v1.SecurityContext" => schema_of::<SecurityContext>(generator),
        "core/v1.Toleration" => schema_of::<Toleration>(generator),
        // The chart adds the labelSelector if it is missing.
        "core/v1.TopologySpreadConstraint" => schema_of::<TopologySpreadConstraint>(generator),
        "core/v1.Volume" => schema_of::<Volume>(generator),
        "core/v1.VolumeMount" => schema_of::<VolumeMount>(generator),
        "networking/v1.NetworkPolicyEgressRule" => schema_of::<NetworkPolicyEgressRule>(generator),
        "networking/v1.NetworkPolicyPeer" => schema_of::<NetworkPolicyPeer>(generator),
        _ => anyhow::bail!("no type is called {kind}"),
    })
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

/// An entry of the grants file: a name beside the fields of an IdTokenGrant's spec.
fn grant() -> Result<Value> {
    let crds = api::crds();
    let crd = crds.iter().find(|crd| crd.spec.names.kind == "IdTokenGrant");
    let schema = crd.and_then(|crd| {
        crd.spec
            .versions
            .first()?
            .schema
            .as_ref()?
            .open_api_v3_schema
            .as_ref()
    });
    let schema = serde_json::to_value(schema.context("IdTokenGrant has no schema")?)?;
    let mut grant = schema["properties"]["spec"].clone();
    grant["properties"]["name"] = json!({
        "type": "string", "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        "description": "By which statuses and messages call it, after file:.",
    });
    grant["required"] = json!(["name", "from", "to"]);
    strict(&mut grant);
    Ok(grant)
}

/// <https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.RelabelConfig>
fn relabel_config() -> Value {
    let text = json!({"type": "string"});
    json!({"type": "object", "additionalProperties": false, "properties": {
        "action": text, "regex": text, "replacement": text, "separator": text, "targetLabel": text,
        "modulus": {"type": "integer"},
        "sourceLabels": {"type": "array", "items": text},
    }})
}

/// Rejects unknown keys, and removes keywords that JSON Schema does not have.
fn strict(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(strict),
        Value::Object(fields) => {
            let properties = fields.remove("properties");
            if fields.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
                fields.insert("type".to_owned(), json!(["integer", "number", "string"]));
            }
            fields.retain(|key, _| {
                !["description", "nullable", "format", "default"].contains(&key.as_str())
                    && !key.starts_with("x-kubernetes-")
            });
            fields.values_mut().for_each(strict);
            if let Some(Value::Object(mut properties)) = properties {
                properties.values_mut().for_each(strict);
                fields
                    .entry("additionalProperties")
                    .or_insert_with(|| json!(false));
                fields.insert("properties".to_owned(), Value::Object(properties));
            }
        }
        _ => {}
    }
}

/// Removes unreferenced definitions.
fn prune_unused(root: &mut Value) {
    loop {
        let text = root.to_string();
        let Some(definitions) = root["definitions"].as_object_mut() else {
            return;
        };
        let before = definitions.len();
        definitions.retain(|name, _| text.contains(&format!("\"#/definitions/{name}\"")));
        if definitions.len() == before {
            return;
        }
    }
}

/// The schema as text, with sorted keys.
///
/// # Errors
/// See [`schema`].
pub(crate) fn text(entries: &[Entry]) -> Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(&schema(entries)?)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Map;

    use super::*;

    /// Every object with known keys in the schema.
    fn objects(schema: &Value, found: &mut Vec<Map<String, Value>>) {
        match schema {
            Value::Array(items) => items.iter().for_each(|item| objects(item, found)),
            Value::Object(fields) => {
                if fields.get("properties").is_some_and(Value::is_object) && fields.contains_key("type") {
                    found.push(fields.clone());
                }
                fields.values().for_each(|field| objects(field, found));
            }
            _ => {}
        }
    }

    #[test]
    fn no_object_takes_unknown_keys() {
        let path = crate::workspace().join("charts/idtoken-operator/values.yaml");
        let entries = crate::values::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        let schema = schema(&entries).unwrap();
        let mut found = Vec::new();
        objects(&schema, &mut found);
        assert!(found.len() > 50, "{}", found.len());
        for object in found {
            assert!(object.contains_key("additionalProperties"), "{object:?}");
        }
        let to = &schema["properties"]["grants"]["items"]["properties"]["to"];
        assert!(
            to["items"]["properties"]["audiences"]["items"]["pattern"].is_string(),
            "{to}"
        );
    }
}
