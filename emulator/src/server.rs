//! Accepts connections and sends each request to its endpoint.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::call::Call;
use crate::call_log::Endpoint;
use crate::response::{self, Failure, HandlerResult, HttpResponse, Request};
use crate::state::EmulatorState;
use crate::{admin, aws, front_end, iam_credentials, metadata, oauth, routing, sts};

/// How many requests a connection of HTTP/2 has in flight at most, as at Google: <https://cloud.google.com/bigtable/docs/connection-pools>.
const MAX_STREAMS: u32 = 100;
/// The maximum size of a request's body.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Closes a connection without a response.
#[derive(Debug, thiserror::Error)]
#[error("connection reset by an injected fault")]
struct ResetConnection;

/// Serves connections. Dropping the future closes them all.
pub(crate) async fn serve(listener: TcpListener, state: Arc<EmulatorState>) {
    accept(listener, |stream| serve_direct(stream, state.clone())).await;
}

/// Accepts connections and runs `serve` for each. Dropping the future closes them all.
pub(crate) async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    connections.spawn(serve(stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_direct(stream: TcpStream, state: Arc<EmulatorState>) {
    let Some(stream) = serve_connection(stream, state, None).await else {
        return;
    };
    // Without lingering, closing sends RST instead of FIN.
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "cannot reset the connection");
    }
}

/// How a connection came through the proxy.
#[derive(Clone)]
pub(crate) struct Tunnel {
    /// The host to respond as.
    pub(crate) host: Arc<str>,
    pub(crate) client_certificate: Option<CertificateDer<'static>>,
}

/// Serves the requests of one connection by HTTP/1.1. Returns the stream if the connection failed or an injected fault resets it.
pub(crate) async fn serve_connection<S>(
    stream: S,
    state: Arc<EmulatorState>,
    tunnel: Option<Tunnel>,
) -> Option<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request| serve_request(state.clone(), request, tunnel.clone()));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let error = (&mut connection).await.err()?;
    tracing::debug!(%error, "connection failed");
    Some(connection.into_parts().io.into_inner())
}

/// Serves the requests of one connection by HTTP/2.
pub(crate) async fn serve_http2<S>(stream: S, state: Arc<EmulatorState>, tunnel: Tunnel)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| serve_request(state.clone(), request, Some(tunnel.clone())));
    let connection = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(MAX_STREAMS)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection failed");
    }
}

async fn serve_request(
    state: Arc<EmulatorState>,
    request: axum::http::Request<Incoming>,
    tunnel: Option<Tunnel>,
) -> Result<HttpResponse, ResetConnection> {
    match respond(state, request.map(Body::new), tunnel).await {
        Ok(response) => Ok(response),
        Err(Failure::Response(response)) => Ok(*response),
        Err(Failure::Reset) => Err(ResetConnection),
    }
}

async fn respond(
    state: Arc<EmulatorState>,
    request: axum::http::Request<Body>,
    tunnel: Option<Tunnel>,
) -> HandlerResult {
    let host = tunnel.as_ref().map(|tunnel| &*tunnel.host);
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return Ok(response::text(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the request's body is too large or incomplete",
        ));
    };
    let request = Request {
        method: parts.method,
        path: percent_decoded(parts.uri.path()),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body: body.to_vec(),
        client_certificate: tunnel
            .as_ref()
            .and_then(|tunnel| tunnel.client_certificate.clone()),
    };
    if let Some(path) = request
        .path
        .strip_prefix("/_emulator/")
        .filter(|_| host.is_none())
    {
        return admin::handle(&state, &request, path).await;
    }
    if let Some(rest) = request
        .path
        .strip_prefix(front_end::PREFIX)
        .filter(|_| host.is_none())
    {
        return Ok(front_end::handle(&state, &request, rest));
    }
    let route = routing::route(&request.path, host);
    let mut call = Call::begin(state, route.endpoint, &request, host);
    let result = match &route.resource {
        Some(resource) => iam_credentials::handle(&mut call, &request, resource).await,
        None => dispatch(&mut call, &request).await,
    };
    let status = match &result {
        Ok(response) => Some(response.status()),
        Err(Failure::Response(response)) => Some(response.status()),
        Err(Failure::Reset) => None,
    };
    if let Some(status) = status {
        call.record_status(status);
    }
    tracing::info!(method = %request.method, path = request.path, status = status.map(|status| status.as_u16()), "call");
    result
}

async fn dispatch(call: &mut Call, request: &Request) -> HandlerResult {
    match call.endpoint {
        Endpoint::SecurityToken | Endpoint::IdentityBindingToken => sts::handle(call, request).await,
        Endpoint::OauthToken => oauth::handle(call, request).await,
        Endpoint::Ec2Metadata => aws::metadata(call, request).await,
        Endpoint::WorkforceToken => oauth::workforce(call, request).await,
        Endpoint::Certs => {
            call.apply_faults().await?;
            Ok(certs(&call.state, &request.path))
        }
        Endpoint::MetadataToken | Endpoint::MetadataIdentity | Endpoint::Metadata => {
            metadata::handle(call, request).await
        }
        // Clients of the proxy may call other APIs, for example for the project's id, and can read only JSON.
        _ if call.is_proxied => {
            let message = "Requested entity was not found: the emulator has no such API or method.";
            Err(response::api_error(StatusCode::NOT_FOUND, message, &[]).into())
        }
        _ => Err(response::not_found().into()),
    }
}

/// The signing key: as a JWKS document, or as a map from key id to certificate.
fn certs(state: &EmulatorState, path: &str) -> HttpResponse {
    if path == "/oauth2/v3/certs" {
        return response::json(StatusCode::OK, &json!({"keys": [state.key.jwk()]}));
    }
    response::json(StatusCode::OK, &json!({ state.key.kid(): state.certificate }))
}

/// Decodes percent-encoding, such as `%40`. A `+` stays a `+`, as in every path.
fn percent_decoded(path: &str) -> String {
    let kept = path.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    url::form_urlencoded::parse(kept.as_bytes())
        .next()
        .map_or_else(String::new, |(key, _)| key.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_decoded() {
        assert_eq!(percent_decoded("/a%40b/c+d&e=f:g"), "/a@b/c+d&e=f:g");
    }
}
