//! What users ask for besides: suspension, and a renewal now.

use anyhow::Result;
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use serde_json::json;

use crate::common::{Setup, World, has, is_handled, is_ready};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_is_honoured_once_a_value() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let asked = || {
        let calls = world.google.calls().into_iter();
        calls
            .filter(|call| call.request_reason.as_deref() == Some("shop/billing"))
            .count()
    };
    for (mints, value) in [(2, "2026-01-01T00:00:00Z"), (3, "again")] {
        world.renew("shop", "billing", value).await?;
        let handled = |object: &IdTokenRequest| is_handled(object, value) && is_ready(object);
        world
            .until("shop", "billing", "the renewal is handled", handled)
            .await?;
        assert_eq!(asked(), mints);
        // The same value again, and changes that make the operator look.
        let metadata =
            json!({"annotations": {"idtoken.dev/renew": value, "note": value}, "labels": {"note": "x"}});
        world
            .change("shop", "billing", json!({"metadata": metadata}))
            .await?;
        world
            .meddle(
                "shop",
                "billing",
                json!({"metadata": {"labels": {"note": format!("n{mints}")}}}),
            )
            .await?;
        world.issued("shop", &format!("probe{mints}"), json!({})).await?;
        assert_eq!(asked(), mints);
    }
    // Not after a restart either, nor when the annotation goes.
    world.stop_operator(false).await?;
    world.google.reset_counts();
    world.start_operator().await?;
    world
        .change(
            "shop",
            "billing",
            json!({"metadata": {"annotations": {"idtoken.dev/renew": null}}}),
        )
        .await?;
    world.issued("shop", "probe", json!({})).await?;
    assert_eq!(world.google.mint_count(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_renewals_is_one_token_an_interval() -> Result<()> {
    let world = World::with(Setup {
        renew_interval: "30",
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    world.renewed("shop", "billing", "first").await?;
    for value in ["second", "third"] {
        world.renew("shop", "billing", value).await?;
    }
    let planned = |object: &IdTokenRequest| {
        let renewal = object
            .status
            .as_ref()
            .and_then(|status| status.renewal_time.as_ref());
        renewal.is_some_and(|at| at.0.duration_since(jiff::Timestamp::now()).as_secs() <= 30)
    };
    world
        .until("shop", "billing", "the status says when it is honoured", planned)
        .await?;
    assert_eq!(world.asked(), 2);
    world
        .until("shop", "billing", "it is deferred, not lost", |object| {
            is_handled(object, "third")
        })
        .await?;
    assert_eq!(world.asked(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_issued_while_suspended() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.request("shop", "new", json!({"suspend": true})).await?;
    world
        .until("shop", "new", "it is reported", |object| {
            has(object, "Ready", "False", "Suspended")
        })
        .await?;
    assert_eq!(world.google.calls(), []);
    assert!(world.secrets("shop").get_opt("new").await?.is_none());

    world.issued("shop", "billing", json!({})).await?;
    let before = world.secret("shop", "billing").await?;
    world
        .change(
            "shop",
            "billing",
            json!({"spec": {"suspend": true}, "metadata": {"annotations": {"idtoken.dev/renew": "now"}}}),
        )
        .await?;
    let object = world
        .until("shop", "billing", "it is reported", |object| {
            has(object, "Ready", "True", "Suspended")
        })
        .await?;
    assert_eq!(
        object.status.and_then(|status| status.last_handled_renew_request),
        None
    );
    // Not even when the Secret is changed.
    let meddled = world
        .meddle(
            "shop",
            "billing",
            json!({"metadata": {"labels": {"theirs": "x"}}}),
        )
        .await?;
    world.issued("shop", "probe", json!({})).await?;
    assert_eq!(world.asked(), 2);
    assert_eq!(meddled, world.secret("shop", "billing").await?);
    assert_eq!(meddled.data, before.data);

    world
        .change("shop", "new", json!({"spec": {"suspend": false}}))
        .await?;
    world.ready("shop", "new").await?;
    world
        .change("shop", "billing", json!({"spec": {"suspend": null}}))
        .await?;
    world
        .until(
            "shop",
            "billing",
            "the renewal that was asked for is made up for",
            |object| is_handled(object, "now") && has(object, "Ready", "True", "Issued"),
        )
        .await?;
    assert_eq!(world.asked(), 4);
    Ok(())
}
