//! The commands that call a cluster, against a real API server; with the operator if they need tokens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::Command;

use clap::Parser;
use common::world::{LIMIT, World};
use common::{AUDIENCE, CALLER, clean, finish, google, plugin};
use idtoken_operator::api::v1alpha1::{IdTokenGrant, IdTokenRequest};
use idtoken_testenv::{ControlPlane, Process, until};
use kube::Resource;
use kube::api::PostParams;
use kube::core::Request;
use serde_json::{Value, json};

/// Arguments of the operator, set in its process only.
const OPERATE: &str = "IDTOKEN_TESTENV_OPERATE";

/// The operator in a process of its own: [`start_operator`] runs this test with [`OPERATE`] set.
#[tokio::test(flavor = "multi_thread")]
async fn operator() {
    let Ok(args) = std::env::var(OPERATE) else { return };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = idtoken_operator::cli::Cli::parse_from(args.split_whitespace());
    idtoken_operator::app::run(cli).await.unwrap();
}

fn start_operator(cluster: &ControlPlane, google: &idtoken_emulator::EmulatorHandle) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    clean(&mut command, cluster.dir());
    let args = format!(
        "idtoken-operator run --listen 127.0.0.1:0 --iam-credentials-url={url} --google-keys-url={url}/oauth2/v3/certs",
        url = google.url()
    );
    command
        .args(["--exact", "operator", "--nocapture"])
        .env(OPERATE, args)
        .env("KUBECONFIG", cluster.admin_kubeconfig())
        .env("GCE_METADATA_HOST", google.address().to_string());
    Process::spawn("operator", &command, cluster.dir()).unwrap()
}

