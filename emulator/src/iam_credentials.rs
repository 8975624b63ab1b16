//! The IAM Service Account Credentials API: `generateIdToken` and `generateAccessToken`.

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::call::Call;
use crate::call_log::Endpoint;
use crate::clock::now;
use crate::denial;
use crate::issue::IdTokenClaims;
use crate::jwt::Jwt;
use crate::policy::Policy;
use crate::response::{self, Failure, HandlerResult, Request};
use crate::routing::AccountResource;
use crate::service_account::{Permission, ServiceAccount};
use crate::tokens::{CLOUD_PLATFORM, Grant, IAM, Principal};

/// Handles a call about an account.
pub(crate) async fn handle(call: &mut Call, request: &Request, resource: &AccountResource) -> HandlerResult {
    call.record_account(&resource.account);
    let body = parse_body(request);
    if let Some(audience) = body
        .as_ref()
        .ok()
        .and_then(|body| body.get("audience"))
        .and_then(Value::as_str)
    {
        call.record_audience(audience);
    }
    let caller = authenticate(call, request);
    if let Ok(grant) = &caller {
        call.record_principal(&grant.principal);
    }
    let overrides = call.apply_faults().await?;

    if call.endpoint == Endpoint::AllowedLocations {
        return Err(
            response::api_error(StatusCode::NOT_FOUND, "Requested entity was not found.", &[]).into(),
        );
    }
    if request.method != Method::POST {
        return Err(response::not_found().into());
    }
    let caller = caller?;
    let policy = call.state.policy();
    if let (Some(project), Some(allowed)) = (request.header("x-goog-user-project"), &policy.user_projects)
        && !allowed.iter().any(|name| name == project)
    {
        return Err(denial::user_project_denied(project).into());
    }
    let body = body?;
    let requested = TokenRequest::parse(&body, call.endpoint)?;
    if resource.project != "-" {
        return Err(invalid(
            "Invalid form of account ID. The project must be the wildcard `-`.",
        ));
    }
    if !caller
        .scopes
        .iter()
        .any(|scope| scope == CLOUD_PLATFORM || scope == IAM)
    {
        return Err(insufficient_scope(call.endpoint));
    }
    let target = authorize(&policy, caller.principal, &resource.account, &requested)?;
    if call.endpoint == Endpoint::GenerateAccessToken {
        let mut overrides = overrides;
        overrides.lifetime = overrides.lifetime.or(requested.lifetime);
        let principal = Principal::service_account(&target.email);
        let (token, lifetime) = call
            .state
            .issue_access_token(principal, requested.scopes, overrides)?;
        let expires = jiff::Timestamp::from_second(now().saturating_add(lifetime))
            .map_err(|error| anyhow::anyhow!("the lifetime is too long: {error}"))?;
        return Ok(response::json(
            StatusCode::OK,
            &json!({"accessToken": token, "expireTime": expires.to_string()}),
        ));
    }
    let unique_id = target.unique_id();
    let claims = IdTokenClaims {
        subject: &unique_id,
        audience: &requested.audience,
        authorized_party: if requested.use_email_azp {
            &target.email
        } else {
            &unique_id
        },
        email: requested.include_email.then_some(target.email.as_str()),
        google: requested
            .organization_number
            .then(|| json!({"organization_number": policy.organization_number})),
    };
    let minted = call.state.mint(&claims, overrides)?;
    Ok(response::json(StatusCode::OK, &json!({"token": minted.token})))
}

/// What the body requests.
struct TokenRequest {
    permission: Permission,
    audience: String,
    include_email: bool,
    organization_number: bool,
    use_email_azp: bool,
    delegates: Vec<String>,
    scopes: Vec<String>,
    lifetime: Option<std::time::Duration>,
}

