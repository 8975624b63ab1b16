//! Accepts connections and sends each request to its endpoint.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::call_log::Endpoint;
use crate::response::{self, Failure, HandlerResult, HttpResponse, Request};
use crate::state::{Call, EmulatorState};
use crate::{admin, iam_credentials, metadata, oauth, proxy, sts};

/// The longest body read, in bytes.
const LONGEST_BODY: usize = 1 << 20;

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("connection reset, as ordered")]
struct ResetConnection;

/// Serves connections until dropped, which ends them all.
pub(crate) async fn serve(listener: TcpListener, state: Arc<EmulatorState>) {
    accept(listener, |stream| direct(stream, state.clone())).await;
}

/// Accepts connections and lets `serve` run each, until dropped, which ends them all.
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

async fn direct(stream: TcpStream, state: Arc<EmulatorState>) {
    let Some(stream) = connection(stream, state, None).await else {
        return;
    };
    // Without lingering, closing sends RST instead of FIN.
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "cannot reset the connection");
    }
}

/// Answers the requests of one connection, as `host` where a proxy's client wanted that. Returns a stream that broke or
/// is to be broken.
pub(crate) async fn connection<S>(stream: S, state: Arc<EmulatorState>, host: Option<&str>) -> Option<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request: axum::http::Request<Incoming>| {
        let state = state.clone();
        async move {
            match respond(state, request.map(Body::new), host).await {
                Ok(response) => Ok(response),
                Err(Failure::Response(response)) => Ok(*response),
                Err(Failure::Reset) => Err(ResetConnection),
            }
        }
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let error = (&mut connection).await.err()?;
    tracing::debug!(%error, "connection ended");
    Some(connection.into_parts().io.into_inner())
}

async fn respond(
    state: Arc<EmulatorState>,
    request: axum::http::Request<Body>,
    host: Option<&str>,
) -> HandlerResult {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LONGEST_BODY).await else {
        return Ok(response::text(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the request's body is too large or broken off",
        ));
    };
    let request = Request {
        method: parts.method,
        path: percent_decoded(parts.uri.path()),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body: body.to_vec(),
    };
    if let Some(path) = request
        .path
        .strip_prefix("/_emulator/")
        .filter(|_| host.is_none())
    {
        return admin::handle(&state, &request, path).await;
    }
    let iam = iam_credentials::route(&request.path);
    let endpoint = iam
        .as_ref()
        .map_or_else(|| endpoint(&request.path), |(_, _, endpoint)| *endpoint);
    let is_served = host.is_none_or(|host| proxy::serves(host, endpoint, &request.path));
    let endpoint = if is_served { endpoint } else { Endpoint::Unknown };
    let iam = iam.filter(|_| is_served);
    let mut call = Call::begin(state, endpoint, &request, host);
    let answer = match iam {
        Some((project, account, _)) => iam_credentials::handle(&mut call, &request, &project, &account).await,
        None => dispatch(&mut call, &request).await,
    };
    let status = match &answer {
        Ok(response) => Some(response.status()),
        Err(Failure::Response(response)) => Some(response.status()),
        Err(Failure::Reset) => None,
    };
    if let Some(status) = status {
        call.status(status);
    }
    tracing::info!(method = %request.method, path = request.path, status = status.map(|status| status.as_u16()), "call");
    answer
}

fn endpoint(path: &str) -> Endpoint {
    match path {
        "/v1/token" => Endpoint::SecurityToken,
        "/v1/identitybindingtoken" => Endpoint::IdentityBindingToken,
        "/token" | "/oauth2/v4/token" | "/o/oauth2/token" => Endpoint::OauthToken,
        "/oauth2/v3/certs" | "/oauth2/v1/certs" => Endpoint::Certs,
        "/" => Endpoint::Metadata,
        path if path.starts_with("/computeMetadata/v1/instance/service-accounts/") => {
            match path.rsplit('/').next() {
                Some("token") => Endpoint::MetadataToken,
                Some("identity") => Endpoint::MetadataIdentity,
                _ => Endpoint::Metadata,
            }
        }
        path if path == "/computeMetadata" || path.starts_with("/computeMetadata/") => Endpoint::Metadata,
        _ => Endpoint::Unknown,
    }
}

async fn dispatch(call: &mut Call, request: &Request) -> HandlerResult {
    match call.endpoint {
        Endpoint::SecurityToken | Endpoint::IdentityBindingToken => sts::handle(call, request).await,
        Endpoint::OauthToken => oauth::handle(call, request).await,
        Endpoint::Certs => {
            call.apply_faults().await?;
            Ok(certs(&call.state, &request.path))
        }
        Endpoint::MetadataToken | Endpoint::MetadataIdentity | Endpoint::Metadata => {
            metadata::handle(call, request).await
        }
        // Clients that came by the proxy may ask other APIs, such as for the project's id, and read JSON only.
        _ if call.is_proxied => {
            let message = "Requested entity was not found: the emulator has no such API or method.";
            Err(response::api_error(StatusCode::NOT_FOUND, message, &[]).into())
        }
        _ => Err(response::text(
            StatusCode::NOT_FOUND,
            "The requested URL was not found on this server.",
        )
        .into()),
    }
}

/// The signing key, as a JWKS document or as a map from key id to certificate.
fn certs(state: &EmulatorState, path: &str) -> HttpResponse {
    if path == "/oauth2/v3/certs" {
        return response::json(StatusCode::OK, &json!({"keys": [state.key.jwk()]}));
    }
    response::json(StatusCode::OK, &json!({ state.key.kid(): state.certificate }))
}

/// Decodes `%40` and the like. A `+` stays, as it does in paths.
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
