//! The OAuth 2.0 token endpoint: the jwt-bearer grant of service accounts and the refresh grant of users. And the refresh grant of a
//! workforce pool's users, which the Security Token Service has.

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::call::Call;
use crate::clock::now;
use crate::issue::{IdTokenClaims, TokenOverrides};
use crate::jwt::Jwt;
use crate::policy::RefreshToken;
use crate::response::{self, Failure, HandlerResult, Request};
use crate::service_account::ServiceAccount;
use crate::tokens::{CLOUD_PLATFORM, Principal};

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// How far the signer's clock may be ahead, in seconds.
const MAX_CLOCK_SKEW: i64 = 300;

/// Handles `/token`.
pub(crate) async fn handle(call: &mut Call, request: &Request) -> HandlerResult {
    let fields: BTreeMap<String, String> = if request.is_json() {
        // google-cloud-auth sends `"scopes": null` with a refresh.
        let fields: BTreeMap<String, Option<String>> =
            serde_json::from_slice(&request.body).unwrap_or_default();
        fields
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    } else {
        url::form_urlencoded::parse(&request.body).into_owned().collect()
    };
    let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let assertion = Jwt::parse(field("assertion"));
    let account = assertion
        .as_ref()
        .and_then(|jwt| jwt.text("iss"))
        .unwrap_or(field("client_id"));
    call.record_account(account);
    if let Some(audience) = assertion.as_ref().and_then(|jwt| jwt.text("target_audience")) {
        call.record_audience(audience);
    }
    let overrides = call.apply_faults().await?;
    if request.method != Method::POST {
        return Err(response::not_found().into());
    }
    match field("grant_type") {
        JWT_BEARER => match assertion {
            Some(jwt) => service_account(call, &jwt, overrides),
            None => Err(oauth_error(
                "invalid_grant",
                "Invalid JWT: Failed to parse the assertion.",
            )),
        },
        "refresh_token" => user(
            call,
            field("client_id"),
            field("client_secret"),
            field("refresh_token"),
            field("scope"),
            overrides,
        ),
        other => Err(oauth_error(
            "unsupported_grant_type",
            format!("Invalid grant_type: {other}"),
        )),
    }
}

fn service_account(call: &Call, jwt: &Jwt, overrides: TokenOverrides) -> HandlerResult {
    let policy = call.state.policy();
    let account = jwt.text("iss").and_then(|name| policy.account(name));
    let account = account.ok_or_else(|| oauth_error("invalid_grant", "Invalid grant: account not found"))?;
    check_assertion(call, jwt, account, &policy.universe_domain)?;
    call.record_principal(&Principal::service_account(&account.email));
    let audience = jwt
        .text("target_audience")
        .filter(|audience| !audience.is_empty());
    let scope = jwt.text("scope").filter(|scope| !scope.trim().is_empty());
    match (audience, scope) {
        (Some(audience), None) => {
            let unique_id = account.unique_id();
            let claims = IdTokenClaims {
                subject: &unique_id,
                audience,
                authorized_party: &account.email,
                email: Some(&account.email),
                google: None,
            };
            let minted = call.state.mint(&claims, overrides)?;
            Ok(response::json(StatusCode::OK, &json!({"id_token": minted.token})))
        }
        (None, Some(scope)) => {
            let scopes = scope.split_whitespace().map(str::to_owned).collect();
            let principal = Principal::service_account(&account.email);
            let (token, lifetime) = call.state.issue_access_token(principal, scopes, overrides)?;
            let answer = json!({"access_token": token, "expires_in": lifetime, "token_type": "Bearer"});
            Ok(response::json(StatusCode::OK, &answer))
        }
        _ => Err(oauth_error(
            "invalid_scope",
            "Invalid OAuth scope or ID token audience provided.",
        )),
    }
}

fn check_assertion(call: &Call, jwt: &Jwt, account: &ServiceAccount, universe: &str) -> Result<(), Failure> {
    if account.disabled {
        return Err(oauth_error("invalid_grant", "Robot is disabled."));
    }
    if !jwt.verified_by(&call.state.account_keys(account)) {
        return Err(oauth_error("invalid_grant", "Invalid JWT Signature."));
    }
    let accepted = [
        format!("https://oauth2.{universe}/token"),
        format!("https://www.{universe}/oauth2/v4/token"),
        "https://accounts.google.com/o/oauth2/token".to_owned(),
        format!("{}/token", call.state.url),
    ];
    if !jwt
        .audiences()
        .iter()
        .any(|audience| accepted.iter().any(|accepted| accepted == audience))
    {
        return Err(oauth_error(
            "invalid_grant",
            "Invalid JWT: Failed audience check.",
        ));
    }
    let is_current = match (jwt.time("iat"), jwt.time("exp")) {
        (Some(issued), Some(expires)) => {
            expires > now()
                && issued <= now() + MAX_CLOCK_SKEW
                && expires > issued
                && expires - issued <= 3600
        }
        _ => false,
    };
    if !is_current {
        return Err(oauth_error(
            "invalid_grant",
            "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat \
             and exp values in the JWT claim.",
        ));
    }
    Ok(())
}

