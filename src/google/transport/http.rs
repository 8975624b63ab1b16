//! The HTTP client for Google's endpoints: TLS by aws-lc-rs, no redirects, bounded time and size, careful headers.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Client, ClientBuilder, RequestBuilder};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use url::Url;
use zeroize::Zeroizing;

use super::certificates::{Certificates, Content, ContentId};
use super::response::{Response, transport_error};
use crate::clock::Clock;
use crate::google::vocabulary::{
    CallGate, ConfigError, Endpoint, Error, GoogleConfig, QuotaProject, Reason, Transport, is_link_local,
    is_loopback,
};
use crate::sync::lock;
use crate::text;

/// The longest response that is read, in bytes. Google's are below 4 KiB.
pub(crate) const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Initial capacity for a response that does not say how long it is, in bytes.
const USUAL_RESPONSE_BYTES: usize = 4 * 1024;

/// The header that Google's audit log shows:
/// <https://cloud.google.com/logging/docs/audit/understanding-audit-logs#request-reason>.
const REQUEST_REASON: &str = "x-goog-request-reason";

/// The header that says whose quota a call counts for: <https://cloud.google.com/apis/docs/system-parameters>.
const USER_PROJECT: &str = "x-goog-user-project";

/// The longest request reason, in bytes: a namespace and a name of Kubernetes, 63 + 1 + 253.
const MAX_REQUEST_REASON: usize = 320;

const USER_AGENT: &str = concat!("idtoken-operator/", env!("CARGO_PKG_VERSION"));

/// How often the files of certificates are compared with what was read.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// The HTTP client. A clone is the same one.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    /// Replaced when the trusted certificates change: with its connections, which were made by the former ones.
    clients: Arc<Mutex<Clients>>,
    certificates: Certificates,
    timeout: Duration,
    call_gate: Option<CallGate>,
    clock: Clock,
    transport: Transport,
}

/// Calls in flight that share a connection. By HTTP/2 a client has one connection to a host, and Google takes 100 calls on it
/// (<https://cloud.google.com/bigtable/docs/connection-pools>): more would wait in the client.
const CALLS_ON_A_CONNECTION: usize = 64;
/// The most connections to a host: enough for the default of `--google-max-in-flight`.
const MAX_CONNECTIONS: usize = 5;

/// Clients that differ in one thing: whether they use the proxy of the environment.
#[derive(Debug)]
struct Clients {
    /// Each with connections of its own.
    proxied: Vec<Client>,
    /// The next one of them.
    next: usize,
    direct: Client,
    tls: ClientConfig,
    /// The certificates that they trust.
    trusted: ContentId,
}

impl Clients {
    fn new(certificates: &Certificates, content: &Content, timeout: Duration) -> Result<Self, ConfigError> {
        let tls = certificates.tls_config(content)?;
        let mut proxied = Vec::with_capacity(MAX_CONNECTIONS);
        for _ in 0..MAX_CONNECTIONS {
            proxied.push(build(builder(tls.clone(), timeout))?);
        }
        Ok(Self {
            proxied,
            next: 0,
            direct: build(builder(tls.clone(), timeout).no_proxy())?,
            tls,
            trusted: content.id(),
        })
    }
}

fn builder(tls: ClientConfig, timeout: Duration) -> ClientBuilder {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .user_agent(USER_AGENT)
        .timeout(timeout)
        .connect_timeout(timeout / 2)
        // Shorter than the idle timeout of Google's front ends, so that a renewal does not find a dead connection.
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_keepalive(Duration::from_secs(30))
}

fn build(builder: ClientBuilder) -> Result<Client, ConfigError> {
    builder
        .build()
        .map_err(|error| ConfigError::Client(text::error_chain(&error.without_url())))
}

/// Whether calls to a URL stay on this machine or link.
fn stays_here(url: &Url) -> bool {
    is_loopback(url) || is_link_local(url)
}

impl Http {
    /// Sets up TLS and the clients.
    pub(crate) fn new(config: &GoogleConfig) -> Result<Self, ConfigError> {
        let certificates = Certificates::new(config.ca_file.clone());
        let content = certificates.read()?;
        Ok(Self {
            clients: Arc::new(Mutex::new(Clients::new(&certificates, &content, config.timeout)?)),
            certificates,
            timeout: config.timeout,
            call_gate: config.call_gate.clone(),
            clock: config.clock.clone(),
            transport: config.transport.clone(),
        })
    }

