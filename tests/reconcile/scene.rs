//! The operator as the process that users run, between a scripted API server and Google's endpoints emulated.

use std::collections::HashSet;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use idtoken_emulator::{EmulatorHandle, Endpoint, Fault, Options, Policy, ServiceAccount, SigningKey};
use idtoken_testenv::{Port, Process, RunDir, clean_command};
use serde_json::{Value, json};

use crate::api_server::{ApiServer, Call, Contents};
use crate::before::{Before, billing};
use crate::objects::{Id, MARKERS};
use crate::record;

const OPERATOR: &str = "operator@p.iam.gserviceaccount.com";
/// An account that the operator may impersonate, and one that it may not.
pub(crate) const CALLER: &str = "caller@p.iam.gserviceaccount.com";
pub(crate) const LOCKED: &str = "locked@p.iam.gserviceaccount.com";
pub(crate) const AUDIENCE: &str = "https://billing-x.run.app";
/// A rejected attempt is repeated after 3.75 s at least. A run that takes this long, on a machine that has too much to do, may show a retry
/// that is no part of its case, and is repeated where it differs.
const SLOW: Duration = Duration::from_millis(2500);
const TRIES: usize = 3;
/// A case makes a dozen calls at most. Each round waits for those that the events of the round before have caused.
const MAX_ROUNDS: usize = 50;

fn signing_key() -> String {
    static KEY: OnceLock<String> = OnceLock::new();
    KEY.get_or_init(|| {
        SigningKey::generate()
            .and_then(|key| key.to_pem())
            .expect("a key")
    })
    .clone()
}

/// All of it ends when this is dropped.
pub(crate) struct Scene {
    pub(crate) server: ApiServer,
    pub(crate) google: EmulatorHandle,
    operator: Process,
    port: Port,
    _dir: RunDir,
}

