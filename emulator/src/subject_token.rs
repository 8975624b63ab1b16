//! Verifies the subject tokens of exchanges, and determines the principals that they stand for.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::cel::{Accessor, Condition};
use crate::clock::now;
use crate::issuer_keys::{self, KeyCache};
use crate::jwt::Jwt;
use crate::keys::Jwks;
use crate::provider::{GkeCluster, IssuerKeys, WorkloadIdentityProvider};
use crate::tokens::Principal;

/// The maximum length of `google.subject`.
const MAX_SUBJECT_BYTES: usize = 127;
/// The maximum age of subject tokens in seconds, whatever their `exp`.
const MAX_AGE: i64 = 24 * 3600;

/// Why a subject token is rejected: the `error` and `error_description` of the response.
#[derive(Debug, thiserror::Error)]
#[error("{error}: {description}")]
pub(crate) struct ExchangeError {
    pub(crate) error: &'static str,
    pub(crate) description: String,
}

pub(crate) fn invalid_grant(description: impl Into<String>) -> ExchangeError {
    ExchangeError {
        error: "invalid_grant",
        description: description.into(),
    }
}

/// The principal that a subject token stands for, and when the token expires (seconds since 1970).
pub(crate) struct Bearer {
    pub(crate) principal: Principal,
    pub(crate) expires: i64,
}

/// Verifies a token for a provider of a workload identity pool.
pub(crate) async fn federated(
    cache: &KeyCache,
    provider: &WorkloadIdentityProvider,
    token: &str,
) -> Result<Bearer, ExchangeError> {
    let jwt = parse(token)?;
    check_issuer(&jwt, &provider.issuer)?;
    let https = format!("https:{}", provider.name);
    check_audience(&jwt, |audience| {
        if provider.allowed_audiences.is_empty() {
            audience == provider.name || audience == https
        } else {
            provider
                .allowed_audiences
                .iter()
                .any(|allowed| allowed == audience)
        }
    })?;
    let expires = check_lifetime(&jwt)?;
    check_signature(cache, &jwt, &provider.issuer, &provider.keys).await?;
    let principal = mapped(provider, &jwt.claims)?;
    Ok(Bearer { principal, expires })
}

/// The principal that a provider maps verified claims to.
pub(crate) fn mapped(
    provider: &WorkloadIdentityProvider,
    claims: &Map<String, Value>,
) -> Result<Principal, ExchangeError> {
    let read = |target: &str, source: &str| {
        let value = Accessor::parse(source)
            .ok()
            .and_then(|accessor| accessor.read(claims).cloned());
        match value {
            Some(Value::String(text)) => Ok(Some(text)),
            None if target != "google.subject" => Ok(None),
            _ => Err(ExchangeError {
                error: "unauthorized_client",
                description: format!("The mapped attribute '{target}' must be of type STRING."),
            }),
        }
    };
    let pool = provider.pool();
    let mut principal = Principal {
        name: String::new(),
        sets: vec![format!("principalSet://{pool}/*")],
    };
    for (target, source) in &provider.attribute_mapping {
        let Some(value) = read(target, source)? else {
            continue;
        };
        if target == "google.subject" {
            if value.len() > MAX_SUBJECT_BYTES {
                return Err(invalid_grant(format!(
                    "The size of mapped attribute google.subject exceeds the {MAX_SUBJECT_BYTES} bytes limit. Either modify \
                     your attribute mapping or the incoming assertion to produce a mapped attribute that is less than \
                     {MAX_SUBJECT_BYTES} bytes."
                )));
            }
            principal.name = format!("principal://{pool}/subject/{value}");
        } else {
            principal
                .sets
                .push(format!("principalSet://{pool}/{target}/{value}"));
        }
    }
    let condition = provider
        .attribute_condition
        .as_deref()
        .map(Condition::parse)
        .transpose();
    if !matches!(condition, Ok(condition) if condition.as_ref().is_none_or(|condition| condition.matches(claims)))
    {
        return Err(ExchangeError {
            error: "unauthorized_client",
            description: "The given credential is rejected by the attribute condition.".into(),
        });
    }
    Ok(principal)
}

