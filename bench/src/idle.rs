//! What the operator does while nothing happens.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::Arguments;
use crate::calls::Calls;
use crate::report::Report;
use crate::served::Served;

/// How long it is watched, in seconds.
const SECONDS: u64 = 60;
/// The counts of allowed requests are written up to 10 s later.
const AFTERWARDS: Duration = Duration::from_secs(15);

/// Measures it with the largest count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let count = arguments.counts.iter().copied().max().unwrap_or_default();
    let seconds = arguments.seconds.unwrap_or(SECONDS);
    let scenario = format!("idle with {count}");
    let served = Served::requests(arguments, count).await?;
    let (system, admin) = (&served.system, &served.cluster.admin);
    tokio::time::sleep(AFTERWARDS).await;
    let reconciles = system.reconciles().await?;
    let (before, used) = (Calls::read(admin).await?, system.usage()?.cpu);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let used = system.usage()?.cpu - used;
    let calls = Calls::read(admin).await?.since(&before);
    report.at_most(
        &scenario,
        "CPU, percent of one core",
        Some(100.0 * used / seconds as f64),
        1.0,
    );
    report.at_most(
        &scenario,
        "calls but watches and the Lease",
        Some(calls.values().sum()),
        0.0,
    );
    report.at_most(
        &scenario,
        "reconciles",
        Some(system.reconciles().await? - reconciles),
        0.0,
    );
    report.raw(&scenario, json!({"cpuSeconds": used, "calls": calls}));
    served.stop().await
}
