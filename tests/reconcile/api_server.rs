//! A scripted API server over HTTP, with Google's IAM Credentials API behind it. It answers lists and watches, and records every other
//! call: all that a reconcile does stands in one order.

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, Response};
use futures::StreamExt;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::objects::{Answer, Id, MARKERS, Objects, View, failure};

/// How long a test waits for what should come soon: generous, since others may use the machine too.
const LIMIT: Duration = Duration::from_secs(20);

/// A call of the operator.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) at: Instant,
    pub(crate) method: String,
    /// With the query; of Google's API with its host.
    pub(crate) path: String,
    pub(crate) content_type: String,
    /// Whether the answer is to hold the metadata alone.
    pub(crate) metadata_only: bool,
    pub(crate) body: Value,
    /// The HTTP status of the answer; none while there is none.
    pub(crate) status: Option<u16>,
    /// The resourceVersion of the object that is answered to a GET.
    pub(crate) shown: Option<String>,
}

impl Call {
    /// Whether it has this method, and this text in its path.
    pub(crate) fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.contains(path)
    }
}

/// How a call is answered otherwise than an API server does.
pub(crate) enum Override {
    /// It is rejected, and nothing is done.
    Reject(Answer),
    /// Another client makes a change just before it.
    After(Box<dyn FnOnce(&mut Objects) + Send>),
    /// It is done, and its answer cannot be decoded.
    Garbled,
    /// It waits for the other end; then it is done.
    Hold(oneshot::Receiver<()>),
    /// It is done, and its answer waits for the other end: a watch is faster.
    HoldAnswer(oneshot::Receiver<()>),
}

struct Scripted {
    method: &'static str,
    path: &'static str,
    overridden: Override,
}

/// What the server holds.
#[derive(Default)]
pub(crate) struct Contents {
    pub(crate) objects: Objects,
    pub(crate) calls: Vec<Call>,
    /// The markers whose Secret was read.
    pub(crate) marker_reads: HashSet<String>,
    script: Vec<Scripted>,
}

