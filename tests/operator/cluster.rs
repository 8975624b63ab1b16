//! The cluster changes under the operator: rights, quotas, policies, CRDs and namespaces come and go.

use std::time::Duration;

use anyhow::{Context, Result};
use idtoken_emulator::{Endpoint, Fault};
use idtoken_operator::api::crds;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::common::{Setup, World, condition, has, is_ready, of};

fn message(object: &idtoken_operator::api::v1alpha1::IdTokenRequest, type_: &str) -> String {
    condition(object, type_)
        .map(|found| found.message.clone())
        .unwrap_or_default()
}

fn refused(object: &idtoken_operator::api::v1alpha1::IdTokenRequest) -> bool {
    has(object, "Ready", "False", "KubernetesRefused")
}

/// Sets the verbs that the operator has on Secrets.
async fn secrets(world: &World, verbs: &[&str]) -> Result<()> {
    let role = ["get", "clusterrole", "idtoken-operator", "-o", "json"];
    let role: Value = serde_json::from_str(&world.cluster.kubectl(role).await?)?;
    let rules = role["rules"].as_array().context("rules")?;
    let rule = rules
        .iter()
        .position(|rule| rule["resources"] == json!(["secrets"]));
    let path = format!("/rules/{}/verbs", rule.context("a rule for Secrets")?);
    let patch = json!([{"op": "replace", "path": path, "value": verbs}]).to_string();
    let args = [
        "patch",
        "clusterrole",
        "idtoken-operator",
        "--type=json",
        "-p",
        &patch,
    ];
    world.cluster.kubectl(args).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_go_are_named_and_may_come_back() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "held", json!({})).await?;
    secrets(&world, &["get", "list", "watch"]).await?;
    world.request("shop", "new", json!({})).await?;
    world.renew("shop", "held", "now").await?;
    let object = world.until("shop", "new", "it is reported", refused).await?;
    let reported = message(&object, "Ready");
    assert!(reported.contains("the verb create on secrets"), "{reported}");
    let failing = |object: &_| has(object, "RenewalFailing", "True", "KubernetesRefused");
    let object = world.until("shop", "held", "it is reported", failing).await?;
    assert!(is_ready(&object));
    let reported = message(&object, "RenewalFailing");
    assert!(reported.contains("the verb patch on secrets"), "{reported}");

    // Each was minted once, before anybody knew; further tries are at the API server's expense alone.
    let start = world.mark().await?;
    let asked = world.asked();
    assert!(asked <= 3, "{asked} calls");
    world
        .wait("both are tried again", async || {
            let calls = world.calls_since(start)?;
            Ok(!of(&calls, "create", "secrets").is_empty() && !of(&calls, "patch", "secrets").is_empty())
        })
        .await?;
    assert_eq!(world.asked(), asked);

    secrets(&world, &["get", "list", "watch", "create", "patch", "delete"]).await?;
    world.ready("shop", "new").await?;
    world
        .until("shop", "held", "it has recovered", |object| {
            has(object, "RenewalFailing", "False", "") && is_ready(object)
        })
        .await?;
    world.claims("shop", "new").await?;

    // What the operator cannot even list it says in its log, and it is not ready to serve until it can.
    secrets(&world, &["get", "create", "patch", "delete"]).await?;
    world.stop_operator(false).await?;
    let starting = world.start_operator();
    let repair = async {
        world
            .wait("the missing right is in the log", async || {
                let log = world.operator_log();
                Ok(log.lines().any(|line| {
                    line.contains("watch failed") && line.contains("cannot list resource \\\"secrets\\\"")
                        || line.contains("watch failed") && line.contains("cannot list resource \"secrets\"")
                }))
            })
            .await?;
        secrets(&world, &["get", "list", "watch", "create", "patch", "delete"]).await
    };
    futures::future::try_join(starting, repair).await?;
    world.issued("shop", "probe", json!({})).await?;
    Ok(())
}