fn is(object: &IdTokenRequest, type_: &str, status: &str) -> bool {
    let conditions = object
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition.type_ == type_ && condition.status == status)
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_are_printed_applied_and_found() {
    let world = World::start().await;
    world
        .run(&["grant", "billing", "-n", "shop"])
        .exits(1)
        .warns("CustomResourceDefinitions are not installed");
    world.install().await;
    world
        .run(&["grant", "billing", "-n", "shop"])
        .exits(1)
        .warns("IdTokenRequest billing not found in namespace shop");
    world
        .request(
            "shop",
            "billing",
            ", source: {impersonation: {delegates: ['1234']}}",
        )
        .await;

    world
        .run(&["can", "billing", "-n", "shop"])
        .exits(1)
        .says("no: no IdTokenGrant allows")
        .says("There are no grants");
    let grant = world
        .run(&["grant", "billing", "-n", "shop"])
        .exits(0)
        .warns("no IdTokenGrant allows it yet");
    world.cluster.apply(&grant.stdout).await.unwrap();
    world
        .run(&["can", "billing", "-n", "shop"])
        .exits(0)
        .says("yes: IdTokenGrant shop.billing allows namespace shop");
    world
        .run(&["grant", "billing", "-n", "shop"])
        .exits(0)
        .warns("IdTokenGrant shop.billing already allows it");
    let json = world
        .run(&["can", "billing", "-n", "shop", "-o", "json"])
        .exits(0)
        .json();
    assert_eq!(
        (&json["allowed"], &json["grant"]["name"]),
        (&true.into(), &"shop.billing".into())
    );

    let token = ["can", "--service-account", CALLER, "--audience"];
    let can = |args: &[&str]| world.run(&[&token[..], args].concat());
    can(&[AUDIENCE, "-n", "shop"]).exits(0);
    can(&["https://other.run.app", "-n", "shop"])
        .exits(1)
        .says("shop.billing\n    spec.to[0].audiences does not contain https://other.run.app: it contains https://billing-x.run.app");
    can(&[AUDIENCE, "-n", "other"])
        .exits(1)
        .says("spec.from does not contain other: it contains shop");
    can(&[AUDIENCE, "-n", "shop", "--delegate", "5678"])
        .exits(1)
        .says("spec.to[0].delegates does not contain 5678: it contains 1234");
    let json = can(&["https://other.run.app", "-n", "other", "-o", "json"])
        .exits(1)
        .json();
    assert_eq!(json["misses"][0]["mismatches"].as_array().unwrap().len(), 2);
    can(&["a b", "-n", "shop"]).exits(2).warns("--audience must be");

    let file = world.cluster.dir().join("grants.yaml");
    std::fs::write(&file, format!("[{{name: f, from: [{{namespace: other}}], to: [{{serviceAccounts: [{CALLER}], audiences: ['{AUDIENCE}']}}]}}]")).unwrap();
    can(&[AUDIENCE, "-n", "other", "--grants-file", file.to_str().unwrap()])
        .exits(0)
        .says("file:f");
    world.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_stored_before_the_policy_are_listed() {
    let world = World::start().await;
    world.install().await;
    let federation = ", source: {federation: {serviceAccountRef: {name: billing}}}";
    world.request("shop", "early", federation).await;
    world.request("other", "elsewhere", federation).await;
    world.request("shop", "own", "").await;
    world
        .run(&["audit", "-n", "shop"])
        .exits(1)
        .says("there is none with the label")
        .says("shop        early   billing");
    let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/admission.yaml");
    world
        .cluster
        .apply(&std::fs::read_to_string(policies).unwrap())
        .await
        .unwrap();
    let all = world.run(&["audit", "-A", "-o", "json"]).exits(1).json();
    assert_eq!(all["policy"], "idtoken-operator-federation-authors");
    let names: Vec<_> = all["unchecked"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(names, ["elsewhere", "early"]);
    world
        .cluster
        .kubectl(["delete", "idtr", "early", "-n", "shop"])
        .await
        .unwrap();
    world
        .run(&["audit", "-n", "shop"])
        .exits(0)
        .says("has checked every author since")
        .says("No request with source.federation has an unchecked author");
    let (grants, requests) = ("idtokengrants.idtoken.dev", "idtokenrequests.idtoken.dev");
    let jane = world
        .user("jane", &[("list", grants, true), ("list", requests, true)])
        .await;
    world
        .run_as(&jane, &["audit", "-A"])
        .exits(1)
        .warns("you may not list validatingadmissionpolicies");
    world.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_of_the_charts_values_are_seen() {
    let world = World::start().await;
    world.install().await;
    world.request("shop", "billing", "").await;
    let grants = format!(
        "[{{name: values, from: [{{namespace: shop}}], to: [{{serviceAccounts: [{CALLER}], audiences: ['{AUDIENCE}']}}]}}]"
    );
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "release-grants", "namespace": "other", "labels": {"idtoken.dev/config": "grants"}},
        "data": {"grants.yaml": grants},
    });
    world.cluster.apply(&map.to_string()).await.unwrap();
    let told = "grant file:values of ConfigMap other/release-grants";
    world
        .run(&["can", "billing", "-n", "shop"])
        .exits(0)
        .says(&format!("yes: {told} allows namespace shop"));
    world
        .run(&["can", "billing", "-n", "shop", "--operator-namespace=shop"])
        .exits(1)
        .says("There are no grants.");
    let json = world
        .run(&["can", "billing", "-n", "shop", "-o", "json"])
        .exits(0)
        .json();
    assert_eq!(
        (&json["grant"]["name"], &json["configMap"]["namespace"]),
        (&"file:values".into(), &"other".into())
    );
    world
        .run(&["grant", "billing", "-n", "shop"])
        .exits(0)
        .warns(&format!("{told} already allows it"));
    let status = json!({"status": {"grant": {"name": "file:values"}}}).to_string();
    let patch = |status: String| {
        let world = &world;
        async move {
            let patch = [
                "patch",
                "idtr",
                "billing",
                "-n",
                "shop",
                "--type=merge",
                "--subresource=status",
                "-p",
            ];
            world
                .cluster
                .kubectl([&patch[..], &[status.as_str()]].concat())
                .await
                .unwrap();
        }
    };
    patch(status).await;
    world
        .run(&["explain", "billing", "-n", "shop"])
        .exits(1)
        .says("Allowed by:       file:values of ConfigMap other/release-grants");
    let denied = json!({"status": {"grant": null, "conditions": [{
        "type": "Ready", "status": "False", "reason": "NotGranted", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    patch(denied.to_string()).await;
    world
        .run(&["explain", "billing", "-n", "shop"])
        .exits(1)
        .says("Grant file:values of ConfigMap other/release-grants allows the request");

    let (requests, objects) = ("idtokenrequests.idtoken.dev", "idtokengrants.idtoken.dev");
    let jane = world
        .user("jane", &[("get", requests, false), ("list", objects, true)])
        .await;
    world
        .run_as(&jane, &["can", "billing", "-n", "shop"])
        .exits(1)
        .says("Grants of the chart's values are not checked: you may not list configmaps");
    world
        .run_as(&jane, &["explain", "billing", "-n", "shop"])
        .exits(1)
        .says("kubectl get idtokengrants lists objects only");
    world.cluster.stop().await.unwrap();
}

/// The definition of IdTokenGrant without the rules on selectors, as versions before this one have it.
fn older_definition() -> String {
    fn without_rules(value: &mut serde_json::Value) {
        if let Some(fields) = value.as_object_mut() {
            fields.remove("x-kubernetes-validations");
            fields.values_mut().for_each(without_rules);
        }
    }
    let mut crd = serde_json::to_value(&idtoken_operator::api::crds()[1]).unwrap();
    without_rules(&mut crd["spec"]["versions"][0]["schema"]);
    crd.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_that_an_upgrade_changes_are_listed() {
    let world = World::start().await;
    world.install().await;
    let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/admission.yaml");
    let policies = std::fs::read_to_string(policies).unwrap();
    world.cluster.apply(&policies).await.unwrap();
    world
        .run(&["audit", "-A"])
        .exits(0)
        .says("All parts of all grants are valid.");
    world.cluster.apply(&older_definition()).await.unwrap();
    let to = format!("to: [{{serviceAccounts: [{CALLER}], audiences: ['{AUDIENCE}']}}]");
    let grant = |name: &str, from: &str| {
        format!(
            "---\n{{apiVersion: idtoken.dev/v1alpha1, kind: IdTokenGrant, metadata: {{name: {name}}}, spec: {{from: {from}, {to}}}}}\n"
        )
    };
    let grants = grant("everyone", "[{namespace: shop}, {namespaceSelector: {}}]")
        + &grant("named", "[{namespace: shop}]")
        + &grant(
            "rest",
            "[{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn}]}}]",
        );
    until("the older definition is served", LIMIT, async || {
        Ok(world.cluster.apply(&grants).await.ok())
    })
    .await
    .unwrap();
    world
        .run(&["audit", "-n", "shop"])
        .exits(1)
        .says("everyone   spec.from[1]   it has a namespaceSelector without a requirement")
        .says("rest       spec.from[0]   it has an invalid namespaceSelector: the operator of team needs values")
        .says("{matchExpressions: [{key: kubernetes.io/metadata.name, operator: Exists}]}");
    let file = world.cluster.dir().join("grants.yaml");
    std::fs::write(
        &file,
        format!("- {{name: mine, from: [{{namespaceSelector: {{}}}}], {to}}}\n"),
    )
    .unwrap();
    let flag = format!("--grants-file={}", file.display());
    let all = world.run(&["audit", "-A", &flag, "-o", "json"]).exits(1).json();
    let found: Vec<_> = all["invalidGrants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["grant"].as_str().unwrap(), one["field"].as_str().unwrap()))
        .collect();
    let wanted = [
        ("everyone", "spec.from[1]"),
        ("file:mine", "spec.from[0]"),
        ("rest", "spec.from[0]"),
    ];
    assert_eq!(found, wanted);
    // What is advised selects every namespace.
    let kept = grant(
        "everyone",
        "[{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: Exists}]}}]",
    );
    world.cluster.apply(&kept).await.unwrap();
    world
        .run(&[
            "can",
            "--service-account",
            CALLER,
            "--audience",
            AUDIENCE,
            "-n",
            "other",
        ])
        .exits(0)
        .says("IdTokenGrant everyone allows");
    std::fs::write(
        &file,
        format!("- {{name: mine, from: [{{namespaceSelector: {{matchlabels: {{}}}}}}], {to}}}\n"),
    )
    .unwrap();
    world
        .run(&["audit", "-A", &flag])
        .exits(1)
        .warns("unknown field `matchlabels`");
    world.cluster.stop().await.unwrap();
}

/// Creates an object with a managed field whose time the API server keeps and Rust's time cannot hold.
async fn create_odd<K: Resource<DynamicType = ()>>(world: &World, namespace: Option<&str>, spec: Value) {
    let managed_field = json!({
        "manager": "x", "operation": "Update", "apiVersion": K::api_version(&()), "time": "9999-12-31T23:59:59Z",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {"f:absent": {}}}},
    });
    let object = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()),
        "metadata": {"name": "odd", "managedFields": [managed_field]}, "spec": spec,
    });
    let calls = Request::new(K::url_path(&(), namespace));
    let call = calls.create(&PostParams::default(), object.to_string().into_bytes());
    let client = world.cluster.client().await.unwrap();
    let created: Value = client.request(call.unwrap()).await.unwrap();
    let managed_fields = created["metadata"]["managedFields"].as_array().unwrap();
    let mut times = managed_fields.iter().map(|field| &field["time"]);
    assert!(times.any(|time| time == "9999-12-31T23:59:59Z"), "{created}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_cannot_be_decoded_costs_itself_alone() {
    let world = World::start().await;
    world.install().await;
    let to = json!([{"serviceAccounts": [CALLER], "audiences": [AUDIENCE]}]);
    let spec = json!({"from": [{"namespace": "shop"}], "to": to});
    create_odd::<IdTokenGrant>(&world, None, spec).await;
    let spec = json!({"audience": AUDIENCE, "serviceAccount": CALLER});
    create_odd::<IdTokenRequest>(&world, Some("shop"), spec).await;
    world
        .run(&["can", "odd", "-n", "shop"])
        .exits(0)
        .says("IdTokenGrant odd allows");
    world
        .run(&["renew", "--all", "-n", "shop"])
        .exits(0)
        .says("odd renewal requested");
    world
        .run(&["explain", "odd", "-n", "shop"])
        .exits(1)
        .says(AUDIENCE);
    world
        .run(&["audit", "-A"])
        .exits(0)
        .says("All parts of all grants are valid.");

    // A grant of another version, where the definition lets it pass.
    let mut crd = serde_json::to_value(&idtoken_operator::api::crds()[1]).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    world.cluster.apply(&crd.to_string()).await.unwrap();
    let newer = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant", "metadata": {"name": "newer"},
        "spec": {"from": [{"cluster": "shop"}], "to": to},
    });
    until("the other definition is served", LIMIT, async || {
        world.cluster.apply(&newer.to_string()).await.ok();
        let shown = world
            .cluster
            .kubectl(["get", "idtg", "newer", "-o", "jsonpath={.spec.from[0].cluster}"])
            .await;
        Ok(shown.ok().filter(|shown| shown == "shop"))
    })
    .await
    .unwrap();
    world
        .run(&["audit", "-A"])
        .exits(1)
        .says("newer   spec    it cannot be decoded: unknown field `cluster`");
    world
        .run(&["can", "odd", "-n", "shop"])
        .exits(0)
        .says("IdTokenGrant odd allows")
        .warns("IdTokenGrant newer is left out");
    world.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_without_rights_get_an_error_that_says_so() {
    let world = World::start().await;
    world.install().await;
    world.request("shop", "billing", "").await;
    let grant = format!(
        "{{apiVersion: idtoken.dev/v1alpha1, kind: IdTokenGrant, metadata: {{name: by-label}}, spec: {{from: [{{namespaceSelector: \
         {{matchLabels: {{team: shop}}}}}}], to: [{{serviceAccounts: [{CALLER}], audiences: ['{AUDIENCE}']}}]}}}}"
    );
    world.cluster.apply(&grant).await.unwrap();
    let (requests, grants) = ("idtokenrequests.idtoken.dev", "idtokengrants.idtoken.dev");

    let jane = world.user("jane", &[("get", requests, false)]).await;
    let jane = |args: &[&str]| world.run_as(&jane, &[args, &["-n", "shop"]].concat());
    jane(&["can", "billing"])
        .exits(1)
        .warns("error: you may not list idtokengrants")
        .warns("ask a cluster administrator");
    jane(&["grant", "billing"])
        .exits(0)
        .warns("unknown whether a grant already allows it")
        .says("name: shop.billing");
    jane(&["explain", "billing"])
        .exits(1)
        .says("you may not read Secret billing");
    jane(&["renew", "billing"])
        .exits(1)
        .warns("you may not patch idtokenrequests");
    jane(&["renew", "--all"])
        .exits(1)
        .warns("you may not list idtokenrequests");

    let joe = world
        .user("joe", &[("get", requests, false), ("list", grants, true)])
        .await;
    let joe = |args: &[&str]| world.run_as(&joe, &[args, &["-n", "shop"]].concat());
    joe(&["can", "billing"])
        .exits(1)
        .warns("IdTokenGrant by-label may allow it, depending on labels of namespace shop");
    joe(&["grant", "billing"])
        .exits(0)
        .warns("by-label may already allow it, depending on labels of the namespace");
    world
        .run(&["can", "billing", "-n", "shop"])
        .exits(0)
        .says("by-label");

    let kubeconfig = world.admin.to_str().unwrap();
    let elsewhere = plugin(world.cluster.dir());
    let named = |args: &[&str]| {
        let mut command = Command::new(elsewhere.get_program());
        clean(&mut command, world.cluster.dir());
        finish(
            command
                .args(["can", "billing", "-n", "shop", "--kubeconfig", kubeconfig])
                .args(args),
        )
    };
    named(&["--context", "testenv"]).exits(0);
    named(&["--context", "nowhere"])
        .exits(1)
        .warns("error: the kubeconfig");

    // kubectl finds the plugin in PATH.
    let folder = Path::new(env!("CARGO_BIN_EXE_kubectl-idtoken")).parent().unwrap();
    let mut kubectl = world.cluster.kubectl_command(&world.admin);
    kubectl
        .args(["idtoken", "can", "billing", "-n", "shop"])
        .env("PATH", folder);
    finish(&mut kubectl).exits(0).says("yes:");
    world.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn explained_and_renewed_with_the_operator() {
    let google = google().await;
    let world = World::start().await;
    world.install().await;
    world.request("shop", "billing", "").await;
    world
        .run(&["explain", "billing", "-n", "shop"])
        .exits(1)
        .says("No conditions yet")
        .says("none: there is no Secret billing")
        .says("The operator has not reconciled the request yet");

    let operator = start_operator(&world.cluster, &google);
    world
        .until("the request is denied", "billing", |object| {
            is(object, "Ready", "False")
        })
        .await;
    world
        .run(&["explain", "billing", "-n", "shop"])
        .exits(1)
        .says("NotGranted")
        .says("The grant: kubectl idtoken grant billing -n shop");
    let waited = world
        .run(&["renew", "billing", "-n", "shop", "--wait", "--timeout=2s"])
        .exits(1);
    assert!(waited.stderr.contains("NotGranted"), "{}", waited.stderr);

    let grant = world.run(&["grant", "billing", "-n", "shop"]).exits(0).stdout;
    world.cluster.apply(&grant).await.unwrap();
    world
        .until("the request is ready", "billing", |object| {
            is(object, "Ready", "True")
        })
        .await;
    let explained = world
        .run(&["explain", "billing", "-n", "shop"])
        .exits(0)
        .says("Allowed by:       shop.billing")
        .says("valid for another")
        .says("Differences from the spec:\n  none")
        .says("Next:\n  none");
    let json = world
        .run(&["explain", "billing", "-n", "shop", "-o", "json"])
        .exits(0);
    for outcome in [&explained, &json] {
        assert!(!outcome.stdout.contains("eyJ"), "{}", outcome.stdout);
    }
    let json = json.json();
    assert_eq!(
        (&json["token"]["claims"]["aud"], &json["token"]["expired"]),
        (&AUDIENCE.into(), &false.into())
    );
    assert_eq!(json["differences"], serde_json::json!([]));

    let before = google.mint_count();
    world
        .run(&["renew", "billing", "-n", "shop", "--wait", "--timeout=2m"])
        .exits(0)
        .says("billing renewed");
    assert_eq!(google.mint_count(), before + 1);
    let status = world.object("billing").await.status.unwrap();
    assert!(status.last_handled_renew_request.is_some());

    world.request("shop", "second", "").await;
    let grant = world
        .run(&["grant", "second", "-n", "shop"])
        .exits(0)
        .warns("shop.billing already allows it")
        .stdout;
    assert!(grant.contains("name: shop.second"), "{grant}");
    world
        .until("the second is ready", "second", |object| {
            is(object, "Ready", "True")
        })
        .await;
    let all = world
        .run(&["renew", "--all", "-n", "shop", "--wait", "--timeout=2m"])
        .exits(0);
    assert_eq!(all.stdout.matches(" renewed\n").count(), 2, "{}", all.stdout);
    world
        .run(&["renew", "--all", "-n", "other"])
        .exits(0)
        .warns("there is no IdTokenRequest in namespace other");
    drop(operator);

    // Without the operator, the Secret stays as it is.
    let patch = r#"{"spec":{"audience":"https://changed.run.app"}}"#;
    world
        .cluster
        .kubectl([
            "patch",
            "idtr",
            "billing",
            "-n",
            "shop",
            "--type=merge",
            "-p",
            patch,
        ])
        .await
        .unwrap();
    world
        .run(&["explain", "billing", "-n", "shop"])
        .exits(1)
        .says("aud: should be https://changed.run.app, is https://billing-x.run.app")
        .says("status.observedGeneration: should be 2, is 1");
    world.cluster.stop().await.unwrap();
}