/// The server. It ends when this is dropped.
pub(crate) struct ApiServer {
    inner: Arc<Inner>,
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

struct Inner {
    contents: Mutex<Contents>,
    changed: watch::Sender<()>,
    client: reqwest::Client,
    google: String,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ApiServer {
    /// Starts a server without objects, with Google's endpoints at the URL `google`.
    pub(crate) async fn start(google: &str) -> Self {
        let client = reqwest::Client::builder().no_proxy().build();
        let inner = Arc::new(Inner {
            contents: Mutex::default(),
            changed: watch::channel(()).0,
            client: client.expect("an HTTP client"),
            google: google.to_owned(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().fallback(serve).with_state(inner.clone());
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { inner, address, task }
    }

    /// What it holds now.
    pub(crate) fn contents(&self) -> MutexGuard<'_, Contents> {
        self.inner.contents()
    }

    /// Has the next call with this method, and this text in its path, answered otherwise.
    pub(crate) fn script(&self, method: &'static str, path: &'static str, overridden: Override) {
        self.contents().script.push(Scripted {
            method,
            path,
            overridden,
        });
    }

    /// Waits until `check` gives a value; none where that takes too long.
    pub(crate) async fn until<T>(&self, check: impl Fn(&Contents) -> Option<T>) -> Option<T> {
        let mut changed = self.inner.changed.subscribe();
        let wait = async {
            loop {
                if let Some(value) = check(&self.contents()) {
                    return value;
                }
                changed.changed().await.expect("the server lives");
            }
        };
        tokio::time::timeout(LIMIT, wait).await.ok()
    }
}

impl Inner {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap()
    }

    /// Records a call. Returns its number and the override that the script has for it.
    fn record(&self, call: Call) -> (usize, Option<Override>) {
        let mut contents = self.contents();
        let scripted = contents
            .script
            .iter()
            .position(|scripted| call.is(scripted.method, scripted.path));
        let overridden = scripted.map(|position| contents.script.remove(position).overridden);
        contents.calls.push(call);
        let number = contents.calls.len() - 1;
        drop(contents);
        self.changed.send_replace(());
        (number, overridden)
    }
}

/// What a path means.
struct Target {
    id: Id,
    subresource: String,
}

fn target(path: &str) -> Target {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let rest = match parts[0] {
        "api" => &parts[2..],
        _ => &parts[3..],
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let part = |position: usize| rest.get(position).copied().unwrap_or_default();
    Target {
        id: Id::new(part(0), namespace, part(1)),
        subresource: part(2).to_owned(),
    }
}

async fn serve(Shared(inner): Shared<Arc<Inner>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.expect("a whole body");
    let query: BTreeMap<String, String> =
        url::form_urlencoded::parse(parts.uri.query().unwrap_or("").as_bytes())
            .into_owned()
            .collect();
    let header = |name: &str| text(&parts.headers, name);
    let call = Call {
        at: Instant::now(),
        method: parts.method.to_string(),
        // kube begins the query with `&`, and with `?` where there is none.
        path: parts
            .uri
            .to_string()
            .replace("?&", "?")
            .trim_end_matches('?')
            .to_owned(),
        content_type: header("content-type"),
        metadata_only: header("accept").contains("as=PartialObjectMetadata"),
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
        status: None,
        shown: None,
    };
    if parts.uri.path().starts_with("/v1/") {
        return google(&inner, call, &parts.headers, bytes.to_vec()).await;
    }
    let target = target(parts.uri.path());
    if call.method == "GET" && target.id.name.is_empty() {
        return collection(&inner, &target, &query, call.metadata_only);
    }
    let view = View {
        metadata_only: call.metadata_only,
        ..View::default()
    };
    let dry_run = query.contains_key("dryRun");
    // How many requests a grant allows is counted by the clock, beside the reconciles.
    if target.id.namespace == MARKERS || target.id.resource == "idtokengrants" {
        let mut contents = inner.contents();
        if call.method == "GET" {
            contents.marker_reads.insert(target.id.name.clone());
        }
        let (code, body) =
            contents
                .objects
                .call(&call.method, &target.id, &target.subresource, dry_run, &call.body);
        drop(contents);
        inner.changed.send_replace(());
        return json(code, view.answer((code, body)));
    }
    let (method, body) = (call.method.clone(), call.body.clone());
    let (number, overridden) = inner.record(call);
    let mut garbled = false;
    let mut held = None;
    match overridden {
        Some(Override::Hold(open)) => drop(open.await),
        Some(Override::HoldAnswer(open)) => held = Some(open),
        Some(Override::Garbled) => garbled = true,
        Some(Override::Reject((code, body))) => {
            inner.contents().calls[number].status = Some(code);
            inner.changed.send_replace(());
            return json(code, body);
        }
        Some(Override::After(change)) => change(&mut inner.contents().objects),
        None => {}
    }
    let (code, answer) = {
        let mut contents = inner.contents();
        let answer = contents
            .objects
            .call(&method, &target.id, &target.subresource, dry_run, &body);
        let version = answer.1["metadata"]["resourceVersion"].as_str();
        let shown = version.filter(|_| method == "GET").map(str::to_owned);
        let call = &mut contents.calls[number];
        (call.status, call.shown) = (Some(answer.0), shown);
        answer
    };
    inner.changed.send_replace(());
    if let Some(open) = held {
        drop(open.await);
    }
    match garbled {
        true => respond(code, "application/json", "{\"metadata\":".into()),
        false => json(code, view.answer((code, answer))),
    }
}

/// Passes a call on to Google's endpoints.
async fn google(inner: &Inner, mut call: Call, headers: &HeaderMap, body: Vec<u8>) -> Response<Body> {
    let url = format!("{}{}", inner.google, call.path);
    call.path = format!("https://iamcredentials.googleapis.com{}", call.path);
    let method = call.method.clone();
    let (number, overridden) = inner.record(call);
    match overridden {
        Some(Override::Hold(open)) => drop(open.await),
        Some(_) => panic!("Google's answers are held alone; faults are the emulator's"),
        None => {}
    }
    let method = method.parse().expect("a method");
    let mut request = inner.client.request(method, url).body(body);
    for name in ["authorization", "content-type", "x-goog-request-reason"] {
        request = request.header(name, text(headers, name));
    }
    let answer = request.send().await.expect("an answer of the emulator");
    let code = answer.status().as_u16();
    let body = answer.text().await.expect("an answer's text");
    inner.contents().calls[number].status = Some(code);
    inner.changed.send_replace(());
    respond(code, "application/json", body.into())
}

/// A list or a watch.
fn collection(
    inner: &Inner,
    target: &Target,
    query: &BTreeMap<String, String>,
    metadata_only: bool,
) -> Response<Body> {
    let pairs = |name: &str| -> Vec<(String, String)> {
        let selector = query.get(name).map(String::as_str).unwrap_or_default();
        let pairs = selector.split(',').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    };
    let view = View {
        collection: target.id.clone(),
        labels: pairs("labelSelector"),
        name: pairs("fieldSelector").into_iter().map(|(_, name)| name).next(),
        metadata_only,
    };
    let mut contents = inner.contents();
    if !query.contains_key("watch") {
        let after = query.get("continue").map(String::as_str);
        return json(
            200,
            contents.objects.list(&view, query.contains_key("limit"), after),
        );
    }
    let since = query
        .get("resourceVersion")
        .and_then(|version| version.parse().ok());
    let Some(since) = since else {
        let (code, body) = failure(400, "BadRequest", "a watch needs a resourceVersion");
        return json(code, body);
    };
    let lines = contents.objects.watch(view, since);
    respond(
        200,
        "application/json",
        Body::from_stream(lines.map(Ok::<_, Infallible>)),
    )
}

fn text(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

fn json(code: u16, body: Value) -> Response<Body> {
    respond(code, "application/json", body.to_string().into())
}

fn respond(code: u16, content_type: &str, body: Body) -> Response<Body> {
    Response::builder()
        .status(code)
        .header("content-type", content_type)
        .body(body)
        .expect("a response")
}
