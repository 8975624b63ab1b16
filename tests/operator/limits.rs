//! What tenants make, and how much of it is served.

use std::collections::BTreeSet;

use anyhow::Result;
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_testenv::until;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use crate::common::{LIMIT, Setup, World, condition, has, of, token};

/// How many requests the attacker makes: nearly twice as many as the limit of a namespace has room for.
const FLOOD: usize = 40;

/// A limit of one MiB for a namespace, of which three quarters are for requests.
fn small() -> Setup {
    Setup {
        flags: vec![
            "--max-cache-mib=2".to_owned(),
            "--max-namespace-cache-mib=1".to_owned(),
        ],
        ..Setup::default()
    }
}

/// A spec nearly as large as it may be.
fn large() -> Value {
    let value = "x".repeat(5_000);
    json!({"target": {"template": {"data": {"a": value, "b": value, "c": value}}}})
}

/// The names of the requests of `namespace` with this reason, and of all.
async fn names(world: &World, namespace: &str, reason: &str) -> Result<(BTreeSet<String>, Vec<String>)> {
    let mut all = world
        .requests(namespace)
        .list(&ListParams::default())
        .await?
        .items;
    all.sort_by_key(|object| {
        let meta = &object.metadata;
        (
            meta.creation_timestamp.as_ref().map(|time| time.0),
            meta.uid.clone(),
        )
    });
    let name = |object: &IdTokenRequest| object.metadata.name.clone().unwrap_or_default();
    let with = all.iter().filter(|object| has(object, "Ready", "False", reason));
    Ok((with.map(name).collect(), all.iter().map(name).collect()))
}

/// What a marker counts for, in bytes.
const MARKER: f64 = 1536.0;

