//! The metadata server of Compute Engine, Cloud Run and GKE. It issues tokens of the attached Google service account:
//! <https://cloud.google.com/compute/docs/instances/verifying-instance-identity>.
//!
//! It speaks plain http without authentication: its responses must have `Metadata-Flavor: Google`, and calls never go through a proxy.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::HeaderName;
use serde::Deserialize;
use tokio::time::timeout;
use url::Url;
use zeroize::Zeroizing;

use crate::google::remediation::metadata_server as remediation;
use crate::google::transport::endpoint_client::{EndpointClient, Observer};
use crate::google::transport::error_body::OauthError;
use crate::google::transport::http::Http;
use crate::google::transport::limiter::EndpointLoad;
use crate::google::transport::response::Response;
use crate::google::vocabulary::{
    AccessToken, CallPriority, ConfigError, DEFAULT_UNIVERSE, Endpoint, Error, ErrorClass, GoogleConfig,
    Principal, Reason, SCOPE,
};
use crate::text;
use crate::token::IdToken;

/// The header that each request must have, and each response has.
const FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");

/// The longest text of the server's that is shown, in characters.
const MAX_SHOWN_CHARS: usize = 400;

/// The address that Google's own clients use. Its name, `metadata.google.internal`, is not asked for: in a pod such a name goes through the
/// search domains of the cluster first, where another namespace can have a Service that answers to it.
const ADDRESS: &str = "169.254.169.254";

/// How long the answer about the universe is waited for where the default one is expected. A token waits for it.
const UNIVERSE_PATIENCE: Duration = Duration::from_secs(2);

const ACCOUNT: &str = "computeMetadata/v1/instance/service-accounts/default";

/// A request for an ID token of the identity that is attached to the operator's pod, node or instance.
#[derive(Clone, Copy, Debug)]
pub struct AttachedIdentity<'a> {
    /// The expected account, by e-mail or unique id; absent means any.
    pub service_account: Option<&'a str>,
    /// The audience of the token.
    pub audience: &'a str,
    /// Whether to include `email` and `google.compute_engine`: the format `full`.
    pub include_email: bool,
    /// Whether to include the licenses of the instance's image in `google.compute_engine`.
    pub licenses: bool,
    /// Flow and urgency of the call.
    pub priority: CallPriority<'a>,
}

/// The metadata server.
pub(crate) struct MetadataServer {
    client: EndpointClient,
    http: Http,
    base: Url,
    universe: String,
    universe_known: AtomicBool,
    universe_unknown: Once,
}

#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    expires_in: u64,
}

impl MetadataServer {
    /// Finds its address like Google's own clients; makes no call.
    pub(crate) fn new(config: &GoogleConfig, http: Http) -> Result<Self, ConfigError> {
        let variable = std::env::var("GCE_METADATA_HOST")
            .ok()
            .filter(|host| !host.is_empty());
        let host = variable.as_deref().or(config.metadata_host.as_deref());
        let base = base(host.unwrap_or(ADDRESS))?;
        Ok(Self {
            client: EndpointClient::new(Endpoint::Metadata, base.clone(), http.clone(), config),
            http,
            base,
            universe: config.universe_domain.clone(),
            universe_known: AtomicBool::new(false),
            universe_unknown: Once::new(),
        })
    }

