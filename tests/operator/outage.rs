//! The API server goes away and comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{TryStreamExt, future, stream};
use idtoken_emulator::Endpoint;
use idtoken_testenv::until;
use jiff::Timestamp;
use kube::api::ListParams;
use serde_json::json;

use crate::common::relay::Relay;
use crate::common::{LIMIT, Setup, World, is_handled, is_ready, token};

const LIFETIME: u64 = 60;

async fn all_ready(world: &World, count: usize) -> Result<()> {
    world
        .wait(&format!("{count} requests are ready"), async || {
            let list = world.requests("shop").list(&ListParams::default()).await?;
            Ok(list.items.iter().filter(|request| is_ready(request)).count() == count)
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_api_server_loses_nothing() -> Result<()> {
    const HALF: usize = 25;
    let world = World::with(Setup::lifetime(LIFETIME)).await?;
    world.granted("shop").await?;
    stream::iter((0..HALF).map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(8, async |n| {
            world.request("shop", &format!("early{n}"), json!({})).await?;
            Ok(())
        })
        .await?;
    all_ready(&world, HALF).await?;

    // The outage begins just before the first renewal is due, while more requests are being made.
    let list = world.requests("shop").list(&ListParams::default()).await?;
    let due = list
        .items
        .iter()
        .filter_map(|request| Some(request.status.as_ref()?.renewal_time.as_ref()?.0));
    let due = due.min().context("a renewal time")?;
    let last = list
        .items
        .iter()
        .filter_map(|request| Some(request.status.as_ref()?.renewal_time.as_ref()?.0))
        .max();
    world
        .wait("the first renewal is near", async || {
            Ok(due.duration_since(Timestamp::now()).as_millis() < 500)
        })
        .await?;
    let make = async {
        for n in 0..HALF {
            // As everybody does whose tool applies until it succeeds.
            let made = async || match world.request("shop", &format!("late{n}"), json!({})).await {
                Ok(_) => Ok(Some(())),
                Err(error) if format!("{error:#}").contains("AlreadyExists") => Ok(Some(())),
                Err(_) => Ok(None),
            };
            idtoken_testenv::until("the request is made", LIMIT, made).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let outage = async {
        world
            .wait("some of the late ones are made", async || {
                let list = world.requests("shop").list(&ListParams::default()).await?;
                Ok(list.items.len() >= HALF + 5)
            })
            .await?;
        world.cluster.stop_apiserver().await?;
        // All renewals of the first half fall due in the outage, and are tried in it.
        world
            .wait("all renewals are due", async || {
                Ok(last < Some(Timestamp::now() - Duration::from_secs(2)))
            })
            .await?;
        world.cluster.start_apiserver().await
    };
    future::try_join(make, outage).await?;
    all_ready(&world, 2 * HALF).await?;

    // No token has ended: each was renewed as soon as it could be written.
    let secrets = world.secrets("shop").list(&ListParams::default()).await?;
    assert_eq!(secrets.items.len(), 2 * HALF);
    for secret in &secrets.items {
        world
            .google
            .verify(&token(secret))
            .with_context(|| format!("{:?}", secret.metadata.name))?;
    }

    let mut mints: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for call in world.google.calls() {
        if call.endpoint == Endpoint::GenerateIdToken && call.status == Some(200) {
            mints
                .entry(call.request_reason.unwrap_or_default())
                .or_default()
                .push(call.time_unix_ms);
        }
    }
    assert_eq!(mints.len(), 2 * HALF);
    // A token that could not be written waits for the API server, also while that has just started and refuses all with 403:
    // a mint before 0.4 of its life is needless.
    let soonest = i64::try_from(LIFETIME * 1000 * 4 / 10)? - 1000;
    let needless: Vec<_> = mints
        .iter()
        .filter(|(_, times)| times.windows(2).any(|pair| pair[1] - pair[0] < soonest))
        .map(|(name, times)| {
            format!(
                "{name}: {:?}",
                times.iter().map(|time| time - times[0]).collect::<Vec<_>>()
            )
        })
        .collect();
    assert!(
        needless.is_empty(),
        "{} of {} were minted again too soon:\n{}",
        needless.len(),
        mints.len(),
        needless.join("\n")
    );
    let longest = i64::try_from(LIFETIME * 1000)?;
    let late = mints
        .iter()
        .filter(|(_, times)| times.windows(2).any(|pair| pair[1] - pair[0] >= longest));
    assert_eq!(
        late.map(|(name, _)| name).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    Ok(())
}

/// Gives the operator the right to write statuses, or takes it away.
async fn statuses(world: &World, verbs: &[&str]) -> Result<()> {
    let patch = json!([
        {"op": "test", "path": "/rules/1/resources", "value": ["idtokenrequests/status"]},
        {"op": "replace", "path": "/rules/1/verbs", "value": verbs},
    ]);
    let patch = patch.to_string();
    let role = [
        "patch",
        "clusterrole",
        "idtoken-operator",
        "--type=json",
        "-p",
        &patch,
    ];
    world.cluster.kubectl(role).await?;
    Ok(())
}

/// How often the operator that runs now was refused a status.
fn refusals(world: &World) -> usize {
    world.operator_log().matches("the status was not written").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_cannot_be_written_costs_no_mint() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    statuses(&world, &["get"]).await?;
    world.request("shop", "billing", json!({})).await?;
    world
        .wait("the Secret is written and the status is not", async || {
            Ok(refusals(&world) >= 2 && world.secret("shop", "billing").await.is_ok())
        })
        .await?;
    let written = token(&world.secret("shop", "billing").await?);
    // Between its two writes the operator is killed.
    world.stop_operator(true).await?;
    statuses(&world, &["update", "patch"]).await?;
    world.start_operator().await?;
    world.ready("shop", "billing").await?;
    assert!(written == token(&world.secret("shop", "billing").await?));
    assert_eq!(world.asked(), 1);

    // A renewal that was asked for is not done again and again because nobody hears that it was done.
    statuses(&world, &["get"]).await?;
    let before = refusals(&world);
    world.renew("shop", "billing", "now").await?;
    world
        .wait("the status is refused again and again", async || {
            Ok(refusals(&world) >= before + 3)
        })
        .await?;
    assert_eq!(world.asked(), 2);
    // Nor where the operator is killed before its second write: the Secret tells.
    world.stop_operator(true).await?;
    statuses(&world, &["update", "patch"]).await?;
    world.start_operator().await?;
    world
        .until("shop", "billing", "the renewal is reported", |object| {
            is_handled(object, "now")
        })
        .await?;
    assert_eq!(world.asked(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_put_back_is_served_on() -> Result<()> {
    let world = World::with(Setup {
        lifetime: Duration::from_secs(600),
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    for name in ["kept", "changed", "deleted", "renewed"] {
        world.issued("shop", name, json!({})).await?;
    }
    let before = world.secret("shop", "renewed").await?;
    let snapshot = world.cluster.snapshot().await?;

    // What the snapshot does not know.
    world.renewed("shop", "renewed", "now").await?;
    world
        .requests("shop")
        .delete("deleted", &kube::api::DeleteParams::default())
        .await?;
    let audience = format!("{}/x", crate::common::AUDIENCE);
    world
        .change("shop", "changed", json!({"spec": {"audience": audience}}))
        .await?;
    world.ready("shop", "changed").await?;
    for n in 0..20 {
        world.issued("shop", &format!("lost{n}"), json!({})).await?;
    }
    let mints = world.google.mint_count();
    world.cluster.restore(&snapshot).await?;

    // Watches that are no good would not show this until as many writes were done as were lost.
    world.issued("shop", "after", json!({})).await?;
    for name in ["kept", "changed", "deleted", "renewed"] {
        let object = world.ready("shop", name).await?;
        let reported = object.status.as_ref().and_then(|status| status.secret.clone());
        let secret = world.secret("shop", name).await?;
        assert_eq!(
            reported.and_then(|secret| secret.resource_version),
            secret.metadata.resource_version,
            "{name}"
        );
        let (_, claims) = world.claims("shop", name).await?;
        assert_eq!(claims["aud"], crate::common::AUDIENCE, "{name}");
    }
    // All tokens of the snapshot are good still.
    assert_eq!(world.google.mint_count(), mints + 1);
    assert!(before == world.secret("shop", "renewed").await?);
    let secrets = world.secrets("shop").list(&ListParams::default()).await?;
    assert_eq!(secrets.items.len(), 5);
    assert!(
        world.metric("idtoken_requests").await? as usize == 5,
        "{}",
        world.scrape().await?
    );

    // And everything goes on from there.
    for name in ["kept", "deleted", "renewed"] {
        world.renewed("shop", name, "again").await?;
        world.claims("shop", name).await?;
    }
    world
        .meddle("shop", "kept", json!({"data": {"token": "stolen"}}))
        .await?;
    world
        .wait("the token is put back", async || {
            Ok(world.claims("shop", "kept").await.is_ok())
        })
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_dies_without_a_word_is_replaced() -> Result<()> {
    let mut world = World::with(Setup {
        operator: false,
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    let kubeconfig = std::fs::read_to_string(&world.kubeconfig)?;
    let server = kubeconfig.split("https://").nth(1).context("no server")?;
    let server = server.split(['"', '\n']).next().unwrap_or_default();
    let relay = Relay::start(server.parse().context("the server's address")?).await?;
    world.kubeconfig = world.cluster.dir().join("relayed.kubeconfig");
    let relayed = kubeconfig.replace(server, &relay.address().to_string());
    std::fs::write(&world.kubeconfig, relayed)?;
    world.start_operator().await?;
    world.issued("shop", "before", json!({})).await?;

    let silent = relay.silence();
    assert!(silent > 0, "the operator does not speak through the relay");
    world.request("shop", "after", json!({})).await?;
    // Found by a ping that has no answer; a watch that says nothing would be ended after minutes.
    until("the request is ready", 3 * LIMIT, async || {
        let request = world.requests("shop").get("after").await?;
        Ok(is_ready(&request).then_some(()))
    })
    .await
    .with_context(|| world.log_tail())?;
    assert!(relay.connections() > silent);
    assert_eq!(world.asked(), 2);
    Ok(())
}
