//! Whose Secret it is: handed over, taken while Google answers, of another type, of another owner.

use std::time::Duration;

use anyhow::{Context, Result};
use idtoken_emulator::{Endpoint, Fault};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::common::{World, condition, has, is_ready, of, text, token};

fn foreign(name: &str) -> Result<Secret> {
    let object = json!({"metadata": {"name": name}, "stringData": {"token": "theirs"}});
    Ok(serde_json::from_value(object)?)
}

/// How many tries a conflict had, by the operator's log.
fn attempts(world: &World) -> usize {
    world
        .operator_log()
        .matches("was not written by the operator")
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_in_the_way_is_watched() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    for name in ["handed", "freed", "left"] {
        world
            .secrets("shop")
            .create(&PostParams::default(), &foreign(name)?)
            .await?;
        world.request("shop", name, json!({})).await?;
    }
    let conflict = |object: &_| has(object, "Stalled", "True", "SecretConflict");
    for name in ["handed", "freed", "left"] {
        world
            .until("shop", name, "the conflict is told", conflict)
            .await?;
    }
    // The pauses between the tries have grown by then.
    world
        .wait("the conflicts were looked at again", async || {
            Ok(attempts(&world) >= 9)
        })
        .await?;
    let before = std::time::Instant::now();
    world
        .meddle(
            "shop",
            "handed",
            json!({"metadata": {"annotations": {"idtoken.dev/adopt": "handed"}}}),
        )
        .await?;
    world
        .secrets("shop")
        .delete("freed", &DeleteParams::default())
        .await?;
    for name in ["handed", "freed"] {
        world.ready("shop", name).await?;
        world.claims("shop", name).await?;
    }
    // At once: the next try was due some 10 s later.
    assert!(
        before.elapsed() < Duration::from_secs(8),
        "{:?}",
        before.elapsed()
    );
    assert_eq!(text(&world.secret("shop", "left").await?, "token"), "theirs");
    // Each in the way costs a mint at first, when nobody could know of it.
    assert!(world.asked() <= 5, "{} calls", world.asked());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_while_google_answers_is_respected() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let slow = Fault::delay(Duration::from_secs(3)).on(Endpoint::GenerateIdToken);
    world.google.fault(slow.times(3))?;
    for name in ["taken", "deleted", "left"] {
        world.request("shop", name, json!({})).await?;
    }
    world
        .wait("Google was asked for all", async || Ok(world.asked() == 3))
        .await?;
    let theirs = world
        .secrets("shop")
        .create(&PostParams::default(), &foreign("taken")?)
        .await?;
    world
        .requests("shop")
        .delete("deleted", &DeleteParams::default())
        .await?;
    let object = world
        .until("shop", "taken", "the conflict is told", |object| {
            has(object, "Stalled", "True", "SecretConflict")
        })
        .await?;
    assert!(!is_ready(&object));
    assert_eq!(theirs, world.secret("shop", "taken").await?);
    // Made after the others have been answered.
    world.issued("shop", "probe", json!({})).await?;
    assert!(world.secrets("shop").get_opt("deleted").await?.is_none());
    world.ready("shop", "left").await?;
    let metrics = world.scrape().await?;
    assert!(!metrics.contains("panicked"), "{metrics}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_type_or_policy_costs_no_mint() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let first = world.secret("shop", "billing").await?;
    let start = world.mark().await?;

    // Kubernetes lets no type change: another Secret takes the place, with the same token.
    let patch = json!({"spec": {"target": {"template": {"type": "servicebinding.io/http"}}}});
    world.change("shop", "billing", patch).await?;
    world.ready("shop", "billing").await?;
    let second = world.secret("shop", "billing").await?;
    assert_eq!(second.type_.as_deref(), Some("servicebinding.io/http"));
    assert_ne!(second.metadata.uid, first.metadata.uid);
    assert_eq!(token(&second), token(&first));
    assert!(second.metadata.owner_references.is_some());

    for (policy, owned) in [("Orphan", false), ("Owner", true)] {
        let patch = json!({"spec": {"target": {"creationPolicy": policy}}});
        world.change("shop", "billing", patch).await?;
        world.ready("shop", "billing").await?;
        let secret = world.secret("shop", "billing").await?;
        let owners = secret.metadata.owner_references.clone().unwrap_or_default();
        assert_eq!(owners.len(), usize::from(owned), "{policy}");
        assert_eq!(secret.metadata.uid, second.metadata.uid, "{policy}");
        assert_eq!(token(&secret), token(&first), "{policy}");
    }
    assert_eq!(world.google.mint_count(), 1);
    world.mark().await?;
    let writes = world.writes_since(start)?;
    assert_eq!(of(&writes, "delete", "secrets").len(), 1, "{writes:#?}");
    assert_eq!(of(&writes, "create", "secrets").len(), 1, "{writes:#?}");
    assert_eq!(of(&writes, "patch", "secrets").len(), 2, "{writes:#?}");

    // An adopted one is not deleted for its type, which is told before Google is asked.
    world
        .secrets("shop")
        .create(&PostParams::default(), &foreign("theirs")?)
        .await?;
    world
        .meddle(
            "shop",
            "theirs",
            json!({"metadata": {"annotations": {"idtoken.dev/adopt": "theirs"}}}),
        )
        .await?;
    let theirs = world.secret("shop", "theirs").await?;
    let spec = json!({"target": {"template": {"type": "servicebinding.io/http"}}});
    world.request("shop", "theirs", spec).await?;
    let object = world
        .until("shop", "theirs", "the conflict is told", |object| {
            has(object, "Stalled", "True", "SecretConflict")
        })
        .await?;
    let message = condition(&object, "Ready").context("Ready")?.message.clone();
    assert!(message.contains("spec.target.template.type"), "{message}");
    assert_eq!(theirs, world.secret("shop", "theirs").await?);
    world
        .change(
            "shop",
            "theirs",
            json!({"spec": {"target": {"template": {"type": "Opaque"}}}}),
        )
        .await?;
    world.ready("shop", "theirs").await?;
    world.claims("shop", "theirs").await?;
    assert_eq!(
        world.secret("shop", "theirs").await?.metadata.uid,
        theirs.metadata.uid
    );
    Ok(())
}
