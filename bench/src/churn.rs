//! Mixed changes for a while: nothing may grow, nothing may be left over, and all is in order at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::growth::growth;
use crate::report::{Report, median};
use crate::served::Served;
use crate::{Arguments, api, load};

/// How long changes go on, in seconds.
const SECONDS: u64 = 600;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// What the first changes need is needed once: caches, pools, buffers. A shorter run leaves its first half out.
const WARM_UP: usize = 60;
/// Changes a second.
const PACE: f64 = 40.0;
/// Every which call for an ID token fails.
const FAILS: u64 = 20;
/// How long ID tokens live meanwhile, in seconds: short enough that renewals are part of it.
const LIFETIME: u64 = 120;
/// Before and after: none is renewed then.
const REST_LIFETIME: u64 = 3600;
/// How long it may take until all are Ready, and until nothing changes any more.
const LIMIT: Duration = Duration::from_secs(300);
/// Longer than an unused connection is kept: a minute to Google, and 90 s to the API server.
const UNUSED: Duration = Duration::from_secs(100);
/// By how much a median may move between two thirds of the time: noise of the allocator and of what is under way.
const MEMORY_GROWTH: f64 = 1.05;
const COUNT_GROWTH: f64 = 1.2;
const TAMPERED: &str = "dGFtcGVyZWQ=";

/// What the operator holds at one moment.
#[derive(Clone, Copy, Debug)]
struct Held {
    mib: f64,
    files: f64,
    threads: f64,
    tasks: f64,
    /// Connections to the API server and to Google.
    connections: f64,
}

/// Its name, its value, and by how much it may grow.
type Watched = (&'static str, fn(&Held) -> f64, f64);

const EACH: [Watched; 5] = [
    ("memory", |held| held.mib, MEMORY_GROWTH),
    ("open files", |held| held.files, COUNT_GROWTH),
    ("threads", |held| held.threads, COUNT_GROWTH),
    ("tasks", |held| held.tasks, COUNT_GROWTH),
    ("connections", |held| held.connections, COUNT_GROWTH),
];

impl Held {
    async fn read(served: &Served) -> Result<Self> {
        // First: the connection over which it is asked is a file too, and then there is always one.
        let tasks = served.system.counted("idtoken_tasks").await?;
        let usage = served.system.usage()?;
        let (api, google) = served.system.connections(&served.cluster)?;
        Ok(Self {
            mib: usage.kib as f64 / 1024.0,
            files: usage.files as f64,
            threads: usage.threads as f64,
            tasks,
            connections: (api + google) as f64,
        })
    }
}

/// Measures it with the smallest count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let count = arguments.counts.iter().copied().min().unwrap_or_default();
    let seconds = arguments.seconds.unwrap_or(SECONDS);
    let scenario = format!("churn of {count} for {seconds} s");
    let served = Served::requests(arguments, count).await?;
    let google = &served.cluster.google;
    let before = at_rest(&served).await?;
    report.progress(&format!("{scenario}: at rest before it, {before:?}"));

    google.lifetime(LIFETIME).await?;
    let (asked, minted) = google.asked_and_minted().await?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let (changes, (), samples) = tokio::try_join!(
        change(&served.cluster, count, end),
        fail(&served.cluster, end),
        sample(&served, end)
    )?;
    google.mend().await?;
    google.lifetime(REST_LIFETIME).await?;
    let (all_asked, all_minted) = google.asked_and_minted().await?;
    let (asked, minted) = (all_asked - asked, all_minted - minted);
    report.told(
        &scenario,
        "changes a second",
        Some(changes as f64 / seconds as f64),
    );
    report.told(
        &scenario,
        "ID tokens a second",
        Some(minted as f64 / seconds as f64),
    );
    let failed = 100.0 * (1.0 - minted as f64 / asked as f64);
    report.at_least(
        &scenario,
        "percent of Google's answers that were errors",
        Some(failed),
        4.0,
    );

    let warm = WARM_UP.min(samples.len() / 2);
    for (name, value, most) in EACH {
        let values: Vec<f64> = samples[warm..].iter().map(value).collect();
        report.told(
            &scenario,
            &format!("{name}{}", unit(name)),
            Some(median(values.iter().copied())),
        );
        let figure = format!("{name}: median of the last third to the first, warm-up left out");
        report.at_most(&scenario, &figure, Some(growth(&values)), most);
        report.raw(
            &format!("{scenario}, {name}"),
            json!(samples.iter().map(value).collect::<Vec<_>>()),
        );
    }

    let wrong = in_order(&served.cluster, count).await?;
    report.at_most(
        &scenario,
        "requests or Secrets in disorder afterwards",
        Some(wrong as f64),
        0.0,
    );
    let after = at_rest(&served).await?;
    report.progress(&format!("{scenario}: at rest after it, {after:?}"));
    for (name, value, _) in EACH {
        let more = value(&after) - value(&before);
        let figure = format!("{name}{} at rest, after it minus before", unit(name));
        match name {
            // What was free is not always given back.
            "memory" => report.told(&scenario, &figure, Some(more)),
            _ => report.at_most(&scenario, &figure, Some(more), 0.0),
        }
    }
    served.stop().await
}

