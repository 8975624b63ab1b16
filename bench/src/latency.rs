//! From one request's creation until it is Ready: alone, and while others renew.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::cluster::Cluster;
use crate::report::{Report, median, quantile};
use crate::sample::Sample;
use crate::seen::Seen;
use crate::system::{Program, System};
use crate::{Arguments, api, load};

const LIMIT: Duration = Duration::from_secs(900);
/// How many requests are created one after the other.
const ALONE: usize = 200;
/// How many while others renew.
const AMONG: usize = 300;
/// How many others renew a second.
const RENEWALS: f64 = 5.0;

/// Measures it; the largest count renews.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let others = arguments.counts.iter().copied().max().unwrap_or_default();
    let sample = Sample::take(arguments).await?;
    let operator = Program::Operator(arguments.operator.clone());

    let cluster = Cluster::start(arguments).await?;
    let writes = bare_writes(&cluster, &sample).await?;
    let mut seen = Seen::begin(&cluster.admin).await?;
    let system = operator.start(&cluster).await?;
    let alone = one_by_one(&cluster, &system, &mut seen, 0, ALONE).await?;
    let p50 = median(alone.iter().copied());
    let bound = arguments.answer as f64 / 1000.0 + 2.0 * writes;
    report.progress(&format!(
        "latency: alone p50 {:.1} ms, two bare writes {:.1} ms",
        p50 * 1e3,
        writes * 1e3
    ));
    report.at_most(
        "latency alone",
        "p50 to Google's time and two writes twice",
        Some(p50 / bound),
        1.0,
    );

    let already = ALONE;
    load::create(&cluster, already, already + others).await?;
    seen.until(already + others, LIMIT)
        .await
        .with_context(|| system.log_tail())?;
    let (admin, namespaces) = (cluster.admin.clone(), cluster.namespaces.clone());
    let renewing = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / RENEWALS));
        for n in (already..already + others).cycle() {
            ticks.tick().await;
            let (namespace, name) = load::key(&namespaces, n);
            let patch =
                json!({"metadata": {"annotations": {"idtoken.dev/renew": format!("{:?}", Instant::now())}}});
            if admin
                .merge(&api::request(&namespace, &name), &patch)
                .await
                .is_err()
            {
                return;
            }
        }
    });
    let among = one_by_one(&cluster, &system, &mut seen, already + others, AMONG).await?;
    renewing.abort();
    let p99 = quantile(among.iter().copied(), 0.99);
    report.progress(&format!("latency: p99 {:.1} ms while {others} renew", p99 * 1e3));
    report.at_most(
        &format!("latency while {others} renew"),
        "p99 to Google's time and two writes twice",
        Some(p99 / bound),
        5.0,
    );
    system.stop().await?;
    cluster.stop().await
}

/// The median time of a Secret's creation and a status' patch, one after the other, in seconds.
async fn bare_writes(cluster: &Cluster, sample: &Sample) -> Result<f64> {
    let namespace = &cluster.namespaces[0];
    let mut times = Vec::new();
    for n in 0..ALONE {
        let name = format!("bare-{n}");
        let object = load::object(namespace, &name);
        let request = cluster.admin.create(&api::requests(namespace), &object).await?;
        let uid = request["metadata"]["uid"].as_str().context("no UID")?.to_owned();
        let begun = Instant::now();
        let secret = sample.secret(&name, &uid, &"x".repeat(800));
        let secret = cluster.admin.create(&api::secrets(namespace), &secret).await?;
        let path = format!("{}/status", api::request(namespace, &name));
        cluster.admin.merge(&path, &sample.status(&secret)).await?;
        times.push(begun.elapsed().as_secs_f64());
        cluster.admin.delete(&api::request(namespace, &name)).await?;
        cluster
            .admin
            .delete(&format!("{}/{name}", api::secrets(namespace)))
            .await?;
    }
    Ok(median(times.into_iter()))
}

/// Creates requests one after the other; gives the seconds that each took to be Ready.
async fn one_by_one(
    cluster: &Cluster,
    system: &System,
    seen: &mut Seen,
    from: usize,
    count: usize,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for n in from..from + count {
        let (namespace, name) = load::key(&cluster.namespaces, n);
        let object = load::object(&namespace, &name);
        let begun = Instant::now();
        cluster.admin.create(&api::requests(&namespace), &object).await?;
        seen.until(n + 1, LIMIT)
            .await
            .with_context(|| system.log_tail())?;
        let ready = seen.at(&name).context("it was never Ready")?;
        times.push(ready.duration_since(begun).as_secs_f64());
    }
    Ok(times)
}
