//! The token exchange of the Security Token Service (RFC 8693): <https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token>.

use std::fmt;
use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::google::transport::endpoint_client::EndpointClient;
use crate::google::transport::http::with_request_reason;
use crate::google::vocabulary::{CallPriority, Endpoint, Error, IdentityProvider, MAX_MESSAGE_CHARS, Reason};
use crate::text::redacted;

/// The scope of a federated access token. It is enough for `generateIdToken`, and less than `cloud-platform`
/// (<https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateIdToken>).
pub const FEDERATED_SCOPE: &str = "https://www.googleapis.com/auth/iam";

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// The longest lifetime that is accepted; Google's is at most an hour.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// The access token of a federated workload. Wiped on drop; `Debug` shows its lifetime only.
pub struct FederatedToken {
    token: Zeroizing<String>,
    lifetime: Duration,
}

impl FederatedToken {
    /// How long it is valid from its issue.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    pub(crate) fn expose(&self) -> &str {
        &self.token
    }
}

impl fmt::Debug for FederatedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FederatedToken")
            .field("token", &"[redacted]")
            .field("lifetime", &self.lifetime)
            .finish()
    }
}

#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    #[serde(default)]
    token_type: String,
    expires_in: u64,
}

/// Exchanges a Kubernetes token. The request has no Authorization header: the token in the form is the credential.
pub(crate) async fn exchange(
    client: &EndpointClient,
    provider: &IdentityProvider,
    subject_token: &str,
    request_reason: &str,
    priority: CallPriority<'_>,
) -> Result<FederatedToken, Error> {
    let request = || {
        let request = client.http().post(client.url(["v1", "token"])).form(&[
            ("grant_type", TOKEN_EXCHANGE),
            ("audience", provider.name()),
            ("scope", FEDERATED_SCOPE),
            ("requested_token_type", ACCESS_TOKEN),
            ("subject_token", subject_token),
            ("subject_token_type", JWT),
        ]);
        Ok(with_request_reason(request, request_reason))
    };
    let response = client
        .call_with(priority, request, |endpoint, response| {
            rejection(response.status, &response.body).unwrap_or_else(|| response.error(endpoint))
        })
        .await?;
    let unexpected = |what: &str| {
        let message = format!("the Security Token Service answered {what}");
        Error::new(Endpoint::Sts, Reason::UnexpectedResponse, &message).with_status(response.status.as_u16())
    };
    // The parser's message could quote the response.
    let token: TokenResponse =
        serde_json::from_slice(&response.body).map_err(|_| unexpected("without an access token"))?;
    if !token.token_type.eq_ignore_ascii_case("bearer") || token.access_token.is_empty() {
        return Err(unexpected("with something other than a bearer token"));
    }
    Ok(FederatedToken {
        token: Zeroizing::new(token.access_token),
        lifetime: Duration::from_secs(token.expires_in).min(MAX_LIFETIME),
    })
}

/// The error body of the Security Token Service (RFC 6749, 5.2).
#[derive(Deserialize)]
struct ErrorBody {
    error: String,
    #[serde(default)]
    error_description: String,
}

/// The error of a 400; none if the body is not an error body.
pub(crate) fn rejection(status: StatusCode, body: &[u8]) -> Option<Error> {
    if status.as_u16() != 400 {
        return None;
    }
    let error: ErrorBody = serde_json::from_slice(body).ok()?;
    let reason = reason(&error.error, &error.error_description);
    let message = format!(
        "the Security Token Service answered 400: {}: {}",
        redacted(&error.error, 64),
        redacted(&error.error_description, MAX_MESSAGE_CHARS)
    );
    Some(Error::new(Endpoint::Sts, reason, &message).with_status(400))
}

/// Google distinguishes rejections only by their descriptions: they share three codes.
fn reason(error: &str, description: &str) -> Reason {
    let says = |words: &str| description.contains(words);
    match error {
        "invalid_target" => Reason::ProviderNotFound,
        "unauthorized_client" if says("attribute condition") => Reason::AttributeConditionRejected,
        "invalid_grant" if says("audience in ID Token") => Reason::SubjectTokenWrongAudience,
        "invalid_grant" if says("issuer in ID Token") => Reason::SubjectTokenWrongIssuer,
        "invalid_grant" if says("stale to sign-in") => Reason::SubjectTokenStale,
        "invalid_grant" if says("verify the ID Token signature") => Reason::SubjectTokenUnverified,
        "invalid_grant" if says("connecting to the given credential's issuer") => Reason::IssuerUnreachable,
        "invalid_grant" if says("google.subject exceeds") => Reason::SubjectTooLong,
        "invalid_request" => Reason::InvalidArgument,
        _ => Reason::ExchangeRefused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::google::vocabulary::ErrorClass;

    fn rejected(error: &str, description: &str) -> Error {
        let body = serde_json::json!({"error": error, "error_description": description}).to_string();
        rejection(StatusCode::BAD_REQUEST, body.as_bytes()).expect("a rejection")
    }

    #[test]
    fn each_rejection_has_its_reason() {
        for (error, description, reason) in [
            (
                "invalid_request",
                "Invalid value for \"audience\". This value should be the full resource name of the Identity Provider.",
                "InvalidArgument",
            ),
            (
                "invalid_target",
                "The target service indicated by the \"audience\" parameters is invalid.",
                "ProviderNotFound",
            ),
            (
                "invalid_grant",
                "The audience in ID Token [X] does not match the expected audience.",
                "SubjectTokenWrongAudience",
            ),
            (
                "invalid_grant",
                "The issuer in ID Token X does not match the expected one in config: Y",
                "SubjectTokenWrongIssuer",
            ),
            (
                "invalid_grant",
                "ID Token issued at 1 is stale to sign-in.",
                "SubjectTokenStale",
            ),
            (
                "invalid_grant",
                "Unable to verify the ID Token signature.",
                "SubjectTokenUnverified",
            ),
            (
                "invalid_grant",
                "Error connecting to the given credential's issuer.",
                "IssuerUnreachable",
            ),
            (
                "invalid_grant",
                "The size of mapped attribute google.subject exceeds the 127 bytes limit.",
                "SubjectTooLong",
            ),
            ("invalid_grant", "Something new.", "ExchangeRefused"),
            (
                "unauthorized_client",
                "The given credential is rejected by the attribute condition.",
                "AttributeConditionRejected",
            ),
            (
                "unauthorized_client",
                "The mapped attribute 'google.subject' must be of type STRING.",
                "ExchangeRefused",
            ),
            ("invalid_scope", "", "ExchangeRefused"),
        ] {
            let found = rejected(error, description);
            assert_eq!(found.reason().as_str(), reason, "{description}");
            assert_eq!((found.status(), found.class()), (Some(400), ErrorClass::Rejected));
            assert!(found.to_string().contains(description), "{found}");
        }
    }

    #[test]
    fn a_quoted_token_stays_out() {
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2lnbmF0dXJl";
        for error in [
            rejected("invalid_grant", token),
            rejected(token, "ya29.abcdefghijklmnop"),
        ] {
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("eyJ") && !shown.contains("ya29"), "{shown}");
        }
    }

    #[test]
    fn other_bodies_are_no_rejections() {
        assert!(rejection(StatusCode::SERVICE_UNAVAILABLE, br#"{"error":"x"}"#).is_none());
        for body in [&b""[..], b"<html>", b"{}", br#"{"error":{"code":400}}"#] {
            assert!(rejection(StatusCode::BAD_REQUEST, body).is_none());
        }
    }
}
