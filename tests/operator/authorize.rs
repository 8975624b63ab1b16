//! Who may have a token: grants, as objects and in a file.

use std::time::Duration;

use anyhow::Result;
use idtoken_operator::api::crds;
use idtoken_operator::api::v1alpha1::IdTokenGrant;
use idtoken_testenv::until;
use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::json;

use crate::common::{AUDIENCE, CALLER, LIMIT, Setup, World, condition, has, is_ready, token};

fn denied(object: &idtoken_operator::api::v1alpha1::IdTokenRequest) -> bool {
    has(object, "Ready", "False", "NotGranted")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_for_without_a_grant() -> Result<()> {
    let world = World::new().await?;
    world.namespace("shop").await?;
    world.request("shop", "billing", json!({})).await?;
    let object = world.until("shop", "billing", "it is denied", denied).await?;
    let message = condition(&object, "Ready")
        .map(|ready| ready.message.clone())
        .unwrap_or_default();
    for part in [
        CALLER,
        AUDIENCE,
        "namespace shop",
        "kubectl idtoken grant billing -n shop",
    ] {
        assert!(message.contains(part), "{part} is missing in: {message}");
    }
    assert_eq!(world.google.calls(), []);
    assert!(world.secrets("shop").get_opt("billing").await?.is_none());

    let granted = Timestamp::now();
    world.grant("shop").await?;
    world.ready("shop", "billing").await?;
    let waited = Timestamp::now().duration_since(granted);
    assert!(waited.as_secs() < 20, "a new grant took {waited} to be used");
    assert_eq!(world.google.mint_count(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_allows_what_it_names_and_no_more() -> Result<()> {
    let world = World::new().await?;
    world.namespace("shop").await?;
    world.namespace("other").await?;
    let grant = "apiVersion: idtoken.dev/v1alpha1
kind: IdTokenGrant
metadata: {name: narrow}
spec:
  from: [{namespaceSelector: {matchLabels: {grants.idtoken.dev/billing: allowed}}}]
  to: [{serviceAccounts: [caller@p.iam.gserviceaccount.com], audiences: ['https://billing-x.run.app/v1/*']}]
";
    world.cluster.apply(grant).await?;
    let allowed = json!({"audience": format!("{AUDIENCE}/v1/a")});
    world.request("shop", "allowed", allowed.clone()).await?;
    world
        .request("shop", "audience", json!({"audience": AUDIENCE}))
        .await?;
    world.request("shop", "account", json!({"audience": format!("{AUDIENCE}/v1/a"), "serviceAccount": "locked@p.iam.gserviceaccount.com"})).await?;
    let delegates = json!({"audience": format!("{AUDIENCE}/v1/a"), "source": {"impersonation": {"delegates": ["d@p.iam.gserviceaccount.com"]}}});
    world.request("shop", "delegates", delegates).await?;
    world.request("other", "allowed", allowed).await?;
    // The label is not there yet.
    world.until("shop", "allowed", "it is denied", denied).await?;
    world
        .cluster
        .kubectl(["label", "namespace", "shop", "grants.idtoken.dev/billing=allowed"])
        .await?;
    world.ready("shop", "allowed").await?;
    for (namespace, name) in [
        ("shop", "audience"),
        ("shop", "account"),
        ("shop", "delegates"),
        ("other", "allowed"),
    ] {
        world.until(namespace, name, "it is denied", denied).await?;
    }
    assert_eq!(world.asked(), 1);
    // Taking the label away takes the right away: the next renewal is denied.
    world
        .cluster
        .kubectl(["label", "namespace", "shop", "grants.idtoken.dev/billing-"])
        .await?;
    world.renew("shop", "allowed", "now").await?;
    world
        .until("shop", "allowed", "the renewal is denied", |object| {
            has(object, "RenewalFailing", "True", "NotGranted") && has(object, "Ready", "True", "")
        })
        .await?;
    assert_eq!(world.asked(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_outlives_its_grant_and_is_not_renewed() -> Result<()> {
    let world = World::with(Setup::lifetime(16)).await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let before = world.secret("shop", "billing").await?;
    let minted = world.google.mint_count();
    world.revoke("shop").await?;
    let object = world
        .until("shop", "billing", "the renewal is denied", |object| {
            has(object, "RenewalFailing", "True", "NotGranted")
        })
        .await?;
    assert!(
        is_ready(&object),
        "not ready although the token is valid: {:?}",
        object.status
    );
    world
        .google
        .verify(&token(&world.secret("shop", "billing").await?))?;
    let object = world
        .until(
            "shop",
            "billing",
            "it is not ready once the token has ended",
            |object| has(object, "Ready", "False", ""),
        )
        .await?;
    assert!(denied(&object), "{:?}", object.status);
    let after = world.secret("shop", "billing").await?;
    assert!(
        world.google.verify(&token(&after)).is_err(),
        "not ready although the token is valid"
    );
    assert_eq!(before, after);
    assert_eq!(world.google.mint_count(), minted);
    // It comes back with the grant.
    world.google.set_lifetime(Duration::from_secs(3600));
    world.grant("shop").await?;
    world.ready("shop", "billing").await?;
    world.claims("shop", "billing").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants_come_from_a_file_too() -> Result<()> {
    let file = |namespace: &str| {
        format!(
            "- name: {namespace}s\n  from: [{{namespace: {namespace}}}]\n  to: [{{serviceAccounts: [{CALLER}], audiences: ['{AUDIENCE}']}}]\n"
        )
    };
    let world = World::with(Setup {
        grants_file: Some(file("shop")),
        ..Setup::default()
    })
    .await?;
    world.namespace("shop").await?;
    world.namespace("yard").await?;
    let object = world.issued("shop", "billing", json!({})).await?;
    let grant = object.status.and_then(|status| status.grant);
    let grant = grant.map(|grant| (grant.name, grant.uid));
    assert_eq!(grant, Some(("file:shops".to_owned(), None)));
    world.request("yard", "billing", json!({})).await?;
    world.until("yard", "billing", "it is denied", denied).await?;

    // One that cannot be read changes nothing.
    std::fs::write(world.grants_file(), "- name: broken\n  form: []\n")?;
    until("the broken file is reported", LIMIT, async || {
        Ok(world
            .operator_log()
            .contains("keeping the previous grants")
            .then_some(()))
    })
    .await?;
    world.issued("shop", "second", json!({})).await?;
    // Nor does a misspelt selector, which would be one of everything without the unknown field.
    let misspelt = file("yard").replace(
        "namespace: yard",
        "namespaceSelector: {matchlabels: {team: yard}}",
    );
    std::fs::write(world.grants_file(), misspelt)?;
    until("the misspelt file is reported", LIMIT, async || {
        Ok(world
            .operator_log()
            .contains("unknown field `matchlabels`")
            .then_some(()))
    })
    .await?;
    let ready = world.running()?.get("/readyz?verbose").await?.text().await?;
    assert!(ready.contains("[+]caches ok"), "{ready}");
    assert!(
        ready.contains("[-]grants-file is no valid list of grants since 20"),
        "{ready}"
    );
    let since = world
        .running()?
        .metric("idtoken_grants_file_failing_since_timestamp_seconds")
        .await?;
    assert!(since > 1e9, "{since}");
    world.until("yard", "billing", "it is denied", denied).await?;

    std::fs::write(world.grants_file(), file("yard"))?;
    world.ready("yard", "billing").await?;
    let ready = world.running()?.get("/readyz?verbose").await?.text().await?;
    assert!(ready.contains("[+]grants-file ok"), "{ready}");
    world.request("shop", "third", json!({})).await?;
    world.until("shop", "third", "it is denied", denied).await?;
    assert_eq!(world.google.mint_count(), 3);
    Ok(())
}

/// The definition of IdTokenGrant of a version before this one, whose selector is any of Kubernetes'.
fn older_definition() -> Result<String> {
    let mut crd = serde_json::to_value(&crds()[1])?;
    let version = &mut crd["spec"]["versions"][0];
    let from = &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["from"]["items"];
    let namespace = from["properties"]["namespace"].clone();
    let selector = json!({"type": "object", "properties": {
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
        "matchExpressions": {"type": "array", "items": {"type": "object", "properties": {
            "key": {"type": "string"}, "operator": {"type": "string"}, "values": {"type": "array", "items": {"type": "string"}},
        }}},
    }});
    *from = json!({"type": "object", "properties": {"namespace": namespace, "namespaceSelector": selector}});
    // What this version cannot decode.
    let to = &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["to"]["items"];
    to["properties"]["sources"]["items"] = json!({"type": "string"});
    Ok(crd.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_invalid_grants_nothing_and_says_so() -> Result<()> {
    let world = World::with(Setup {
        operator: false,
        ..Setup::default()
    })
    .await?;
    world.namespace("shop").await?;
    world.cluster.apply(&older_definition()?).await?;
    let to = format!("[{{serviceAccounts: [{CALLER}], audiences: ['{AUDIENCE}']}}]");
    let grant = |name: &str, from: &str, to: &str| {
        format!(
            "---\napiVersion: idtoken.dev/v1alpha1\nkind: IdTokenGrant\nmetadata: {{name: {name}}}\nspec: {{from: {from}, to: {to}}}\n"
        )
    };
    let stored = [
        // What the API server keeps of a misspelt selector, from a client that does not ask for validation.
        grant("misspelt", "[{namespaceSelector: {matchlabels: {team: shop}}}]", &to),
        grant("empty", "[{namespaceSelector: {}}, {namespace: yard}]", &to),
        grant("none", "[{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: []}]}}]", &to),
        grant(
            "newer",
            "[{namespace: shop}]",
            &format!("[{{serviceAccounts: [{CALLER}], audiences: ['{AUDIENCE}'], sources: [Impersonation, Other]}}]"),
        ),
    ]
    .concat();
    let path = world.cluster.dir().join("stored.yaml");
    std::fs::write(&path, stored)?;
    let path = path.display().to_string();
    world
        .cluster
        .kubectl(["apply", "--validate=false", "-f", &path])
        .await?;
    // The definition of this version refuses some of them, and takes the status of all.
    world.cluster.apply(&serde_json::to_string(&crds()[1])?).await?;
    world.request("shop", "billing", json!({})).await?;
    world.start_operator().await?;
    world.until("shop", "billing", "it is denied", denied).await?;
    let grants: Api<DynamicObject> =
        Api::all_with(world.client.clone(), &ApiResource::erase::<IdTokenGrant>(&()));
    for (name, reason, part) in [
        ("misspelt", "EmptySelector", "spec.from[0] grants nothing"),
        ("empty", "EmptySelector", "allNamespaces: true"),
        ("none", "InvalidSpec", "the operator of team needs values"),
        ("newer", "InvalidSpec", "unknown variant `Other`"),
    ] {
        until(&format!("{name} says so"), LIMIT, async || {
            let status = grants.get(name).await?.data["status"].clone();
            let stalled = &status["conditions"][0];
            let says = stalled["type"] == "Stalled"
                && stalled["status"] == "True"
                && stalled["reason"] == reason
                && stalled["message"]
                    .as_str()
                    .is_some_and(|message| message.contains(part));
            Ok(says.then_some(()))
        })
        .await?;
    }
    let operator = world.running()?;
    assert_eq!(
        operator
            .metric(r#"idtoken_invalid_grants{origin="object"}"#)
            .await?,
        4.0
    );
    assert_eq!(operator.metric(r#"idtoken_grants{origin="object"}"#).await?, 3.0);
    let shown = world.cluster.kubectl(["get", "idtg", "empty"]).await?;
    assert!(
        shown.contains("PROBLEM") && shown.contains("EmptySelector"),
        "{shown}"
    );
    assert_eq!(world.google.calls(), []);

    // What is corrected grants, and says nothing any more.
    let all = json!({"spec": {"from": [{"allNamespaces": true}]}});
    grants
        .patch("misspelt", &PatchParams::default(), &Patch::Merge(all))
        .await?;
    world.ready("shop", "billing").await?;
    until("the condition is gone", LIMIT, async || {
        let status = grants.get("misspelt").await?.data["status"].clone();
        Ok((status.get("conditions").is_none() && status["allowedRequests"] == 1).then_some(()))
    })
    .await?;
    // The watch has shown each grant again with the status that was written, and nothing was logged again.
    let reports = world.operator_log().matches("invalid grant: ").count();
    assert_eq!(reports, 4, "{}", world.operator_log());
    Ok(())
}
