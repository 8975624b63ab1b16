//! Secrets that belong to others, and requests that want the same Secret.

use anyhow::{Context, Result};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use crate::common::{World, condition, has, is_handled, is_ready, of, text, token};

async fn foreign(world: &World, name: &str, metadata: Value) -> Result<Secret> {
    let mut object = json!({"metadata": metadata, "stringData": {"token": "theirs", "other": "also theirs"}});
    object["metadata"]["name"] = json!(name);
    let object: Secret = serde_json::from_value(object)?;
    Ok(world
        .secrets("shop")
        .create(&PostParams::default(), &object)
        .await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_secret_is_left_alone_until_it_is_handed_over() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    // The annotation is for another request, so it means nothing.
    let metadata = json!({"labels": {"team": "theirs"}, "annotations": {"idtoken.dev/adopt": "another"}});
    let before = foreign(&world, "billing", metadata).await?;
    let start = world.mark().await?;
    world.request("shop", "billing", json!({})).await?;
    let conflict = |object: &_| has(object, "Ready", "False", "SecretConflict");
    let object = world
        .until("shop", "billing", "the conflict is reported", conflict)
        .await?;
    assert!(has(&object, "Stalled", "True", "SecretConflict"));
    let message = condition(&object, "Ready")
        .map(|ready| ready.message.clone())
        .unwrap_or_default();
    let command = "kubectl annotate secret billing -n shop idtoken.dev/adopt=billing";
    assert!(message.contains(command), "{message}");
    // It is tried again by itself, and not at Google's expense.
    world
        .wait("the conflict was reconciled again", async || {
            let calls = world.calls_since(start)?;
            Ok(of(&calls, "get", "secrets").len() >= 2)
        })
        .await?;
    assert!(
        world.google.mint_count() <= 1,
        "{} mints",
        world.google.mint_count()
    );
    assert_eq!(before, world.secret("shop", "billing").await?);

    // The condition's own command.
    let args = command.split_whitespace().skip(1).chain(["--overwrite"]);
    world.cluster.kubectl(args).await?;
    world.ready("shop", "billing").await?;
    let after = world.secret("shop", "billing").await?;
    world.google.verify(&token(&after))?;
    assert_eq!(text(&after, "other"), "also theirs");
    assert_eq!(after.metadata.uid, before.metadata.uid);
    assert_eq!(after.metadata.owner_references, None);
    assert_eq!(
        after
            .metadata
            .labels
            .as_ref()
            .map(|labels| labels["team"].as_str()),
        Some("theirs")
    );
    let notes = after.metadata.annotations.clone().context("annotations")?;
    assert_eq!(notes.get("idtoken.dev/adopt"), None);
    assert!(notes.contains_key("idtoken.dev/adopted"));
    // It stays the request's after a renewal, and stays without an owner.
    world.renewed("shop", "billing", "now").await?;
    let renewed = world.secret("shop", "billing").await?;
    world.google.verify(&token(&renewed))?;
    assert_eq!(renewed.metadata.owner_references, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anothers_controller_keeps_its_secret() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let owner = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Certificate", "name": "billing",
        "uid": "7f3a5b1e-0000-4000-8000-000000000001", "controller": true,
    });
    let metadata = json!({"ownerReferences": [owner], "annotations": {"idtoken.dev/adopt": "billing"}});
    let before = foreign(&world, "billing", metadata).await?;
    world.request("shop", "billing", json!({})).await?;
    let object = world
        .until("shop", "billing", "the conflict is reported", |object| {
            has(object, "Ready", "False", "SecretConflict")
        })
        .await?;
    let message = condition(&object, "Ready")
        .map(|ready| ready.message.clone())
        .unwrap_or_default();
    assert!(message.contains("Certificate billing"), "{message}");
    assert_eq!(before, world.secret("shop", "billing").await?);
    // When it goes, the name is free.
    world
        .secrets("shop")
        .delete("billing", &DeleteParams::default())
        .await?;
    world.ready("shop", "billing").await?;
    world.claims("shop", "billing").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_immutable_secret_is_reported() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let issued = world.issued("shop", "billing", json!({})).await?;
    // A token of the same second is the same token, which an immutable Secret may be written with again.
    world.another_second(&issued).await?;
    world
        .meddle("shop", "billing", json!({"immutable": true}))
        .await?;
    world.renew("shop", "billing", "now").await?;
    world
        .until("shop", "billing", "it is reported", |object| {
            has(object, "RenewalFailing", "True", "SecretImmutable") && has(object, "Ready", "True", "")
        })
        .await?;
    world
        .secrets("shop")
        .delete("billing", &DeleteParams::default())
        .await?;
    world
        .until("shop", "billing", "it is well again", |object| {
            has(object, "RenewalFailing", "False", "")
        })
        .await?;
    world.claims("shop", "billing").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_of_two_requests_keeps_the_secret() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let target = json!({"target": {"name": "shared"}});
    let older = world.issued("shop", "older", target.clone()).await?;
    // Kubernetes tells the age of objects in whole seconds.
    world.another_second(&older).await?;
    let before = world.secret("shop", "shared").await?;
    world.request("shop", "younger", target).await?;
    let object = world
        .until("shop", "younger", "the conflict is reported", |object| {
            has(object, "Ready", "False", "TargetConflict")
        })
        .await?;
    assert!(has(&object, "Stalled", "True", "TargetConflict"));
    let message = condition(&object, "Ready")
        .map(|ready| ready.message.clone())
        .unwrap_or_default();
    assert!(message.contains("older"), "{message}");
    assert_eq!(world.asked(), 1);
    assert_eq!(before, world.secret("shop", "shared").await?);

    world
        .requests("shop")
        .delete("older", &DeleteParams::default())
        .await?;
    // There is no garbage collector here: what it does next.
    world
        .secrets("shop")
        .delete("shared", &DeleteParams::default())
        .await?;
    let object = world.ready("shop", "younger").await?;
    let secret = world.secret("shop", "shared").await?;
    world.google.verify(&token(&secret))?;
    let owners = secret.metadata.owner_references.context("an owner")?;
    assert_eq!(Some(&owners[0].uid), object.metadata.uid.as_ref());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_request_does_not_take_the_secret_that_a_younger_one_holds() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let older = world.issued("shop", "older", json!({})).await?;
    // Kubernetes tells the age of objects in whole seconds.
    world.another_second(&older).await?;
    let shared = json!({"target": {"name": "shared"}});
    let younger = world.issued("shop", "younger", shared.clone()).await?;
    let before = world.secret("shop", "shared").await?;
    world.another_second(&younger).await?;

    world.change("shop", "older", json!({"spec": shared})).await?;
    let conflict = |object: &IdTokenRequest| {
        let is_current = object
            .status
            .as_ref()
            .and_then(|status| status.observed_generation)
            == object.metadata.generation;
        is_current
            && has(object, "Ready", "False", "TargetConflict")
            && has(object, "Stalled", "True", "TargetConflict")
    };
    let object = world
        .until("shop", "older", "the conflict is reported", conflict)
        .await?;
    let message = condition(&object, "Ready").map(|ready| ready.message.clone());
    assert!(message.unwrap_or_default().contains("younger"));
    assert_eq!(before, world.secret("shop", "shared").await?);

    // A restart gives the same answer, whichever request it sees first; and the younger is renewed.
    for renewal in ["first", "second"] {
        world.renew("shop", "younger", renewal).await?;
        world
            .until("shop", "younger", "it is renewed", |object| {
                is_ready(object) && is_handled(object, renewal)
            })
            .await?;
        let secret = world.secret("shop", "shared").await?;
        let owners = secret.metadata.owner_references.clone().context("an owner")?;
        assert_eq!(
            (owners.len(), Some(&owners[0].uid)),
            (1, younger.metadata.uid.as_ref())
        );
        assert_eq!(secret.metadata.uid, before.metadata.uid);
        world.google.verify(&token(&secret))?;
        assert!(conflict(&world.get("shop", "older").await?));
        world.stop_operator(true).await?;
        world.start_operator().await?;
    }

    // When the holder wants it no more, the older is served.
    world
        .change(
            "shop",
            "younger",
            json!({"spec": {"target": {"name": "elsewhere"}}}),
        )
        .await?;
    world.ready("shop", "younger").await?;
    let object = world.ready("shop", "older").await?;
    let secret = world.secret("shop", "shared").await?;
    world.google.verify(&token(&secret))?;
    let owners = secret.metadata.owner_references.context("an owner")?;
    assert_eq!(Some(&owners[0].uid), object.metadata.uid.as_ref());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_request_takes_its_old_secret_back() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let before = world.secret("shop", "billing").await?;
    // As after a restore from backup: the same names, another UID.
    world
        .requests("shop")
        .delete("billing", &DeleteParams::default())
        .await?;
    let object = world.issued("shop", "billing", json!({})).await?;
    let after = world.secret("shop", "billing").await?;
    assert_eq!(after.metadata.uid, before.metadata.uid, "it was deleted");
    let owners = after.metadata.owner_references.clone().context("an owner")?;
    assert_eq!(owners.len(), 1);
    assert_eq!(Some(&owners[0].uid), object.metadata.uid.as_ref());
    assert_eq!(token(&after), token(&before));
    assert_eq!(world.google.mint_count(), 1);
    Ok(())
}
