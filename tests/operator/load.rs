//! Restarts and bursts: nothing is minted or written twice.

use anyhow::Result;
use futures::{TryStreamExt, stream};
use idtoken_emulator::Endpoint;
use serde_json::json;

use crate::common::{LIMIT, Setup, World, is_ready, of};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_mints_and_writes_nothing() -> Result<()> {
    const COUNT: usize = 50;
    let world = World::new().await?;
    world.granted("shop").await?;
    world.granted("probe").await?;
    stream::iter((0..COUNT).map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(8, async |n| {
            world.request("shop", &format!("r{n}"), json!({})).await?;
            Ok(())
        })
        .await?;
    all_ready(&world, "shop", COUNT).await?;
    assert_eq!(world.google.mint_count(), COUNT as u64);

    for (by_force, probe) in [(false, "first"), (true, "second")] {
        world.stop_operator(by_force).await?;
        let start = world.mark().await?;
        world.google.reset_counts();
        world.start_operator().await?;
        world
            .wait("every request was looked at after the restart", async || {
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
        let lists = calls.iter().filter(|call| call.verb == "list").count();
        assert!((1..=8).contains(&lists), "{lists} lists");
        let metrics = world.scrape().await?;
        assert!(
            metrics.contains(r#"idtoken_requests{namespace="shop",ready="True",reason="Issued"} 50"#),
            "{metrics}"
        );
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
    assert_eq!(of(&writes, "patch", "idtokenrequests/status").len(), COUNT + 1);
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
