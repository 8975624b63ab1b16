//! Mixed changes for some minutes. Nothing may grow, nothing may be left over, and all requests must be Ready at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::environment::Environment;
use crate::leak::growth;
use crate::report::{Report, median};
use crate::{Arguments, api, workload};

/// How long the changes continue, in seconds.
const SECONDS: u64 = 600;
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Samples to skip: the first changes fill caches, pools and buffers. A shorter run skips its first half.
const WARM_UP: usize = 60;
/// Changes a second.
const RATE: f64 = 40.0;
/// One of so many calls for an ID token fails.
const CALLS_PER_FAULT: u64 = 20;
/// The lifetime of ID tokens meanwhile, in seconds: short enough for renewals.
const LIFETIME: u64 = 120;
/// The lifetime of ID tokens before and after, in seconds: too long for renewals.
const IDLE_LIFETIME: u64 = 3600;
/// The timeout until all requests are Ready, and until connections no longer change.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Longer than idle connections stay open: a minute to Google, and 90 s to the API server.
const CONNECTION_IDLE: Duration = Duration::from_secs(100);
/// How much a median may grow from the first to the last third: noise of the allocator and of work in flight.
const MEMORY_GROWTH: f64 = 1.05;
const COUNT_GROWTH: f64 = 1.2;
const TAMPERED: &str = "dGFtcGVyZWQ=";

/// The resources of the operator at one moment.
#[derive(Clone, Copy, Debug)]
struct Residue {
    mib: f64,
    files: f64,
    threads: f64,
    tasks: f64,
    /// Connections to the API server and to Google.
    connections: f64,
}

/// A resource: its name, its value, and how much it may grow.
type Resource = (&'static str, fn(&Residue) -> f64, f64);

const RESOURCES: [Resource; 5] = [
    ("memory", |residue| residue.mib, MEMORY_GROWTH),
    ("open files", |residue| residue.files, COUNT_GROWTH),
    ("threads", |residue| residue.threads, COUNT_GROWTH),
    ("tasks", |residue| residue.tasks, COUNT_GROWTH),
    ("connections", |residue| residue.connections, COUNT_GROWTH),
];

impl Residue {
    async fn read(environment: &Environment) -> Result<Self> {
        // Read first: the connection of this call is a file too, and so it is always counted.
        let tasks = environment.subject.counted("idtoken_tasks").await?;
        let usage = environment.subject.usage()?;
        let (api, google) = environment.subject.connections(&environment.cluster)?;
        Ok(Self {
            mib: usage.kib as f64 / 1024.0,
            files: usage.files as f64,
            threads: usage.threads as f64,
            tasks,
            connections: (api + google) as f64,
        })
    }
}

/// Measures the smallest count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let count = arguments.counts.iter().copied().min().unwrap_or_default();
    let seconds = arguments.seconds.unwrap_or(SECONDS);
    let scenario = format!("churn of {count} for {seconds} s");
    let environment = Environment::with_requests(arguments, count).await?;
    let google = &environment.cluster.google;
    let before = residue(&environment).await?;
    report.progress(&format!("{scenario}: resources before, {before:?}"));

    google.set_lifetime(LIFETIME).await?;
    let (requested, minted) = google.requested_and_minted().await?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let (changes, (), samples) = tokio::try_join!(
        change(&environment.cluster, count, end),
        fail(&environment.cluster, end),
        sample(&environment, end)
    )?;
    google.clear_faults().await?;
    google.set_lifetime(IDLE_LIFETIME).await?;
    let (all_requested, all_minted) = google.requested_and_minted().await?;
    let (requested, minted) = (all_requested - requested, all_minted - minted);
    report.record(
        &scenario,
        "changes a second",
        Some(changes as f64 / seconds as f64),
    );
    report.record(
        &scenario,
        "ID tokens a second",
        Some(minted as f64 / seconds as f64),
    );
    let failed = 100.0 * (1.0 - minted as f64 / requested as f64);
    report.at_least(
        &scenario,
        "errors among Google's responses, percent",
        Some(failed),
        4.0,
    );

    let warm = WARM_UP.min(samples.len() / 2);
    for (name, value, most) in RESOURCES {
        let values: Vec<f64> = samples[warm..].iter().map(value).collect();
        report.record(
            &scenario,
            &format!("{name}{}", unit(name)),
            Some(median(values.iter().copied())),
        );
        let figure = format!("{name}: median of the last third, ratio to the first");
        report.at_most(&scenario, &figure, Some(growth(&values)), most);
        report.raw(
            &format!("{scenario}, {name}"),
            json!(samples.iter().map(value).collect::<Vec<_>>()),
        );
    }

    let wrong = verify(&environment.cluster, count).await?;
    report.at_most(
        &scenario,
        "requests or Secrets in a wrong state afterwards",
        Some(wrong as f64),
        0.0,
    );
    let after = residue(&environment).await?;
    report.progress(&format!("{scenario}: resources after, {after:?}"));
    for (name, value, _) in RESOURCES {
        let more = value(&after) - value(&before);
        let figure = format!("{name}{} left over afterwards", unit(name));
        match name {
            // The allocator does not always return freed memory.
            "memory" => report.record(&scenario, &figure, Some(more)),
            _ => report.at_most(&scenario, &figure, Some(more), 0.0),
        }
    }
    environment.stop().await
}

