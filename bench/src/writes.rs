//! The cost of the same change as full update (PUT), merge patch and server-side apply, for the API server and etcd.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::api::Api;
use crate::cluster::Cluster;
use crate::process::Usage;
use crate::report::{Report, median};
use crate::template::Template;
use crate::{Arguments, api, workload};

/// The pause after a round, so that delayed work of the servers does not count for the next one.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Method {
    Put,
    Merge,
    Apply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Object {
    Secret,
    Status,
}

const METHODS: [(Method, &str); 3] = [
    (Method::Put, "put"),
    (Method::Merge, "merge"),
    (Method::Apply, "apply"),
];
const OBJECTS: [(Object, &str); 2] = [(Object::Secret, "Secret"), (Object::Status, "status")];

/// The CPU seconds and the time of one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    etcd: f64,
    apiserver: f64,
    seconds: f64,
}

/// The last version of each Secret and request, by name.
type Objects = Arc<Mutex<HashMap<String, (Value, Value)>>>;

/// Measures the smallest count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let count = arguments.counts.iter().copied().min().unwrap_or_default();
    let scenario = format!("rewriting {count}");
    let template = Template::take(arguments).await?;
    let cluster = Cluster::start(arguments).await?;
    let objects = Objects::default();
    for (_, prefix) in METHODS {
        prepare(&cluster, &template, &objects, prefix, count).await?;
    }
    let mut rounds: HashMap<(Object, Method), Vec<Round>> = HashMap::new();
    // The first round creates the entries of managedFields and does not count.
    for round in 0..=arguments.pairs {
        for (object, object_name) in OBJECTS {
            let mut order = METHODS;
            order.rotate_left(round % METHODS.len());
            for (method, prefix) in order {
                tokio::time::sleep(PAUSE).await;
                let result = rewrite(&cluster, &objects, (object, method), prefix, count, round).await?;
                if round == 0 {
                    continue;
                }
                report.progress(&format!(
                    "{scenario}, {object_name} by {prefix}, round {round}: API server {:.2} s, etcd {:.2} s, {:.2} s",
                    result.apiserver, result.etcd, result.seconds
                ));
                rounds.entry((object, method)).or_default().push(result);
            }
        }
    }
    for (object, object_name) in OBJECTS {
        let scenario = format!("{scenario}, {object_name}");
        let of = |method| {
            rounds
                .get(&(object, method))
                .map(Vec::as_slice)
                .unwrap_or_default()
        };
        let ratio = |method, value: fn(&Round) -> f64| {
            let pairs = of(method).iter().zip(of(Method::Put));
            Some(median(pairs.map(|(one, put)| value(one) / value(put))))
        };
        let micros =
            |value: fn(&Round) -> f64| Some(median(of(Method::Put).iter().map(value)) * 1e6 / count as f64);
        report.record(
            &scenario,
            "PUT: CPU of the API server, microseconds",
            micros(|round| round.apiserver),
        );
        report.record(
            &scenario,
            "PUT: CPU of etcd, microseconds",
            micros(|round| round.etcd),
        );
        for (method, name) in [
            (Method::Merge, "merge patch"),
            (Method::Apply, "server-side apply"),
        ] {
            report.record(
                &scenario,
                &format!("{name}: CPU of the API server, ratio to PUT"),
                ratio(method, |round| round.apiserver),
            );
            report.record(
                &scenario,
                &format!("{name}: CPU of etcd, ratio to PUT"),
                ratio(method, |round| round.etcd),
            );
            report.record(
                &scenario,
                &format!("{name}: time, ratio to PUT"),
                ratio(method, |round| round.seconds),
            );
        }
        for (method, name) in METHODS {
            let raw: Vec<_> = of(method)
                .iter()
                .map(|round| json!({"apiserverCpu": round.apiserver, "etcdCpu": round.etcd, "seconds": round.seconds}))
                .collect();
            report.raw(&format!("{scenario} by {name}"), json!(raw));
        }
    }
    cluster.stop().await
}

/// Creates `count` requests with their Secrets and statuses.
async fn prepare(
    cluster: &Cluster,
    template: &Template,
    objects: &Objects,
    prefix: &'static str,
    count: usize,
) -> Result<()> {
    let (admin, template, objects) = (cluster.admin.clone(), template.clone(), objects.clone());
    workload::each(&cluster.namespaces, 0..count, move |namespace, name| {
        let (admin, template, objects) = (admin.clone(), template.clone(), objects.clone());
        async move {
            let name = format!("{prefix}-{name}");
            let object = workload::object(&namespace, &name);
            let request = admin.create(&api::requests(&namespace), &object).await?;
            let uid = request["metadata"]["uid"].as_str().context("no UID")?;
            let secret = template.secret(&name, uid, &token(0));
            let secret = admin.create(&api::secrets(&namespace), &secret).await?;
            let path = format!("{}/status", api::request(&namespace, &name));
            let request = admin.merge(&path, &template.status(&secret)).await?;
            store(&objects, name, (secret, request));
            Ok(())
        }
    })
    .await
}

