//! Objects of one namespace that cannot be decoded, or are as large as etcd takes, and their neighbour.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use idtoken_emulator::{Endpoint, Fault};
use idtoken_testenv::until;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::common::{AUDIENCE, CALLER, LIMIT, Setup, USER, World, has, is_ready};

/// Creates an object as a client does that minds no type.
async fn create(world: &World, path: &str, object: &Value) -> Result<()> {
    let call = http::Request::post(path).header("content-type", "application/json");
    let answer = world
        .client
        .request_text(call.body(object.to_string().into_bytes())?)
        .await;
    answer.with_context(|| format!("POST {path}"))?;
    Ok(())
}

/// The metadata that its first client may choose, with these managed fields.
fn metadata(name: &str, managed_fields: Value) -> Value {
    json!({
        "name": name, "labels": {"app.kubernetes.io/managed-by": "idtoken-operator", "team": "evil"},
        "managedFields": [managed_fields],
    })
}

/// A time that the API server keeps and that Rust's time cannot hold.
fn undecodable() -> Value {
    json!({
        "manager": "x", "operation": "Update", "apiVersion": "v1", "time": "9999-12-31T23:59:59Z",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {}},
    })
}

/// Managed fields of 1.2 MB, three times as large in JSON.
fn huge() -> Value {
    let chain = (0..100).fold("{}".to_owned(), |inner, _| format!("{{\"f:<<\":{inner}}}"));
    let chains: Vec<String> = (0..1200).map(|n| format!("\"f:{n}\":{chain}")).collect();
    let fields: Box<serde_json::value::RawValue> =
        serde_json::value::RawValue::from_string(format!("{{{}}}", chains.join(","))).expect("JSON");
    json!({
        "manager": "x", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": serde_json::to_value(&fields).expect("not too deep"),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_cannot_be_decoded_costs_itself_alone() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.namespace("evil").await?;
    world.issued("shop", "early", json!({})).await?;
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata("bad", undecodable())});
    create(&world, "/api/v1/namespaces/evil/secrets", &object).await?;
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata("odd", undecodable())});
    create(&world, "/api/v1/namespaces", &object).await?;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let secrets: Api<Secret> = world.secrets("evil");
    ensure!(
        namespaces.list(&Default::default()).await.is_err(),
        "the API server keeps the time"
    );
    ensure!(
        secrets.list(&Default::default()).await.is_err(),
        "the API server keeps the time"
    );

    // By the watches that run, and by lists after a restart.
    for round in ["watched", "listed"] {
        world.issued("shop", round, json!({})).await?;
        world.renewed("shop", "early", round).await?;
        if round == "watched" {
            world.stop_operator(false).await?;
            world.start_operator().await?;
        }
    }
    // Their labels are read: a grant may select the namespace, and the Secret is what it is.
    world.grant("odd").await?;
    world.issued("odd", "own", json!({})).await?;
    world.grant("evil").await?;
    world.request("evil", "bad", json!({})).await?;
    let conflict = |object: &_| has(object, "Ready", "False", "SecretConflict");
    world
        .until(
            "evil",
            "bad",
            "the Secret of another client is left alone",
            conflict,
        )
        .await?;
    let args = ["get", "secret", "bad", "-n", "evil", "-o", "jsonpath={.data}"];
    assert_eq!(world.cluster.kubectl(args).await?, "");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_objects_cost_neither_memory_nor_the_neighbour() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.granted("evil").await?;
    world.issued("shop", "early", json!({})).await?;
    for number in 0..6 {
        let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata(&format!("huge-{number}"), huge())});
        create(&world, "/api/v1/namespaces/evil/secrets", &object).await?;
    }
    world.issued("shop", "watched", json!({})).await?;
    world.stop_operator(false).await?;
    world.start_operator().await?;
    world.issued("shop", "listed", json!({})).await?;
    // Each of these reads one, which is another client's.
    for number in 0..6 {
        world
            .request("evil", &format!("huge-{number}"), json!({}))
            .await?;
    }
    for number in 0..6 {
        let conflict = |object: &_| has(object, "Ready", "False", "SecretConflict");
        let what = "the Secret of another client is left alone";
        world
            .until("evil", &format!("huge-{number}"), what, conflict)
            .await?;
    }
    world.renewed("shop", "early", "now").await?;
    world.issued("shop", "read", json!({})).await?;
    world.check_memory()?;
    Ok(())
}

