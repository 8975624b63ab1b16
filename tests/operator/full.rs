//! Memory that is filled to every one of its default limits.

use anyhow::Result;
use futures::{TryStreamExt, stream};
use idtoken_testenv::until;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::common::{LIMIT, Setup, World};

/// Namespaces of which two fill all: each has half.
const NAMESPACES: [&str; 2] = ["evil-a", "evil-b"];
/// What requests, markers and Secrets without a request may take by default, in bytes: three quarters, an eighth and an eighth.
const REQUESTS: f64 = 144.0 * MIB;
const MARKERS: f64 = 24.0 * MIB;
const MIB: f64 = 1024.0 * 1024.0;
/// Objects of a kind that are more than fit, for each namespace: a large request counts for 35 KB, a marker for 1.5 KiB, and a Secret for
/// up to 1,280 bytes.
const LARGE: usize = 2_200;
const SMALL: usize = 8_300;
const SECRETS: usize = 14_000;

/// Letters in which nothing occurs twice, so that compression gains nothing.
fn noise(seed: usize, length: usize) -> String {
    // SplitMix64: https://prng.di.unimi.it/splitmix64.c
    let mut state = seed as u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    };
    let letter = |number: u64| char::from(b'!' + (number % 90) as u8);
    let usual = |letter: char| if "{}\\\"".contains(letter) { '~' } else { letter };
    (0..length).map(|_| usual(letter(next()))).collect()
}

/// Makes `count` objects in each namespace, 32 at once.
async fn make(count: usize, one: impl AsyncFn(&'static str, usize) -> Result<()>) -> Result<()> {
    let all = (0..count).flat_map(|n| NAMESPACES.map(|namespace| Ok::<_, anyhow::Error>((namespace, n))));
    stream::iter(all)
        .try_for_each_concurrent(32, |(namespace, n)| one(namespace, n))
        .await
}

async fn bytes(world: &World, kind: &str) -> Result<f64> {
    world
        .metric(&format!("idtoken_cache_bytes{{kind=\"{kind}\"}}"))
        .await
}

async fn filled(world: &World, kind: &str, limit: f64) -> Result<()> {
    let what = format!("{kind} fill their limit");
    until(&what, 10 * LIMIT, async || {
        Ok((bytes(world, kind).await? > 0.97 * limit).then_some(()))
    })
    .await
}

#[ignore = "minutes: sixty thousand objects"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_is_filled_to_every_default_stays_below_the_charts_limit() -> Result<()> {
    let world = World::with(Setup {
        log: "info",
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    world.issued("shop", "early", json!({})).await?;
    for namespace in NAMESPACES {
        world.namespace(namespace).await?;
    }
    let world = &world;
    make(LARGE, async |namespace, n| {
        let data = ["a", "b"].map(|key| (key.to_owned(), Value::from(noise(n * 2 + key.len(), 8_000))));
        let spec = json!({"target": {"template": {"data": serde_json::Map::from_iter(data)}}});
        world
            .request(namespace, &format!("large-{n}"), spec)
            .await
            .map(drop)
    })
    .await?;
    filled(world, "requests", REQUESTS).await?;
    make(SMALL, async |namespace, n| {
        world
            .request(namespace, &format!("small-{n}"), json!({}))
            .await
            .map(drop)
    })
    .await?;
    filled(world, "markers", MARKERS).await?;
    make(SECRETS, async |namespace, n| {
        let annotations = json!({
            "idtoken.dev/request": noise(n, 250),
            "idtoken.dev/request-uid": noise(n + 1, 250),
            "idtoken.dev/token-hash": noise(n + 2, 250),
        });
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {
                "name": format!("bare-{n}"), "labels": {"app.kubernetes.io/managed-by": "idtoken-operator"},
                "annotations": annotations,
            },
        }))?;
        world
            .secrets(namespace)
            .create(&PostParams::default(), &secret)
            .await?;
        Ok(())
    })
    .await?;
    until("Secrets fill their limit", 10 * LIMIT, async || {
        let dropped = world
            .metric(r#"idtoken_cache_dropped_total{kind="secrets"}"#)
            .await?;
        Ok((dropped > 0.0).then_some(()))
    })
    .await?;
    world.renewed("shop", "early", "while all is full").await?;
    world.check_memory()?;

    // Lists of all of it.
    world.stop_operator(false).await?;
    world.start_operator().await?;
    filled(world, "requests", REQUESTS).await?;
    filled(world, "markers", MARKERS).await?;
    world.renewed("shop", "early", "after a restart").await?;
    world.check_memory()
}