impl Scene {
    pub(crate) async fn start(before: &Before) -> Self {
        // An error means that another test was faster, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut policy = Policy {
            service_accounts: vec![
                ServiceAccount::new(OPERATOR),
                ServiceAccount::new(CALLER).impersonated_by(format!("serviceAccount:{OPERATOR}")),
                ServiceAccount::new(LOCKED),
            ],
            ..Policy::default()
        };
        policy.metadata_server.service_account = Some(OPERATOR.to_owned());
        let options = Options {
            signing_key_pem: Some(signing_key()),
            ..Options::default()
        };
        let google = EmulatorHandle::start(policy, options)
            .await
            .expect("the emulator");
        let server = ApiServer::start(google.url()).await;
        before.fill(&server);
        let dir = RunDir::create("reconcile").expect("a folder");
        let port = Port::reserve().expect("a free port");
        let operator = operator(&server, &google, &dir, &port, before.flags);
        let scene = Self {
            server,
            google,
            operator,
            port,
            _dir: dir,
        };
        scene.settle().await;
        scene
    }

    /// Creates an object as another client does.
    pub(crate) fn create(&self, id: &Id, object: Value) {
        self.server.contents().objects.create(id, object);
    }

    /// Changes an object as another client does.
    pub(crate) fn change(&self, id: &Id, change: impl FnOnce(&mut Value)) {
        self.server.contents().objects.change(id, change);
    }

    /// Deletes an object as another client does.
    pub(crate) fn delete(&self, id: &Id) {
        self.server.contents().objects.delete(id);
    }

    /// Has Google's next token be a minute old, so that it differs from the one after it.
    pub(crate) fn issue_a_minute_ago(&self) {
        self.google
            .fault(Fault::clock(-60).on(Endpoint::GenerateIdToken).times(1))
            .expect("a fault of the emulator");
    }

    /// Waits until the operator has handled all events of its watches, and makes no further call for them.
    ///
    /// With `--concurrency=1` it reconciles one request at a time, in the order of the events. When a new request has its status, all earlier
    /// events of that watch are handled; when its new Secret is read, those of the other watch are, too.
    pub(crate) async fn settle(&self) {
        for _ in 0..MAX_ROUNDS {
            let (calls, markers) = {
                let contents = self.server.contents();
                (
                    contents.calls.len(),
                    contents.objects.names("idtokenrequests", MARKERS).len(),
                )
            };
            let name = format!("marker-{markers}");
            let request = Id::new("idtokenrequests", MARKERS, &name);
            let secret = Id::new("secrets", MARKERS, &name);
            self.create(
                &request,
                json!({
                    "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest", "metadata": {"uid": name},
                    // It reads its Secret and asks for no token.
                    "spec": {"audience": AUDIENCE, "serviceAccount": CALLER, "suspend": true},
                    "status": {"observedGeneration": -1},
                }),
            );
            self.until("the marker's status", |contents| {
                let status = &contents.objects.get(&request)?["status"];
                (status["observedGeneration"] == 1).then_some(())
            })
            .await;
            let metadata = json!({
                "labels": {"app.kubernetes.io/managed-by": "idtoken-operator"},
                "annotations": {"idtoken.dev/request": name, "idtoken.dev/request-uid": name},
            });
            self.create(
                &secret,
                json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata}),
            );
            self.until("the marker's Secret is read", |contents| {
                contents.marker_reads.contains(&name).then_some(())
            })
            .await;
            if self.server.contents().calls.len() == calls {
                return;
            }
        }
        panic!("the calls do not end: {:#?}", self.calls());
    }

    async fn until<T>(&self, what: &str, check: impl Fn(&Contents) -> Option<T>) -> T {
        match self.server.until(check).await {
            Some(value) => value,
            None => panic!(
                "{what}: not in time.\nThe calls: {:#?}\nThe operator's log ends with\n{}",
                self.calls(),
                self.operator.log_tail()
            ),
        }
    }

    /// Waits for the `count`th call with this method, and this text in its path, to be answered.
    pub(crate) async fn until_call(&self, method: &str, path: &str, count: usize) {
        self.until(&format!("{method} {path}, {count} times"), |contents| {
            let mut calls = contents.calls.iter().filter(|call| call.is(method, path));
            calls.nth(count - 1)?.status.map(drop)
        })
        .await;
    }

    /// Waits for a call with this method, and this text in its path, whether it is answered or not.
    pub(crate) async fn until_arrival(&self, method: &str, path: &str) {
        self.until(&format!("{method} {path} arrives"), |contents| {
            contents.calls.iter().find(|call| call.is(method, path)).map(drop)
        })
        .await;
    }

    /// Waits for a condition of the request to have this status, for the spec as it is now.
    pub(crate) async fn until_condition(&self, type_: &str, status: &str) {
        self.until(&format!("{type_} is {status}"), |contents| {
            let request = contents.objects.get(&billing())?;
            let found = condition(request, type_)?;
            let now = found["observedGeneration"] == request["metadata"]["generation"];
            (now && found["status"] == *status).then_some(())
        })
        .await;
    }

    /// The message of a condition of the request.
    pub(crate) fn message(&self, type_: &str) -> String {
        let contents = self.server.contents();
        let request = contents.objects.get(&billing()).expect("the request");
        let found = condition(request, type_).expect("the condition");
        found["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a line of `/metrics` begins with this text.
    pub(crate) async fn until_metric(&self, series: &str) {
        self.until_metrics(series, |text| text.lines().any(|line| line.starts_with(series)))
            .await;
    }

    /// The value of one series now.
    pub(crate) async fn metric(&self, series: &str) -> u64 {
        let text = self
            .until_metrics(series, |text| value(text, series).is_some())
            .await;
        value(&text, series).expect("the series")
    }

    /// Waits until one series is not `before` any more. Returns its value.
    pub(crate) async fn until_other(&self, series: &str, before: u64) -> u64 {
        let is_other = |text: &str| value(text, series).is_some_and(|value| value != before);
        let text = self.until_metrics(series, is_other).await;
        value(&text, series).expect("the series")
    }

    async fn until_metrics(&self, what: &str, check: impl Fn(&str) -> bool) -> String {
        let url = format!("http://127.0.0.1:{}/metrics", self.port.number());
        let client = reqwest::Client::builder().no_proxy().build();
        let client = client.expect("an HTTP client");
        let began = Instant::now();
        loop {
            let answer = client.get(&url).send().await.expect("metrics");
            let text = answer.text().await.expect("metrics");
            if check(&text) {
                return text;
            }
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{what} is not as expected in\n{text}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.server.contents().calls.clone()
    }

    /// The text to compare.
    fn text(&self, about: &str, before: &Before) -> String {
        let contents = self.server.contents();
        let mut calls = contents.calls.clone();
        if before.reads_once {
            let mut seen = HashSet::new();
            calls.retain(|call| call.shown.is_none() || seen.insert((call.path.clone(), call.shown.clone())));
        }
        let status = |request: &Value| request["status"].clone();
        let end = [
            (
                "The request's status".to_owned(),
                contents.objects.get(&billing()).map_or(Value::Null, status),
            ),
            (
                "The Secrets".to_owned(),
                json!(contents.objects.names("secrets", "shop")),
            ),
        ];
        record::text(
            about,
            before.secret.as_ref().unwrap_or(&Value::Null),
            &calls,
            &end,
        )
    }
}

/// The value of one series in `/metrics`.
fn value(text: &str, series: &str) -> Option<u64> {
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    values.next()?.parse().ok()
}

fn condition<'a>(request: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = request["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == *type_)
}

fn operator(
    server: &ApiServer,
    google: &EmulatorHandle,
    dir: &RunDir,
    port: &Port,
    flags: &[&str],
) -> Process {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "scripted",
        "clusters": [{"name": "scripted", "cluster": {"server": format!("http://{}", server.address)}}],
        "users": [{"name": "operator", "user": {}}],
        "contexts": [{"name": "scripted", "context": {"cluster": "scripted", "user": "operator"}}],
    });
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, config.to_string()).expect("a kubeconfig");
    let mut command = clean_command(Path::new(env!("CARGO_BIN_EXE_idtoken-operator")));
    command
        .args(["run", "--concurrency=1"])
        .args(flags)
        .arg(format!("--listen=127.0.0.1:{}", port.number()))
        // Its calls are recorded among those of the Kubernetes API.
        .arg(format!("--iam-credentials-url=http://{}", server.address))
        .arg(format!("--sts-url={}", google.url()))
        .arg(format!("--google-keys-url={}/oauth2/v3/certs", google.url()))
        .env("KUBECONFIG", kubeconfig)
        .env("GCE_METADATA_HOST", google.address().to_string())
        .env("HOSTNAME", "operator-0")
        .env("RUST_BACKTRACE", "1")
        // No credential file of whoever runs the tests.
        .env("HOME", dir.path());
    Process::spawn("operator", &command, dir.path()).expect("the operator starts")
}

/// Plays a case and compares its calls, from the operator's start on, with those recorded under its name.
pub(crate) async fn play(case: &str, about: &str, before: Before, script: impl AsyncFn(&Scene)) {
    for remaining in (0..TRIES).rev() {
        let scene = Scene::start(&before).await;
        let began = Instant::now();
        script(&scene).await;
        scene.settle().await;
        let text = scene.text(about, &before);
        let Some(recorded) = record::recorded(case) else {
            return record::rewrite(case, &text);
        };
        if recorded == text || began.elapsed() < SLOW || remaining == 0 {
            return record::compare(case, &recorded, &text);
        }
    }
}