/// Verifies a token of a GKE cluster for the cluster's own pool.
pub(crate) async fn gke(
    cache: &KeyCache,
    cluster: &GkeCluster,
    project_number: u64,
    token: &str,
) -> Result<Bearer, ExchangeError> {
    let jwt = parse(token)?;
    check_issuer(&jwt, cluster.issuer())?;
    let workload_pool = &cluster.workload_pool;
    check_audience(&jwt, |audience| audience == workload_pool)?;
    let expires = check_lifetime(&jwt)?;
    check_signature(cache, &jwt, cluster.issuer(), &cluster.keys).await?;
    let account = jwt
        .text("sub")
        .and_then(|subject| subject.strip_prefix("system:serviceaccount:"));
    let (namespace, name) = account
        .and_then(|account| account.split_once(':'))
        .ok_or_else(|| invalid_grant("The subject of the ID Token is not a Kubernetes service account."))?;
    let pool = format!(
        "iam.googleapis.com/projects/{project_number}/locations/global/workloadIdentityPools/{workload_pool}"
    );
    let principal = Principal {
        name: format!("principal://{pool}/subject/ns/{namespace}/sa/{name}"),
        sets: vec![
            format!("serviceAccount:{workload_pool}[{namespace}/{name}]"),
            format!("principalSet://{pool}/namespace/{namespace}"),
            format!("principalSet://{pool}/kubernetes.cluster/{}", cluster.name),
            format!("principalSet://{pool}/*"),
        ],
    };
    Ok(Bearer { principal, expires })
}

fn parse(token: &str) -> Result<Jwt, ExchangeError> {
    Jwt::parse(token).ok_or_else(|| ExchangeError {
        error: "invalid_request",
        description: "Unable to parse the ID Token.".into(),
    })
}

fn check_issuer(jwt: &Jwt, expected: &str) -> Result<(), ExchangeError> {
    let issuer = jwt.text("iss").unwrap_or_default();
    if issuer == expected {
        return Ok(());
    }
    Err(invalid_grant(format!(
        "The issuer in ID Token {issuer} does not match the expected one in config: {expected}"
    )))
}

fn check_audience(jwt: &Jwt, is_allowed: impl Fn(&str) -> bool) -> Result<(), ExchangeError> {
    let audiences = jwt.audiences();
    if audiences.iter().any(|audience| is_allowed(audience)) {
        return Ok(());
    }
    Err(invalid_grant(format!(
        "The audience in ID Token [{}] does not match the expected audience.",
        audiences.join(", ")
    )))
}

/// Returns when the token expires.
fn check_lifetime(jwt: &Jwt) -> Result<i64, ExchangeError> {
    let missing = |claim: &str| invalid_grant(format!("The ID Token lacks the claim {claim}."));
    let issued = jwt.time("iat").ok_or_else(|| missing("iat"))?;
    let expires = jwt.time("exp").ok_or_else(|| missing("exp"))?;
    if expires <= now() || issued < now() - MAX_AGE {
        return Err(invalid_grant(format!(
            "ID Token issued at {issued} is stale to sign-in."
        )));
    }
    let begins = issued.max(jwt.time("nbf").unwrap_or(issued));
    if begins > now() + 60 {
        return Err(invalid_grant(format!(
            "ID Token issued at {issued} is not yet valid."
        )));
    }
    Ok(expires)
}

async fn check_signature(
    cache: &KeyCache,
    jwt: &Jwt,
    issuer: &str,
    keys: &IssuerKeys,
) -> Result<(), ExchangeError> {
    let wrong = || invalid_grant("Unable to verify the ID Token signature.");
    if let Some(text) = &keys.jwks_json {
        let keys: Jwks = serde_json::from_str(text).map_err(|_| wrong())?;
        return if jwt.verified_by(&keys.keys) {
            Ok(())
        } else {
            Err(wrong())
        };
    }
    let cache_key = keys.jwks_url.as_deref().unwrap_or(issuer);
    if cache
        .get(cache_key)
        .is_some_and(|keys| jwt.verified_by(&keys.keys))
    {
        return Ok(());
    }
    let fetched = issuer_keys::fetch(issuer, keys).await.map_err(|error| {
        tracing::warn!(
            issuer,
            error = format!("{error:#}"),
            "cannot fetch the issuer's keys"
        );
        invalid_grant("Error connecting to the given credential's issuer.")
    })?;
    let fetched = Arc::new(fetched);
    cache.put(cache_key, fetched.clone());
    if jwt.verified_by(&fetched.keys) {
        Ok(())
    } else {
        Err(wrong())
    }
}