/// Waits until each request of `evil` says that it is denied or that it has no place, as the operator has it in memory. Returns the names
/// of the first.
async fn reported(world: &World) -> Result<BTreeSet<String>> {
    until("every request is reported", 3 * LIMIT, async || {
        let markers = world.metric(r#"idtoken_cache_bytes{kind="markers"}"#).await? / MARKER;
        let (served, all) = names(world, "evil", "NotGranted").await?;
        let (full, _) = names(world, "evil", "CacheFull").await?;
        let is_settled = full.len() as f64 == markers && served.len() + full.len() == all.len();
        Ok(is_settled.then_some(served))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_namespace_is_served_up_to_its_limit() -> Result<()> {
    let world = World::with(small()).await?;
    world.namespace("evil").await?;
    world.granted("shop").await?;
    for n in 0..FLOOD {
        world
            .request("evil", &format!("r{:02}", FLOOD - n), large())
            .await?;
    }
    let served = reported(&world).await?;
    let (full, all) = names(&world, "evil", "CacheFull").await?;
    assert!(served.len() > FLOOD / 4 && full.len() > FLOOD / 4, "{served:?}");
    let oldest: BTreeSet<String> = all[..served.len()].iter().cloned().collect();
    assert_eq!(served, oldest);
    let some = full.iter().next().cloned().unwrap_or_default();
    let object = world.get("evil", &some).await?;
    assert!(has(&object, "Stalled", "True", "CacheFull"));
    let message = condition(&object, "Ready").map(|ready| ready.message.clone());
    let message = message.unwrap_or_default();
    assert!(message.contains("--max-namespace-cache-mib"), "{message}");
    assert!(world.metric(r#"idtoken_cache_bytes{kind="requests"}"#).await? <= f64::from(3 << 18));

    // The neighbour is served, also with a request that is younger than all of these.
    world.issued("shop", "billing", json!({})).await?;
    world.check_memory()?;

    // A restart serves the same, so that it changes no status.
    world.stop_operator(false).await?;
    let start = world.mark().await?;
    world.start_operator().await?;
    world
        .wait("every request was reconciled after the restart", async || {
            Ok(world.metric("idtoken_reconcile_total").await? >= (FLOOD + 1) as f64)
        })
        .await?;
    world.issued("shop", "second", json!({})).await?;
    world.mark().await?;
    let writes = world.writes_since(start)?;
    let evil: Vec<_> = writes.iter().filter(|call| call.namespace == "evil").collect();
    assert!(evil.is_empty(), "{evil:#?}");
    assert_eq!(reported(&world).await?, served);

    // What goes makes place for the next.
    let gone = 5;
    for name in &all[..gone] {
        world
            .requests("evil")
            .delete(name, &DeleteParams::default())
            .await?;
    }
    let next: BTreeSet<String> = all[gone..served.len() + gone].iter().cloned().collect();
    until("the next are served", 3 * LIMIT, async || {
        Ok((reported(&world).await? == next).then_some(()))
    })
    .await?;
    // A list again costs the neighbour nothing.
    let start = world.mark().await?;
    world.issued("shop", "third", json!({})).await?;
    world.mark().await?;
    let touched = world.writes_since(start)?;
    let secrets = [
        of(&touched, "patch", "secrets"),
        of(&touched, "delete", "secrets"),
    ]
    .concat();
    assert!(secrets.is_empty(), "{secrets:#?}");
    Ok(())
}

/// Makes Secrets with the operator's label until the limit of those is reached that no request claims.
async fn flood_of_secrets(world: &World, namespace: &str) -> Result<()> {
    // The last ones are small, so that hardly any room is left.
    for n in 0..420 {
        let long = if n < 400 { 250 } else { 1 };
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {
                "name": format!("bare-{n:03}"), "labels": {"app.kubernetes.io/managed-by": "idtoken-operator"},
                "annotations": {"idtoken.dev/request": "x".repeat(long)},
            },
        }))?;
        world
            .secrets(namespace)
            .create(&PostParams::default(), &secret)
            .await?;
    }
    world
        .wait("Secrets were dropped", async || {
            Ok(world
                .metric(r#"idtoken_cache_dropped_total{kind="secrets"}"#)
                .await?
                > 0.0)
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_has_no_place_in_memory_is_read() -> Result<()> {
    let world = World::with(small()).await?;
    world.granted("shop").await?;
    flood_of_secrets(&world, "shop").await?;
    let orphan = json!({"target": {"creationPolicy": "Orphan"}});
    world.issued("shop", "first", orphan.clone()).await?;
    let before = world.secret("shop", "first").await?;

    // Without its request, the Secret has no place. Absent in memory, it is not taken for absent.
    world
        .requests("shop")
        .delete("first", &DeleteParams::default())
        .await?;
    world.issued("shop", "second", json!({})).await?;
    let start = world.mark().await?;
    let minted = world.google.mint_count();
    world.issued("shop", "first", orphan).await?;
    assert_eq!(
        world.google.mint_count(),
        minted,
        "the token that is there is kept"
    );
    assert_eq!(token(&world.secret("shop", "first").await?), token(&before));
    world.mark().await?;
    assert!(!of(&world.calls_since(start)?, "get", "secrets").is_empty());

    // Nor is the Secret of a target's former name.
    world
        .change("shop", "second", json!({"spec": {"target": {"name": "renamed"}}}))
        .await?;
    world
        .wait("the Secret of the former name is gone", async || {
            Ok(world.secrets("shop").get_opt("second").await?.is_none())
        })
        .await?;
    world.secret("shop", "renamed").await?;
    Ok(())
}

/// The CRD in the cluster may be of a version that counted nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spec_beyond_the_bound_is_reported_and_costs_nobody() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    // As many characters as the schema allows, of four bytes each.
    let value = "😀".repeat(5_000);
    let spec = json!({"target": {"template": {"data": {"a": value, "b": value, "c": value}}}});
    world.request("shop", "large", spec).await?;
    let object = world
        .until("shop", "large", "it is reported", |object| {
            has(object, "Ready", "False", "TooLarge")
        })
        .await?;
    assert!(has(&object, "Stalled", "True", "TooLarge"));
    let message = condition(&object, "Ready").map(|ready| ready.message.clone());
    assert!(message.unwrap_or_default().contains("60"), "the bytes");
    world.issued("shop", "billing", json!({})).await?;
    // Its author shortens it.
    let shorter = json!({"spec": {"target": {"template": {"data": {"a": "x", "b": null, "c": null}}}}});
    world.change("shop", "large", shorter).await?;
    world.ready("shop", "large").await?;
    Ok(())
}

/// Has the API server take any spec, as with a CRD that has no bounds.
async fn take_any_spec(world: &World) -> Result<()> {
    let spec = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    let patch = json!([{"op": "replace", "path": path, "value": spec}]).to_string();
    let args = [
        "patch",
        "crd",
        "idtokenrequests.idtoken.dev",
        "--type=json",
        "-p",
        &patch,
    ];
    world.cluster.kubectl(args).await?;
    world
        .wait("the API server takes any spec", async || {
            Ok(world
                .request("evil", "probe", json!({"anything": 1}))
                .await
                .is_ok())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn specs_of_a_mebibyte_cost_neither_memory_nor_the_neighbour() -> Result<()> {
    const LARGE: usize = 110;
    let world = World::with(Setup {
        log: "info",
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    world.namespace("evil").await?;
    world.issued("shop", "early", json!({})).await?;
    take_any_spec(&world).await?;
    // The most that the fields' own bounds allow: 32 values of 8,192 characters of four bytes.
    let data: serde_json::Map<_, _> = (0..32)
        .map(|n| (format!("k{n}"), "😀".repeat(8_192).into()))
        .collect();
    let spec = json!({"target": {"template": {"data": data}}});
    for n in 0..LARGE {
        world.request("evil", &format!("large-{n}"), spec.clone()).await?;
    }
    world.issued("shop", "watched", json!({})).await?;
    until("each is reported", 3 * LIMIT, async || {
        let (too_large, _) = names(&world, "evil", "TooLarge").await?;
        Ok((too_large.len() == LARGE).then_some(()))
    })
    .await?;
    world.check_memory()?;
    world.stop_operator(false).await?;
    world.start_operator().await?;
    world.issued("shop", "listed", json!({})).await?;
    world.renewed("shop", "early", "now").await?;
    world.check_memory()
}
