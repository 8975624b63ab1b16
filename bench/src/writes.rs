//! What full updates (PUT), merge patches and server-side apply of the same change cost the API server and etcd.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::api::Api;
use crate::cluster::Cluster;
use crate::report::{Report, median};
use crate::sample::Sample;
use crate::usage::Usage;
use crate::{Arguments, api, load};

/// Work of the servers' that comes a moment later is not taken for that of the next turn.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Method {
    Put,
    Merge,
    Apply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Secret,
    Status,
}

const METHODS: [(Method, &str); 3] = [
    (Method::Put, "put"),
    (Method::Merge, "merge"),
    (Method::Apply, "apply"),
];
const PARTS: [(Part, &str); 2] = [(Part::Secret, "Secret"), (Part::Status, "status")];

/// CPU seconds and seconds of one turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    etcd: f64,
    apiserver: f64,
    seconds: f64,
}

/// The last version of each object, by name.
type Objects = Arc<Mutex<HashMap<String, (Value, Value)>>>;

/// Measures it with the smallest count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let count = arguments.counts.iter().copied().min().unwrap_or_default();
    let scenario = format!("rewriting {count}");
    let sample = Sample::take(arguments).await?;
    let cluster = Cluster::start(arguments).await?;
    let objects = Objects::default();
    for (_, prefix) in METHODS {
        prepare(&cluster, &sample, &objects, prefix, count).await?;
    }
    let mut turns: HashMap<(Part, Method), Vec<Turn>> = HashMap::new();
    // The first round makes the entries of managedFields and is not counted.
    for round in 0..=arguments.pairs {
        for (part, part_name) in PARTS {
            let mut order = METHODS;
            order.rotate_left(round % METHODS.len());
            for (method, prefix) in order {
                tokio::time::sleep(PAUSE).await;
                let turn = rewrite(&cluster, &objects, (part, method), prefix, count, round).await?;
                if round == 0 {
                    continue;
                }
                report.progress(&format!(
                    "{scenario}, {part_name} by {prefix}, round {round}: API server {:.2} s, etcd {:.2} s, {:.2} s",
                    turn.apiserver, turn.etcd, turn.seconds
                ));
                turns.entry((part, method)).or_default().push(turn);
            }
        }
    }
    for (part, part_name) in PARTS {
        let scenario = format!("{scenario}, {part_name}");
        let of = |method| turns.get(&(part, method)).map(Vec::as_slice).unwrap_or_default();
        let ratio = |method, value: fn(&Turn) -> f64| {
            let pairs = of(method).iter().zip(of(Method::Put));
            Some(median(pairs.map(|(one, put)| value(one) / value(put))))
        };
        let micros =
            |value: fn(&Turn) -> f64| Some(median(of(Method::Put).iter().map(value)) * 1e6 / count as f64);
        report.told(
            &scenario,
            "PUT: CPU microseconds of the API server",
            micros(|turn| turn.apiserver),
        );
        report.told(
            &scenario,
            "PUT: CPU microseconds of etcd",
            micros(|turn| turn.etcd),
        );
        for (method, name) in [
            (Method::Merge, "merge patch"),
            (Method::Apply, "server-side apply"),
        ] {
            report.told(
                &scenario,
                &format!("{name} to PUT: CPU of the API server"),
                ratio(method, |turn| turn.apiserver),
            );
            report.told(
                &scenario,
                &format!("{name} to PUT: CPU of etcd"),
                ratio(method, |turn| turn.etcd),
            );
            report.told(
                &scenario,
                &format!("{name} to PUT: time"),
                ratio(method, |turn| turn.seconds),
            );
        }
        for (method, name) in METHODS {
            let raw: Vec<_> = of(method)
                .iter()
                .map(|turn| json!({"apiserverCpu": turn.apiserver, "etcdCpu": turn.etcd, "seconds": turn.seconds}))
                .collect();
            report.raw(&format!("{scenario} by {name}"), json!(raw));
        }
    }
    cluster.stop().await
}

