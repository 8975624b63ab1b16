//! An HTTP proxy for clients whose endpoints are fixed: it takes CONNECT to Google's hosts, and answers there itself with
//! certificates of its own test CA. Every other host is refused, so that nothing leaves the machine.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::call_log::{CallRecord, Endpoint};
use crate::proxy_ca::ProxyCa;
use crate::response::{self, HttpResponse};
use crate::server;
use crate::state::EmulatorState;

/// The host of OAuth 2.0 that is outside of every universe.
const ACCOUNTS: &str = "accounts.google.com";
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What the proxy shares among its connections.
pub(crate) struct Proxy {
    pub(crate) state: Arc<EmulatorState>,
    pub(crate) ca: ProxyCa,
}

/// Takes connections until dropped, which ends them all.
pub(crate) async fn serve(listener: TcpListener, proxy: Arc<Proxy>) {
    server::accept(listener, |stream| tunnel(stream, proxy.clone())).await;
}

/// Serves one client: refusals, then at most one tunnel.
async fn tunnel(stream: TcpStream, proxy: Arc<Proxy>) {
    let agreed: Arc<Mutex<Option<(String, OnUpgrade)>>> = Arc::default();
    let service = service_fn(|mut request: axum::http::Request<Incoming>| {
        let response = match destination(&proxy.state, request.method(), request.uri()) {
            Ok(host) => {
                let upgrade = hyper::upgrade::on(&mut request);
                *agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some((host, upgrade));
                axum::http::Response::new(Body::empty())
            }
            Err(response) => *response,
        };
        log(&proxy.state, request.uri(), response.status());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.with_upgrades().await {
        tracing::debug!(%error, "connection to the proxy ended");
    }
    let agreed = agreed.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((host, upgrade)) = agreed
        && let Err(error) = answer_as(&host, upgrade, &proxy).await
    {
        tracing::warn!(host, error = format!("{error:#}"), "tunnel ended");
    }
}

async fn answer_as(host: &str, upgrade: OnUpgrade, proxy: &Proxy) -> anyhow::Result<()> {
    let stream = TokioIo::new(upgrade.await?);
    let acceptor = TlsAcceptor::from(proxy.ca.server(host)?);
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .map_err(|_| anyhow::anyhow!("no TLS handshake within {} s", HANDSHAKE.as_secs()))?
        .map_err(|error| anyhow::anyhow!("{error}: does the client trust the test CA?"))?;
    server::connection(stream, proxy.state.clone(), Some(host)).await;
    Ok(())
}

/// The host to answer as; or the refusal.
fn destination(state: &EmulatorState, method: &Method, uri: &Uri) -> Result<String, Box<HttpResponse>> {
    let refuse = |message: String| Err(Box::new(response::text(StatusCode::FORBIDDEN, message)));
    let Some(authority) = uri.authority().filter(|_| *method == Method::CONNECT) else {
        return refuse(
            "this proxy takes CONNECT only: Google's endpoints speak https, and the metadata server is \
                       never reached by a proxy"
                .to_owned(),
        );
    };
    let host = authority.host().to_ascii_lowercase();
    let universe = state.policy().universe_domain.clone();
    if authority.port_u16() == Some(443) && is_google(&host, &universe) {
        return Ok(host);
    }
    refuse(format!(
        "{authority} is not an endpoint of Google's: this proxy reaches *.{universe}:443 and {ACCOUNTS}:443"
    ))
}

fn is_google(host: &str, universe: &str) -> bool {
    host == ACCOUNTS
        || host
            .strip_suffix(universe)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

/// Whether an endpoint is served at this host; regional and mutual-TLS names (`sts.europe-west1.rep.…`,
/// `iamcredentials.mtls.…`) are the service's too.
pub(crate) fn serves(host: &str, endpoint: Endpoint, path: &str) -> bool {
    let service = host.split('.').next().unwrap_or_default();
    match endpoint {
        Endpoint::GenerateIdToken | Endpoint::GenerateAccessToken | Endpoint::AllowedLocations => {
            service == "iamcredentials"
        }
        Endpoint::SecurityToken => service == "sts",
        Endpoint::IdentityBindingToken => service == "securetoken",
        Endpoint::Certs => service == "www",
        Endpoint::OauthToken => match path {
            "/token" => service == "oauth2",
            "/oauth2/v4/token" => service == "www",
            _ => host == ACCOUNTS,
        },
        _ => false,
    }
}

fn log(state: &EmulatorState, uri: &Uri, status: StatusCode) {
    state.calls.begin(CallRecord {
        status: Some(status.as_u16()),
        host: uri.host().map(str::to_owned),
        ..CallRecord::now(Endpoint::Proxy)
    });
    tracing::info!(host = uri.host(), status = status.as_u16(), "proxy");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_of_the_universe_are_googles() {
        for host in [
            "oauth2.googleapis.com",
            "sts.europe-west1.rep.googleapis.com",
            ACCOUNTS,
        ] {
            assert!(is_google(host, "googleapis.com"), "{host}");
        }
        for host in [
            "googleapis.com",
            ".googleapis.com",
            "evilgoogleapis.com",
            "googleapis.com.evil.example",
        ] {
            assert!(!is_google(host, "googleapis.com"), "{host}");
        }
    }

    #[test]
    fn each_endpoint_has_its_host() {
        assert!(serves("sts.googleapis.com", Endpoint::SecurityToken, "/v1/token"));
        assert!(serves(
            "sts.us.rep.googleapis.com",
            Endpoint::SecurityToken,
            "/v1/token"
        ));
        assert!(!serves(
            "oauth2.googleapis.com",
            Endpoint::SecurityToken,
            "/v1/token"
        ));
        assert!(serves(
            "www.googleapis.com",
            Endpoint::OauthToken,
            "/oauth2/v4/token"
        ));
        assert!(!serves("www.googleapis.com", Endpoint::OauthToken, "/token"));
        assert!(serves(ACCOUNTS, Endpoint::OauthToken, "/o/oauth2/token"));
        assert!(!serves(
            "www.googleapis.com",
            Endpoint::MetadataIdentity,
            "/computeMetadata/v1/"
        ));
    }
}
