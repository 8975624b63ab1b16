//! The metadata server of Compute Engine, Cloud Run and GKE.

use axum::http::{HeaderValue, Method, StatusCode};
use serde_json::json;

use crate::call::Call;
use crate::clock::seconds;
use crate::issue::{IdTokenClaims, TokenOverrides};
use crate::policy::Policy;
use crate::response::{self, Failure, HandlerResult, HttpResponse, Request};
use crate::service_account::ServiceAccount;
use crate::tokens::{IdentityTokenKey, Principal};

const ROOT: &str = "/computeMetadata/v1";

/// Handles every path of the metadata server, and adds the headers that identify it.
pub(crate) async fn handle(call: &mut Call, request: &Request) -> HandlerResult {
    let mark = |mut response: HttpResponse| {
        let headers = response.headers_mut();
        headers.insert("Metadata-Flavor", HeaderValue::from_static("Google"));
        headers.insert("Server", HeaderValue::from_static("Metadata Server for VM"));
        response
    };
    match route(call, request).await {
        Ok(response) => Ok(mark(response)),
        Err(Failure::Response(response)) => Err(mark(*response).into()),
        Err(Failure::Reset) => Err(Failure::Reset),
    }
}

async fn route(call: &mut Call, request: &Request) -> HandlerResult {
    if request.header("x-forwarded-for").is_some() {
        return Err(response::text(StatusCode::FORBIDDEN, "X-Forwarded-For header is not allowed").into());
    }
    if request.method != Method::GET && request.method != Method::HEAD {
        return Err(response::text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed").into());
    }
    let policy = call.state.policy();
    let path = request.path.strip_prefix(ROOT).unwrap_or_default();
    if matches!(path, "" | "/" | "/instance" | "/instance/") {
        call.apply_faults().await?;
        return Ok(response::text(StatusCode::OK, "computeMetadata/\n"));
    }
    if request.header("metadata-flavor") != Some("Google") {
        return Err(response::text(StatusCode::FORBIDDEN, "Missing Metadata-Flavor:Google header.").into());
    }
    if let Some(rest) = path.strip_prefix("/instance/service-accounts") {
        return service_accounts(call, request, &policy, rest.trim_start_matches('/')).await;
    }
    call.record_account(path);
    call.apply_faults().await?;
    let value = match path {
        "/universe/universe-domain" | "/universe/universe_domain" => policy.universe_domain.clone(),
        "/project/project-id" => policy.project.id.clone(),
        "/project/numeric-project-id" => policy.project.number.to_string(),
        "/instance/name" => policy.metadata_server.instance_name.clone(),
        "/instance/zone" => format!(
            "projects/{}/zones/{}",
            policy.project.number, policy.metadata_server.zone
        ),
        _ => return Err(not_found()),
    };
    Ok(response::body(StatusCode::OK, "application/text", value))
}

async fn service_accounts(call: &mut Call, request: &Request, policy: &Policy, path: &str) -> HandlerResult {
    let attached = policy
        .metadata_server
        .service_account
        .as_deref()
        .and_then(|name| policy.account(name));
    let recursive = request
        .query("recursive")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let (name, what) = path.split_once('/').unwrap_or((path, ""));
    if !name.is_empty() {
        call.record_account(
            attached
                .filter(|_| name == "default")
                .map_or(name, |account| &account.email),
        );
    }
    if let Some(account) = attached {
        call.record_principal(&Principal::service_account(&account.email));
    }
    if what == "identity" {
        call.record_audience(&request.query("audience").unwrap_or_default());
    }
    let overrides = call.apply_faults().await?;

    if let Some(account) = &policy.metadata_server.unannotated_kubernetes_service_account {
        return Err(response::text(
            StatusCode::NOT_FOUND,
            format!(
                "Your Kubernetes service account ({account}) is not annotated with a target Google service account, \
                 which is a requirement for retrieving Identity Tokens using Workload Identity.\nPlease add the \
                 iam.gke.io/gcp-service-account=[GSA_NAME]@[PROJECT_ID] annotation to your Kubernetes service account."
            ),
        )
        .into());
    }
    let Some(account) = attached.filter(|account| !account.disabled) else {
        return Err(response::oauth_error(
            StatusCode::NOT_FOUND,
            "invalid_request",
            "Service account not enabled on this instance",
        )
        .into());
    };
    let scopes = &policy.metadata_server.scopes;
    let description = || json!({"aliases": ["default"], "email": account.email, "scopes": scopes});
    if name.is_empty() {
        return Ok(if recursive {
            response::json(
                StatusCode::OK,
                &json!({"default": description(), &account.email: description()}),
            )
        } else {
            response::body(
                StatusCode::OK,
                "application/text",
                format!("default/\n{}/\n", account.email),
            )
        });
    }
    if name != "default" && !account.is_named(name) {
        return Err(not_found());
    }
    match what {
        "" if recursive => Ok(response::json(StatusCode::OK, &description())),
        "" => Ok(response::body(
            StatusCode::OK,
            "application/text",
            "aliases\nemail\nidentity\nscopes\ntoken\n",
        )),
        "email" => Ok(response::body(
            StatusCode::OK,
            "application/text",
            account.email.clone(),
        )),
        "aliases" => Ok(response::body(StatusCode::OK, "application/text", "default\n")),
        "scopes" => Ok(response::body(
            StatusCode::OK,
            "application/text",
            scopes.join("\n") + "\n",
        )),
        "token" => {
            let scopes = match request.query("scopes").filter(|value| !value.is_empty()) {
                Some(value) => value.split(',').map(|scope| scope.trim().to_owned()).collect(),
                None => scopes.clone(),
            };
            let principal = Principal::service_account(&account.email);
            let (token, lifetime) = call.state.issue_access_token(principal, scopes, overrides)?;
            let answer = json!({"access_token": token, "expires_in": lifetime, "token_type": "Bearer"});
            Ok(response::json(StatusCode::OK, &answer))
        }
        "identity" => identity(call, request, policy, account, overrides),
        _ => Err(not_found()),
    }
}

fn identity(
    call: &Call,
    request: &Request,
    policy: &Policy,
    account: &ServiceAccount,
    overrides: TokenOverrides,
) -> HandlerResult {
    let bad = |message: &str| Failure::from(response::text(StatusCode::BAD_REQUEST, message));
    let audience = request.query("audience").filter(|audience| !audience.is_empty());
    let audience = audience.ok_or_else(|| bad("non-empty audience parameter required"))?;
    let full = match request.query("format").as_deref() {
        None | Some("" | "standard") => false,
        Some("full") => true,
        Some(_) => return Err(bad("format parameter must be one of: standard, full")),
    };
    let licenses = match request.query("licenses").as_deref() {
        None => false,
        Some(value) if value.eq_ignore_ascii_case("true") => true,
        Some(value) if value.eq_ignore_ascii_case("false") => false,
        Some(_) => return Err(bad("licenses parameter must be one of: TRUE, FALSE")),
    };

    let unique_id = account.unique_id();
    let google = full.then(|| {
        let mut engine = json!({
            "instance_creation_timestamp": 1_700_000_000,
            "instance_id": "1234567890123456789",
            "instance_name": policy.metadata_server.instance_name,
            "project_id": policy.project.id,
            "project_number": policy.project.number,
            "zone": policy.metadata_server.zone,
        });
        if licenses {
            engine["license_id"] = json!(["1000204"]);
        }
        json!({ "compute_engine": engine })
    });
    let claims = IdTokenClaims {
        subject: &unique_id,
        audience: &audience,
        authorized_party: &unique_id,
        email: full.then_some(account.email.as_str()),
        google,
    };
    let state = &call.state;
    let mint = || state.mint(&claims, overrides);
    let minted = if overrides == TokenOverrides::default() {
        let key = IdentityTokenKey {
            email: account.email.clone(),
            audience: audience.clone(),
            full,
            licenses: licenses && full,
        };
        let margin = seconds(state.settings().metadata_margin);
        state.identity_tokens.get_or_mint(key, margin, mint)?
    } else {
        mint()?
    };
    Ok(response::body(StatusCode::OK, "text/html", minted.token))
}

fn not_found() -> Failure {
    response::body(
        StatusCode::NOT_FOUND,
        "text/html; charset=UTF-8",
        "<title>Error 404 (Not Found)!!1</title>",
    )
    .into()
}
