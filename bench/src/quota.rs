//! A cold start and an outage while Google enforces a quota, by a token bucket and by windows of a minute: what the simulation's goals say,
//! on real processes. The quota is to the requests what Google's default of 1,000 a second is to 100,000.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::report::Report;
use crate::{Arguments, workload};

/// How many requests have a call a second.
const REQUESTS_FOR_A_CALL: usize = 100;
/// How long a cold start or a recovery may take, as a multiple of what the quota needs for it.
const SLACK: f64 = 1.25;
/// The greatest share of calls that may be refused, in percent.
const MAX_REFUSED: f64 = 2.0;
/// How many of the requests are there in the outage: their renewals take half of the quota.
const SHARE_IN_OUTAGE: usize = 5;
/// The lifetime of their tokens, in seconds.
const LIFETIME: u64 = 90;
const OUTAGE: Duration = Duration::from_secs(120);
/// How long an operator may wait for its next probe when Google is back, in seconds.
const PROBE: f64 = 10.0;
const TIMEOUT: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(100);

/// A quota of Google, and its name.
struct Quota {
    name: &'static str,
    kind: Value,
    /// Calls a second.
    rate: f64,
}

/// Measures the largest count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let count = arguments.counts.iter().copied().max().unwrap_or_default();
    let rate = count.div_ceil(REQUESTS_FOR_A_CALL);
    let quotas = [
        (
            "bucket",
            json!({"type": "quota", "calls": rate, "seconds": 1, "by": "bucket"}),
        ),
        (
            "windows",
            json!({"type": "quota", "calls": 60 * rate, "seconds": 60, "by": "windows"}),
        ),
    ];
    for (name, kind) in quotas {
        let quota = Quota {
            name,
            kind,
            rate: rate as f64,
        };
        cold_start(arguments, report, &quota, count).await?;
        outage(arguments, report, &quota, (count / SHARE_IN_OUTAGE).max(1)).await?;
    }
    Ok(())
}

impl Quota {
    /// A cluster whose Google enforces it from now on.
    async fn environment(&self, arguments: &Arguments) -> Result<Environment> {
        let environment = Environment::empty(arguments).await?;
        self.enforce(&environment).await?;
        Ok(environment)
    }

    async fn enforce(&self, environment: &Environment) -> Result<()> {
        let fault = json!({"endpoint": "generateIdToken", "kind": self.kind});
        environment.cluster.google.fault(&fault).await
    }

    /// Seconds that it needs for so many calls, and a quarter more.
    fn most(&self, calls: usize) -> f64 {
        SLACK * calls as f64 / self.rate
    }
}

async fn cold_start(arguments: &Arguments, report: &mut Report, quota: &Quota, count: usize) -> Result<()> {
    let scenario = format!("quota by {}: cold start of {count}", quota.name);
    report.progress(&scenario);
    let mut environment = quota.environment(arguments).await?;
    let started = Instant::now();
    workload::create(&environment.cluster, 0, count).await?;
    environment.wait_ready(count).await?;
    let seconds = started.elapsed().as_secs_f64();
    report.at_most(&scenario, "time, seconds", Some(seconds), quota.most(count));
    let (requested, minted) = environment.cluster.google.requested_and_minted().await?;
    report.at_most(
        &scenario,
        "refused calls, percent",
        Some(refused(requested, minted)),
        MAX_REFUSED,
    );
    let extra = minted.abs_diff(count as u64);
    report.at_most(
        &scenario,
        "tokens issued too many or too few",
        Some(extra as f64),
        0.0,
    );
    environment.stop().await
}

/// Google is away for longer than tokens live.
async fn outage(arguments: &Arguments, report: &mut Report, quota: &Quota, count: usize) -> Result<()> {
    let scenario = format!(
        "quota by {}: {count} requests, Google away for longer than a token lives",
        quota.name
    );
    report.progress(&scenario);
    let mut environment = quota.environment(arguments).await?;
    let google = environment.cluster.google.clone();
    google.set_lifetime(LIFETIME).await?;
    workload::create(&environment.cluster, 0, count).await?;
    environment.wait_ready(count).await?;
    // Each was renewed, so that renewals are spread.
    idtoken_testenv::until("all renew", TIMEOUT, async || {
        Ok((google.minted().await? >= 2 * count as u64).then_some(()))
    })
    .await?;
    let unavailable = json!({"endpoint": "generateIdToken", "kind": {"type": "status", "code": 503}});
    google.fault(&unavailable).await?;
    tokio::time::sleep(OUTAGE).await;
    let expired = environment.subject.not_ready().await?;
    report.record(&scenario, "expired tokens at its end", Some(expired));
    google.clear_faults().await?;
    quota.enforce(&environment).await?;
    let (requested_before, minted_before) = google.requested_and_minted().await?;
    let started = Instant::now();
    while environment.subject.not_ready().await? > 0.0 {
        anyhow::ensure!(
            started.elapsed() < TIMEOUT,
            "tokens are still expired: {}",
            environment.subject.log_tail()
        );
        tokio::time::sleep(POLL).await;
    }
    let seconds = started.elapsed().as_secs_f64();
    let most = quota.most(count) + PROBE;
    report.at_most(
        &scenario,
        "no token is expired after, seconds",
        Some(seconds),
        most,
    );
    let (requested, minted) = google.requested_and_minted().await?;
    let requested = requested
        .checked_sub(requested_before)
        .context("the emulator's counts went back")?;
    let refused = refused(requested, minted - minted_before);
    report.at_most(
        &scenario,
        "refused calls meanwhile, percent",
        Some(refused),
        MAX_REFUSED,
    );
    environment.stop().await
}

/// The share of calls that gave no token, in percent.
fn refused(requested: u64, minted: u64) -> f64 {
    100.0 * requested.saturating_sub(minted) as f64 / requested.max(1) as f64
}
