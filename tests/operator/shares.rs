//! Namespaces in which the API server fails or delays the writes, beside a neighbour: its first token comes, its renewals come, and few tokens
//! are issued for no Secret.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::common::{Setup, World, condition, has};

/// More than a namespace may have in flight on the side of Kubernetes.
const REQUESTS: usize = 70;

/// Has the API server ask a webhook for every Secret of `namespace`, and wait for it for at most so many seconds.
async fn webhook(world: &World, namespace: &str, url: &str, seconds: u64) -> Result<()> {
    let name = format!("{namespace}.example.com");
    let object = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": name, "clientConfig": {"url": url}, "failurePolicy": "Fail", "timeoutSeconds": seconds,
            "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"]}],
        }],
    });
    world.cluster.apply(&object.to_string()).await?;
    refused(world, namespace, "failed calling webhook").await
}

/// Gives a namespace a quota that is full.
async fn full_quota(world: &World, namespace: &str) -> Result<()> {
    let hard = json!({"count/secrets": "0"});
    let object = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": namespace},
        "spec": {"hard": hard},
    });
    world.cluster.apply(&object.to_string()).await?;
    // No controller runs here that counts.
    let status = json!({"status": {"hard": hard, "used": hard}}).to_string();
    let args = [
        "patch",
        "resourcequota",
        "none",
        "-n",
        namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ];
    world.cluster.kubectl(args).await?;
    refused(world, namespace, "exceeded quota").await
}

/// Waits until the API server rejects each Secret of `namespace` with these words.
async fn refused(world: &World, namespace: &str, words: &str) -> Result<()> {
    world
        .wait("the API server rejects Secrets", async || {
            let probe: Secret = serde_json::from_value(json!({"metadata": {"name": "probe"}}))?;
            let params = PostParams {
                dry_run: true,
                ..PostParams::default()
            };
            let refused = world.secrets(namespace).create(&params, &probe).await.err();
            Ok(refused.is_some_and(|error| error.to_string().contains(words)))
        })
        .await
}

