//! The metadata server of Compute Engine, Cloud Run and GKE, which gives tokens of the attached Google service account:
//! <https://cloud.google.com/compute/docs/instances/verifying-instance-identity>.
//!
//! It speaks plain http without a login: what answers must show `Metadata-Flavor: Google`, and no proxy may stand between.

use std::time::Duration;

use reqwest::header::HeaderName;
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use crate::google::remediation::metadata_server as advice;
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

/// The header that requests must and answers do carry.
const FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");

/// The longest text of the server's that is shown, in characters.
const MAX_SAID_CHARS: usize = 400;

const ACCOUNT: &str = "computeMetadata/v1/instance/service-accounts/default";

/// An ID token of the identity that is attached to the operator's pod, node or instance.
#[derive(Clone, Copy, Debug)]
pub struct AttachedIdentity<'a> {
    /// The account that is expected, by e-mail or unique id; any where absent.
    pub service_account: Option<&'a str>,
    /// The audience of the token.
    pub audience: &'a str,
    /// Whether the token is to have `email` and `google.compute_engine`: the format `full`.
    pub include_email: bool,
    /// Whether `google.compute_engine` is to have the licenses of the instance's image.
    pub licenses: bool,
    /// Who asks, for a fair turn.
    pub priority: CallPriority<'a>,
}

/// The metadata server.
pub(crate) struct MetadataServer {
    upstream: EndpointClient,
    http: Http,
    base: Url,
    universe: String,
    universe_is_right: OnceCell<()>,
}

#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    expires_in: u64,
}

impl MetadataServer {
    /// Finds its address as all of Google's clients do; makes no call.
    pub(crate) fn new(config: &GoogleConfig, http: Http) -> Result<Self, ConfigError> {
        let variable = std::env::var("GCE_METADATA_HOST")
            .ok()
            .filter(|host| !host.is_empty());
        let host = variable.as_deref().or(config.metadata_host.as_deref());
        let base = base(host.unwrap_or("metadata.google.internal"))?;
        Ok(Self {
            upstream: EndpointClient::new(Endpoint::Metadata, base.clone(), http.clone(), config),
            http,
            base,
            universe: config.universe_domain.clone(),
            universe_is_right: OnceCell::new(),
        })
    }

    pub(crate) fn set_observer(&mut self, observer: Observer) {
        self.upstream.set_observer(observer);
    }

    pub(crate) fn load(&self) -> EndpointLoad {
        self.upstream.load()
    }

    /// An ID token. The server may give the same one until about five minutes before its end.
    pub(crate) async fn identity(&self, asked: &AttachedIdentity<'_>) -> Result<IdToken, Error> {
        let mut url = self.url(&format!("{ACCOUNT}/identity"));
        url.query_pairs_mut()
            .append_pair("audience", asked.audience)
            .append_pair("format", if asked.include_email { "full" } else { "standard" });
        if asked.licenses {
            url.query_pairs_mut().append_pair("licenses", "TRUE");
        }
        let answer = self
            .get_for(asked.priority, url)
            .await
            .map_err(|error| advice::for_attached_identity(error, asked.service_account))?;
        let status = answer.status.as_u16();
        let body = std::str::from_utf8(&answer.body).unwrap_or_default().trim();
        IdToken::parse(Zeroizing::new(body.to_owned()))
            .map_err(|error| Error::from_token(Endpoint::Metadata, &error).with_status(status))
    }

