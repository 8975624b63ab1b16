//! An HTTP proxy for clients whose endpoints are fixed: it accepts CONNECT to Google's hosts and responds in their place, with
//! certificates of its own test CA. It rejects every other host, so that nothing leaves the machine.

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
use crate::routing::{self, ACCOUNTS_HOST};
use crate::server::{self, Tunnel};
use crate::state::EmulatorState;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the proxy shares among its connections.
pub(crate) struct Proxy {
    pub(crate) state: Arc<EmulatorState>,
    pub(crate) ca: ProxyCa,
}

/// Serves connections. Dropping the future closes them all.
pub(crate) async fn serve(listener: TcpListener, proxy: Arc<Proxy>) {
    server::accept(listener, |stream| tunnel(stream, proxy.clone())).await;
}

/// Serves one client: any number of rejected requests, then at most one tunnel.
async fn tunnel(stream: TcpStream, proxy: Arc<Proxy>) {
    let accepted: Arc<Mutex<Option<(String, OnUpgrade)>>> = Arc::default();
    let service = service_fn(|mut request: axum::http::Request<Incoming>| {
        let response = match destination(&proxy.state, request.method(), request.uri()) {
            Ok(host) => {
                let upgrade = hyper::upgrade::on(&mut request);
                *accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some((host, upgrade));
                axum::http::Response::new(Body::empty())
            }
            Err(response) => *response,
        };
        log(&proxy.state, request.uri(), response.status());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.with_upgrades().await {
        tracing::debug!(%error, "connection to the proxy closed");
    }
    let accepted = accepted.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((host, upgrade)) = accepted
        && let Err(error) = serve_as(&host, upgrade, &proxy).await
    {
        tracing::warn!(host, error = format!("{error:#}"), "tunnel failed");
    }
}

async fn serve_as(host: &str, upgrade: OnUpgrade, proxy: &Proxy) -> anyhow::Result<()> {
    let stream = TokioIo::new(upgrade.await?);
    let acceptor = TlsAcceptor::from(proxy.ca.server_config(host)?);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| anyhow::anyhow!("no TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs()))?
        .map_err(|error| anyhow::anyhow!("{error}: does the client trust the test CA?"))?;
    let session = stream.get_ref().1;
    let tunnel = Tunnel {
        host: host.into(),
        client_certificate: session
            .peer_certificates()
            .and_then(|chain| chain.first().cloned()),
    };
    if session.alpn_protocol() == Some(b"h2") {
        server::serve_http2(stream, proxy.state.clone(), tunnel).await;
    } else {
        server::serve_connection(stream, proxy.state.clone(), Some(tunnel)).await;
    }
    Ok(())
}

/// The host to respond as, or the rejection.
fn destination(state: &EmulatorState, method: &Method, uri: &Uri) -> Result<String, Box<HttpResponse>> {
    let reject = |message: String| Err(Box::new(response::text(StatusCode::FORBIDDEN, message)));
    let Some(authority) = uri.authority().filter(|_| *method == Method::CONNECT) else {
        return reject(
            "this proxy accepts only CONNECT: Google's endpoints speak https, and clients must reach the metadata \
             server without a proxy"
                .to_owned(),
        );
    };
    let host = authority.host().to_ascii_lowercase();
    let universe = state.policy().universe_domain.clone();
    if authority.port_u16() == Some(443) && routing::is_google_host(&host, &universe) {
        return Ok(host);
    }
    reject(format!(
        "{authority} is not a host of Google's endpoints: this proxy accepts *.{universe}:443 and {ACCOUNTS_HOST}:443"
    ))
}

fn log(state: &EmulatorState, uri: &Uri, status: StatusCode) {
    state.calls.begin(CallRecord {
        status: Some(status.as_u16()),
        host: uri.host().map(str::to_owned),
        ..CallRecord::now(Endpoint::Proxy)
    });
    tracing::info!(host = uri.host(), status = status.as_u16(), "proxy");
}