fn user(
    call: &Call,
    client_id: &str,
    client_secret: &str,
    refresh_token: &str,
    scope: &str,
    overrides: TokenOverrides,
) -> HandlerResult {
    let known = refresh_token_of(call, client_id, client_secret, refresh_token)?;
    if is_workforce(&known) {
        return Err(oauth_error("invalid_grant", "Bad Request"));
    }
    let principal = Principal::user(&known.user);
    call.record_principal(&principal);

    let scope = if scope.trim().is_empty() {
        "openid https://www.googleapis.com/auth/userinfo.email https://www.googleapis.com/auth/cloud-platform"
    } else {
        scope
    };
    let scopes: Vec<String> = scope.split_whitespace().map(str::to_owned).collect();
    let (token, lifetime) = call.state.issue_access_token(principal, scopes, overrides)?;
    let unique_id = ServiceAccount::new(&known.user).unique_id();
    let claims = IdTokenClaims {
        subject: &unique_id,
        audience: client_id,
        authorized_party: client_id,
        email: Some(&known.user),
        google: None,
    };
    let minted = call.state.mint(&claims, overrides)?;
    Ok(response::json(
        StatusCode::OK,
        &json!({
            "access_token": token,
            "expires_in": lifetime,
            "scope": scope,
            "token_type": "Bearer",
            "id_token": minted.token,
        }),
    ))
}

/// The refresh token of a client that has shown its secret.
fn refresh_token_of(
    call: &Call,
    client_id: &str,
    client_secret: &str,
    refresh_token: &str,
) -> Result<RefreshToken, Failure> {
    let unauthorized = |description: &str| {
        Failure::from(response::oauth_error(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            description,
        ))
    };
    let policy = call.state.policy();
    let client = policy
        .oauth_clients
        .iter()
        .find(|client| client.client_id == client_id);
    let client = client.ok_or_else(|| unauthorized("The OAuth client was not found."))?;
    if client.client_secret.0 != client_secret {
        return Err(unauthorized("The provided client secret is invalid."));
    }
    let known = client
        .refresh_tokens
        .iter()
        .find(|known| known.token.0 == refresh_token && !known.revoked);
    known
        .cloned()
        .ok_or_else(|| oauth_error("invalid_grant", "Token has been expired or revoked."))
}

fn is_workforce(token: &RefreshToken) -> bool {
    token.user.starts_with("principal://")
}

/// Handles `/v1/oauthtoken`. The client shows its secret in the header `Authorization`.
pub(crate) async fn workforce(call: &mut Call, request: &Request) -> HandlerResult {
    let fields: BTreeMap<String, String> = url::form_urlencoded::parse(&request.body).into_owned().collect();
    let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let basic = request
        .header("authorization")
        .and_then(|header| header.strip_prefix("Basic "))
        .and_then(|basic| String::from_utf8(STANDARD.decode(basic).ok()?).ok());
    let (client_id, client_secret) = basic
        .as_deref()
        .and_then(|basic| basic.split_once(':'))
        .unwrap_or_default();
    call.record_account(client_id);
    let overrides = call.apply_faults().await?;
    if request.method != Method::POST {
        return Err(response::not_found().into());
    }
    if field("grant_type") != "refresh_token" {
        let description = format!("Invalid grant_type: {}", field("grant_type"));
        return Err(oauth_error("unsupported_grant_type", description));
    }
    let known = refresh_token_of(call, client_id, client_secret, field("refresh_token"))?;
    if !is_workforce(&known) {
        return Err(oauth_error(
            "invalid_grant",
            "The refresh token is not of a workforce pool.",
        ));
    }
    let pool = known.user.split("/subject/").next().unwrap_or_default();
    let principal = Principal {
        sets: vec![format!(
            "principalSet:{}/*",
            pool.trim_start_matches("principal:")
        )],
        name: known.user.clone(),
    };
    call.record_principal(&principal);
    let scopes = vec![CLOUD_PLATFORM.to_owned()];
    let (token, lifetime) = call.state.issue_access_token(principal, scopes, overrides)?;
    let answer = json!({"access_token": token, "expires_in": lifetime, "token_type": "Bearer"});
    Ok(response::json(StatusCode::OK, &answer))
}

fn oauth_error(error: &str, description: impl Into<String>) -> Failure {
    response::oauth_error(StatusCode::BAD_REQUEST, error, description).into()
}
