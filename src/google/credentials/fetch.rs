//! Fetches the operator's access token, with credentials of each type.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Client;
use serde::{Deserialize, Serialize};
use url::Url;
use zeroize::Zeroizing;

use super::certificate::ClientCertificate;
use super::external_account::ExternalAccount;
use super::file::{Credential, ImpersonatedAccount};
use super::source::unavailable;
use crate::google::endpoints::oauth2;
use crate::google::remediation::quota_project;
use crate::google::transport::endpoint_client::{EndpointClient, Observer};
use crate::google::transport::http::{Http, with_bearer, with_quota_project};
use crate::google::vocabulary::{
    AccessToken, CallPriority, ConfigError, Endpoint, Error, ErrorClass, GoogleConfig, Reason, SCOPE,
};

/// Fetches access tokens. All its calls share one limiter, whichever host they go to.
pub(crate) struct TokenFetcher {
    client: EndpointClient,
}

#[derive(Deserialize)]
struct ExchangeResponse {
    access_token: String,
    expires_in: u64,
}

#[derive(Serialize)]
struct GenerateRequest<'a> {
    scope: [&'a str; 1],
    lifetime: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    delegates: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GenerateResponse {
    access_token: String,
    expire_time: Timestamp,
}

impl TokenFetcher {
    pub(crate) fn new(config: &GoogleConfig, http: Http) -> Result<Self, ConfigError> {
        let base = config.endpoint("oauth2", None)?;
        Ok(Self {
            client: EndpointClient::new(Endpoint::Credentials, base, http, config),
        })
    }

    pub(crate) fn client(&self) -> &EndpointClient {
        &self.client
    }

    pub(crate) fn set_observer(&mut self, observer: Observer) {
        self.client.set_observer(observer);
    }

    /// An access token with the scope `cloud-platform`.
    pub(crate) async fn fetch(&self, credential: &Credential) -> Result<AccessToken, Error> {
        match credential {
            Credential::Impersonated(account) => {
                let source = self.fetch_direct(&account.source).await?;
                self.impersonate(account, &source).await
            }
            credential => self.fetch_direct(credential).await,
        }
    }

    /// The access token of credentials that impersonate no service account.
    async fn fetch_direct(&self, credential: &Credential) -> Result<AccessToken, Error> {
        match credential {
            Credential::ServiceAccount(key) => key.access_token(self.client.clock()).ok_or_else(|| {
                let message = "the key of the service account cannot sign";
                Error::new(Endpoint::Credentials, Reason::CredentialsUnavailable, message)
            }),
            Credential::AuthorizedUser(user) => oauth2::refresh(&self.client, CallPriority::OPERATOR, user)
                .await
                .map(|refreshed| refreshed.access_token)
                .map_err(for_user),
            Credential::WorkforceUser(user) => oauth2::refresh(&self.client, CallPriority::OPERATOR, user)
                .await
                .map(|refreshed| refreshed.access_token)
                .map_err(for_workforce_user),
            Credential::ExternalAccount(account) => self.exchange(account).await,
            Credential::Impersonated(_) => {
                let message = "credentials that impersonate twice";
                Err(Error::new(
                    Endpoint::Credentials,
                    Reason::CredentialsUnavailable,
                    message,
                ))
            }
        }
    }

    /// The token exchange of RFC 8693: <https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token>.
    async fn exchange(&self, account: &ExternalAccount) -> Result<AccessToken, Error> {
        let certificate = account.certificate(self.client.clock().now()).await?;
        let http = self.http(certificate.as_ref(), &account.token_url)?;
        let subject_token = match certificate {
            Some(certificate) => certificate.subject_token.into(),
            None => account.subject_token(&self.client).await?,
        };
        let mut form = vec![
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", &account.audience),
            ("scope", SCOPE),
            (
                "requested_token_type",
                "urn:ietf:params:oauth:token-type:access_token",
            ),
            ("subject_token_type", &account.subject_token_type),
            ("subject_token", &subject_token),
        ];
        let options = account
            .user_project
            .as_ref()
            .map(|project| serde_json::json!({"userProject": project}).to_string());
        form.extend(options.as_deref().map(|options| ("options", options)));
        let request = http.post(account.token_url.clone()).form(&form);
        let response = oauth2::call(&self.client, CallPriority::OPERATOR, request).await?;
        let ExchangeResponse {
            access_token,
            expires_in,
        } = oauth2::parse(&response)?;
        Ok(AccessToken::new(
            access_token,
            Duration::from_secs(expires_in),
            self.client.clock().boot(),
        ))
    }

    /// The HTTP client for a URL, which shows the certificate, if there is one, to a server that asks for it.
    fn http(&self, certificate: Option<&ClientCertificate>, url: &Url) -> Result<Client, Error> {
        let Some(certificate) = certificate else {
            return Ok(self.client.http_for(url));
        };
        let client = self.client.http_as(Arc::clone(&certificate.key), url);
        client.map_err(|error| unavailable(&format!("mutual TLS cannot be set up: {error}")))
    }

    /// `generateAccessToken`:
    /// <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken>.
    async fn impersonate(
        &self,
        account: &ImpersonatedAccount,
        source: &AccessToken,
    ) -> Result<AccessToken, Error> {
        let certificate = match account.source.external_account() {
            Some(account) => account.certificate(self.client.clock().now()).await?,
            None => None,
        };
        let http = self.http(certificate.as_ref(), &account.url)?;
        let request = http.post(account.url.clone()).json(&GenerateRequest {
            scope: [SCOPE],
            lifetime: format!("{}s", account.lifetime.as_secs()),
            delegates: account.delegates.iter().map(|name| resource(name)).collect(),
        });
        let request = with_bearer(request, &source.secret).ok_or_else(|| {
            let message = "the access token contains characters that no header can";
            Error::new(Endpoint::Credentials, Reason::UnexpectedResponse, message)
        })?;
        let request = with_quota_project(request, account.source_quota_project.as_ref());
        let response = self.client.call(CallPriority::OPERATOR, || Ok(request)).await;
        let response = response.map_err(|error| match quota_project::remediation(&error, None) {
            Some(advice) => error.with_remediation(advice),
            None => error,
        })?;
        let GenerateResponse {
            access_token,
            expire_time,
        } = oauth2::parse(&response)?;
        let now = self.client.clock().now();
        let lifetime = Duration::try_from(expire_time.duration_since(now)).unwrap_or_default();
        Ok(AccessToken::new(
            Zeroizing::new(access_token),
            lifetime,
            self.client.clock().boot(),
        ))
    }
}

/// Files name delegates by resource name, which ends with the account.
fn resource(name: &str) -> String {
    let account = name.rsplit('/').next().unwrap_or(name);
    format!("projects/-/serviceAccounts/{account}")
}

/// Adds what to do about the most common failure of a user's credentials: Google no longer knows the refresh token.
pub(crate) fn for_user(error: Error) -> Error {
    match error.class() {
        ErrorClass::Rejected if error.remediation().is_none() => {
            error.with_remediation("If the user's credentials were revoked or have expired, recreate them: gcloud auth application-default login")
        }
        _ => error,
    }
}

/// As [`for_user`]: the session of a workforce pool's user ends after its pool's duration, and the refresh token with it.
fn for_workforce_user(error: Error) -> Error {
    match error.class() {
        ErrorClass::Rejected if error.remediation().is_none() => error.with_remediation(
            "If the user's session has ended, log in again: gcloud auth application-default login --login-config=FILE. A session of \
             a workforce pool lasts 12 hours at most; give a workload an identity of its own.",
        ),
        _ => error,
    }
}