    /// Reads the files of certificates again whenever their content changes. Files that cannot be used leave the trusted certificates as
    /// they are, which is logged once a change.
    pub(crate) async fn follow_certificates(&self) -> Infallible {
        let mut unusable = None;
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let http = self.clone();
            // Reading a slow disk and parsing a whole bundle block.
            let result = tokio::task::spawn_blocking(move || http.reload_certificates()).await;
            let problem = match result {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = problem.as_ref().filter(|_| problem != unusable) {
                tracing::error!(
                    "the CA file changed but cannot be used, keeping the previous certificates: {problem}"
                );
            }
            unusable = problem;
        }
    }

    fn reload_certificates(&self) -> Result<(), ConfigError> {
        let trusted = lock(&self.clients).trusted;
        let content = self.certificates.read_again(trusted.has_platform())?;
        if trusted == content.id() {
            return Ok(());
        }
        let clients = Clients::new(&self.certificates, &content, self.timeout)?;
        *lock(&self.clients) = clients;
        tracing::info!("CA file reloaded");
        Ok(())
    }

    /// The client for a URL, to which so many calls are in flight. A call that stays on this machine or link never goes through a proxy: the
    /// proxy would get its own identity from its own metadata server.
    pub(crate) fn client(&self, url: &Url, in_flight: usize) -> Client {
        if stays_here(url) {
            return self.direct();
        }
        let mut clients = lock(&self.clients);
        let connections = 1 + in_flight / CALLS_ON_A_CONNECTION;
        clients.next = (clients.next + 1) % connections.min(MAX_CONNECTIONS);
        clients.proxied[clients.next].clone()
    }

    /// As [`Self::client`], and it shows a certificate to a server which asks for one. Each call builds a new one, with connections of its own.
    pub(crate) fn client_as(&self, own: Arc<CertifiedKey>, url: &Url) -> Result<Client, ConfigError> {
        let mut tls = lock(&self.clients).tls.clone();
        tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(own));
        // A session without the certificate, or with a former one, must not be resumed.
        tls.resumption = Resumption::disabled();
        let builder = builder(tls, self.timeout);
        build(if stays_here(url) {
            builder.no_proxy()
        } else {
            builder
        })
    }

    /// The client that never goes through a proxy.
    pub(crate) fn direct(&self) -> Client {
        lock(&self.clients).direct.clone()
    }

    /// Sends a request and reads the whole response, whatever its status.
    pub(crate) async fn send(&self, endpoint: Endpoint, request: RequestBuilder) -> Result<Response, Error> {
        // Checked last, right before the call: waiting for the limiter takes time, and the process may have been stopped meanwhile.
        if self.call_gate.as_ref().is_some_and(|gate| !gate.is_open()) {
            let message =
                "no call is made: this replica does not hold the Lease, or could not renew it in time";
            return Err(Error::new(endpoint, Reason::NotLeading, message));
        }
        let transport = |error| transport_error(endpoint, error);
        let mut response = self.transport.send(request).await.map_err(transport)?;
        let expected = response
            .content_length()
            .and_then(|length| usize::try_from(length).ok());
        let capacity = expected.unwrap_or(USUAL_RESPONSE_BYTES).min(MAX_RESPONSE_BYTES);
        let mut body = Zeroizing::new(Vec::with_capacity(capacity));
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                let message =
                    format!("a response longer than {MAX_RESPONSE_BYTES} bytes was not read to its end");
                let error = Error::new(endpoint, Reason::UnexpectedResponse, &message);
                return Err(error.with_status(response.status().as_u16()));
            }
            append(&mut body, &chunk);
        }
        Ok(Response {
            received_at: self.clock.now(),
            status: response.status(),
            headers: std::mem::take(response.headers_mut()),
            body,
        })
    }
}

/// Appends `chunk`. A Vec that grows by itself would leave a copy of its content in freed memory.
fn append(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    let needed = body.len() + chunk.len();
    if needed > body.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(2 * body.capacity())));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(chunk);
}

/// Adds a bearer token; `None` if it contains characters that no header can.
pub(crate) fn with_bearer(request: RequestBuilder, bearer: &str) -> Option<RequestBuilder> {
    let mut header = Zeroizing::new(String::with_capacity(bearer.len() + 7));
    header.push_str("Bearer ");
    header.push_str(bearer);
    let mut value = HeaderValue::from_str(&header).ok()?;
    // Keeps the token out of the logs of the HTTP libraries.
    value.set_sensitive(true);
    Some(request.header(AUTHORIZATION, value))
}

/// Adds the project whose quota the call counts for.
pub(crate) fn with_quota_project(request: RequestBuilder, project: Option<&QuotaProject>) -> RequestBuilder {
    match project {
        Some(project) => request.header(USER_PROJECT, project.header()),
        None => request,
    }
}