/// How many tokens were issued for requests of a namespace.
fn mints(world: &World, namespace: &str) -> usize {
    let prefix = format!("{namespace}/");
    let calls = world.google.calls().into_iter();
    calls
        .filter(|call| call.status == Some(200))
        .filter(|call| {
            call.request_reason
                .as_deref()
                .is_some_and(|name| name.starts_with(&prefix))
        })
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_and_quotas_that_reject_in_three_namespaces_hold_up_no_neighbour() -> Result<()> {
    let world = World::with(Setup {
        log: "info",
        ..Setup::lifetime(60)
    })
    .await?;
    // It accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let hanging = format!("https://{}/", silent.local_addr()?);
    for namespace in ["shop", "zoo", "full", "bank"] {
        world.granted(namespace).await?;
    }
    webhook(&world, "shop", "https://127.0.0.1:1/", 10).await?;
    webhook(&world, "zoo", &hanging, 5).await?;
    full_quota(&world, "full").await?;
    for number in 0..REQUESTS {
        for namespace in ["shop", "zoo", "full"] {
            world.request(namespace, &format!("r{number}"), json!({})).await?;
        }
    }
    world.issued("bank", "first", json!({})).await?;
    // The API server's own words, not those of a time limit.
    for (namespace, reason, words) in [
        (
            "shop",
            "KubernetesUnavailable",
            "failed calling webhook \"shop.example.com\"",
        ),
        (
            "zoo",
            "KubernetesUnavailable",
            "failed calling webhook \"zoo.example.com\"",
        ),
        ("full", "KubernetesRefused", "exceeded quota"),
    ] {
        let reported = |object: &_| has(object, "Ready", "False", reason);
        let object = world
            .until(namespace, "r0", "the failure is reported", reported)
            .await?;
        let message = &condition(&object, "Ready").context("Ready")?.message;
        assert!(message.contains(words), "{message}");
        assert!(!message.contains("--reconcile-timeout"), "{message}");
    }
    world
        .wait("all were tried again and again", async || {
            let failures = world
                .metric("idtoken_reconcile_total{result=\"KubernetesUnavailable\"")
                .await?;
            Ok(failures >= 3.0 * 2.0 * REQUESTS as f64 || mints(&world, "bank") >= 4)
        })
        .await?;
    world
        .wait("the neighbour's token is renewed again and again", async || {
            let token = crate::common::token(&world.secret("bank", "first").await?);
            world
                .google
                .verify(&token)
                .context("the neighbour's token has expired")?;
            Ok(mints(&world, "bank") >= 3)
        })
        .await?;
    world.issued("bank", "last", json!({})).await?;
    // What was in flight when the first write failed; each of the others has a dry run before a token is issued.
    for namespace in ["shop", "zoo", "full"] {
        let mints = mints(&world, namespace);
        assert!(mints < REQUESTS, "{mints} tokens for no Secret in {namespace}");
    }
    world.check_memory()?;
    // And all goes on where the webhook goes.
    for namespace in ["shop", "zoo"] {
        let name = format!("{namespace}.example.com");
        world
            .cluster
            .kubectl(["delete", "validatingwebhookconfiguration", &name])
            .await?;
    }
    world
        .cluster
        .kubectl(["delete", "resourcequota", "none", "-n", "full"])
        .await?;
    for namespace in ["shop", "zoo", "full"] {
        world.renew(namespace, "r0", "now").await?;
        world.ready(namespace, "r0").await?;
    }
    Ok(())
}

/// A Secret with so many labels, beside as much data and annotations as Kubernetes takes, that the operator may adopt.
fn large(labels: usize) -> Result<Secret> {
    let labels: BTreeMap<String, String> = (0..labels)
        .map(|number| (format!("{number:0>62}"), "x".repeat(63)))
        .collect();
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": "large", "labels": labels,
            "annotations": {"idtoken.dev/adopt": "large", "filler": "x".repeat(200 << 10)},
        },
        "stringData": {"filler": "x".repeat((1 << 20) - 4096)},
    }))?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_only_the_storage_refuses_costs_few_tokens() -> Result<()> {
    let world = World::with(Setup {
        log: "info",
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    world.granted("bank").await?;
    // Handed over by its owner, and as large as etcd takes: what the operator adds is too much. Labels have no limit of their own.
    let (mut fits, mut too_many) = (0, 8192);
    while too_many - fits > 1 {
        let labels = (fits + too_many) / 2;
        let created = world
            .secrets("shop")
            .create(&PostParams::default(), &large(labels)?)
            .await;
        match created {
            Ok(_) => {
                fits = labels;
                world
                    .secrets("shop")
                    .delete("large", &DeleteParams::default())
                    .await?;
            }
            Err(_) => too_many = labels,
        }
    }
    world
        .secrets("shop")
        .create(&PostParams::default(), &large(fits)?)
        .await?;
    world.request("shop", "large", json!({})).await?;
    let reported = |object: &_| has(object, "Ready", "False", "");
    let object = world.until("shop", "large", "it is reported", reported).await?;
    let message = &condition(&object, "Ready").context("Ready")?.message;
    assert!(message.contains("too large"), "{message}");
    world
        .wait("it was tried twice", async || Ok(mints(&world, "shop") >= 2))
        .await?;
    world.issued("bank", "first", json!({})).await?;
    // The pauses would have been a few seconds by now.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(mints(&world, "shop"), 2);
    world.check_memory()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_waits_for_no_call_of_other_namespaces() -> Result<()> {
    let world = World::with(Setup {
        flags: vec!["--google-rate=1".to_owned()],
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let others: Vec<String> = (0..110).map(|number| format!("other-{number}")).collect();
    for namespace in &others {
        world.granted(namespace).await?;
    }
    for namespace in &others {
        world.request(namespace, "waits", json!({})).await?;
    }
    let before = world.google.mint_count();
    let meddling = json!({"metadata": {"ownerReferences": null}});
    let meddled = world.meddle("shop", "billing", meddling).await?;
    assert!(meddled.metadata.owner_references.is_none());
    world
        .wait("the Secret is repaired", async || {
            let secret = world.secret("shop", "billing").await?;
            Ok(secret.metadata.owner_references.is_some())
        })
        .await?;
    // One call a second starts, and a call waits for at most 20 s. The repair needs none, so it waits for none to give up its wait.
    let called = world.google.mint_count() - before;
    assert!(called < 15, "{called} tokens were issued before it");
    Ok(())
}
