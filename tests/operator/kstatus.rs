//! What deployment tools make of a request: kstatus, Argo CD's health script, `kubectl wait`, and applying it again.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use idtoken_emulator::{Endpoint, Fault};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_testenv::{GoModule, GoTool, Progress};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::common::{AUDIENCE, CALLER, Setup, World, condition, has};

/// `github.com/fluxcd/cli-utils/pkg/kstatus` and Argo CD's interpreter of Lua.
const KSTATUS: GoModule = GoModule {
    name: "kstatus",
    go_mod: include_str!("../kstatus/go.mod"),
    go_sum: include_str!("../kstatus/go.sum"),
    files: &[("main.go", include_str!("../kstatus/main.go"))],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "kstatus",
        package: ".",
    }],
};

/// What kstatus and Argo CD say of the request, and Argo CD's message.
async fn health(object: &IdTokenRequest) -> Result<(String, String, String)> {
    let dir = tokio::task::spawn_blocking(|| KSTATUS.build(&["kstatus"], Progress::Quiet)).await??;
    let mut child = Command::new(dir.join("kstatus"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/argocd/health.lua"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(&serde_json::to_vec(object)?)?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "kstatus ended with {}", output.status);
    let said: Value = serde_json::from_slice(&output.stdout)?;
    let field = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
    Ok((field("kstatus"), field("argo"), field("message")))
}

/// Holds what both say against what is expected, and gives Argo CD's message.
async fn expect(world: &World, name: &str, kstatus: &str, argo: &str) -> Result<String> {
    let (found, health, message) = health(&world.get("shop", name).await?).await?;
    assert_eq!(
        (found.as_str(), health.as_str()),
        (kstatus, argo),
        "{name}: {message}"
    );
    Ok(message)
}

/// Each condition is of the present spec.
fn all_observed(object: &IdTokenRequest) -> bool {
    let conditions = object.status.as_ref().map(|status| status.conditions.as_slice());
    conditions.is_some_and(|conditions| {
        !conditions.is_empty()
            && conditions
                .iter()
                .all(|condition| condition.observed_generation == object.metadata.generation)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployment_tools_read_what_is_meant() -> Result<()> {
    let world = World::with(Setup {
        operator: false,
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    world.request("shop", "billing", json!({})).await?;
    expect(&world, "billing", "InProgress", "Progressing").await?;
    let wait = |limit: &'static str| {
        let kind = "idtokenrequest/billing";
        world
            .cluster
            .kubectl(["wait", "--for=condition=Ready", kind, "-n", "shop", limit])
    };
    assert!(wait("--timeout=1s").await.is_err());
    world.start_operator().await?;
    wait("--timeout=60s").await?;
    let message = expect(&world, "billing", "Current", "Healthy").await?;
    assert!(message.contains(AUDIENCE), "{message}");
    let ready = world.get("shop", "billing").await?;
    assert!(all_observed(&ready), "{:?}", ready.status);

    // The renewal fails, the token is valid.
    world
        .google
        .fault(Fault::status(503).on(Endpoint::GenerateIdToken))?;
    world.renew("shop", "billing", "1").await?;
    let failing = world
        .until("shop", "billing", "the renewal fails", |object| {
            has(object, "RenewalFailing", "True", "UpstreamUnavailable")
        })
        .await?;
    let message = expect(&world, "billing", "Current", "Healthy").await?;
    assert!(message.contains("renewal fails: "), "{message}");
    let since =
        |object: &IdTokenRequest, type_| condition(object, type_).map(|c| c.last_transition_time.clone());
    assert_eq!(since(&failing, "Ready"), since(&ready, "Ready"));
    assert!(since(&failing, "RenewalFailing") >= since(&ready, "RenewalFailing"));
    // A new spec, and no token for it.
    world
        .change("shop", "billing", json!({"spec": {"includeEmail": false}}))
        .await?;
    let without = world
        .until("shop", "billing", "it has no token", |object| {
            has(object, "Ready", "False", "UpstreamUnavailable") && all_observed(object)
        })
        .await?;
    assert!(without.metadata.generation > ready.metadata.generation);
    expect(&world, "billing", "InProgress", "Progressing").await?;
    world.google.clear_faults();
    wait("--timeout=60s").await?;

    // Suspended, with and without a token.
    world
        .change("shop", "billing", json!({"spec": {"suspend": true}}))
        .await?;
    let suspended = |object: &IdTokenRequest| {
        condition(object, "Ready").is_some_and(|ready| ready.reason == "Suspended") && all_observed(object)
    };
    let object = world
        .until("shop", "billing", "it is suspended", suspended)
        .await?;
    assert!(has(&object, "Ready", "True", "Suspended"));
    expect(&world, "billing", "Current", "Suspended").await?;
    let other = format!("{AUDIENCE}/other");
    world
        .change("shop", "billing", json!({"spec": {"audience": other}}))
        .await?;
    world
        .until("shop", "billing", "the token is not for this spec", |object| {
            has(object, "Ready", "False", "Suspended") && all_observed(object)
        })
        .await?;
    expect(&world, "billing", "InProgress", "Suspended").await?;
    world
        .change(
            "shop",
            "billing",
            json!({"spec": {"suspend": null, "audience": AUDIENCE}}),
        )
        .await?;
    wait("--timeout=60s").await?;

    // Somebody has to act.
    let taken =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "taken", "namespace": "shop"}});
    world.cluster.apply(&taken.to_string()).await?;
    world.request("shop", "taken", json!({})).await?;
    world
        .until("shop", "taken", "it is stalled", |object| {
            has(object, "Stalled", "True", "SecretConflict")
        })
        .await?;
    let message = expect(&world, "taken", "Failed", "Degraded").await?;
    assert!(message.contains("kubectl annotate secret taken"), "{message}");

    // Somebody else's finalizer holds it back.
    let held = json!({"metadata": {"finalizers": ["example.com/held"]}});
    world.change("shop", "billing", held).await?;
    world
        .requests("shop")
        .delete("billing", &DeleteParams::default())
        .await?;
    expect(&world, "billing", "Terminating", "Progressing").await?;
    world
        .change("shop", "billing", json!({"metadata": {"finalizers": null}}))
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_granted_for_long_has_failed_and_a_grant_ends_it() -> Result<()> {
    let world = World::with(Setup {
        operator: false,
        ..Setup::default()
    })
    .await?;
    world.namespace("shop").await?;
    world.start_operator().await?;
    world.request("shop", "billing", json!({})).await?;
    let denied = world
        .until("shop", "billing", "it is denied", |object| {
            has(object, "Ready", "False", "NotGranted")
        })
        .await?;
    assert!(condition(&denied, "Stalled").is_none());
    expect(&world, "billing", "InProgress", "Progressing").await?;
    // The same eleven minutes later, and another operator.
    world.stop_operator(false).await?;
    let earlier = Timestamp::now() - SignedDuration::from_mins(11);
    let mut conditions = denied.status.context("a status")?.conditions;
    for condition in &mut conditions {
        condition.last_transition_time = Time(Timestamp::from_second(earlier.as_second())?);
    }
    let status = Patch::Merge(json!({"status": {"conditions": conditions}}));
    let requests = world.requests("shop");
    requests
        .patch_status("billing", &PatchParams::default(), &status)
        .await?;
    world.start_operator().await?;
    world
        .until("shop", "billing", "it is stalled", |object| {
            has(object, "Stalled", "True", "NotGranted")
        })
        .await?;
    let message = expect(&world, "billing", "Failed", "Degraded").await?;
    assert!(message.contains("IdTokenGrant"), "{message}");
    // The alert IdTokenRequestStalled asks for this.
    let series = r#"idtoken_request_conditions{namespace="shop",type="Stalled",reason="NotGranted"}"#;
    assert_eq!(world.metric(series).await?, 1.0, "{}", world.scrape().await?);
    world.grant("shop").await?;
    world.ready("shop", "billing").await?;
    expect(&world, "billing", "Current", "Healthy").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_in_the_same_apply_is_no_failure_in_between() -> Result<()> {
    let world = World::new().await?;
    world.namespace("shop").await?;
    let requests = world.requests("shop");
    let list = requests.list(&ListParams::default()).await?;
    let begin = list.metadata.resource_version.context("no version")?;
    // The first one is denied before the grant, which comes last, as if each object took long.
    world.request("shop", "first", json!({})).await?;
    world
        .until("shop", "first", "it is denied", |object| {
            has(object, "Ready", "False", "NotGranted")
        })
        .await?;
    let (api, name) = (
        "idtoken.dev/v1alpha1",
        json!({"name": "second", "namespace": "shop"}),
    );
    let second = json!({"apiVersion": api, "kind": "IdTokenRequest", "metadata": name,
        "spec": {"audience": AUDIENCE, "serviceAccount": CALLER}});
    let grant = json!({"apiVersion": api, "kind": "IdTokenGrant", "metadata": {"name": "shop"},
        "spec": {"from": [{"namespace": "shop"}], "to": [{"serviceAccounts": [CALLER], "audiences": [AUDIENCE]}]}});
    world.cluster.apply(&format!("{second}\n---\n{grant}")).await?;
    let mut last = BTreeMap::new();
    for name in ["first", "second"] {
        let ready = world.ready("shop", name).await?;
        last.insert(name.to_owned(), ready.resource_version().context("no version")?);
    }

    // All that a tool which watches can have seen.
    let mut said: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let events = requests.watch(&WatchParams::default(), &begin).await?;
    let mut events = std::pin::pin!(events);
    while !last.is_empty() {
        let event = events.try_next().await?.context("the watch has ended")?;
        let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event else {
            anyhow::bail!("{event:?}");
        };
        let (kstatus, argo, _) = health(&object).await?;
        let all = said.entry(object.name_any()).or_default();
        all.push((kstatus, argo));
        all.dedup();
        last.retain(|name, version| {
            *name != object.name_any() || object.resource_version().as_ref() != Some(version)
        });
    }
    let right = [("InProgress", "Progressing"), ("Current", "Healthy")];
    let right = right.map(|(kstatus, argo)| (kstatus.to_owned(), argo.to_owned()));
    for (name, all) in said {
        assert_eq!(all, right, "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_the_same_again_causes_no_write() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let spec = json!({
        "audience": AUDIENCE, "serviceAccount": CALLER, "renewBefore": "0.5h",
        "target": {"template": {"data": {"header": "Authorization: Bearer $(token)"}}},
    });
    let manifest = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {"name": "billing", "namespace": "shop"}, "spec": spec,
    });
    let file = world.cluster.dir().join("billing.json");
    std::fs::write(&file, manifest.to_string())?;
    let file = file.to_str().context("a path")?;
    world.cluster.kubectl(["apply", "-f", file]).await?;
    let first = world.ready("shop", "billing").await?;
    let text = world
        .cluster
        .kubectl(["get", "idtr", "billing", "-n", "shop", "-o", "json"])
        .await?;
    let read: Value = serde_json::from_str(&text)?;
    assert_eq!(read["spec"], spec, "what was applied reads back different");
    // Fails where there is a difference.
    world.cluster.kubectl(["diff", "-f", file]).await?;

    let mark = world.mark().await?;
    let said = world.cluster.kubectl(["apply", "-f", file]).await?;
    assert!(said.contains("unchanged"), "{said}");
    for manager in ["argocd-controller", "flux"] {
        let manager = format!("--field-manager={manager}");
        world
            .cluster
            .kubectl(["apply", "--server-side", &manager, "-f", file])
            .await?;
    }
    // When the operator has done what came later, it would have done this.
    world.issued("shop", "later", json!({})).await?;
    let writes = world.writes_since(mark)?;
    assert!(!writes.is_empty(), "those of the later request");
    let ours: Vec<_> = writes.iter().filter(|call| call.name == "billing").collect();
    assert!(ours.is_empty(), "{ours:?}");
    let last = world.get("shop", "billing").await?;
    assert_eq!(last.status, first.status);
    assert_eq!(last.metadata.generation, first.metadata.generation);
    Ok(())
}