    pub(crate) fn set_observer(&mut self, observer: Observer) {
        self.client.set_observer(observer);
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

    /// An ID token. The server may return the same one until about five minutes before it expires.
    pub(crate) async fn identity(&self, identity: &AttachedIdentity<'_>) -> Result<IdToken, Error> {
        let mut url = self.url(&format!("{ACCOUNT}/identity"));
        url.query_pairs_mut()
            .append_pair("audience", identity.audience)
            .append_pair(
                "format",
                if identity.include_email {
                    "full"
                } else {
                    "standard"
                },
            );
        if identity.licenses {
            url.query_pairs_mut().append_pair("licenses", "TRUE");
        }
        let response = self
            .get_for(identity.priority, url)
            .await
            .map_err(|error| remediation::for_attached_identity(error, identity.service_account))?;
        let status = response.status.as_u16();
        let body = std::str::from_utf8(&response.body).unwrap_or_default().trim();
        IdToken::parse(Zeroizing::new(body.to_owned()))
            .map_err(|error| Error::from_token(Endpoint::Metadata, &error).with_status(status))
    }

    /// The attached identity; `None` if there is none, or the server does not say.
    pub(crate) async fn principal(&self) -> Result<Option<Principal>, Error> {
        let response = match self.get(self.url(&format!("{ACCOUNT}/email"))).await {
            Ok(response) => response,
            Err(error) if error.status() == Some(404) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(std::str::from_utf8(&response.body)
            .ok()
            .and_then(Principal::from_metadata))
    }

    /// An access token with the scope `cloud-platform`.
    pub(crate) async fn access_token(&self) -> Result<AccessToken, Error> {
        self.check_universe().await?;
        let mut url = self.url(&format!("{ACCOUNT}/token"));
        url.query_pairs_mut().append_pair("scopes", SCOPE);
        let response = self.get(url).await?;
        let TokenResponse {
            access_token,
            expires_in,
        } = serde_json::from_slice(&response.body).map_err(|_| {
            let message = "the metadata server answered without an access token";
            Error::new(Endpoint::Metadata, Reason::UnexpectedResponse, message)
        })?;
        Ok(AccessToken::new(
            access_token,
            Duration::from_secs(expires_in),
            self.client.clock().boot(),
        ))
    }

    /// Checks that the server is in the configured universe. A server that does not know the path is in the public one. One that does not
    /// answer does not contradict the public one, and is asked again with the next token.
    async fn check_universe(&self) -> Result<(), Error> {
        if self.universe_known.load(Ordering::Relaxed) {
            return Ok(());
        }
        let call = self.get(self.url("computeMetadata/v1/universe/universe-domain"));
        let answer = match self.universe == DEFAULT_UNIVERSE {
            true => timeout(UNIVERSE_PATIENCE, call).await.unwrap_or_else(|_| {
                let message = "it does not answer";
                Err(Error::new(Endpoint::Metadata, Reason::UpstreamTimeout, message))
            }),
            false => call.await,
        };
        let response = match answer {
            Ok(response) => Some(response),
            Err(error) if error.status() == Some(404) => None,
            Err(error) if self.universe == DEFAULT_UNIVERSE && is_unknown(&error) => {
                self.universe_unknown.call_once(|| {
                    tracing::warn!(%error, "the metadata server does not say its universe; {DEFAULT_UNIVERSE} is assumed");
                });
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let universe = response
            .as_ref()
            .map(|response| String::from_utf8_lossy(&response.body));
        let universe = universe.as_deref().map(str::trim);
        let universe = universe
            .filter(|name| !name.is_empty())
            .unwrap_or(DEFAULT_UNIVERSE);
        if universe == self.universe {
            self.universe_known.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let message = format!(
            "the metadata server is in the universe {}, but the operator is set to {}",
            text::redacted(universe, 128),
            self.universe
        );
        let error = Error::new(Endpoint::Metadata, Reason::CredentialsUnavailable, &message);
        Err(error
            .with_remediation("Set the flag --universe-domain to the universe that the operator runs in."))
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url
    }

    async fn get(&self, url: Url) -> Result<Response, Error> {
        self.get_for(CallPriority::OPERATOR, url).await
    }

    async fn get_for(&self, priority: CallPriority<'_>, url: Url) -> Result<Response, Error> {
        let request = || Ok(self.http.direct().get(url).header(FLAVOR, "Google"));
        let response = self
            .client
            .call_with(priority, request, |_, response| rejection(&response))
            .await
            .map_err(remediation::for_metadata_server)?;
        if is_metadata_server(&response) {
            return Ok(response);
        }
        let message =
            "the server at the metadata server's address is not one: it sends no Metadata-Flavor header";
        Err(
            Error::new(Endpoint::Metadata, Reason::UnexpectedResponse, message)
                .with_status(response.status.as_u16()),
        )
    }
}

/// Whether a call for the universe failed without an answer to it. A call that was not made says nothing, and a server without
/// `Metadata-Flavor` is another one.
fn is_unknown(error: &Error) -> bool {
    !matches!(error.reason(), Reason::NotLeading | Reason::LocallyLimited) && error.status() != Some(200)
}

fn base(host: &str) -> Result<Url, ConfigError> {
    let wrong = || ConfigError::NotBase {
        setting: "metadata server (GCE_METADATA_HOST)",
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(is_host) {
        return Err(wrong());
    }
    Url::parse(&format!("http://{host}/")).map_err(|_| wrong())
}

fn is_metadata_server(response: &Response) -> bool {
    response
        .headers
        .get(FLAVOR)
        .is_some_and(|flavor| flavor == "Google")
}

/// The server's errors are usually plain text that says what is missing.
fn rejection(response: &Response) -> Error {
    let body = String::from_utf8_lossy(&response.body);
    let message = match OauthError::parse(&response.body) {
        _ if !is_metadata_server(response) => "not a metadata server's message".to_owned(),
        Some(error) => error.to_string(),
        None if body.trim().is_empty() || body.trim_start().starts_with('<') => "no message".to_owned(),
        None => text::redacted(body.trim(), MAX_SHOWN_CHARS),
    };
    let error = response.error_from_text(Endpoint::Metadata, &message);
    // GKE's server passes on the error that it got from IAM.
    if body.contains("IAM returned 403") || body.contains("iam.serviceAccounts.") {
        return error
            .with_reason(Reason::PermissionDenied)
            .with_class(ErrorClass::Rejected);
    }
    match response.status.as_u16() {
        404 => error.with_reason(Reason::IdentityNotAttached),
        _ => error,
    }
}

/// The error of a metadata server's response, for the tests of all parsers.
#[cfg(test)]
pub(crate) fn error_of(body: &[u8]) -> Error {
    rejection(&tests::response(500, body))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    pub(super) fn response(status: u16, body: impl AsRef<[u8]>) -> Response {
        let mut response = Response::of(status, body);
        response
            .headers
            .insert(FLAVOR, HeaderValue::from_static("Google"));
        response
    }

    #[test]
    fn the_metadata_server_is_reached_by_its_address() {
        let of = |host: Option<&str>| {
            let config = GoogleConfig {
                metadata_host: host.map(str::to_owned),
                ..GoogleConfig::default()
            };
            let http = Http::new(&config).expect("a client");
            MetadataServer::new(&config, http).expect("a host").base
        };
        // No name that a search domain could be added to.
        assert_eq!(of(None).as_str(), "http://169.254.169.254/");
        assert!(matches!(of(None).host(), Some(url::Host::Ipv4(_))));
        assert_eq!(
            of(Some("metadata.example:8080")).as_str(),
            "http://metadata.example:8080/"
        );
    }

    #[test]
    fn hosts_are_hosts() {
        for good in [
            "metadata.google.internal",
            "169.254.169.254",
            "127.0.0.1:8080",
            "[fd20:ce::254]:80",
        ] {
            assert!(base(good).is_ok(), "{good}");
        }
        for bad in ["", "http://h", "h/path", "u@h", "h?q", "h#f", "h:port", " h"] {
            assert!(base(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_rejection_has_its_reason() {
        let gke =
            "Your Kubernetes service account (shop/op) is not annotated with a target Google service account";
        for (status, body, reason, class) in [
            (404, gke, "IdentityNotAttached", ErrorClass::Rejected),
            (
                404,
                r#"{"error":"invalid_request","error_description":"Service account not enabled on this instance"}"#,
                "IdentityNotAttached",
                ErrorClass::Rejected,
            ),
            (
                500,
                "Unable to generate access token; IAM returned 403 Forbidden: Permission denied",
                "PermissionDenied",
                ErrorClass::Rejected,
            ),
            (
                400,
                "non-empty audience parameter required",
                "InvalidArgument",
                ErrorClass::Rejected,
            ),
            (429, "Too Many Requests", "QuotaExceeded", ErrorClass::Transient),
            (503, "maintenance", "UpstreamUnavailable", ErrorClass::Transient),
        ] {
            let error = rejection(&response(status, body));
            assert_eq!(
                (error.reason().as_str(), error.class()),
                (reason, class),
                "{error}"
            );
            assert_eq!(error.status(), Some(status));
        }
        assert!(rejection(&response(404, gke)).to_string().contains("(shop/op)"));
    }

    #[test]
    fn only_a_metadata_servers_message_is_shown() {
        let mut stranger = response(403, "call me at evil.example");
        stranger.headers.clear();
        assert!(!rejection(&stranger).to_string().contains("evil"));
        for (body, hidden) in [("<html>page</html>", "page"), ("ya29.abcdefghijklmnop", "ya29")] {
            let error = rejection(&response(500, body));
            assert!(!error.to_string().contains(hidden), "{error}");
        }
    }
}
