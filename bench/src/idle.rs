//! What the operator does while nothing happens.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::report::Report;
use crate::seen::Seen;
use crate::system::Program;
use crate::{Arguments, load};

const LIMIT: Duration = Duration::from_secs(900);

/// Measures it with the largest count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let count = arguments.counts.iter().copied().max().unwrap_or_default();
    let scenario = format!("idle with {count}");
    let cluster = Cluster::start(arguments).await?;
    let mut seen = Seen::begin(&cluster.admin).await?;
    let system = Program::Operator(arguments.operator.clone())
        .start(&cluster)
        .await?;
    load::create(&cluster, 0, count).await?;
    seen.until(count, LIMIT)
        .await
        .with_context(|| system.log_tail())?;
    // The counts of allowed requests are written up to 10 s later.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (used, calls) = (system.usage()?.cpu, calls(&cluster).await?);
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let used = system.usage()?.cpu - used;
    let calls = self::calls(&cluster).await? - calls;
    report.at_most(
        &scenario,
        "percent of one core",
        Some(100.0 * used / arguments.seconds as f64),
        1.0,
    );
    report.at_most(&scenario, "calls but watches and the Lease", Some(calls), 0.0);
    system.stop().await?;
    cluster.stop().await
}

/// How many calls the API server has answered about what the operator works on, watches aside.
async fn calls(cluster: &Cluster) -> Result<f64> {
    let kubectl = cluster.plane.kubectl(["get", "--raw", "/metrics"]).await?;
    let ours = [
        "idtokenrequests",
        "idtokengrants",
        "secrets",
        "namespaces",
        "events",
        "serviceaccounts",
    ];
    let counted = kubectl.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && !line.contains("verb=\"WATCH\"")
            && ours
                .iter()
                .any(|kind| line.contains(&format!("resource=\"{kind}\"")))
    });
    Ok(counted
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum())
}
