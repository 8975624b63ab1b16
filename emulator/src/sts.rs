//! The Security Token Service: exchanges a workload's own token for a federated access token (RFC 8693).

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::aws;
use crate::call::Call;
use crate::call_log::Endpoint;
use crate::clock::{now, seconds};
use crate::response::{self, Failure, HandlerResult, Request};
use crate::subject_token;
use crate::tokens::Grant;
use crate::x509;

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const AWS_REQUEST: &str = "urn:ietf:params:aws:token-type:aws4_request";
const CERTIFICATE: &str = "urn:ietf:params:oauth:token-type:mtls";
const SUBJECT_TYPES: [&str; 4] = [
    AWS_REQUEST,
    CERTIFICATE,
    "urn:ietf:params:oauth:token-type:jwt",
    "urn:ietf:params:oauth:token-type:id_token",
];
/// The maximum lifetime of federated access tokens, in seconds.
const MAX_LIFETIME: i64 = 3600;

/// Handles `/v1/token` and `/v1/identitybindingtoken`.
pub(crate) async fn handle(call: &mut Call, request: &Request) -> HandlerResult {
    let fields = parse_fields(request);
    if let Some(audience) = fields.as_ref().ok().and_then(|fields| fields.get("audience")) {
        call.record_account(audience);
    }
    let overrides = call.apply_faults().await?;
    if request.method != Method::POST {
        return Err(response::not_found().into());
    }
    if request.header("authorization").is_some() {
        return Err(oauth_error(
            "invalid_client",
            "An Authorization header is not accepted here: send none.",
        ));
    }
    let fields = fields?;
    let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let expect = |name: &str, allowed: &[&str]| {
        if allowed.contains(&field(name)) {
            return Ok(());
        }
        Err(oauth_error(
            if name == "grant_type" {
                "unsupported_grant_type"
            } else {
                "invalid_request"
            },
            format!(
                "Invalid value for \"{name}\". Expected one of: {}",
                allowed.join(", ")
            ),
        ))
    };
    expect("grant_type", &[TOKEN_EXCHANGE])?;
    expect("requested_token_type", &[ACCESS_TOKEN])?;
    expect("subject_token_type", &SUBJECT_TYPES)?;
    if field("subject_token").is_empty() {
        return Err(oauth_error(
            "invalid_request",
            "Missing required field: \"subject_token\".",
        ));
    }
    let scopes: Vec<String> = field("scope").split_whitespace().map(str::to_owned).collect();
    if scopes.is_empty() || !scopes.iter().all(|scope| is_scope(scope)) {
        return Err(oauth_error(
            "invalid_scope",
            "Missing or invalid scope: give at least one OAuth 2.0 scope.",
        ));
    }
    let options = field("options");
    if !options.is_empty() && !matches!(serde_json::from_str(options), Ok(Value::Object(_))) {
        return Err(oauth_error(
            "invalid_request",
            "Invalid value for \"options\". This value should be a JSON object.",
        ));
    }

    let state = &call.state;
    let subject = Subject {
        kind: field("subject_token_type"),
        token: field("subject_token"),
        client_certificate: request.client_certificate.as_ref(),
    };
    let bearer = verify(call, field("audience"), &subject).await?;
    call.record_principal(&bearer.principal);
    let lifetime = (bearer.expires - now())
        .min(MAX_LIFETIME)
        .min(overrides.lifetime.map_or(MAX_LIFETIME, seconds));
    let grant = Grant {
        principal: bearer.principal,
        scopes,
        expires: now() + lifetime,
    };
    let token = state.access_tokens.issue(grant)?;
    let answer = json!({
        "access_token": token,
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
        "expires_in": lifetime,
    });
    Ok(response::json(StatusCode::OK, &answer))
}

/// What a caller proves its identity with.
struct Subject<'a> {
    kind: &'a str,
    token: &'a str,
    client_certificate: Option<&'a CertificateDer<'static>>,
}

async fn verify(
    call: &Call,
    audience: &str,
    subject: &Subject<'_>,
) -> Result<subject_token::Bearer, Failure> {
    let token = subject.token;
    let policy = call.state.policy();
    let cache = &call.state.issuer_keys;
    let unknown = || {
        oauth_error(
            "invalid_target",
            "The target service indicated by the \"audience\" parameters is invalid. This might either be because the \
             pool or provider is disabled or deleted or because it doesn't exist.",
        )
    };
    let verified = if audience.starts_with("identitynamespace:") {
        let cluster = policy
            .gke_clusters
            .iter()
            .find(|cluster| cluster.audience() == audience);
        subject_token::gke(cache, cluster.ok_or_else(unknown)?, policy.project.number, token).await
    } else if call.endpoint == Endpoint::SecurityToken && is_provider(audience) {
        let mut providers = policy.workload_identity_providers.iter();
        let provider = providers.find(|provider| provider.name == audience && !provider.disabled);
        let provider = provider.ok_or_else(unknown)?;
        match (
            &provider.aws_account_id,
            &provider.x509_trust_anchors,
            subject.kind,
        ) {
            (Some(account_id), None, AWS_REQUEST) => aws::bearer(&policy.aws, provider, account_id, token),
            (None, Some(anchors), CERTIFICATE) => {
                x509::bearer(provider, anchors, subject.client_certificate, token)
            }
            (None, None, kind) if ![AWS_REQUEST, CERTIFICATE].contains(&kind) => {
                subject_token::federated(cache, provider, token).await
            }
            _ => {
                let description = "The subject_token_type does not match the type of the provider.";
                return Err(oauth_error("invalid_request", description));
            }
        }
    } else {
        return Err(oauth_error(
            "invalid_request",
            "Invalid value for \"audience\". This value should be the full resource name of the Identity Provider. See \
             https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token for the list of possible formats.",
        ));
    };
    verified.map_err(|error| oauth_error(error.error, error.description))
}

fn is_provider(audience: &str) -> bool {
    let parts: Vec<&str> = audience.split('/').collect();
    matches!(
        parts[..],
        ["", "", "iam.googleapis.com", "projects", number, "locations", "global", "workloadIdentityPools", pool, "providers", provider]
            if number.parse::<u64>().is_ok() && !pool.is_empty() && !provider.is_empty()
    )
}

fn is_scope(scope: &str) -> bool {
    scope.starts_with("https://") || matches!(scope, "openid" | "email" | "profile")
}

/// Parses a form or a JSON object. JSON may have camel case names, as protocol buffers allow.
fn parse_fields(request: &Request) -> Result<BTreeMap<String, String>, Failure> {
    if !request.is_json() {
        return Ok(url::form_urlencoded::parse(&request.body).into_owned().collect());
    }
    let fields: BTreeMap<String, Value> = serde_json::from_slice(&request.body)
        .map_err(|_| oauth_error("invalid_request", "The request body is not a JSON object."))?;
    Ok(fields
        .into_iter()
        .filter_map(|(name, value)| match value {
            Value::String(text) => Some((snake_case(&name), text)),
            Value::Null => None,
            other => Some((snake_case(&name), other.to_string())),
        })
        .collect())
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 3);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

fn oauth_error(error: &str, description: impl Into<String>) -> Failure {
    response::oauth_error(StatusCode::BAD_REQUEST, error, description).into()
}