impl TokenRequest {
    /// Parses the body as protocol buffers' JSON mapping does: snake case or camel case, `null` as absent, booleans also as strings.
    fn parse(body: &Map<String, Value>, endpoint: Endpoint) -> Result<Self, Failure> {
        let id_token = endpoint == Endpoint::GenerateIdToken;
        let mut requested = Self {
            permission: if id_token {
                Permission::GetOpenIdToken
            } else {
                Permission::GetAccessToken
            },
            audience: String::new(),
            include_email: false,
            organization_number: false,
            use_email_azp: false,
            delegates: Vec::new(),
            scopes: Vec::new(),
            lifetime: None,
        };
        for (name, value) in body {
            match (name.as_str(), id_token) {
                ("audience", true) => requested.audience = text(name, value)?,
                ("includeEmail" | "include_email", true) => requested.include_email = boolean(name, value)?,
                ("organizationNumberIncluded" | "organization_number_included", true) => {
                    requested.organization_number = boolean(name, value)?;
                }
                ("useEmailAzp" | "use_email_azp", true) => requested.use_email_azp = boolean(name, value)?,
                ("delegates", _) => requested.delegates = list(name, value)?,
                ("scope", false) => requested.scopes = list(name, value)?,
                ("lifetime", false) => requested.lifetime = lifetime(&text(name, value)?)?,
                _ => {
                    return Err(invalid(format!(
                        "Invalid JSON payload received. Unknown name \"{name}\": Cannot find field."
                    )));
                }
            }
        }
        if id_token && requested.audience.is_empty() {
            return Err(invalid(
                "Request contains an invalid argument. The field `audience` is required.",
            ));
        }
        if !id_token && requested.scopes.is_empty() {
            return Err(invalid(
                "Request contains an invalid argument. The field `scope` is required.",
            ));
        }
        for delegate in &mut requested.delegates {
            match delegate.strip_prefix("projects/-/serviceAccounts/") {
                Some(name) if !name.is_empty() => *delegate = name.to_owned(),
                _ => {
                    return Err(invalid(format!(
                        "Invalid delegate \"{delegate}\": it must be projects/-/serviceAccounts/{{ACCOUNT}}."
                    )));
                }
            }
        }
        Ok(requested)
    }
}

fn parse_body(request: &Request) -> Result<Map<String, Value>, Failure> {
    if request.body.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&request.body)
        .map_err(|error| invalid(format!("Invalid JSON payload received. {error}")))
}

fn text(name: &str, value: &Value) -> Result<String, Failure> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        _ => Err(invalid(format!("Invalid value at '{name}' (TYPE_STRING)"))),
    }
}

fn boolean(name: &str, value: &Value) -> Result<bool, Failure> {
    match value {
        Value::Null => Ok(false),
        Value::Bool(value) => Ok(*value),
        Value::String(text) if text == "true" => Ok(true),
        Value::String(text) if text == "false" => Ok(false),
        _ => Err(invalid(format!("Invalid value at '{name}' (TYPE_BOOL)"))),
    }
}

fn list(name: &str, value: &Value) -> Result<Vec<String>, Failure> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(|item| text(name, item)).collect(),
        _ => Err(invalid(format!(
            "Invalid value at '{name}' (TYPE_STRING), expected a list"
        ))),
    }
}

fn lifetime(text: &str) -> Result<Option<std::time::Duration>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let seconds = text.strip_suffix('s').and_then(|number| number.parse().ok());
    match seconds {
        Some(seconds @ 1..=43_200) => Ok(Some(std::time::Duration::from_secs(seconds))),
        _ => Err(invalid(
            "The access token lifetime must be between 1s and 43200s.",
        )),
    }
}

/// Authenticates the caller by an access token issued here, or by a self-signed JWT of a service account.
fn authenticate(call: &Call, request: &Request) -> Result<Grant, Failure> {
    let Some(header) = request.header("authorization") else {
        let info = response::error_info("CREDENTIALS_MISSING", "googleapis.com", method(call.endpoint));
        return Err(unauthenticated(
            "Request is missing required authentication credential. Expected OAuth 2 access token, login cookie or \
             other valid authentication credential. See \
             https://developers.google.com/identity/sign-in/web/devconsole-project.",
            info,
        ));
    };
    let rejected = || {
        // Google's has no domain.
        let mut info = response::error_info("ACCESS_TOKEN_TYPE_UNSUPPORTED", "", method(call.endpoint));
        info.as_object_mut().map(|info| info.remove("domain"));
        unauthenticated(
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other \
             valid authentication credential. See \
             https://developers.google.com/identity/sign-in/web/devconsole-project.",
            info,
        )
    };
    let (scheme, token) = header.split_once(' ').ok_or_else(rejected)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(rejected());
    }
    let token = token.trim();
    call.state
        .access_tokens
        .grant(token)
        .or_else(|| self_signed(call, &Jwt::parse(token)?))
        .ok_or_else(rejected)
}

/// The maximum lifetime of a self-signed JWT, in seconds: an hour, and room for the margins that client libraries add (the JWTs
/// of google-cloud-auth have 3,620 s).
const MAX_SELF_SIGNED_LIFETIME: i64 = 3600 + 300;

