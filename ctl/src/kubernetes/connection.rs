//! The HTTP client of the Kubernetes API: through the proxy, with the caller's credentials, as kubectl has it.
//!
//! Not kube's own, which takes no password for a SOCKS proxy and no `socks5h`, has no limit for a whole response, and starts an exec
//! credential plugin three times, each of which can ask the user to log in.

use std::error::Error as StdError;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::TokioExecutor;
use kube::client::{AuthError, Body, ClientBuilder, ConfigExt};
use kube::config::ExecConfig;
use kube::{Client, Config};
use tower::timeout::TimeoutLayer;
use tower::{BoxError, Service, ServiceBuilder, service_fn};

/// Builds a client. Starts the exec credential plugin of `config`; no call is made yet.
///
/// # Errors
/// The credentials or certificates cannot be used.
pub(crate) fn client(config: Config, proxy: Option<&Intercept>, limit: Option<Duration>) -> Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let Some(proxy) = proxy else {
        return build(config, tcp, limit);
    };
    let address = proxy.uri().clone();
    match proxy.uri().scheme_str() {
        // As in Go, both let the proxy resolve the name.
        Some("socks5" | "socks5h") => {
            let mut socks = SocksV5::new(address, tcp);
            if let Some((user, password)) = proxy.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            build(config, socks, limit)
        }
        Some("https") => {
            // The credentials of a plugin are for the API server, not for the proxy.
            let mut tls = config.clone();
            tls.auth_info.exec = None;
            let tcp = tls.rustls_https_connector_with_connector(tcp)?;
            build(config, tunnel(address, tcp, proxy), limit)
        }
        _ => build(config, tunnel(address, tcp, proxy), limit),
    }
}

fn tunnel<C>(address: Uri, connector: C, proxy: &Intercept) -> Tunnel<C> {
    let tunnel = Tunnel::new(address, connector);
    match proxy.basic_auth() {
        Some(auth) => tunnel.with_auth(auth.clone()),
        None => tunnel,
    }
}

fn build<C>(mut config: Config, connector: C, limit: Option<Duration>) -> Result<Client>
where
    C: Service<Uri, Error: Into<BoxError>, Future: Send + 'static> + Clone + Send + Sync + 'static,
    C::Response: Connection + hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let base = config.base_uri_layer();
    let headers = config.extra_headers_layer()?;
    let exec = config.auth_info.exec.clone();
    let auth = config
        .auth_layer()
        .map_err(|error| credentials(error, exec.as_ref()))?;
    if auth.is_some() {
        // It gave a token: it is not started again for a certificate.
        config.auth_info.exec = None;
    }
    let connector = config
        .rustls_https_connector_with_connector(connector)
        .context("the certificates for the API server cannot be used")?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    // The limit is for the whole response, as kubectl's.
    let whole = service_fn(move |request: Request<Body>| {
        let http = http.clone();
        async move {
            let largest = largest_body(request.uri());
            let (head, body) = http.request(request).await?.into_parts();
            let body = Limited::new(body, largest).collect().await?.to_bytes();
            Ok::<_, BoxError>(Response::from_parts(head, Full::new(body)))
        }
    });
    let service = ServiceBuilder::new()
        .layer(base)
        .option_layer(auth)
        .layer(headers)
        .map_err(BoxError::from)
        .option_layer(limit.map(TimeoutLayer::new))
        .map_err(BoxError::from)
        .service(whole);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// Most bytes of a body: what a pod answers through the API server is anyone's.
fn largest_body(uri: &Uri) -> usize {
    match uri.path().contains("/proxy/") {
        true => 8 * 1024 * 1024,
        false => usize::MAX,
    }
}

/// What is wrong with the credentials. A plugin's output stays out, because it can have a token.
fn credentials(error: kube::Error, exec: Option<&ExecConfig>) -> anyhow::Error {
    let (kube::Error::Auth(error), Some(exec)) = (error, exec) else {
        return anyhow!("the credentials of the kubeconfig cannot be used");
    };
    let command = exec.command.as_deref().unwrap_or_default();
    let hint = exec
        .install_hint
        .as_deref()
        .map_or_else(String::new, |hint| format!("\n{hint}"));
    match error {
        AuthError::AuthExecStart(error) => {
            let cause: &dyn StdError = &error;
            anyhow!("the credential plugin {command} of the kubeconfig cannot be started: {cause}{hint}")
        }
        AuthError::AuthExecRun { out, .. } => anyhow!(
            "the credential plugin {command} of the kubeconfig failed with {}; run it by hand to see why",
            out.status
        ),
        _ => anyhow!("the credential plugin {command} of the kubeconfig printed no valid ExecCredential"),
    }
}
