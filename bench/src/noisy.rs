//! What a neighbour notices of a namespace that attacks: the time until its tokens are there, beside the time that the same writes take a
//! bare client meanwhile, and the operator's memory and CPU.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::api::{self, Api};
use crate::cluster::Cluster;
use crate::emulator::ACCOUNT;
use crate::environment::Environment;
use crate::report::{Report, quantile};
use crate::{Arguments, workload};

/// How many tokens the neighbour gets, one after the other.
const NEIGHBOURS: usize = 40;
/// The pause between two of them.
const PAUSE: Duration = Duration::from_millis(200);
/// How many objects the attacker writes at once.
const ATTACKERS: usize = 8;
/// The chart's limit, in MiB.
const MEMORY_LIMIT: f64 = 256.0;
const NAMESPACE: &str = "evil";

/// What a namespace does.
#[derive(Clone, Copy, Debug)]
enum Attack {
    /// Nothing: the times to compare with.
    Nothing,
    /// 3,000 requests without a grant, changed again and again.
    Requests,
    /// 110 requests with the longest templates that the schema permits.
    LongTemplates,
    /// A Secret with the operator's label whose managedFields cannot be decoded, changed again and again.
    Undecodable,
    /// Three Secrets with the operator's label and 1.3 MB of managedFields, changed again and again.
    HugeMetadata,
    /// 100 Secrets with the operator's label, and 100 requests of their names.
    TakenNames,
    /// 70 granted requests in a namespace whose webhook for Secrets fails.
    FailingWebhook,
    /// 700 HTTP requests to the probes' port that are never finished.
    OpenRequests,
}

const ATTACKS: [(Attack, &str); 8] = [
    (Attack::Nothing, "no attack"),
    (Attack::Requests, "3,000 requests without a grant"),
    (Attack::LongTemplates, "110 long templates"),
    (Attack::Undecodable, "an undecodable Secret"),
    (Attack::HugeMetadata, "huge managedFields"),
    (Attack::TakenNames, "100 taken names"),
    (Attack::FailingWebhook, "a failing webhook"),
    (Attack::OpenRequests, "700 unfinished HTTP requests"),
];

/// Measures each attack on a cluster of its own.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    for (attack, name) in ATTACKS {
        let scenario = format!("noisy: {name}");
        report.progress(&scenario);
        let mut environment = Environment::empty(arguments).await?;
        let address = environment.subject.address()?.to_owned();
        let running = attack.start(&environment.cluster, &address).await?;
        let before = environment.subject.usage()?.cpu;
        let (bare, issued) = neighbour(&mut environment).await?;
        let usage = environment.subject.usage()?;
        running.abort();
        let milliseconds = |times: &[f64], fraction| Some(quantile(times.iter().copied(), fraction) * 1e3);
        for (percentile, fraction) in [("p50", 0.5), ("p99", 0.99)] {
            let figure = format!("{percentile} of a neighbour's first token, milliseconds");
            report.record(&scenario, &figure, milliseconds(&issued, fraction));
            let figure = format!("{percentile} of the same writes by a bare client, milliseconds");
            report.record(&scenario, &figure, milliseconds(&bare, fraction));
        }
        let peak = usage.peak_kib as f64 / 1024.0;
        report.at_most(&scenario, "peak memory, MiB", Some(peak), MEMORY_LIMIT);
        report.record(&scenario, "CPU meanwhile, seconds", Some(usage.cpu - before));
        report.raw(
            &scenario,
            json!({"neighbourSeconds": issued, "bareSeconds": bare}),
        );
        environment.stop().await?;
    }
    Ok(())
}

/// Gets tokens by the operator, and makes the same writes with a bare client in turn. Returns the seconds of each, the bare client's first.
async fn neighbour(environment: &mut Environment) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut bare, mut issued) = (Vec::new(), Vec::new());
    let google = environment.cluster.google.clone();
    let access_token = google.access_token().await?;
    for n in 0..NEIGHBOURS {
        let (namespace, name) = workload::key(&environment.cluster.namespaces, n);
        let admin = environment.cluster.admin.clone();
        let started = Instant::now();
        let token = google.id_token(&access_token, &workload::audience(&name)).await?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("bare-{name}")},
            "stringData": {"token": token},
        });
        admin.create(&api::secrets(&namespace), &secret).await?;
        let path = format!("{}/bare-{name}", api::secrets(&namespace));
        admin
            .merge(
                &path,
                &json!({"metadata": {"annotations": {"status": "written"}}}),
            )
            .await?;
        bare.push(started.elapsed().as_secs_f64());
        tokio::time::sleep(PAUSE).await;
        let started = Instant::now();
        admin
            .create(&api::requests(&namespace), &workload::object(&namespace, &name))
            .await?;
        environment.wait_named(&name).await?;
        let ready = environment.watch.ready_at(&name).context("it was never Ready")?;
        issued.push(ready.duration_since(started).as_secs_f64());
        tokio::time::sleep(PAUSE).await;
    }
    Ok((bare, issued))
}