async fn apply(world: &World, object: Value) -> Result<()> {
    world.cluster.apply(&object.to_string()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_refused_costs_one_mint() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.granted("full").await?;
    world.issued("shop", "held", json!({})).await?;
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "no-tokens"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"],
            }]},
            "validations": [{
                "expression": "object.metadata.namespace != 'shop'",
                "message": "no tokens in this namespace",
            }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "no-tokens"}, "spec": {"policyName": "no-tokens", "validationActions": ["Deny"]},
    });
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": "full"},
        "spec": {"hard": {"count/secrets": "0"}},
    });
    apply(&world, policy).await?;
    apply(&world, binding).await?;
    apply(&world, quota).await?;
    // There is no controller here that does it.
    let status =
        json!({"status": {"hard": {"count/secrets": "0"}, "used": {"count/secrets": "0"}}}).to_string();
    let args = [
        "patch",
        "resourcequota",
        "none",
        "-n",
        "full",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ];
    world.cluster.kubectl(args).await?;
    for namespace in ["shop", "full"] {
        world
            .wait("the API server refuses Secrets", async || {
                let args = [
                    "create",
                    "secret",
                    "generic",
                    "probe",
                    "-n",
                    namespace,
                    "--dry-run=server",
                ];
                Ok(world.cluster.kubectl(args).await.is_err())
            })
            .await?;
    }
    let mints = |name: &str| {
        let calls = world.google.calls().into_iter();
        calls
            .filter(|call| call.request_reason.as_deref() == Some(name))
            .count()
    };
    world.request("shop", "new", json!({})).await?;
    world.request("full", "new", json!({})).await?;
    world.renew("shop", "held", "now").await?;
    let object = world.until("shop", "new", "it is reported", refused).await?;
    let reported = message(&object, "Ready");
    assert!(reported.contains("no tokens in this namespace"), "{reported}");
    let object = world.until("full", "new", "it is reported", refused).await?;
    let reported = message(&object, "Ready");
    assert!(reported.contains("exceeded quota"), "{reported}");
    let failing = |object: &_| has(object, "RenewalFailing", "True", "KubernetesRefused");
    let object = world.until("shop", "held", "it is reported", failing).await?;
    assert!(is_ready(&object));
    let start = world.mark().await?;
    world
        .wait("all are tried again and again", async || {
            let calls = world.calls_since(start)?;
            let tried = |verb: &str, namespace: &str| {
                of(&calls, verb, "secrets")
                    .iter()
                    .filter(|call| call.namespace == namespace)
                    .count()
            };
            Ok(tried("create", "shop") >= 2 && tried("create", "full") >= 2 && tried("patch", "shop") >= 2)
        })
        .await?;
    assert_eq!((mints("shop/new"), mints("full/new")), (1, 1));
    // Its renewal is tried first, unless it was in flight when the other write was refused.
    let held = mints("shop/held");
    assert!((1..=2).contains(&held), "{held}");
    // A restart forgets nothing of it.
    world.stop_operator(false).await?;
    let start = world.mark().await?;
    world.start_operator().await?;
    world
        .wait("both are tried after the restart", async || {
            Ok(of(&world.calls_since(start)?, "create", "secrets").len() >= 2)
        })
        .await?;
    assert_eq!(
        (mints("shop/new"), mints("full/new"), mints("shop/held")),
        (1, 1, held)
    );

    world
        .cluster
        .kubectl(["delete", "validatingadmissionpolicybinding", "no-tokens"])
        .await?;
    world
        .cluster
        .kubectl(["delete", "resourcequota", "none", "-n", "full"])
        .await?;
    for namespace in ["shop", "full"] {
        world.renew(namespace, "new", "go on").await?;
        world.ready(namespace, "new").await?;
        world.claims(namespace, "new").await?;
    }
    // One more where it had gone on by itself already.
    for name in ["shop/new", "full/new"] {
        assert!((2..=3).contains(&mints(name)), "{name}: {}", mints(name));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_done_in_a_namespace_that_goes() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.namespace("other").await?;
    world.issued("shop", "billing", json!({})).await?;
    let slow = Fault::delay(Duration::from_secs(2)).on(Endpoint::GenerateIdToken);
    world.google.fault(slow.times(1))?;
    world.request("shop", "under-way", json!({})).await?;
    world
        .wait("Google was asked", async || Ok(world.asked() == 2))
        .await?;
    // Nothing removes what is in it here, so it stays like this.
    world
        .cluster
        .kubectl(["delete", "namespace", "shop", "--wait=false"])
        .await?;
    let start = world.mark().await?;
    for name in ["billing", "under-way"] {
        let _ = world.secrets("shop").delete(name, &DeleteParams::default()).await;
        world.renew("shop", name, "now").await?;
    }
    world.grant("other").await?;
    for n in 0..5 {
        world.issued("other", &format!("probe{n}"), json!({})).await?;
    }
    world.mark().await?;
    let shop = |name: &str| name.starts_with("shop/");
    let calls = world.google.calls();
    let asked = calls
        .iter()
        .filter(|call| call.request_reason.as_deref().is_some_and(shop))
        .count();
    assert_eq!(asked, 2, "{calls:#?}");
    let writes = world.writes_since(start)?;
    let there: Vec<_> = writes.iter().filter(|call| call.namespace == "shop").collect();
    // At most the one that was in flight, refused.
    assert!(
        there.len() <= 1 && there.iter().all(|call| call.code >= 400),
        "{there:#?}"
    );
    let warned = world
        .operator_log()
        .lines()
        .filter(|line| line.contains(" WARN "))
        .count();
    assert!(warned <= 2, "{}", world.log_tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crd_may_go_and_come_back() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let before = world.secret("shop", "billing").await?;
    world
        .cluster
        .kubectl(["delete", "crd", "idtokenrequests.idtoken.dev", "--timeout=60s"])
        .await?;
    world
        .wait("the operator has noticed", async || {
            let log = world.operator_log();
            Ok(log.contains("watch failed") && world.metric("idtoken_requests").await? == 0.0)
        })
        .await?;
    assert_eq!(before, world.secret("shop", "billing").await?);
    apply(&world, serde_json::to_value(&crds()[0])?).await?;
    world.cluster.wait_for_crds().await?;
    world
        .wait("a request can be made", async || {
            Ok(world.request("shop", "billing", json!({})).await.is_ok())
        })
        .await?;
    world.ready("shop", "billing").await?;
    let after = world.secret("shop", "billing").await?;
    // The Secret is the new request's, with the token that it held.
    assert_eq!(before.metadata.uid, after.metadata.uid);
    assert_eq!(before.data, after.data);
    assert_eq!(world.google.mint_count(), 1);
    world.issued("shop", "other", json!({})).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_object_of_a_newer_version_stops_no_other() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "early", json!({})).await?;
    // CRDs as a newer version might have them.
    for (crd, path) in [
        (
            "idtokenrequests",
            "spec/properties/target/properties/creationPolicy",
        ),
        (
            "idtokengrants",
            "spec/properties/to/items/properties/sources/items",
        ),
    ] {
        let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties/{path}/enum/-");
        let patch = json!([{"op": "add", "path": path, "value": "Newer"}]).to_string();
        let name = format!("{crd}.idtoken.dev");
        world
            .cluster
            .kubectl(["patch", "crd", &name, "--type=json", "-p", &patch])
            .await?;
    }
    let newer = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest", "metadata": {"name": "newer", "namespace": "shop"},
        "spec": {"audience": "a", "serviceAccount": crate::common::CALLER, "target": {"creationPolicy": "Newer"}},
    });
    let grant = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant", "metadata": {"name": "newer"},
        "spec": {"from": [{"namespace": "shop"}], "to": [{"serviceAccounts": ["*@q.iam.gserviceaccount.com"], "audiences": ["a"], "sources": ["Newer"]}]},
    });
    for object in [newer, grant] {
        world
            .wait("the new schema holds", async || {
                Ok(apply(&world, object.clone()).await.is_ok())
            })
            .await?;
    }
    let reported = async || {
        let status = [
            "get",
            "idtr",
            "newer",
            "-n",
            "shop",
            "-o",
            "jsonpath={.status.conditions[?(@.type=='Stalled')]}",
        ];
        let shown = world.cluster.kubectl(status).await?;
        Ok(shown.contains("InvalidSpec") && shown.contains("Newer"))
    };
    world.wait("the object itself says so", reported).await?;
    world
        .wait("an event says so", async || {
            let events = world.cluster.kubectl(["get", "events", "-n", "shop"]).await?;
            Ok(events.contains("InvalidSpec"))
        })
        .await?;
    world.issued("shop", "late", json!({})).await?;

    // Also where it is in the first list.
    let version = async || {
        let args = [
            "get",
            "idtr",
            "newer",
            "-n",
            "shop",
            "-o",
            "jsonpath={.metadata.resourceVersion}",
        ];
        world.cluster.kubectl(args).await
    };
    let before = version().await?;
    world.stop_operator(false).await?;
    world.start_operator().await?;
    world.issued("shop", "last", json!({})).await?;
    world.renewed("shop", "early", "now").await?;
    assert_eq!(before, version().await?, "it was reported again");
    assert!(
        world
            .operator_log()
            .contains("cannot decode the grant, so it grants nothing")
    );

    // Corrected, it is served.
    let patch =
        json!({"spec": {"audience": crate::common::AUDIENCE, "target": {"creationPolicy": "Orphan"}}})
            .to_string();
    world
        .cluster
        .kubectl([
            "patch",
            "idtr",
            "newer",
            "-n",
            "shop",
            "--type=merge",
            "-p",
            &patch,
        ])
        .await?;
    world.ready("shop", "newer").await.context("the corrected one")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_of_the_environment_is_for_no_api_server_on_this_machine() -> Result<()> {
    let world = World::with(Setup {
        operator: false,
        ..Setup::default()
    })
    .await?;
    // Nobody listens there. Google's emulator is at loopback, which no call goes to a proxy for.
    let nowhere = "http://127.0.0.1:1";
    let google = world.google.address();
    let env = [
        ("HTTPS_PROXY", nowhere),
        ("https_proxy", nowhere),
        ("NO_PROXY", ""),
        ("no_proxy", ""),
    ];
    let operator = world.replica(google, &world.kubeconfig, &[], &env).await?;
    operator.ready().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    Ok(())
}
