//! Fresh, as somebody sees it who knows nothing of the operator and reads the Secrets alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine as _;
use futures::{TryStreamExt, stream};
use idtoken_emulator::Endpoint;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::common::{Setup, World, long, of, token};

const COUNT: usize = 200;
/// A token is renewed when half of it is left, so that outage and pauses of a busy machine together may take 45 s.
const LIFETIME: u64 = 90;
const OUTAGE: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What the reader saw.
#[derive(Debug, Default)]
struct Seen {
    looks: u32,
    secrets: u32,
    /// Seconds, over all Secrets, in which one held no valid token.
    expired: f64,
    /// The least that was left of any token, in seconds.
    least: f64,
    /// The longest pause between two looks.
    longest: Duration,
}

fn left(secret: &Secret, now: Timestamp) -> Result<f64> {
    let token = token(secret);
    let claims = token.split('.').nth(1).context("a JWT")?;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims)?;
    let claims: serde_json::Value = serde_json::from_slice(&claims)?;
    let end = Timestamp::from_second(claims["exp"].as_i64().context("exp")?)?;
    Ok(end.duration_since(now).as_secs_f64())
}

/// Reads all Secrets again and again for `time`.
async fn read(secrets: Api<Secret>, time: Duration) -> Result<Seen> {
    let mut seen = Seen {
        least: f64::MAX,
        ..Seen::default()
    };
    let begin = Instant::now();
    let mut last = begin;
    while begin.elapsed() < time {
        // From the API server's cache, as a kubelet has them.
        let params = ListParams::default().match_any();
        let list = secrets.list(&params).await?;
        let now = Timestamp::now();
        let since = last.elapsed();
        last = Instant::now();
        seen.looks += 1;
        seen.longest = seen.longest.max(since);
        anyhow::ensure!(list.items.len() == COUNT, "{} Secrets", list.items.len());
        for secret in &list.items {
            let left = left(secret, now)?;
            seen.secrets += 1;
            seen.least = seen.least.min(left);
            if left <= 0.0 {
                seen.expired += since.as_secs_f64();
            }
        }
        tokio::time::sleep(LOOK_EVERY.saturating_sub(last.elapsed())).await;
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_ever_holds_an_expired_token() -> Result<()> {
    let world = World::with(Setup {
        log: "info",
        recorded: true,
        ..Setup::lifetime(LIFETIME)
    })
    .await?;
    world.granted("shop").await?;
    stream::iter((0..COUNT).map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(16, async |n| {
            world.issued("shop", &format!("r{n}"), json!({})).await?;
            Ok(())
        })
        .await?;
    // The count first: a token that is issued before the mark and written after it would be a write without a mint.
    let minted = world.google.mint_count();
    let start = world.mark().await?;
    let time = long().unwrap_or(Duration::from_secs(150));
    let relay = world.relay.as_ref().context("a relay")?;
    // The lengths are what is tested.
    let outages = async {
        for _ in 0..2 {
            tokio::time::sleep(time / 3 - OUTAGE).await;
            relay.kill().await;
            tokio::time::sleep(OUTAGE).await;
            relay.revive().await?;
        }
        anyhow::Ok(())
    };
    let reader = tokio::spawn(read(world.secrets("shop"), time));
    outages.await?;
    let seen = reader.await??;
    println!("{seen:?}");
    assert!(seen.expired == 0.0, "{seen:?}\n{}", world.log_tail());
    // The operator saw it so too.
    assert_eq!(world.metric("idtoken_served_expired_seconds_total").await?, 0.0);
    assert!(
        seen.longest < Duration::from_secs(LIFETIME / 3),
        "the reader was too slow: {seen:?}"
    );

    // Each renewal is one mint and two writes; the outages cost tries, and a condition each time one failed or recovered.
    world.mark().await?;
    let writes = world.writes_since(start)?;
    let renewals = of(&writes, "patch", "secrets").len();
    let statuses = of(&writes, "patch", "idtokenrequests/status").len();
    println!(
        "{renewals} renewals, {} mints, {statuses} statuses",
        world.google.mint_count() - minted
    );
    assert_eq!(of(&writes, "create", "secrets").len(), 0);
    assert!(world.google.mint_count() - minted >= renewals as u64);
    // One that was answered to nobody when the relay died.
    assert!(world.google.mint_count() - minted <= renewals as u64 + 2 * 32);
    assert!(statuses >= renewals - 32, "{statuses}");
    let mut each: BTreeMap<String, u32> = BTreeMap::new();
    for call in world.google.calls() {
        if call.endpoint == Endpoint::GenerateIdToken {
            *each.entry(call.request_reason.unwrap_or_default()).or_default() += 1;
        }
    }
    assert_eq!(each.len(), COUNT);
    Ok(())
}
