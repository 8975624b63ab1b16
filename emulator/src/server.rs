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
use crate::response::{self, Answer, Failure, HttpResponse, Request};
use crate::state::{App, Exchange};
use crate::{admin, iam_credentials, metadata, oauth, proxy, sts};

/// The longest body read, in bytes.
const LONGEST_BODY: usize = 1 << 20;

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("connection reset, as ordered")]
struct ResetConnection;

/// Serves connections until dropped, which ends them all.
pub(crate) async fn serve(listener: TcpListener, app: Arc<App>) {
    accept(listener, |stream| direct(stream, app.clone())).await;
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

async fn direct(stream: TcpStream, app: Arc<App>) {
    let Some(stream) = connection(stream, app, None).await else {
        return;
    };
    // Without lingering, closing sends RST instead of FIN.
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "cannot reset the connection");
    }
}

/// Answers the requests of one connection, as `host` where a proxy's client wanted that. Returns a stream that broke or
/// is to be broken.
pub(crate) async fn connection<S>(stream: S, app: Arc<App>, host: Option<&str>) -> Option<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request: axum::http::Request<Incoming>| {
        let app = app.clone();
        async move {
            match handle(app, request.map(Body::new), host).await {
                Ok(response) => Ok(response),
                Err(Failure::Answer(response)) => Ok(*response),
                Err(Failure::Reset) => Err(ResetConnection),
            }
        }
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let error = (&mut connection).await.err()?;
    tracing::debug!(%error, "connection ended");
    Some(connection.into_parts().io.into_inner())
}

async fn handle(app: Arc<App>, request: axum::http::Request<Body>, host: Option<&str>) -> Answer {
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
        return admin::answer(&app, &request, path).await;
    }
    let iam = iam_credentials::route(&request.path);
    let endpoint = iam
        .as_ref()
        .map_or_else(|| endpoint(&request.path), |(_, _, endpoint)| *endpoint);
    let is_served = host.is_none_or(|host| proxy::serves(host, endpoint, &request.path));
    let endpoint = if is_served { endpoint } else { Endpoint::Unknown };
    let iam = iam.filter(|_| is_served);
    let mut exchange = Exchange::begin(app, endpoint, &request, host);
    let answer = match iam {
        Some((project, account, _)) => {
            iam_credentials::answer(&mut exchange, &request, &project, &account).await
        }
        None => dispatch(&mut exchange, &request).await,
    };
    let status = match &answer {
        Ok(response) => Some(response.status()),
        Err(Failure::Answer(response)) => Some(response.status()),
        Err(Failure::Reset) => None,
    };
    if let Some(status) = status {
        exchange.status(status);
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

async fn dispatch(exchange: &mut Exchange, request: &Request) -> Answer {
    match exchange.endpoint {
        Endpoint::SecurityToken | Endpoint::IdentityBindingToken => sts::answer(exchange, request).await,
        Endpoint::OauthToken => oauth::answer(exchange, request).await,
        Endpoint::Certs => {
            exchange.suffer().await?;
            Ok(certs(&exchange.app, &request.path))
        }
        Endpoint::MetadataToken | Endpoint::MetadataIdentity | Endpoint::Metadata => {
            metadata::answer(exchange, request).await
        }
        // Clients that came by the proxy may ask other APIs, such as for the project's id, and read JSON only.
        _ if exchange.is_proxied => {
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
fn certs(app: &App, path: &str) -> HttpResponse {
    if path == "/oauth2/v3/certs" {
        return response::json(StatusCode::OK, &json!({"keys": [app.key.jwk()]}));
    }
    response::json(StatusCode::OK, &json!({ app.key.kid(): app.certificate }))
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