fn unit(name: &str) -> &'static str {
    if name == "memory" { ", MiB" } else { "" }
}

/// What the operator holds when nothing is left to do and all connections that it no longer needs are closed.
async fn at_rest(served: &Served) -> Result<Held> {
    let begun = Instant::now();
    let (mut last, mut since) = (served.system.connections(&served.cluster)?, begun);
    while since.elapsed() < UNUSED && begun.elapsed() < LIMIT {
        tokio::time::sleep(SAMPLE_EVERY).await;
        let now = served.system.connections(&served.cluster)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    served.system.quiet().await?;
    Held::read(served).await
}

async fn sample(served: &Served, end: Instant) -> Result<Vec<Held>> {
    let mut samples = Vec::new();
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    while Instant::now() < end {
        ticks.tick().await;
        samples.push(Held::read(served).await?);
    }
    Ok(samples)
}

/// Has every so manieth call fail, each time in another way.
async fn fail(cluster: &Cluster, end: Instant) -> Result<()> {
    let kinds = [
        json!({"type": "status", "code": 503}),
        json!({"type": "status", "code": 429}),
        json!({"type": "reset"}),
        json!({"type": "status", "code": 500}),
        json!({"type": "hang"}),
    ];
    let mut kinds = kinds.iter().cycle();
    let mut at = cluster.google.asked_and_minted().await?.0 + FAILS;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (asked, _) = cluster.google.asked_and_minted().await?;
        while at <= asked {
            let fault = json!({"endpoint": "generateIdToken", "times": 1, "kind": kinds.next()});
            cluster.google.fault(&fault).await?;
            at += FAILS;
        }
    }
    Ok(())
}

/// Creates, deletes, edits, tampers and asks for renewals. Gives how many changes there were.
async fn change(cluster: &Cluster, count: usize, end: Instant) -> Result<usize> {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / PACE));
    let mut changes = 0;
    while Instant::now() < end {
        ticks.tick().await;
        // Another one each time, and another kind of change when its turn comes again.
        let (namespace, name) = load::key(&cluster.namespaces, changes % count);
        let path = api::request(&namespace, &name);
        let secret = format!("{}/{name}", api::secrets(&namespace));
        let admin = &cluster.admin;
        let done = match (changes + changes / count) % 5 {
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
                let object = load::object(&namespace, &name);
                admin.create(&api::requests(&namespace), &object).await.map(drop)
            }
        };
        // A Secret may be away for the moment that it takes to make it anew.
        if let Err(error) = done
            && !error.to_string().contains("404")
        {
            return Err(error);
        }
        changes += 1;
    }
    Ok(changes)
}

/// Waits until all is as asked for; gives how many objects are not in the end.
async fn in_order(cluster: &Cluster, count: usize) -> Result<usize> {
    let begun = Instant::now();
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
        if wrong == 0 || begun.elapsed() > LIMIT {
            return Ok(wrong);
        }
        tokio::time::sleep(SAMPLE_EVERY).await;
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