/// Adds why the call is made, for Google's audit log; characters that cannot occur in `namespace/name` become `_`.
pub(crate) fn with_request_reason(request: RequestBuilder, reason: &str) -> RequestBuilder {
    match HeaderValue::from_str(&request_reason(reason)) {
        Ok(value) if !value.is_empty() => request.header(REQUEST_REASON, value),
        _ => request,
    }
}

fn request_reason(reason: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':');
    reason
        .chars()
        .take(MAX_REQUEST_REASON)
        .map(|c| if allowed(c) { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> Http {
        Http::new(&GoogleConfig::default()).expect("a client")
    }

    #[test]
    fn a_body_grows_without_a_copy_by_the_vec_itself() {
        let mut body = Zeroizing::new(Vec::with_capacity(4));
        let mut whole = Vec::new();
        for chunk in [&b"abc"[..], b"", b"d", b"efghijklmnop", b"q"] {
            append(&mut body, chunk);
            whole.extend_from_slice(chunk);
            assert_eq!(*body, whole);
        }
    }

    #[test]
    fn request_reason_is_a_harmless_header() {
        assert_eq!(request_reason("shop/billing"), "shop/billing");
        assert_eq!(request_reason("a\r\nx-evil: 1 é"), "a__x-evil:_1__");
        assert_eq!(request_reason(&"x".repeat(5000)).len(), MAX_REQUEST_REASON);
        let request = with_request_reason(http().direct().get("http://localhost/"), "a\r\nb")
            .build()
            .expect("builds");
        assert_eq!(request.headers()[REQUEST_REASON], "a__b");
        let request = with_request_reason(http().direct().get("http://localhost/"), "")
            .build()
            .expect("builds");
        assert!(request.headers().get(REQUEST_REASON).is_none());
    }

    #[tokio::test]
    async fn nothing_is_sent_by_a_replica_that_does_not_lead() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let http = Http::new(&GoogleConfig {
            call_gate: Some(CallGate::new(|| false)),
            ..GoogleConfig::default()
        });
        let http = http.expect("a client");
        let result = http.send(Endpoint::IamCredentials, http.direct().get(url)).await;
        assert_eq!(
            result.map(drop).map_err(|error| error.reason().as_str()),
            Err("NotLeading")
        );
        let called = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(called.is_err());
    }

    #[test]
    fn bearer_is_sensitive() {
        let get = || http().direct().get("http://localhost/");
        let request = with_bearer(get(), "abc")
            .and_then(|request| request.build().ok())
            .expect("builds");
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer abc");
        assert!(request.headers()[AUTHORIZATION].is_sensitive());
        assert!(!format!("{request:?}").contains("abc"));
        assert!(with_bearer(get(), "a\nb").is_none());
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_leaves_the_certificates_as_they_are() {
        let options = idtoken_emulator::Options {
            proxy: Some(([127, 0, 0, 1], 0).into()),
            ..idtoken_emulator::Options::default()
        };
        let emulator =
            idtoken_emulator::EmulatorHandle::start(idtoken_emulator::Policy::default(), options).await;
        let emulator = emulator.expect("it starts");
        let pem = emulator.proxy_ca_pem().expect("a CA").as_bytes();
        let path = std::env::temp_dir().join(format!("idtoken-ca-{}.pem", std::process::id()));
        std::fs::write(&path, pem).expect("a file");
        let http = Http::new(&GoogleConfig {
            ca_file: Some(path.clone()),
            ..GoogleConfig::default()
        });
        let http = http.expect("a client");
        let read = http.certificates.read().expect("a file");
        let trusted = |content: &Content| lock(&http.clients).trusted == content.id();
        std::fs::write(&path, "none").expect("a file");
        assert!(matches!(
            http.reload_certificates(),
            Err(ConfigError::CaPem { .. })
        ));
        std::fs::remove_file(&path).expect("there was one");
        assert!(matches!(
            http.reload_certificates(),
            Err(ConfigError::CaFile { .. })
        ));
        assert!(trusted(&read));
        std::fs::write(&path, [pem, pem].concat()).expect("a file");
        assert!(http.reload_certificates().is_ok() && !trusted(&read));
        std::fs::remove_file(&path).expect("there was one");
    }

    #[test]
    fn ca_file_is_checked() {
        let config = |path: &str| GoogleConfig {
            ca_file: Some(path.into()),
            ..GoogleConfig::default()
        };
        assert!(matches!(
            Http::new(&config("/nonexistent/ca.pem")),
            Err(ConfigError::CaFile { .. })
        ));
        assert!(matches!(
            Http::new(&config("/dev/null")),
            Err(ConfigError::CaPem { .. })
        ));
    }
}