impl Attack {
    /// Starts it. It goes on until it is aborted.
    async fn start(self, cluster: &Cluster, address: &str) -> Result<JoinHandle<Result<()>>> {
        let admin = cluster.admin.clone();
        let labels = match self {
            Self::FailingWebhook => json!({"bench": "load"}),
            _ => json!({}),
        };
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels},
        });
        admin.create("api/v1/namespaces", &namespace).await?;
        if matches!(self, Self::FailingWebhook) {
            let path = "apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
            admin.create(path, &failing_webhook()).await?;
        }
        let address = address.to_owned();
        Ok(tokio::spawn(async move {
            match self {
                Self::Nothing => Ok(()),
                Self::OpenRequests => open_requests(&address, 700).await,
                _ => write(&admin, self.objects()).await,
            }
        }))
    }

    /// The path of each object, and the object.
    fn objects(self) -> Vec<(String, Value)> {
        let requests = |count: usize, spec: Value| {
            let object = move |n: usize| request(&format!("evil-{n}"), &spec);
            (0..count).map(object).collect::<Vec<_>>()
        };
        let plain = json!({"audience": "https://load.example.com/evil", "serviceAccount": ACCOUNT});
        match self {
            Self::Nothing | Self::OpenRequests => Vec::new(),
            Self::Requests => requests(3000, plain),
            Self::FailingWebhook => requests(70, plain),
            Self::LongTemplates => {
                let mut spec = plain;
                let values = (0..32).map(|n| (format!("key-{n}"), json!("\u{1f511}".repeat(500))));
                spec["target"]["template"]["data"] = Value::Object(values.collect());
                requests(110, spec)
            }
            Self::Undecodable => vec![secret("bad", "9999-12-31T23:59:59Z", json!({"f:data": {}}))],
            Self::HugeMetadata => {
                let chain = (0..110).fold(json!({}), |inner, _| json!({"f:a": inner}));
                let chains = (0..1450).map(|n| (format!("f:{n}"), chain.clone()));
                let fields = Value::Object(chains.collect());
                let object = |n: usize| secret(&format!("huge-{n}"), "2026-01-01T00:00:00Z", fields.clone());
                (0..3).map(object).collect()
            }
            Self::TakenNames => {
                let object = |n: usize| {
                    let name = format!("taken-{n}");
                    [
                        secret(&name, "2026-01-01T00:00:00Z", json!({})),
                        request(&name, &plain),
                    ]
                };
                (0..100).flat_map(object).collect()
            }
        }
    }
}

fn request(name: &str, spec: &Value) -> (String, Value) {
    let object = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest", "metadata": {"name": name}, "spec": spec,
    });
    (api::requests(NAMESPACE), object)
}

/// A Secret with the operator's label, and with this time and these fields in its managedFields.
fn secret(name: &str, time: &str, fields: Value) -> (String, Value) {
    let metadata = json!({
        "name": name, "labels": {"app.kubernetes.io/managed-by": "idtoken-operator"},
        "managedFields": [{
            "manager": "evil", "operation": "Update", "apiVersion": "v1", "time": time,
            "fieldsType": "FieldsV1", "fieldsV1": fields,
        }],
    });
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata});
    (api::secrets(NAMESPACE), object)
}

/// A webhook that cannot be reached, for the Secrets of the attacking namespace.
fn failing_webhook() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": NAMESPACE},
        "webhooks": [{
            "name": "secrets.evil.example.com", "failurePolicy": "Fail", "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": 10,
            "clientConfig": {"url": "https://127.0.0.1:1/"},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["CREATE", "UPDATE"]}],
        }],
    })
}

/// Creates the objects, then changes one after the other for ever.
async fn write(admin: &Api, objects: Vec<(String, Value)>) -> Result<()> {
    let paths: Vec<String> = objects
        .iter()
        .map(|(path, object)| {
            format!(
                "{path}/{}",
                object["metadata"]["name"].as_str().unwrap_or_default()
            )
        })
        .collect();
    let created = stream::iter(objects).map(|(path, object)| {
        let admin = admin.clone();
        async move { admin.create(&path, &object).await.map(drop) }
    });
    created
        .buffer_unordered(ATTACKERS)
        .try_collect::<Vec<()>>()
        .await?;
    for round in 0_u64.. {
        let patch = json!({"metadata": {"annotations": {"round": round.to_string()}}});
        let changed = stream::iter(paths.clone()).map(|path| {
            let (admin, patch) = (admin.clone(), patch.clone());
            async move { admin.merge(&path, &patch).await.map(drop) }
        });
        changed
            .buffer_unordered(ATTACKERS)
            .try_collect::<Vec<()>>()
            .await?;
    }
    Ok(())
}

/// Keeps `count` connections open, each with half a request of 64 KiB. Those that are closed are opened again.
async fn open_requests(address: &str, count: usize) -> Result<()> {
    let open = async || -> Result<()> {
        let mut connection = TcpStream::connect(address).await?;
        let head = format!(
            "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Padding: {}",
            "x".repeat(64 << 10)
        );
        // An error means that the other side closed it.
        let _ = connection.write_all(head.as_bytes()).await;
        let mut end = [0; 1];
        let _ = tokio::io::AsyncReadExt::read(&mut connection, &mut end).await;
        Ok(())
    };
    stream::iter(0..count)
        .for_each_concurrent(None, |_| async {
            loop {
                // A full backlog: tried again after a pause.
                if open().await.is_err() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        })
        .await;
    Ok(())
}
