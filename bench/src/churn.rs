//! Mixed changes for a while: nothing may grow.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::cluster::Cluster;
use crate::report::{Report, median};
use crate::seen::Seen;
use crate::system::Program;
use crate::usage::Usage;
use crate::{Arguments, api, load};

const LIMIT: Duration = Duration::from_secs(900);
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Changes a second.
const PACE: f64 = 40.0;
/// Every which mint fails.
const FAILS: u64 = 20;

/// Measures it with the smallest count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let count = arguments.counts.iter().copied().min().unwrap_or_default();
    let scenario = format!("churn of {count} for {} s", arguments.seconds);
    let cluster = Cluster::start(arguments).await?;
    // Short enough that renewals are part of it.
    cluster.google.lifetime(120).await?;
    let mut seen = Seen::begin(&cluster.admin).await?;
    let system = Program::Operator(arguments.operator.clone())
        .start(&cluster)
        .await?;
    load::create(&cluster, 0, count).await?;
    seen.until(count, LIMIT)
        .await
        .with_context(|| system.log_tail())?;
    drop(seen);
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut samples: Vec<Usage> = Vec::new();
    let watched = async {
        while Instant::now() < end {
            tokio::time::sleep(SAMPLE_EVERY).await;
            samples.push(system.usage()?);
        }
        anyhow::Ok(())
    };
    let (changed, failing, watched) =
        tokio::join!(change(&cluster, count, end), fail(&cluster, end), watched);
    let changes = changed?;
    failing?;
    watched?;
    let minute = (samples.len() / 3).min(60);
    let early = &samples[minute..2 * minute];
    let late = &samples[samples.len() - minute..];
    let of = |samples: &[Usage], value: fn(&Usage) -> f64| median(samples.iter().map(value));
    let kib: fn(&Usage) -> f64 = |usage| usage.kib as f64;
    let files: fn(&Usage) -> f64 = |usage| usage.files as f64;
    let threads: fn(&Usage) -> f64 = |usage| usage.threads as f64;
    report.told(&scenario, "changes", Some(changes as f64));
    report.told(&scenario, "MiB", Some(of(late, kib) / 1024.0));
    report.at_most(
        &scenario,
        "memory of the last minute to the second",
        Some(of(late, kib) / of(early, kib)),
        1.05,
    );
    report.at_most(
        &scenario,
        "files of the last minute to the second",
        Some(of(late, files) / of(early, files)),
        1.2,
    );
    report.at_most(
        &scenario,
        "threads of the last minute to the second",
        Some(of(late, threads) / of(early, threads)),
        1.0,
    );
    system.stop().await?;
    cluster.stop().await
}

/// Has every so manieth mint fail, as it comes.
async fn fail(cluster: &Cluster, end: Instant) -> Result<()> {
    let fault = json!({"endpoint": "generateIdToken", "times": 1, "kind": {"type": "status", "code": 503}});
    let mut at = cluster.google.minted().await? + FAILS;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let minted = cluster.google.minted().await?;
        while at <= minted {
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
                admin
                    .merge(&path, &json!({"spec": {"audience": audience}}))
                    .await
                    .map(drop)
            }
            1 => {
                let patch = json!({"data": {"token": "dGFtcGVyZWQ="}});
                admin.merge(&secret, &patch).await.map(drop)
            }
            2 => {
                let patch = json!({"metadata": {"annotations": {"idtoken.dev/renew": changes.to_string()}}});
                admin.merge(&path, &patch).await.map(drop)
            }
            3 => admin.delete(&secret).await,
            _ => {
                admin.delete(&path).await?;
                admin
                    .create(&api::requests(&namespace), &load::object(&namespace, &name))
                    .await
                    .map(drop)
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