/// Writes `count` requests, their Secrets and their status.
async fn prepare(
    cluster: &Cluster,
    sample: &Sample,
    objects: &Objects,
    prefix: &'static str,
    count: usize,
) -> Result<()> {
    let (admin, sample, objects) = (cluster.admin.clone(), sample.clone(), objects.clone());
    load::each(&cluster.namespaces, 0..count, move |namespace, name| {
        let (admin, sample, objects) = (admin.clone(), sample.clone(), objects.clone());
        async move {
            let name = format!("{prefix}-{name}");
            let object = load::object(&namespace, &name);
            let request = admin.create(&api::requests(&namespace), &object).await?;
            let uid = request["metadata"]["uid"].as_str().context("no UID")?;
            let secret = sample.secret(&name, uid, &token(0));
            let secret = admin.create(&api::secrets(&namespace), &secret).await?;
            let path = format!("{}/status", api::request(&namespace, &name));
            let request = admin.merge(&path, &sample.status(&secret)).await?;
            keep(&objects, name, (secret, request));
            Ok(())
        }
    })
    .await
}

fn keep(objects: &Objects, name: String, pair: (Value, Value)) {
    let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    objects.insert(name, pair);
}

/// As long as Google's, and another one in each round.
fn token(round: usize) -> String {
    format!("{round:0>800}")
}

/// Renews `part` of all objects of `prefix` by `method`.
async fn rewrite(
    cluster: &Cluster,
    objects: &Objects,
    (part, method): (Part, Method),
    prefix: &'static str,
    count: usize,
    round: usize,
) -> Result<Turn> {
    let pids = cluster.pids().await;
    let cpu = || {
        pids.iter()
            .map(|pid| Ok(Usage::of(*pid)?.cpu))
            .collect::<Result<Vec<f64>>>()
    };
    let before = cpu()?;
    let begun = Instant::now();
    let (admin, shared) = (cluster.admin.clone(), objects.clone());
    load::each(&cluster.namespaces, 0..count, move |namespace, name| {
        let (admin, objects) = (admin.clone(), shared.clone());
        async move {
            let name = format!("{prefix}-{name}");
            let kept = objects
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&name)
                .cloned();
            let (secret, request) = kept.context("no such object")?;
            let pair = match part {
                Part::Secret => {
                    let path = format!("{}/{name}", api::secrets(&namespace));
                    (
                        write(&admin, method, &path, renewed(&secret, round), "data").await?,
                        request,
                    )
                }
                Part::Status => {
                    let path = format!("{}/status", api::request(&namespace, &name));
                    let changed = moved(&request, &secret, round);
                    (secret, write(&admin, method, &path, changed, "status").await?)
                }
            };
            keep(&objects, name, pair);
            Ok(())
        }
    })
    .await?;
    let seconds = begun.elapsed().as_secs_f64();
    tokio::time::sleep(PAUSE).await;
    let after = cpu()?;
    Ok(Turn {
        etcd: after[0] - before[0],
        apiserver: after[1] - before[1],
        seconds,
    })
}

/// The Secret with another token.
fn renewed(secret: &Value, round: usize) -> Value {
    use base64::Engine;
    let mut secret = secret.clone();
    let engine = base64::engine::general_purpose::STANDARD;
    secret["data"]["token"] = engine.encode(token(round + 1)).into();
    secret["metadata"]["annotations"]["idtoken.dev/renewal-time"] = moment(round).into();
    secret
}

/// The request with the status of its next token.
fn moved(request: &Value, secret: &Value, round: usize) -> Value {
    let mut request = request.clone();
    request["status"]["renewalTime"] = moment(round).into();
    request["status"]["token"]["expirationTime"] = moment(round + 1).into();
    request["status"]["secret"]["resourceVersion"] = secret["metadata"]["resourceVersion"].clone();
    request
}

fn moment(round: usize) -> String {
    format!("2030-01-01T{:02}:{:02}:00Z", round / 60 % 24, round % 60)
}

/// Writes `object`; what a patch names are the fields that the operator's own names: its metadata and `part`.
async fn write(api: &Api, method: Method, path: &str, object: Value, part: &str) -> Result<Value> {
    let metadata = &object["metadata"];
    match method {
        Method::Put => {
            let mut object = object;
            if let Some(metadata) = object["metadata"].as_object_mut() {
                // As a client that caches objects without them sends it; the API server keeps its own.
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
