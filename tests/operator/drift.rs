//! Others change the Secret, or the request's target changes.

use anyhow::Result;
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::common::{World, condition, has, is_ready, of, text, token};

fn template() -> Value {
    json!({"target": {"template": {
        "metadata": {"labels": {"team": "a"}, "annotations": {"example.com/note": "kept"}},
        "data": {"header": "Authorization: Bearer $(token)"},
    }}})
}

fn label<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Waits until the status has recorded the Secret as it is now, so that nothing is left to be done.
async fn recorded(world: &World, name: &str) -> Result<Secret> {
    world
        .wait("the status has recorded the Secret as it is", async || {
            let object = world.get("shop", name).await?;
            let secret = world.secrets("shop").get_opt(name).await?;
            let reported = object.status.as_ref().and_then(|status| status.secret.clone());
            let reported = reported.and_then(|secret| secret.resource_version);
            Ok(is_ready(&object)
                && reported.is_some()
                && reported == secret.and_then(|secret| secret.metadata.resource_version))
        })
        .await?;
    world.secret("shop", name).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ours_is_put_back() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", template()).await?;
    let first = recorded(&world, "billing").await?;

    // From the token that is still there, where it is.
    for (what, patch) in [
        (
            "a key",
            json!({"data": {"header": "Authorization: Bearer stolen"}}),
        ),
        ("a removed key", json!({"data": {"header": null}})),
        (
            "labels and annotations",
            json!({"metadata": {"labels": {"team": "b"}, "annotations": {"example.com/note": null}}}),
        ),
        (
            "the ownerReference",
            json!({"metadata": {"ownerReferences": null}}),
        ),
    ] {
        let meddled = world.meddle("shop", "billing", patch).await?;
        world
            .wait(&format!("{what} is put back"), async || {
                let secret = world.secret("shop", "billing").await?;
                Ok(secret.data == first.data
                    && label(&secret, "team") == Some("a")
                    && annotation(&secret, "example.com/note") == Some("kept")
                    && secret.metadata.owner_references == first.metadata.owner_references)
            })
            .await?;
        let repaired = recorded(&world, "billing").await?;
        assert_ne!(
            meddled.metadata.resource_version,
            repaired.metadata.resource_version
        );
        assert_eq!(world.google.mint_count(), 1, "{what} cost a mint");
    }

    // By a new one, where it is not.
    world
        .meddle("shop", "billing", json!({"data": {"token": "stolen"}}))
        .await?;
    world
        .wait("the token is put back", async || {
            let secret = world.secret("shop", "billing").await?;
            Ok(
                text(&secret, "header") == format!("Authorization: Bearer {}", token(&secret))
                    && token(&secret) != "stolen",
            )
        })
        .await?;
    recorded(&world, "billing").await?;
    world.claims("shop", "billing").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_token_is_minted_again() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let first = recorded(&world, "billing").await?;

    world
        .secrets("shop")
        .delete("billing", &DeleteParams::default())
        .await?;
    world
        .wait("the Secret is back", async || {
            let secret = world.secrets("shop").get_opt("billing").await?;
            Ok(secret.is_some_and(|secret| secret.metadata.uid != first.metadata.uid))
        })
        .await?;
    let second = recorded(&world, "billing").await?;
    world.claims("shop", "billing").await?;
    assert_eq!(world.google.mint_count(), 2);
    assert_eq!(second.metadata.owner_references, first.metadata.owner_references);

    // The only place that held it.
    world
        .meddle(
            "shop",
            "billing",
            json!({"data": {"token": "eyJhbGciOiJub25lIn0.e30.eA"}}),
        )
        .await?;
    world
        .wait("the token is good again", async || {
            Ok(world.claims("shop", "billing").await.is_ok())
        })
        .await?;
    recorded(&world, "billing").await?;
    assert_eq!(world.google.mint_count(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_others_stays_and_costs_no_write() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", template()).await?;
    recorded(&world, "billing").await?;
    let start = world.mark().await?;
    world
        .meddle(
            "shop",
            "billing",
            json!({"metadata": {"labels": {"theirs": "x"}, "annotations": {"theirs.example/note": "y"}}}),
        )
        .await?;
    recorded(&world, "billing").await?;
    let meddled = world
        .meddle("shop", "billing", json!({"data": {"theirs": "z"}}))
        .await?;
    let after = recorded(&world, "billing").await?;
    assert_eq!(meddled, after);
    world.mark().await?;
    let calls = world.calls_since(start)?;
    let of_secrets: Vec<_> = calls
        .iter()
        .filter(|call| call.resource == "secrets" && call.verb != "watch")
        .collect();
    // Looked at once for each change, and found to be good.
    assert!(
        of_secrets.iter().all(|call| call.verb == "get"),
        "{of_secrets:#?}"
    );
    assert!((1..=2).contains(&of_secrets.len()), "{of_secrets:#?}");
    assert_eq!(world.google.mint_count(), 1);

    // A renewal leaves it alone too.
    world.renew("shop", "billing", "now").await?;
    world
        .wait(
            "the renewal is there",
            async || Ok(world.google.mint_count() == 2),
        )
        .await?;
    let renewed = recorded(&world, "billing").await?;
    assert_eq!(text(&renewed, "theirs"), "z");
    assert_eq!(
        (
            label(&renewed, "theirs"),
            annotation(&renewed, "theirs.example/note")
        ),
        (Some("x"), Some("y"))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_template_is_rendered_from_the_same_token() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", template()).await?;
    let first = recorded(&world, "billing").await?;
    let start = world.mark().await?;
    let patch = json!({"spec": {"target": {"key": "jwt", "template": {
        "metadata": {"labels": {"team": null, "squad": "c"}},
        "data": {"header": null, "url": "https://x/?t=$(token)"},
    }}}});
    world.change("shop", "billing", patch).await?;
    world.ready("shop", "billing").await?;
    let second = recorded(&world, "billing").await?;
    let keys: Vec<&String> = second.data.as_ref().expect("data").keys().collect();
    assert_eq!(keys, ["jwt", "url"]);
    assert_eq!(text(&second, "jwt"), token(&first));
    assert_eq!(text(&second, "url"), format!("https://x/?t={}", token(&first)));
    assert_eq!(
        (label(&second, "team"), label(&second, "squad")),
        (None, Some("c"))
    );
    assert_eq!(second.metadata.uid, first.metadata.uid);

    // Another lead: the same token, another renewal time.
    let before = world
        .get("shop", "billing")
        .await?
        .status
        .and_then(|status| status.renewal_time);
    world
        .change("shop", "billing", json!({"spec": {"renewBefore": "5m"}}))
        .await?;
    let object = world.ready("shop", "billing").await?;
    assert!(
        object
            .status
            .and_then(|status| status.renewal_time)
            .map(|time| time.0)
            > before.map(|time| time.0)
    );
    recorded(&world, "billing").await?;
    assert_eq!(world.google.mint_count(), 1);
    world.mark().await?;
    let writes = world.writes_since(start)?;
    assert_eq!(of(&writes, "patch", "secrets").len(), 2, "{writes:#?}");
    assert_eq!(of(&writes, "delete", "secrets").len(), 0, "{writes:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_target_takes_its_old_secret_away() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    world
        .change(
            "shop",
            "billing",
            json!({"spec": {"target": {"name": "renamed"}}}),
        )
        .await?;
    world.ready("shop", "billing").await?;
    let renamed = world.secret("shop", "renamed").await?;
    world.google.verify(&token(&renamed))?;
    world
        .wait("the old Secret is gone", async || {
            Ok(world.secrets("shop").get_opt("billing").await?.is_none())
        })
        .await?;
    assert!(
        world.google.mint_count() <= 2,
        "{} mints",
        world.google.mint_count()
    );

    // One that somebody else has taken over stays. The operator is away meanwhile, else it would take its Secret back while the target still
    // names it.
    world.stop_operator(false).await?;
    world.meddle("shop", "renamed", json!({"metadata": {"annotations": {"idtoken.dev/request-uid": "theirs"}, "labels": {"app.kubernetes.io/managed-by": "them"}}})).await?;
    world
        .change("shop", "billing", json!({"spec": {"target": {"name": "third"}}}))
        .await?;
    world.start_operator().await?;
    world.ready("shop", "billing").await?;
    world
        .google
        .verify(&token(&world.secret("shop", "third").await?))?;
    world.issued("shop", "probe", json!({})).await?;
    assert!(world.secrets("shop").get_opt("renamed").await?.is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fight_over_a_field_is_reported() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", template()).await?;
    recorded(&world, "billing").await?;
    let start = world.mark().await?;
    for round in 1..=5 {
        world
            .meddle(
                "shop",
                "billing",
                json!({"metadata": {"labels": {"team": format!("round-{round}")}}}),
            )
            .await?;
        world
            .wait("the label is put back", async || {
                Ok(label(&world.secret("shop", "billing").await?, "team") == Some("a"))
            })
            .await?;
        recorded(&world, "billing").await?;
    }
    world
        .meddle(
            "shop",
            "billing",
            json!({"metadata": {"labels": {"team": "round-6"}}}),
        )
        .await?;
    let object = world
        .until("shop", "billing", "it is contested", |object| {
            has(object, "Stalled", "True", "Contested")
        })
        .await?;
    let message = condition(&object, "Stalled")
        .map(|stalled| stalled.message.clone())
        .unwrap_or_default();
    assert!(
        message.contains("meddler") && message.contains("team"),
        "{message}"
    );
    world.mark().await?;
    assert_eq!(of(&world.writes_since(start)?, "patch", "secrets").len(), 5);
    assert_eq!(world.google.mint_count(), 1);
    Ok(())
}
