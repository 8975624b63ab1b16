//! `generateIdToken` of the IAM Service Account Credentials API:
//! <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateIdToken>.

use reqwest::RequestBuilder;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::google::transport::endpoint_client::EndpointClient;
use crate::google::transport::http::{with_bearer, with_quota_project, with_request_reason};
use crate::google::transport::limiter::EndpointLoad;
use crate::google::vocabulary::{CallPriority, Endpoint, Error, QuotaProject, Reason};
use crate::text::printable;
use crate::token::IdToken;

/// A request for an ID token of an impersonated service account.
#[derive(Clone, Copy, Debug)]
pub struct Impersonation<'a> {
    /// The account, by e-mail or numeric unique id.
    pub service_account: &'a str,
    /// The audience of the token.
    pub audience: &'a str,
    /// Whether to include the claims `email` and `email_verified`.
    pub include_email: bool,
    /// Whether to include the claim `google.organization_number`.
    pub include_organization_number: bool,
    /// The chain of accounts between the caller and `service_account`, by e-mail or unique id.
    pub delegates: &'a [String],
    /// What the call is made for, `namespace/name`; Google's audit log shows it.
    pub request_reason: &'a str,
    /// Flow and urgency of the call.
    pub priority: CallPriority<'a>,
}

/// The endpoint.
#[derive(Debug)]
pub(crate) struct IamCredentials {
    client: EndpointClient,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    audience: &'a str,
    include_email: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    organization_number_included: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    delegates: Vec<String>,
}

#[derive(Deserialize)]
struct TokenResponse {
    token: String,
}

impl IamCredentials {
    pub(crate) fn new(client: EndpointClient) -> Self {
        Self { client }
    }

    /// How many callers are of use at the moment.
    pub(crate) fn useful_callers(&self) -> usize {
        self.client.useful_callers()
    }

    /// How many calls too many started at once.
    pub(crate) fn surge(&self) -> usize {
        self.client.surge()
    }

    /// Whether another call of this flow would only wait for its turn.
    pub(crate) fn is_congested(&self, flow: &str) -> bool {
        self.client.is_congested(flow)
    }

    pub(crate) fn load(&self) -> EndpointLoad {
        self.client.load()
    }

    pub(crate) fn client_mut(&mut self) -> &mut EndpointClient {
        &mut self.client
    }

    /// Gets an ID token with the access token `bearer`, and counts the call for `quota_project`. The ID token is parsed, and not yet compared with the request.
    pub(crate) async fn generate_id_token(
        &self,
        bearer: &str,
        quota_project: Option<&QuotaProject>,
        impersonation: &Impersonation<'_>,
    ) -> Result<IdToken, Error> {
        for name in std::iter::once(impersonation.service_account)
            .chain(impersonation.delegates.iter().map(String::as_str))
        {
            check_name(name)?;
        }
        let request = || self.request(bearer, quota_project, impersonation);
        let response = self.client.call(impersonation.priority, request).await?;
        let status = response.status.as_u16();
        // The parser's message could quote the response.
        let TokenResponse { token } = serde_json::from_slice(&response.body).map_err(|_| {
            let message = "the IAM Service Account Credentials API answered without a token";
            Error::new(Endpoint::IamCredentials, Reason::UnexpectedResponse, message).with_status(status)
        })?;
        IdToken::parse(Zeroizing::new(token))
            .map_err(|error| Error::from_token(Endpoint::IamCredentials, &error).with_status(status))
    }

    fn request(
        &self,
        bearer: &str,
        quota_project: Option<&QuotaProject>,
        impersonation: &Impersonation<'_>,
    ) -> Result<RequestBuilder, Error> {
        let resource = format!("{}:generateIdToken", impersonation.service_account);
        let url = self
            .client
            .url(["v1", "projects", "-", "serviceAccounts", &resource]);
        let request = self.client.http().post(url).json(&Request {
            audience: impersonation.audience,
            include_email: impersonation.include_email,
            organization_number_included: impersonation.include_organization_number,
            delegates: impersonation
                .delegates
                .iter()
                .map(|name| format!("projects/-/serviceAccounts/{name}"))
                .collect(),
        });
        let request = with_bearer(request, bearer).ok_or_else(|| {
            let message = "the access token contains characters that no header can";
            Error::new(Endpoint::IamCredentials, Reason::CredentialsUnavailable, message)
        })?;
        let request = with_quota_project(request, quota_project);
        Ok(with_request_reason(request, impersonation.request_reason))
    }
}

/// In `delegates`, a name with a slash would be another resource, because no encoding keeps it one segment.
fn check_name(name: &str) -> Result<(), Error> {
    let is_name =
        !name.is_empty() && name.len() <= 320 && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if is_name {
        return Ok(());
    }
    let message = format!(
        "{:?} is not the e-mail or unique id of a service account",
        printable(name, 128)
    );
    Err(Error::new(
        Endpoint::IamCredentials,
        Reason::InvalidArgument,
        &message,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_what_google_documents() {
        let body = |delegates: &[&str], organization_number_included| {
            serde_json::to_string(&Request {
                audience: "https://a",
                include_email: true,
                organization_number_included,
                delegates: delegates.iter().map(|name| (*name).to_owned()).collect(),
            })
            .expect("serializes")
        };
        assert_eq!(
            body(&[], false),
            r#"{"audience":"https://a","includeEmail":true}"#
        );
        assert_eq!(
            body(&["x"], true),
            r#"{"audience":"https://a","includeEmail":true,"organizationNumberIncluded":true,"delegates":["x"]}"#
        );
    }

    #[test]
    fn names_are_checked() {
        for good in ["a@p.iam.gserviceaccount.com", "123", "a:b@c"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "a b", "a\n", "é", &"x".repeat(400)] {
            assert_eq!(
                check_name(bad).map_err(|error| error.reason().as_str()),
                Err("InvalidArgument"),
                "{bad}"
            );
        }
    }
}