/// Labels of which each is small and all are 40,000.
fn many_labels() -> Value {
    let labels = (0..40_000).map(|number| (format!("l{number}"), json!("")));
    let marks = [(
        "app.kubernetes.io/managed-by".to_owned(),
        json!("idtoken-operator"),
    )];
    labels.chain(marks).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_with_many_labels_take_no_memory_while_google_answers() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.granted("evil").await?;
    world.issued("shop", "early", json!({})).await?;
    let labels = many_labels();
    let name = |number: usize| format!("wide-{number}");
    for number in 0..64 {
        // As a Secret that was restored from a backup: it is read, taken over and written.
        let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {
            "name": name(number), "labels": labels, "annotations": {"idtoken.dev/request": name(number)},
        }});
        create(&world, "/api/v1/namespaces/evil/secrets", &object).await?;
    }
    let slow = Fault::delay(Duration::from_secs(5)).on(Endpoint::GenerateIdToken);
    world.google.fault(slow)?;
    for number in 0..64 {
        world.request("evil", &name(number), json!({})).await?;
    }
    world.issued("shop", "meanwhile", json!({})).await?;
    world.renewed("shop", "early", "now").await?;
    until("all are ready", 5 * LIMIT, async || {
        let all = world.requests("evil").list(&ListParams::default()).await?;
        Ok((all.iter().filter(|request| is_ready(request)).count() == 64).then_some(()))
    })
    .await?;
    world.check_memory()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_of_others_take_few_watches() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.namespace("evil").await?;
    let names: Vec<String> = (0..100).map(|number| format!("bare-{number}")).collect();
    for name in &names {
        let object = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "idtoken-operator"}},
        });
        create(&world, "/api/v1/namespaces/evil/secrets", &object).await?;
    }
    for name in &names {
        world.request("evil", name, json!({})).await?;
    }
    for name in &names {
        let what = "it is reported";
        world
            .until("evil", name, what, |object| has(object, "Ready", "False", ""))
            .await?;
    }
    world.issued("shop", "first", json!({})).await?;
    let watches = || {
        let events = world.cluster.audit()?;
        let by_name = events.iter().filter(|event| {
            event.user == USER
                && event.verb == "watch"
                && event.resource == "secrets"
                && event.namespace == "evil"
        });
        anyhow::Ok(
            by_name
                .map(|event| event.name.clone())
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
        )
    };
    let count = watches()?;
    ensure!((1..=16).contains(&count), "{count} watches");
    world.renewed("shop", "first", "now").await?;
    world.issued("shop", "second", json!({})).await?;
    Ok(())
}

/// A grants file that allows [`CALLER`] to the namespace `shop`.
fn shop_alone() -> String {
    format!(
        "- {{name: shop, from: [{{namespace: shop}}], to: [{{serviceAccounts: ['{CALLER}'], audiences: ['{AUDIENCE}']}}]}}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_takes_few_streams_shows_all() -> Result<()> {
    // Two watches each; the operator would have 16 on a connection.
    let names: Vec<String> = (0..9).map(|number| format!("n{number}")).collect();
    let world = World::with(Setup {
        apiserver_flags: &["--http2-max-streams-per-connection=7"],
        flags: vec![format!("--namespace={},shop", names.join(","))],
        grants_file: Some(shop_alone()),
        log: "info",
        ..Setup::default()
    })
    .await?;
    world.namespace("shop").await?;
    world.issued("shop", "first", json!({})).await?;
    for name in &names {
        world.namespace(name).await?;
        world.request(name, "denied", json!({})).await?;
    }
    for name in &names {
        let denied = |object: &_| has(object, "Ready", "False", "NotGranted");
        world.until(name, "denied", "it is watched", denied).await?;
    }
    world.renewed("shop", "first", "now").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_namespaces_are_served_one_by_one() -> Result<()> {
    let mut names: Vec<String> = (0..499).map(|number| format!("n{number}")).collect();
    names.push("shop".to_owned());
    let world = World::with(Setup {
        flags: vec![format!("--namespace={}", names.join(","))],
        grants_file: Some(shop_alone()),
        log: "info",
        ..Setup::default()
    })
    .await?;
    for namespace in ["shop", "n0"] {
        world.namespace(namespace).await?;
    }
    world.issued("shop", "first", json!({})).await?;
    world.request("n0", "denied", json!({})).await?;
    world
        .until("n0", "denied", "it is watched", |object| {
            has(object, "Ready", "False", "NotGranted")
        })
        .await?;
    world.check_memory()?;
    Ok(())
}
