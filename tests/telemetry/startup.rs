//! How long a start with many requests takes: the startup probe of the chart must allow for it.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::{TryStreamExt, stream};
use kube::api::ListParams;
use serde_json::json;

use crate::common::{Setup, World};

const COUNT: usize = 10_000;
/// The least time that the chart's startup probe allows.
const ALLOWED: Duration = Duration::from_secs(60);

/// Takes minutes: `cargo test --test telemetry -- --ignored --nocapture startup`.
#[ignore = "makes 10,000 requests"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_are_listed_in_time() -> Result<()> {
    let world = World::with(Setup {
        operator: false,
        log: "info",
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    stream::iter((0..COUNT).map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(32, async |n| {
            world.request("shop", &format!("r{n}"), json!({})).await?;
            Ok(())
        })
        .await?;
    let begun = Instant::now();
    world.start_operator().await?;
    let new = begun.elapsed();
    println!("ready after {new:?} with {COUNT} new requests");
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let secrets = world
            .secrets("shop")
            .list_metadata(&ListParams::default().limit(1))
            .await?;
        let left = secrets.metadata.remaining_item_count.unwrap_or_default();
        if left + 1 >= COUNT as i64 {
            break;
        }
        println!("{left} to go after {:?}", begun.elapsed());
    }
    world.stop_operator(false).await?;
    let begun = Instant::now();
    world.start_operator().await?;
    let again = begun.elapsed();
    println!("ready after {again:?} with {COUNT} requests and Secrets");
    assert!(new.max(again) < ALLOWED, "{new:?}, {again:?}");
    Ok(())
}
