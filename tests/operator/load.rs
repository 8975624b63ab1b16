//! Restarts and bursts: nothing is minted or written twice.

use std::time::Duration;

use anyhow::Result;
use futures::{TryStreamExt, stream};
use idtoken_emulator::{Endpoint, Fault};
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use serde_json::json;

use crate::common::{LIMIT, Setup, World, is_ready, long, of};

async fn all_ready(world: &World, namespace: &str, count: usize) -> Result<()> {
    // A list every 50 ms of hundreds of requests would be half of the load.
    let what = format!("{count} requests are ready");
    world
        .wait(&what, async || {
            tokio::time::sleep(LIMIT / 120).await;
            let list = world
                .requests(namespace)
                .list(&kube::api::ListParams::default())
                .await?;
            Ok(list.items.iter().filter(|request| is_ready(request)).count() == count)
        })
        .await
}

/// Makes so many requests.
async fn make(world: &World, namespace: &str, count: usize) -> Result<()> {
    stream::iter((0..count).map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(32, async |n| {
            world.request(namespace, &format!("r{n}"), json!({})).await?;
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_mints_and_writes_nothing() -> Result<()> {
    const COUNT: usize = 1000;
    let world = World::with(Setup {
        log: "info",
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    world.granted("probe").await?;
    make(&world, "shop", COUNT).await?;
    all_ready(&world, "shop", COUNT).await?;
    assert_eq!(world.google.mint_count(), COUNT as u64);

    for (by_force, probe) in [(false, "first"), (true, "second")] {
        world.stop_operator(by_force).await?;
        let start = world.mark().await?;
        world.google.reset_counts();
        world.start_operator().await?;
        world
            .wait("every request was reconciled after the restart", async || {
                Ok(world.metric("idtoken_reconcile_total").await? >= COUNT as f64)
            })
            .await?;
        // What came before this one in the queue is done.
        world.issued("probe", probe, json!({})).await?;
        world.mark().await?;

        let asked: Vec<_> = world
            .google
            .calls()
            .into_iter()
            .filter(|call| call.endpoint == Endpoint::GenerateIdToken)
            .collect();
        assert_eq!(asked.len(), 1, "only the probe: {asked:?}");
        let calls = world.calls_since(start)?;
        let other: Vec<_> = calls
            .iter()
            .filter(|call| !["list", "watch"].contains(&call.verb.as_str()) && call.namespace != "probe")
            .collect();
        assert!(other.is_empty(), "{other:#?}");
        for (resource, pages) in [
            ("idtokenrequests", COUNT / 100 + 1),
            ("secrets", COUNT / 100 + 1),
            ("idtokengrants", 1),
            ("namespaces", 1),
        ] {
            let lists = of(&calls, "list", resource);
            assert!((1..=pages).contains(&lists.len()), "{lists:#?}");
            assert!(
                pages == 1 || lists.iter().all(|call| call.uri.contains("limit=100")),
                "{lists:#?}"
            );
        }
        let series = r#"idtoken_requests{namespace="shop",ready="True",reason="Issued"}"#;
        assert_eq!(world.metric(series).await? as usize, COUNT);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_costs_one_mint_and_two_writes_a_request() -> Result<()> {
    const COUNT: usize = 500;
    let world = World::with(Setup {
        log: "debug",
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    let start = world.mark().await?;
    stream::iter((0..COUNT).map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(32, async |n| {
            let spec = json!({"audience": format!("{}/{n}", crate::common::AUDIENCE)});
            world.request("shop", &format!("r{n}"), spec).await?;
            Ok(())
        })
        .await?;
    all_ready(&world, "shop", COUNT).await?;
    world.issued("shop", "last", json!({})).await?;
    world.mark().await?;

    let mut asked: Vec<_> = world
        .google
        .calls()
        .into_iter()
        .filter(|call| call.endpoint == Endpoint::GenerateIdToken)
        .filter_map(|call| call.request_reason)
        .collect();
    asked.sort_unstable();
    let total = asked.len();
    asked.dedup();
    assert_eq!((total, asked.len()), (COUNT + 1, COUNT + 1));
    assert_eq!(world.google.mint_count(), COUNT as u64 + 1);
    // Many callers share one access token of the operator's own identity.
    assert_eq!(world.google.count(Endpoint::MetadataToken), 1);

    let writes = world.writes_since(start)?;
    let refused: Vec<_> = writes.iter().filter(|call| call.code >= 300).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!(of(&writes, "create", "secrets").len(), COUNT + 1);
    assert_eq!(of(&writes, "update", "idtokenrequests/status").len(), COUNT + 1);
    // The count of requests on the grant is written every now and then.
    let others = writes.len() - of(&writes, "patch", "idtokengrants/status").len();
    assert_eq!(others, 2 * (COUNT + 1));
    let reads = world.calls_since(start)?;
    assert_eq!(of(&reads, "get", "secrets").len(), 0);
    assert_eq!(of(&reads, "get", "idtokenrequests").len(), 0);

    let listed = world
        .secrets("shop")
        .list(&kube::api::ListParams::default())
        .await?;
    assert_eq!(listed.items.len(), COUNT + 1);
    for secret in &listed.items {
        let name = secret.metadata.name.clone().unwrap_or_default();
        let claims = world.google.verify(&crate::common::token(secret))?;
        let audience = match name.strip_prefix('r') {
            Some(n) => format!("{}/{n}", crate::common::AUDIENCE),
            None => crate::common::AUDIENCE.to_owned(),
        };
        assert_eq!(claims["aud"], audience, "{name}");
    }
    Ok(())
}

/// Secrets that no status tells of, or whose status tells of another.
async fn untold(world: &World) -> Result<Vec<String>> {
    let all: kube::Api<Secret> = kube::Api::all(world.client.clone());
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=idtoken-operator");
    let mut untold = Vec::new();
    for secret in all.list(&ours).await?.items {
        let name = secret.metadata.name.clone().unwrap_or_default();
        let namespace = secret.metadata.namespace.clone().unwrap_or_default();
        let status = world.get(&namespace, &name).await?.status.unwrap_or_default();
        let reported = status.secret.and_then(|secret| secret.resource_version);
        if reported != secret.metadata.resource_version {
            untold.push(name);
        }
    }
    Ok(untold)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_the_middle_loses_nothing() -> Result<()> {
    const COUNT: usize = 100;
    let world = World::new().await?;
    world.granted("shop").await?;
    world.granted("crash").await?;
    // 32 at once: three rounds and a bit.
    let slow = Fault::delay(Duration::from_secs(1)).on(Endpoint::GenerateIdToken);
    world.google.fault(slow)?;
    make(&world, "shop", COUNT).await?;
    world
        .wait("the second round has begun", async || Ok(world.asked() >= 40))
        .await?;
    world.stop_operator(false).await?;
    // What was begun is finished with both of its writes.
    let minted = world.google.mint_count();
    assert_eq!(minted, world.asked());
    let secrets = world.secrets("shop").list(&ListParams::default()).await?;
    assert_eq!(secrets.items.len() as u64, minted);
    assert_eq!(untold(&world).await?, Vec::<String>::new());

    // A crash instead: some tokens are lost, and minted again.
    world.start_operator().await?;
    make(&world, "crash", COUNT).await?;
    world
        .wait("the second round has begun", async || {
            Ok(world.asked() >= COUNT as u64 + 40)
        })
        .await?;
    world.stop_operator(true).await?;
    let secrets = world.secrets("crash").list(&ListParams::default()).await?;
    assert!(secrets.items.len() < COUNT, "nothing was left to be lost");
    world.google.clear_faults();
    world.start_operator().await?;
    for namespace in ["shop", "crash"] {
        all_ready(&world, namespace, COUNT).await?;
    }
    assert_eq!(untold(&world).await?, Vec::<String>::new());
    // Those that were in flight at most, and those whose answer waited to be written.
    let total = world.google.mint_count();
    let wanted = 2 * COUNT as u64;
    assert!((wanted..=wanted + 64).contains(&total), "{total} mints");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_operator_asks_for_nothing() -> Result<()> {
    const COUNT: usize = 500;
    let world = World::with(Setup {
        log: "info",
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    make(&world, "shop", COUNT).await?;
    all_ready(&world, "shop", COUNT).await?;
    world.allows("shop", COUNT).await?;
    let start = world.mark().await?;
    let asked = world.google.calls().len();
    let reconciled = world.metric("idtoken_reconcile_total").await?;
    // The length is what is tested.
    tokio::time::sleep(long().unwrap_or(Duration::from_secs(15))).await;
    world.mark().await?;
    // A watch that the API server ends after some minutes is begun again, and that is all.
    let calls = world.calls_since(start)?;
    let other: Vec<_> = calls.iter().filter(|call| call.verb != "watch").collect();
    assert!(other.is_empty(), "{other:#?}");
    assert_eq!(world.google.calls().len(), asked);
    assert_eq!(world.metric("idtoken_reconcile_total").await?, reconciled);
    Ok(())
}