fn unit(name: &str) -> &'static str {
    if name == "memory" { ", MiB" } else { "" }
}

/// The operator's resources once it is idle and its idle connections are closed.
async fn residue(environment: &Environment) -> Result<Residue> {
    let started = Instant::now();
    let (mut last, mut since) = (environment.subject.connections(&environment.cluster)?, started);
    while since.elapsed() < CONNECTION_IDLE && started.elapsed() < TIMEOUT {
        tokio::time::sleep(SAMPLE_INTERVAL).await;
        let now = environment.subject.connections(&environment.cluster)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    environment.subject.wait_idle().await?;
    Residue::read(environment).await
}

async fn sample(environment: &Environment, end: Instant) -> Result<Vec<Residue>> {
    let mut samples = Vec::new();
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    while Instant::now() < end {
        ticks.tick().await;
        samples.push(Residue::read(environment).await?);
    }
    Ok(samples)
}

/// Injects a fault into one of [`CALLS_PER_FAULT`] calls, a different one each time.
async fn fail(cluster: &Cluster, end: Instant) -> Result<()> {
    let kinds = [
        json!({"type": "status", "code": 503}),
        json!({"type": "status", "code": 429}),
        json!({"type": "reset"}),
        json!({"type": "status", "code": 500}),
        json!({"type": "hang"}),
    ];
    let mut kinds = kinds.iter().cycle();
    let mut at = cluster.google.requested_and_minted().await?.0 + CALLS_PER_FAULT;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (requested, _) = cluster.google.requested_and_minted().await?;
        while at <= requested {
            let fault = json!({"endpoint": "generateIdToken", "times": 1, "kind": kinds.next()});
            cluster.google.fault(&fault).await?;
            at += CALLS_PER_FAULT;
        }
    }
    Ok(())
}

/// Creates, deletes, edits and tampers, and requests renewals. Returns the number of changes.
async fn change(cluster: &Cluster, count: usize, end: Instant) -> Result<usize> {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / RATE));
    let mut changes = 0;
    while Instant::now() < end {
        ticks.tick().await;
        // Each change is of the next request, and in the next round of a different kind.
        let (namespace, name) = workload::key(&cluster.namespaces, changes % count);
        let path = api::request(&namespace, &name);
        let secret = format!("{}/{name}", api::secrets(&namespace));
        let admin = &cluster.admin;
        let result = match (changes + changes / count) % 5 {
            0 => {
                let audience = format!("https://load.example.com/edited-{changes}");
                let patch = json!({"spec": {"audience": audience}});
                admin.merge(&path, &patch).await.map(drop)
            }
            1 => {
                let patch = json!({"data": {"token": TAMPERED}});
                admin.merge(&secret, &patch).await.map(drop)
            }
            2 => {
                let patch = json!({"metadata": {"annotations": {"idtoken.dev/renew": changes.to_string()}}});
                admin.merge(&path, &patch).await.map(drop)
            }
            3 => admin.delete(&secret).await,
            _ => {
                admin.delete(&path).await?;
                let object = workload::object(&namespace, &name);
                admin.create(&api::requests(&namespace), &object).await.map(drop)
            }
        };
        // A Secret is missing until the operator recreates it.
        if let Err(error) = result
            && !error.to_string().contains("404")
        {
            return Err(error);
        }
        changes += 1;
    }
    Ok(changes)
}

/// Waits until all requests and Secrets are as they should be. Returns how many are not.
async fn verify(cluster: &Cluster, count: usize) -> Result<usize> {
    let started = Instant::now();
    loop {
        let requests = cluster.admin.get(&api::all_requests()).await?;
        let requests = requests["items"].as_array().context("no list")?;
        let secrets = cluster.admin.get(&api::labelled_secrets()).await?;
        let secrets = secrets["items"].as_array().context("no list")?;
        let wrong = requests.iter().filter(|request| !is_ready(request)).count()
            + secrets
                .iter()
                .filter(|secret| secret["data"]["token"] == TAMPERED)
                .count()
            + requests.len().abs_diff(count)
            + secrets.len().abs_diff(count);
        if wrong == 0 || started.elapsed() > TIMEOUT {
            return Ok(wrong);
        }
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
}

fn is_ready(request: &Value) -> bool {
    let conditions = request["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|one| one["type"] == "Ready" && one["status"] == "True");
    ready && request["status"]["observedGeneration"] == request["metadata"]["generation"]
}
