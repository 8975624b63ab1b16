//! From one request's creation until it is Ready: alone, and while others renew.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::report::{Report, median, quantile};
use crate::sample::Sample;
use crate::seen::Seen;
use crate::served::Served;
use crate::{Arguments, api, load};

const LIMIT: Duration = Duration::from_secs(900);
/// How many requests are created one after the other.
const ALONE: usize = 200;
/// How long nothing is asked for between two of them.
const PAUSE: Duration = Duration::from_millis(50);
/// How many are created while others renew, and how many a second.
const AMONG: usize = 300;
const AMONG_PACE: f64 = 5.0;
/// How many others renew a second.
const RENEWALS: f64 = 5.0;
/// How long after the last of the others was created they begin to renew.
const FIRST_RENEWAL: f64 = 10.0;
/// So many renewals show that they are under way.
const UNDER_WAY: u64 = 10;
/// When in its life a token is renewed on average: half of it, minus a jitter of up to a tenth (docs/api.md).
const RENEWED_AT: f64 = 0.45;
/// How long tokens live once the others have theirs, in seconds: none is renewed twice.
const LIFETIME: u64 = 3600;

/// What a bare client takes, in seconds.
#[derive(Default)]
struct Bare {
    /// To create a Secret and patch a status, one after the other.
    writes: Vec<f64>,
    /// To be given an ID token.
    upstream: Vec<f64>,
}

/// Measures it; the largest count renews.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let others = arguments.counts.iter().copied().max().unwrap_or_default();
    let sample = Sample::take(arguments).await?;
    let mut served = Served::nothing(arguments).await?;
    // By turns with a bare client on another cluster, on which there is no operator: each meets the same machine.
    let beside = Cluster::start(arguments).await?;
    let token = beside.google.access_token().await?;
    let (mut bare, mut alone) = (Bare::default(), Vec::new());
    for n in 0..ALONE {
        bare.turn(&beside, &sample, &token, n).await?;
        tokio::time::sleep(PAUSE).await;
        alone.push(one(&mut served, n).await?);
        tokio::time::sleep(PAUSE).await;
    }
    beside.stop().await?;
    let upstream = median(bare.upstream.iter().copied());
    let writes = median(bare.writes.iter().copied());
    let bound = upstream + 2.0 * writes;
    let p50 = median(alone.iter().copied());
    let scenario = "latency alone";
    report.told(scenario, "p50, milliseconds", Some(p50 * 1e3));
    report.told(scenario, "Google's time, milliseconds", Some(upstream * 1e3));
    report.told(scenario, "two bare writes, milliseconds", Some(writes * 1e3));
    let figure = "p50 to Google's time and twice two bare writes";
    report.at_most(scenario, figure, Some(p50 / bound), 1.0);

    let scenario = format!("latency while {others} renew");
    load_to_renew(&mut served, ALONE, ALONE + others).await?;
    let google = served.cluster.google.clone();
    let loaded = google.minted().await?;
    idtoken_testenv::until("the others renew", LIMIT, async || {
        Ok((google.minted().await? >= loaded + UNDER_WAY).then_some(()))
    })
    .await?;
    let (begun, minted) = (Instant::now(), google.minted().await?);
    let among = at_a_pace(&mut served, ALONE + others).await?;
    let minted = google.minted().await? - minted;
    let renewed = (minted as f64 - AMONG as f64) / begun.elapsed().as_secs_f64();
    let p99 = quantile(among.iter().copied(), 0.99);
    // Less would make it easy.
    report.at_least(
        &scenario,
        "renewals a second meanwhile",
        Some(renewed),
        0.9 * RENEWALS,
    );
    let middle = median(among.iter().copied());
    report.told(&scenario, "p50, milliseconds", Some(middle * 1e3));
    report.told(&scenario, "p99, milliseconds", Some(p99 * 1e3));
    let figure = "p99 to Google's time and twice two bare writes";
    report.at_most(&scenario, figure, Some(p99 / bound), 5.0);
    report.raw(
        "latency in seconds",
        json!({"alone": alone, "bareWrites": bare.writes, "upstream": bare.upstream, "amongRenewals": among}),
    );
    served.stop().await
}

impl Bare {
    /// Does once what the operator does for one request.
    async fn turn(&mut self, cluster: &Cluster, sample: &Sample, access_token: &str, n: usize) -> Result<()> {
        let (namespace, name) = load::key(&cluster.namespaces, n);
        let object = load::object(&namespace, &name);
        let request = cluster.admin.create(&api::requests(&namespace), &object).await?;
        let uid = request["metadata"]["uid"].as_str().context("no UID")?;
        let begun = Instant::now();
        let audience = load::audience(&name);
        let token = cluster.google.id_token(access_token, &audience).await?;
        self.upstream.push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        let secret = sample.secret(&name, uid, &token);
        let secret = cluster.admin.create(&api::secrets(&namespace), &secret).await?;
        let path = format!("{}/status", api::request(&namespace, &name));
        cluster.admin.merge(&path, &sample.status(&secret)).await?;
        self.writes.push(begun.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Creates request `n`; gives the seconds from before its creation until it was seen Ready.
async fn one(served: &mut Served, n: usize) -> Result<f64> {
    let (namespace, name) = load::key(&served.cluster.namespaces, n);
    let object = load::object(&namespace, &name);
    let begun = Instant::now();
    let path = api::requests(&namespace);
    served.cluster.admin.create(&path, &object).await?;
    served.until(n + 1).await?;
    since(&served.seen, &name, begun)
}

fn since(seen: &Seen, name: &str, begun: Instant) -> Result<f64> {
    let ready = seen.at(name).context("it was never Ready")?;
    Ok(ready.duration_since(begun).as_secs_f64())
}

/// Creates the requests `from..to` with tokens that live for as long as it takes that they are renewed one after the other, so many a
/// second, by nothing but the operator's own schedule.
async fn load_to_renew(served: &mut Served, from: usize, to: usize) -> Result<()> {
    let google = served.cluster.google.clone();
    let lifetimes = async move {
        let mut left = to - from;
        while left > 0 {
            // Those that are minted last are renewed first: how long the load takes does not matter then.
            let first = FIRST_RENEWAL + left as f64 / RENEWALS;
            google.lifetime((first / RENEWED_AT).ceil() as u64).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            left = to.saturating_sub(google.minted().await? as usize);
        }
        google.lifetime(LIFETIME).await
    };
    let created = async {
        load::create(&served.cluster, from, to).await?;
        let ready = served.seen.until(to, LIMIT).await;
        ready.with_context(|| served.system.log_tail())
    };
    tokio::try_join!(lifetimes, created).map(drop)
}

/// Creates requests from `from` on at an even pace, whether or not those before are Ready; gives the seconds that each took.
async fn at_a_pace(served: &mut Served, from: usize) -> Result<Vec<f64>> {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / AMONG_PACE));
    let (mut begun, mut creating) = (Vec::new(), JoinSet::new());
    for n in from..from + AMONG {
        ticks.tick().await;
        let (namespace, name) = load::key(&served.cluster.namespaces, n);
        let (admin, object) = (served.cluster.admin.clone(), load::object(&namespace, &name));
        begun.push((name, Instant::now()));
        creating.spawn(async move { admin.create(&api::requests(&namespace), &object).await });
    }
    while let Some(created) = creating.join_next().await {
        created??;
    }
    served.until(from + AMONG).await?;
    begun
        .iter()
        .map(|(name, begun)| since(&served.seen, name, *begun))
        .collect()
}