/// Verifies a self-signed JWT: `iss` and `sub` are the account, its key made the signature, the JWT is valid now, and it has scopes or
/// `aud` is this API.
fn self_signed(call: &Call, jwt: &Jwt) -> Option<Grant> {
    let policy = call.state.policy();
    let account = policy
        .account(jwt.text("iss")?)
        .filter(|account| !account.disabled)?;
    let (issued, expires) = (jwt.time("iat")?, jwt.time("exp")?);
    let is_current = expires > now() && issued <= now() + 300 && expires - issued <= MAX_SELF_SIGNED_LIFETIME;
    if jwt.text("sub") != Some(&account.email) || jwt.text("iss") != jwt.text("sub") || !is_current {
        return None;
    }
    if !jwt.verified_by(&call.state.account_keys(account)) {
        return None;
    }
    let api = format!("https://iamcredentials.{}", policy.universe_domain);
    let mut audiences = jwt
        .audiences()
        .into_iter()
        .map(|audience| audience.trim_end_matches('/'));
    let scopes = match jwt.text("scope") {
        Some(scope) => scope.split(' ').map(str::to_owned).collect(),
        None if audiences.any(|audience| audience == api || audience == call.state.url) => {
            vec![CLOUD_PLATFORM.to_owned()]
        }
        None => return None,
    };
    Some(Grant {
        principal: Principal::service_account(&account.email),
        scopes,
        expires,
    })
}

/// Authorizes each step from the caller through the delegates to the target. Returns the target.
fn authorize<'p>(
    policy: &'p Policy,
    mut caller: Principal,
    name: &str,
    requested: &TokenRequest,
) -> Result<&'p ServiceAccount, Failure> {
    let find = |name: &str| {
        policy.account(name).ok_or_else(|| {
            let kind = if name.contains('@') { "email" } else { "unique id" };
            let message = format!("Not found; Gaia id not found for {kind} {name}");
            Failure::from(response::api_error(StatusCode::NOT_FOUND, message, &[]))
        })
    };
    let enabled = |account: &ServiceAccount| {
        if account.disabled {
            return Err(failed_precondition(&format!(
                "Service account {} is disabled.",
                account.email
            )));
        }
        Ok(())
    };
    let target = find(name)?;
    for delegate in &requested.delegates {
        let account = find(delegate)?;
        let listed = target
            .delegates
            .as_ref()
            .is_none_or(|allowed| allowed.iter().any(|allowed| account.is_named(allowed)));
        if !listed || !account.allows(Permission::ImplicitDelegation, |member| caller.is(member)) {
            return Err(denied(policy, Permission::ImplicitDelegation));
        }
        enabled(account)?;
        caller = Principal::service_account(&account.email);
    }
    if !target.allows(requested.permission, |member| caller.is(member)) {
        return Err(denied(policy, requested.permission));
    }
    enabled(target)?;
    Ok(target)
}

fn denied(policy: &Policy, permission: Permission) -> Failure {
    let name = permission.name();
    let info = response::error_info(
        "IAM_PERMISSION_DENIED",
        "iam.googleapis.com",
        json!({ "permission": name }),
    );
    let details = if policy.error_details {
        vec![info]
    } else {
        Vec::new()
    };
    let message = format!("Permission '{name}' denied on resource (or it may not exist).");
    response::api_error(StatusCode::FORBIDDEN, message, &details).into()
}

fn insufficient_scope(endpoint: Endpoint) -> Failure {
    let info = response::error_info(
        "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
        "googleapis.com",
        method(endpoint),
    );
    let message = "Request had insufficient authentication scopes.";
    response::api_error(StatusCode::FORBIDDEN, message, &[info]).into()
}

fn unauthenticated(message: &str, info: Value) -> Failure {
    response::api_error(StatusCode::UNAUTHORIZED, message, &[info]).into()
}

/// How details of errors name the method that was called.
fn method(endpoint: Endpoint) -> Value {
    let name = match endpoint {
        Endpoint::GenerateAccessToken => "GenerateAccessToken",
        _ => "GenerateIdToken",
    };
    json!({
        "service": "iamcredentials.googleapis.com",
        "method": format!("google.iam.credentials.v1.IAMCredentials.{name}"),
    })
}

fn failed_precondition(message: &str) -> Failure {
    let error = json!({"code": 400, "message": message, "status": "FAILED_PRECONDITION"});
    response::json(StatusCode::BAD_REQUEST, &json!({ "error": error })).into()
}

fn invalid(message: impl Into<String>) -> Failure {
    response::api_error(StatusCode::BAD_REQUEST, message, &[]).into()
}
