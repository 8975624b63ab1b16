//! No body of an answer reaches the log, at any level, from any crate: a scripted API server answers each kind of call with something that
//! cannot be decoded and that quotes another team's password.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use idtoken_emulator::{EmulatorHandle, Policy, ServiceAccount};
use idtoken_testenv::{Process, RunDir, clean_command, until};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Generous, since others may use the machine too.
const LIMIT: Duration = Duration::from_secs(60);
const PASSWORD: &str = "correct-horse-battery";
const OPERATOR: &str = "operator@p.iam.gserviceaccount.com";
const CALLER: &str = "caller@p.iam.gserviceaccount.com";
const PROVIDER: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";

/// The kinds that are watched.
const WATCHED: [&str; 4] = ["idtokenrequests", "secrets", "idtokengrants", "namespaces"];

/// What the API server does with each kind of call, such as `list secrets`.
#[derive(Default)]
struct Script {
    /// Answered as a healthy API server does; every other call gets what cannot be decoded.
    healthy: BTreeSet<String>,
    /// How many undecodable answers were given.
    given: BTreeMap<String, u32>,
}

type Shared = Arc<Mutex<Script>>;

/// Verb and resource of a call.
fn call(method: &Method, path: &str, query: &str) -> String {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let resources = [
        "idtokenrequests",
        "idtokengrants",
        "secrets",
        "serviceaccounts",
        "leases",
        "events",
        "selfsubjectreviews",
    ];
    let at = parts.iter().position(|part| resources.contains(part));
    let (resource, rest) = match at {
        Some(at) => (parts[at], &parts[at + 1..]),
        None => ("namespaces", &parts[parts.len()..]),
    };
    let verb = match (method.as_str(), rest) {
        ("GET", []) if query.contains("watch=true") => "watch",
        ("GET", []) => "list",
        ("GET", _) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        _ => "patch",
    };
    match rest {
        [_, subresource, ..] => format!("{verb} {resource}/{subresource}"),
        _ => format!("{verb} {resource}"),
    }
}

fn requests() -> Vec<Value> {
    let request = |name: &str, source: Value| {
        json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {
                "name": name, "namespace": "shop", "uid": name, "resourceVersion": "5", "generation": 1,
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"audience": "https://a.run.app", "serviceAccount": CALLER, "source": source},
            "status": {"observedGeneration": -1},
        })
    };
    vec![
        request("billing", json!({"impersonation": {}})),
        request(
            "federated",
            json!({"federation": {"serviceAccountRef": {"name": "billing"}}}),
        ),
    ]
}

/// What a healthy API server says.
fn healthy(call: &str) -> Response {
    let list = |items: Vec<Value>| json!({"metadata": {"resourceVersion": "9"}, "items": items});
    let grant = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant",
        "metadata": {"name": "shop", "uid": "g", "resourceVersion": "4"},
        "spec": {"from": [{"namespace": "shop"}], "to": [{"serviceAccounts": [CALLER], "audiences": ["https://a.run.app"]}]},
    });
    let namespace = json!({"metadata": {"name": "shop", "resourceVersion": "3"}});
    let body = match call {
        "list idtokenrequests" => list(requests()),
        "list idtokengrants" => list(vec![grant]),
        "list namespaces" => list(vec![namespace]),
        "list secrets" | "list leases" => list(vec![]),
        "get serviceaccounts" => json!({"metadata": {"name": "billing", "namespace": "shop", "uid": "ksa"}}),
        "create leases" | "update leases" => lease(),
        "create selfsubjectreviews" => {
            json!({"status": {"userInfo": {"username": "system:serviceaccount:idtoken-system:idtoken-operator", "uid": "o"}}})
        }
        "update idtokenrequests/status" => json!({"metadata": {"resourceVersion": "10"}}),
        call if call.starts_with("watch ") => {
            let silent = futures::stream::pending::<Result<Bytes, std::io::Error>>();
            return Body::from_stream(silent).into_response();
        }
        _ => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "not found"});
            return (StatusCode::NOT_FOUND, status.to_string()).into_response();
        }
    };
    body.to_string().into_response()
}

fn lease() -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "idtoken-operator", "namespace": "idtoken-system", "resourceVersion": "7"},
        "spec": {"holderIdentity": "another", "leaseDurationSeconds": 1},
    })
}

/// An answer in which a field that every reader decodes is the password itself, so that a decoding error quotes it. Every other answer is
/// no UTF-8 either, or no watch at all; every third list is one, of an object that cannot be decoded.
fn undecodable(call: &str, number: u32) -> Response {
    let object = json!({
        "metadata": {
            "name": "adopted", "namespace": "shop", "uid": "u", "resourceVersion": "8", "labels": PASSWORD,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": PASSWORD},
        },
        "spec": PASSWORD, "status": {"token": {"of": PASSWORD}}, "data": {"password": PASSWORD},
    });
    let body = match call.split_once(' ').unwrap_or_default().0 {
        "list" if number.is_multiple_of(3) => {
            json!({"metadata": {"resourceVersion": "9"}, "items": [object]})
        }
        "list" => {
            json!({"metadata": {"resourceVersion": PASSWORD, "continue": [PASSWORD]}, "items": [object]})
        }
        "watch" if number.is_multiple_of(2) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, PASSWORD).into_response();
        }
        "watch" => json!({"type": "ADDED", "object": object}),
        _ => object,
    };
    let mut bytes = format!("{body}\n").into_bytes();
    if number % 6 == 2 || number.is_multiple_of(2) && !call.starts_with("list ") {
        bytes.push(0xff);
    }
    bytes.into_response()
}