fn store(objects: &Objects, name: String, pair: (Value, Value)) {
    let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    objects.insert(name, pair);
}

/// A token as long as Google's, different in each round.
fn token(round: usize) -> String {
    format!("{round:0>800}")
}

/// Rewrites all Secrets or statuses of `prefix` by `method`.
async fn rewrite(
    cluster: &Cluster,
    objects: &Objects,
    (object, method): (Object, Method),
    prefix: &'static str,
    count: usize,
    round: usize,
) -> Result<Round> {
    let pids = cluster.pids().await;
    let cpu = || {
        pids.iter()
            .map(|pid| Ok(Usage::of(*pid)?.cpu))
            .collect::<Result<Vec<f64>>>()
    };
    let before = cpu()?;
    let started = Instant::now();
    let (admin, shared) = (cluster.admin.clone(), objects.clone());
    workload::each(&cluster.namespaces, 0..count, move |namespace, name| {
        let (admin, objects) = (admin.clone(), shared.clone());
        async move {
            let name = format!("{prefix}-{name}");
            let stored = objects
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&name)
                .cloned();
            let (secret, request) = stored.context("no such object")?;
            let pair = match object {
                Object::Secret => {
                    let path = format!("{}/{name}", api::secrets(&namespace));
                    (
                        write(&admin, method, &path, with_next_token(&secret, round), "data").await?,
                        request,
                    )
                }
                Object::Status => {
                    let path = format!("{}/status", api::request(&namespace, &name));
                    let changed = with_next_status(&request, &secret, round);
                    (secret, write(&admin, method, &path, changed, "status").await?)
                }
            };
            store(&objects, name, pair);
            Ok(())
        }
    })
    .await?;
    let seconds = started.elapsed().as_secs_f64();
    tokio::time::sleep(PAUSE).await;
    let after = cpu()?;
    Ok(Round {
        etcd: after[0] - before[0],
        apiserver: after[1] - before[1],
        seconds,
    })
}

/// The Secret with the next token.
fn with_next_token(secret: &Value, round: usize) -> Value {
    use base64::Engine;
    let mut secret = secret.clone();
    let engine = base64::engine::general_purpose::STANDARD;
    secret["data"]["token"] = engine.encode(token(round + 1)).into();
    secret["metadata"]["annotations"]["idtoken.dev/renewal-time"] = timestamp(round).into();
    secret
}

/// The request with the status of its next token.
fn with_next_status(request: &Value, secret: &Value, round: usize) -> Value {
    let mut request = request.clone();
    request["status"]["renewalTime"] = timestamp(round).into();
    request["status"]["token"]["expirationTime"] = timestamp(round + 1).into();
    request["status"]["secret"]["resourceVersion"] = secret["metadata"]["resourceVersion"].clone();
    request
}

fn timestamp(round: usize) -> String {
    format!("2030-01-01T{:02}:{:02}:00Z", round / 60 % 24, round % 60)
}

/// Writes `object`. A patch has the same fields as the operator's: metadata and `part`.
async fn write(api: &Api, method: Method, path: &str, object: Value, part: &str) -> Result<Value> {
    let metadata = &object["metadata"];
    match method {
        Method::Put => {
            let mut object = object;
            if let Some(metadata) = object["metadata"].as_object_mut() {
                // Like a client that caches objects without managedFields. The API server keeps them.
                metadata.remove("managedFields");
            }
            api.replace(path, &object).await
        }
        Method::Merge => {
            let mut patch = json!({
                "metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
                part: object[part],
            });
            if part == "data" {
                patch["metadata"]["labels"] = metadata["labels"].clone();
                patch["metadata"]["annotations"] = metadata["annotations"].clone();
            }
            api.merge(path, &patch).await
        }
        Method::Apply => {
            let mut body = json!({
                "apiVersion": object["apiVersion"], "kind": object["kind"],
                "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
                part: object[part],
            });
            if part == "data" {
                body["metadata"]["labels"] = metadata["labels"].clone();
                body["metadata"]["annotations"] = metadata["annotations"].clone();
            }
            api.apply(path, &body).await
        }
    }
}
