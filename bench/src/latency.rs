//! The time from one request's creation until it is Ready: alone, and while others renew.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::environment::Environment;
use crate::ready_watch::ReadyWatch;
use crate::report::{Report, median, quantile};
use crate::template::Template;
use crate::{Arguments, api, workload};

const TIMEOUT: Duration = Duration::from_secs(900);
/// How many requests are created one after the other.
const ALONE: usize = 200;
/// The pause between two of them.
const PAUSE: Duration = Duration::from_millis(50);
/// How many requests are created while others renew, and how many a second.
const UNDER_LOAD: usize = 300;
const UNDER_LOAD_RATE: f64 = 5.0;
/// Renewals of others a second.
const RENEWALS: f64 = 5.0;
/// The seconds from the creation of the last of the others to the first renewal.
const FIRST_RENEWAL: f64 = 10.0;
/// After so many renewals the load is steady.
const STEADY_AFTER: u64 = 10;
/// The mean share of its lifetime after which a token is renewed: half of it, minus a jitter of up to a tenth (docs/api.md).
const RENEWED_AT: f64 = 0.45;
/// The lifetime of tokens once the others have theirs, in seconds: too long for a second renewal.
const LIFETIME: u64 = 3600;

/// The times of a bare client, in seconds.
#[derive(Default)]
struct BareWrites {
    /// Creating a Secret and patching a status, one after the other.
    writes: Vec<f64>,
    /// Requesting an ID token.
    upstream: Vec<f64>,
}

/// Measures the latency alone, and while the largest count renews.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let others = arguments.counts.iter().copied().max().unwrap_or_default();
    let template = Template::take(arguments).await?;
    let mut environment = Environment::empty(arguments).await?;
    // Alternates with a bare client on another cluster without an operator, so that both see the same state of the machine.
    let bare_cluster = Cluster::start(arguments).await?;
    let token = bare_cluster.google.access_token().await?;
    let (mut bare, mut alone) = (BareWrites::default(), Vec::new());
    for n in 0..ALONE {
        bare.measure_one(&bare_cluster, &template, &token, n).await?;
        tokio::time::sleep(PAUSE).await;
        alone.push(measure_one(&mut environment, n).await?);
        tokio::time::sleep(PAUSE).await;
    }
    bare_cluster.stop().await?;
    let upstream = median(bare.upstream.iter().copied());
    let writes = median(bare.writes.iter().copied());
    let bound = upstream + 2.0 * writes;
    let p50 = median(alone.iter().copied());
    let scenario = "latency alone";
    report.record(scenario, "p50, milliseconds", Some(p50 * 1e3));
    report.record(scenario, "Google's latency, milliseconds", Some(upstream * 1e3));
    report.record(scenario, "two bare writes, milliseconds", Some(writes * 1e3));
    let figure = "p50, ratio to Google's latency plus twice two bare writes";
    report.at_most(scenario, figure, Some(p50 / bound), 1.0);

    let scenario = format!("latency while {others} renew");
    create_with_spread_renewals(&mut environment, ALONE, ALONE + others).await?;
    let google = environment.cluster.google.clone();
    let loaded = google.minted().await?;
    idtoken_testenv::until("the others renew", TIMEOUT, async || {
        Ok((google.minted().await? >= loaded + STEADY_AFTER).then_some(()))
    })
    .await?;
    let (started, minted) = (Instant::now(), google.minted().await?);
    let under_load = under_load(&mut environment, ALONE + others).await?;
    let minted = google.minted().await? - minted;
    let renewed = (minted as f64 - UNDER_LOAD as f64) / started.elapsed().as_secs_f64();
    let p99 = quantile(under_load.iter().copied(), 0.99);
    // Fewer renewals would make the test too easy.
    report.at_least(
        &scenario,
        "renewals a second meanwhile",
        Some(renewed),
        0.9 * RENEWALS,
    );
    let middle = median(under_load.iter().copied());
    report.record(&scenario, "p50, milliseconds", Some(middle * 1e3));
    report.record(&scenario, "p99, milliseconds", Some(p99 * 1e3));
    let figure = "p99, ratio to Google's latency plus twice two bare writes";
    report.at_most(&scenario, figure, Some(p99 / bound), 5.0);
    report.raw(
        "latency in seconds",
        json!({"alone": alone, "bareWrites": bare.writes, "upstream": bare.upstream, "whileOthersRenew": under_load}),
    );
    environment.stop().await
}

