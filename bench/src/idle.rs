//! CPU and calls of the idle operator.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::Arguments;
use crate::apiserver_calls::Calls;
use crate::environment::Environment;
use crate::report::Report;

/// How long it is measured, in seconds.
const SECONDS: u64 = 60;
/// Grants get their counts of allowed requests up to 10 s after a change.
const SETTLE_TIME: Duration = Duration::from_secs(15);

/// Measures the largest count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let count = arguments.counts.iter().copied().max().unwrap_or_default();
    let seconds = arguments.seconds.unwrap_or(SECONDS);
    let scenario = format!("idle with {count}");
    let environment = Environment::with_requests(arguments, count).await?;
    let (subject, admin) = (&environment.subject, &environment.cluster.admin);
    tokio::time::sleep(SETTLE_TIME).await;
    let reconciles = subject.reconciles().await?;
    let (before, used) = (Calls::read(admin).await?, subject.usage()?.cpu);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let used = subject.usage()?.cpu - used;
    let calls = Calls::read(admin).await?.since(&before);
    report.at_most(
        &scenario,
        "CPU, percent of one core",
        Some(100.0 * used / seconds as f64),
        1.0,
    );
    report.at_most(
        &scenario,
        "calls except watches and the Lease",
        Some(calls.values().sum()),
        0.0,
    );
    report.at_most(
        &scenario,
        "reconciles",
        Some(subject.reconciles().await? - reconciles),
        0.0,
    );
    report.raw(&scenario, json!({"cpuSeconds": used, "calls": calls}));
    environment.stop().await
}