    /// Who is attached; `None` where nobody is, or the server does not say.
    pub(crate) async fn principal(&self) -> Result<Option<Principal>, Error> {
        let answer = match self.get(self.url(&format!("{ACCOUNT}/email"))).await {
            Ok(answer) => answer,
            Err(error) if error.status() == Some(404) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(std::str::from_utf8(&answer.body)
            .ok()
            .and_then(Principal::from_metadata))
    }

    /// An access token with the scope `cloud-platform`.
    pub(crate) async fn access_token(&self) -> Result<AccessToken, Error> {
        self.universe_is_right
            .get_or_try_init(|| self.check_universe())
            .await?;
        let mut url = self.url(&format!("{ACCOUNT}/token"));
        url.query_pairs_mut().append_pair("scopes", SCOPE);
        let answer = self.get(url).await?;
        let TokenResponse {
            access_token,
            expires_in,
        } = serde_json::from_slice(&answer.body).map_err(|_| {
            let message = "the metadata server answered without an access token";
            Error::new(Endpoint::Metadata, Reason::UnexpectedResponse, message)
        })?;
        Ok(AccessToken::new(
            access_token,
            Duration::from_secs(expires_in),
            Instant::now(),
        ))
    }

    /// A server that knows no universe is of the public one.
    async fn check_universe(&self) -> Result<(), Error> {
        let answer = match self
            .get(self.url("computeMetadata/v1/universe/universe-domain"))
            .await
        {
            Ok(answer) => Some(answer),
            Err(error) if error.status() == Some(404) => None,
            Err(error) => return Err(error),
        };
        let told = answer
            .as_ref()
            .map(|answer| String::from_utf8_lossy(&answer.body));
        let told = told.as_deref().map(str::trim).filter(|told| !told.is_empty());
        let told = told.unwrap_or(DEFAULT_UNIVERSE);
        if told == self.universe {
            return Ok(());
        }
        let message = format!(
            "the metadata server is of the universe {}, but the operator is set to {}",
            text::redacted(told, 128),
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
        let request = self.http.direct().get(url).header(FLAVOR, "Google");
        let answer = self
            .upstream
            .call_with(priority, request, |_, answer| refused(&answer))
            .await
            .map_err(advice::for_metadata_server)?;
        if is_metadata_server(&answer) {
            return Ok(answer);
        }
        let message = "what answers as metadata server is none: it sends no Metadata-Flavor header";
        Err(
            Error::new(Endpoint::Metadata, Reason::UnexpectedResponse, message)
                .with_status(answer.status.as_u16()),
        )
    }
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

fn is_metadata_server(answer: &Response) -> bool {
    answer
        .headers
        .get(FLAVOR)
        .is_some_and(|flavor| flavor == "Google")
}

/// The server's errors are plain text, mostly, and say what is missing.
fn refused(answer: &Response) -> Error {
    let body = String::from_utf8_lossy(&answer.body);
    let said = match OauthError::parse(&answer.body) {
        _ if !is_metadata_server(answer) => "not by a metadata server's words".to_owned(),
        Some(error) => error.to_string(),
        None if body.trim().is_empty() || body.trim_start().starts_with('<') => "no message".to_owned(),
        None => text::redacted(body.trim(), MAX_SAID_CHARS),
    };
    let error = answer.error_from_text(Endpoint::Metadata, &said);
    // GKE's server passes on what IAM said to it.
    if body.contains("IAM returned 403") || body.contains("iam.serviceAccounts.") {
        return error
            .with_reason(Reason::PermissionDenied)
            .with_class(ErrorClass::Rejected);
    }
    match answer.status.as_u16() {
        404 => error.with_reason(Reason::IdentityNotAttached),
        _ => error,
    }
}

/// What a refusal of a metadata server's looks like, for the tests of all parsers.
#[cfg(test)]
pub(crate) fn shown(body: &[u8]) -> Error {
    refused(&tests::answer(500, body))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    pub(super) fn answer(status: u16, body: impl AsRef<[u8]>) -> Response {
        let mut answer = Response::of(status, body);
        answer.headers.insert(FLAVOR, HeaderValue::from_static("Google"));
        answer
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
    fn each_refusal_has_its_reason() {
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
            let error = refused(&answer(status, body));
            assert_eq!(
                (error.reason().as_str(), error.class()),
                (reason, class),
                "{error}"
            );
            assert_eq!(error.status(), Some(status));
        }
        assert!(refused(&answer(404, gke)).to_string().contains("(shop/op)"));
    }

    #[test]
    fn only_a_metadata_servers_words_are_shown() {
        let mut stranger = answer(403, "call me at evil.example");
        stranger.headers.clear();
        assert!(!refused(&stranger).to_string().contains("evil"));
        for (body, hidden) in [("<html>page</html>", "page"), ("ya29.abcdefghijklmnop", "ya29")] {
            let error = refused(&answer(500, body));
            assert!(!error.to_string().contains(hidden), "{error}");
        }
    }
}