impl BareWrites {
    /// Makes the calls of one request once.
    async fn measure_one(
        &mut self,
        cluster: &Cluster,
        template: &Template,
        access_token: &str,
        n: usize,
    ) -> Result<()> {
        let (namespace, name) = workload::key(&cluster.namespaces, n);
        let object = workload::object(&namespace, &name);
        let request = cluster.admin.create(&api::requests(&namespace), &object).await?;
        let uid = request["metadata"]["uid"].as_str().context("no UID")?;
        let started = Instant::now();
        let audience = workload::audience(&name);
        let token = cluster.google.id_token(access_token, &audience).await?;
        self.upstream.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        let secret = template.secret(&name, uid, &token);
        let secret = cluster.admin.create(&api::secrets(&namespace), &secret).await?;
        let path = format!("{}/status", api::request(&namespace, &name));
        cluster.admin.merge(&path, &template.status(&secret)).await?;
        self.writes.push(started.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Creates request `n`. Returns the seconds from before its creation until it was seen Ready.
async fn measure_one(environment: &mut Environment, n: usize) -> Result<f64> {
    let (namespace, name) = workload::key(&environment.cluster.namespaces, n);
    let object = workload::object(&namespace, &name);
    let started = Instant::now();
    let path = api::requests(&namespace);
    environment.cluster.admin.create(&path, &object).await?;
    environment.wait_ready(n + 1).await?;
    since(&environment.watch, &name, started)
}

fn since(watch: &ReadyWatch, name: &str, started: Instant) -> Result<f64> {
    let ready = watch.ready_at(name).context("it was never Ready")?;
    Ok(ready.duration_since(started).as_secs_f64())
}

/// Creates the requests `from..to` with lifetimes of their tokens that let the operator's own schedule renew them one after the other, at
/// an even rate.
async fn create_with_spread_renewals(environment: &mut Environment, from: usize, to: usize) -> Result<()> {
    let google = environment.cluster.google.clone();
    let lifetimes = async move {
        let mut left = to - from;
        while left > 0 {
            // The tokens that are issued last are renewed first, so the duration of the load does not matter.
            let first = FIRST_RENEWAL + left as f64 / RENEWALS;
            google.set_lifetime((first / RENEWED_AT).ceil() as u64).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            left = to.saturating_sub(google.minted().await? as usize);
        }
        google.set_lifetime(LIFETIME).await
    };
    let created = async {
        workload::create(&environment.cluster, from, to).await?;
        let ready = environment.watch.wait_for(to, TIMEOUT).await;
        ready.with_context(|| environment.subject.log_tail())
    };
    tokio::try_join!(lifetimes, created).map(drop)
}

/// Creates requests from `from` on at an even rate, whether or not earlier ones are Ready. Returns the seconds of each.
async fn under_load(environment: &mut Environment, from: usize) -> Result<Vec<f64>> {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / UNDER_LOAD_RATE));
    let (mut started, mut creating) = (Vec::new(), JoinSet::new());
    for n in from..from + UNDER_LOAD {
        ticks.tick().await;
        let (namespace, name) = workload::key(&environment.cluster.namespaces, n);
        let (admin, object) = (
            environment.cluster.admin.clone(),
            workload::object(&namespace, &name),
        );
        started.push((name, Instant::now()));
        creating.spawn(async move { admin.create(&api::requests(&namespace), &object).await });
    }
    while let Some(created) = creating.join_next().await {
        created??;
    }
    environment.wait_ready(from + UNDER_LOAD).await?;
    started
        .iter()
        .map(|(name, started)| since(&environment.watch, name, *started))
        .collect()
}