async fn answer(State(script): State<Shared>, request: Request) -> Response {
    let uri = request.uri().clone();
    let call = call(request.method(), uri.path(), uri.query().unwrap_or_default());
    let number = {
        let mut script = script.lock().unwrap();
        if script.healthy.contains(&call) {
            None
        } else {
            let given = script.given.entry(call.clone()).or_default();
            *given += 1;
            Some(*given)
        }
    };
    match number {
        Some(number) => undecodable(&call, number),
        None if call == "create secrets" => created(request).await,
        None => healthy(&call),
    }
}

/// The object of the request, as it was created.
async fn created(request: Request) -> Response {
    let body = axum::body::to_bytes(request.into_body(), usize::MAX)
        .await
        .unwrap();
    let mut object: Value = serde_json::from_slice(&body).unwrap();
    object["metadata"]["uid"] = "s".into();
    object["metadata"]["resourceVersion"] = "11".into();
    object.to_string().into_response()
}

/// Starts the operator with `kubeconfig` for its cluster.
fn operator(dir: &RunDir, kubeconfig: &Path, google: std::net::SocketAddr) -> Result<Process> {
    let mut command = clean_command(Path::new(env!("CARGO_BIN_EXE_idtoken-operator")));
    command
        .args(["run", "--listen", "127.0.0.1:0", "--leader-elect"])
        .args([
            "--lease-namespace=idtoken-system",
            "--retry-period=1",
            "--reconcile-timeout=3",
        ])
        .arg(format!("--federation-provider={PROVIDER}"))
        .arg(format!("--iam-credentials-url=http://{google}"))
        .arg(format!("--sts-url=http://{google}"))
        .arg(format!("--google-keys-url=http://{google}/oauth2/v3/certs"))
        .env("KUBECONFIG", kubeconfig)
        .env(
            "IDTOKEN_LOG",
            "all=trace,[reconcile]=trace,kube_client::client=trace",
        )
        .env("GCE_METADATA_HOST", google.to_string())
        .env("HOME", dir.path());
    Process::spawn("operator", &command, dir.path())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_that_cannot_be_decoded_reaches_the_log() -> Result<()> {
    let mut policy = Policy {
        service_accounts: vec![
            ServiceAccount::new(OPERATOR),
            ServiceAccount::new(CALLER).impersonated_by(format!("serviceAccount:{OPERATOR}")),
        ],
        ..Policy::default()
    };
    policy.metadata_server.service_account = Some(OPERATOR.to_owned());
    let google = EmulatorHandle::start(policy, idtoken_emulator::Options::default()).await?;

    let script = Shared::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = format!("http://{}", listener.local_addr()?);
    let router = Router::new().fallback(answer).with_state(script.clone());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });

    let dir = RunDir::create("undecodable")?;
    let kubeconfig = dir.path().join("kubeconfig");
    let content = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "idtoken-system"}}],
    });
    std::fs::write(&kubeconfig, content.to_string())?;
    let operator = operator(&dir, &kubeconfig, google.address())?;
    let log =
        || String::from_utf8_lossy(&std::fs::read(operator.log_path()).unwrap_or_default()).into_owned();

    // Each step needs what the steps before it have made healthy.
    let lists: Vec<String> = WATCHED.iter().map(|kind| format!("list {kind}")).collect();
    let watches: Vec<String> = WATCHED.iter().map(|kind| format!("watch {kind}")).collect();
    let one = |calls: &[&str]| calls.iter().map(|call| (*call).to_owned()).collect::<Vec<_>>();
    let mut seen = 0;
    for (least, step) in [
        (3, lists),
        (2, watches),
        (2, one(&["get leases"])),
        (2, one(&["list leases"])),
        (1, one(&["create leases"])),
        (1, one(&["update leases"])),
        (2, one(&["get secrets", "update idtokenrequests/status"])),
        (1, one(&["create secrets"])),
        // While the writes of a namespace fail, no token is requested.
        (1, one(&["create selfsubjectreviews"])),
        (1, one(&["get serviceaccounts"])),
        (1, one(&["create serviceaccounts/token"])),
        (1, one(&["patch idtokengrants/status"])),
    ] {
        let what = format!("{least} undecodable answers to each of {step:?}");
        until(&what, LIMIT, async || {
            let given = &script.lock().unwrap().given;
            let all = step
                .iter()
                .all(|call| given.get(call).is_some_and(|count| *count >= least));
            Ok(all.then_some(()))
        })
        .await
        .with_context(|| {
            let log = log();
            let own: Vec<&str> = log.lines().filter(|line| line.contains(" WARN ")).collect();
            own[own.len().saturating_sub(10)..].join("\n")
        })?;
        seen += step.len();
        script.lock().unwrap().healthy.extend(step);
    }
    operator.kill().await?;
    serving.abort();

    let log = log();
    assert_eq!(seen, 19);
    for written in ["TRACE", "hyper", "the response could not be decoded"] {
        assert!(log.contains(written), "the log holds no {written}");
    }
    let encoded = STANDARD_NO_PAD.encode(PASSWORD);
    let numbers: Vec<String> = PASSWORD.bytes().take(6).map(|byte| byte.to_string()).collect();
    let needles = ["horse-battery", encoded.as_str(), &numbers.join(", ")];
    for line in log.lines() {
        assert!(
            !needles.iter().any(|needle| line.contains(needle)),
            "the log quotes an answer: {}",
            line.chars().take(400).collect::<String>()
        );
    }
    Ok(())
}
