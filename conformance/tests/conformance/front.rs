//! A front end of the emulator that checks each request and each answer by Google's discovery documents, as far as they define it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde_json::{Map, Value};
use tokio::net::TcpListener;

use crate::discovery::{Asked, Discovery, Method};

/// The front end. Dropping it stops it.
pub(crate) struct Front {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

/// What it has seen.
struct Shared {
    discovery: Discovery,
    upstream: String,
    http: reqwest::Client,
    seen: Mutex<BTreeSet<String>>,
    wrong: Mutex<Vec<String>>,
}

impl Front {
    /// Starts it in front of the emulator at `upstream`.
    pub(crate) async fn start(upstream: &str) -> Self {
        let shared = Arc::new(Shared {
            discovery: tokio::task::spawn_blocking(Discovery::load).await.unwrap(),
            upstream: upstream.to_owned(),
            http: http(),
            seen: Mutex::default(),
            wrong: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(handle).with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            shared,
            address,
            server,
        }
    }

    /// The URL of each service.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/{{service}}", self.address)
    }

    /// The methods that were called and are defined.
    pub(crate) fn seen(&self) -> BTreeSet<String> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Requests that were answered although they are not defined so, and answers that are not.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.shared.wrong.lock().unwrap().clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let path = parts.uri.path().trim_start_matches('/');
    let (service, path) = path.split_once('/').unwrap_or((path, ""));
    let path = format!("/{path}");
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let (method, wrong) = match shared.discovery.has(service) {
        true => {
            let decoded = path.replace("%40", "@");
            shared.discovery.check_request(&Asked {
                service,
                method: parts.method.as_str(),
                path: &decoded,
                query: url::form_urlencoded::parse(query.as_bytes())
                    .into_owned()
                    .collect(),
                body: fields(&parts.headers, &body),
            })
        }
        false => (None, Vec::new()),
    };
    let (status, headers, answer) = forward(&shared.http, &shared.upstream, parts, &path, &query, body).await;
    shared.record(method.as_ref(), &path, status, &wrong, &answer);
    let mut response = Response::new(Body::from(answer));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

pub(crate) fn http() -> reqwest::Client {
    // One provider for every TLS client. Fails only if one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Sends a request on to `upstream`.
pub(crate) async fn forward(
    http: &reqwest::Client,
    upstream: &str,
    parts: axum::http::request::Parts,
    path: &str,
    query: &str,
    body: Bytes,
) -> (StatusCode, HeaderMap, Bytes) {
    let query = if query.is_empty() {
        String::new()
    } else {
        format!("?{query}")
    };
    let mut headers = parts.headers;
    headers.remove(header::HOST);
    headers.remove(header::CONTENT_LENGTH);
    let request = http.request(parts.method, format!("{upstream}{path}{query}"));
    let response = request.headers(headers).body(body).send().await.unwrap();
    let (status, mut headers) = (response.status(), response.headers().clone());
    headers.remove(header::TRANSFER_ENCODING);
    (status, headers, response.bytes().await.unwrap())
}

impl Shared {
    fn record(
        &self,
        method: Option<&Method<'_>>,
        path: &str,
        status: StatusCode,
        wrong: &[String],
        answer: &Bytes,
    ) {
        let mut found = Vec::new();
        // What is refused may be wrong on purpose.
        if status.is_success() {
            found.extend_from_slice(wrong);
        }
        if let Some(method) = method {
            self.seen.lock().unwrap().insert(method.id().to_owned());
            let answer = serde_json::from_slice(answer).unwrap_or(Value::Null);
            found.extend(self.discovery.check_answer(method, status.as_u16(), &answer));
        }
        let lines = found.into_iter().map(|line| format!("{path}: {line}"));
        self.wrong.lock().unwrap().extend(lines);
    }
}

/// The body as JSON with the names of the definition: those of a form are in snake case.
fn fields(headers: &HeaderMap, body: &Bytes) -> Option<Value> {
    if body.is_empty() {
        return None;
    }
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    if kind.starts_with("application/json") {
        return serde_json::from_slice(body).ok();
    }
    let fields = url::form_urlencoded::parse(body).into_owned();
    let fields: Map<String, Value> = fields
        .map(|(name, value)| (camel_case(&name), Value::String(value)))
        .collect();
    Some(Value::Object(fields))
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut name, word| {
        let mut letters = word.chars();
        name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        name.push_str(letters.as_str());
        name
    })
}
