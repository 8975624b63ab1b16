//! What the API server itself refuses, keeps and shows.

use anyhow::{Context, Result};
use idtoken_operator::api::v1alpha1::{IdTokenGrant, IdTokenRequest};
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use serde_json::{Value, json};

use crate::common::{AUDIENCE, CALLER, Setup, World, has};

async fn without_operator() -> Result<World> {
    let world = World::with(Setup {
        operator: false,
        ..Setup::default()
    })
    .await?;
    world.namespace("shop").await?;
    Ok(world)
}

fn requests(world: &World) -> Api<DynamicObject> {
    Api::namespaced_with(
        world.client.clone(),
        "shop",
        &ApiResource::erase::<IdTokenRequest>(&()),
    )
}

fn object(kind: &str, name: &str, spec: &Value) -> Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    }))?)
}

/// `base` with the fields of `changes` set, or taken away where they are null.
fn with(base: &Value, changes: &Value) -> Value {
    let mut spec = base.clone();
    for (key, value) in changes.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(spec.as_object_mut().and_then(|spec| spec.remove(key))),
            value => spec[key] = value.clone(),
        }
    }
    spec
}

/// Asks for each `(changes, field)` of `cases`, and returns those that were not refused with a message that names the field.
async fn accepted(
    api: &Api<DynamicObject>,
    kind: &str,
    base: &Value,
    cases: &[(Value, &str)],
) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (n, (changes, field)) in cases.iter().enumerate() {
        let object = object(kind, &format!("case-{n}"), &with(base, changes))?;
        match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.code == 422 && status.message.contains(field) => {}
            Err(error) => wrong.push(format!("{changes}: not about {field}: {error}")),
            Ok(_) => wrong.push(format!("{changes}: accepted")),
        }
    }
    Ok(wrong)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_requests_are_refused_by_field() -> Result<()> {
    let world = without_operator().await?;
    let api = requests(&world);
    let base = json!({"audience": AUDIENCE, "serviceAccount": CALLER});
    let target = |target: Value| json!({"target": target});
    let template = |template: Value| json!({"target": {"template": template}});
    let many = |count: usize| {
        let entries = (0..count).map(|n| (format!("k{n}"), json!("v")));
        Value::Object(entries.collect())
    };
    // What is almost wrong is right: else a schema that refuses everything would pass.
    for (name, changes) in [
        ("base", json!({})),
        ("unique-id", json!({"serviceAccount": "123456789012345678901"})),
        (
            "client-id",
            json!({"audience": "123-abc.apps.googleusercontent.com"}),
        ),
        ("longest", json!({"audience": "a".repeat(2048)})),
        (
            "delegates",
            json!({"source": {"impersonation": {"delegates": [CALLER, CALLER, CALLER, "123"]}}}),
        ),
        ("lead", json!({"renewBefore": "1h30m0.5s"})),
        (
            "node",
            json!({"serviceAccount": null, "source": {"metadataServer": {}}}),
        ),
        (
            "largest",
            template(json!({"data": {"a": "😀".repeat(8192), "b": "😀".repeat(7168)}})),
        ),
        (
            "basic",
            template(json!({"type": "kubernetes.io/basic-auth", "data": many(32)})),
        ),
    ] {
        let created = api
            .create(
                &PostParams::default(),
                &object("IdTokenRequest", name, &with(&base, &changes))?,
            )
            .await;
        created.with_context(|| format!("{name}: {changes}"))?;
    }
    let federation = json!({"serviceAccountRef": {"name": "billing"}});
    let cases = [
        (json!({"audience": null}), "spec.audience"),
        (json!({"audience": ""}), "spec.audience"),
        (json!({"audience": "https://a\nb"}), "spec.audience"),
        (json!({"audience": "https://a b"}), "spec.audience"),
        (json!({"audience": "https://a\n"}), "spec.audience"),
        (json!({"audience": "https://ä"}), "spec.audience"),
        (json!({"audience": "a".repeat(2049)}), "spec.audience"),
        (json!({"serviceAccount": null}), "spec.serviceAccount"),
        (
            json!({"serviceAccount": null, "source": {"impersonation": {}}}),
            "spec.serviceAccount",
        ),
        (json!({"serviceAccount": ""}), "spec.serviceAccount"),
        (json!({"serviceAccount": "caller"}), "spec.serviceAccount"),
        (
            json!({"serviceAccount": "Caller@p.iam.gserviceaccount.com"}),
            "spec.serviceAccount",
        ),
        (json!({"serviceAccount": "a@b/../c"}), "spec.serviceAccount"),
        (
            json!({"serviceAccount": "a@b:generateAccessToken"}),
            "spec.serviceAccount",
        ),
        (json!({"serviceAccount": "a@b.com\n"}), "spec.serviceAccount"),
        (json!({"serviceAccount": "-a@b.com"}), "spec.serviceAccount"),
        (json!({"serviceAccount": "$(id)@b.com"}), "spec.serviceAccount"),
        (json!({"source": {}}), "spec.source"),
        (
            json!({"source": {"webhook": {"url": "https://x"}}}),
            "spec.source",
        ),
        (
            json!({"source": {"impersonation": {}, "metadataServer": {}}}),
            "spec.source",
        ),
        (
            json!({"source": {"impersonation": {"delegates": [CALLER, CALLER, CALLER, CALLER, CALLER]}}}),
            "spec.source.impersonation.delegates",
        ),
        (
            json!({"source": {"impersonation": {"delegates": ["x"]}}}),
            "spec.source.impersonation.delegates",
        ),
        (
            json!({"source": {"federation": {}}}),
            "spec.source.federation.serviceAccountRef",
        ),
        (
            json!({"source": {"federation": with(&federation, &json!({"provider": "projects/1"}))}}),
            "spec.source.federation.provider",
        ),
        (
            json!({"source": {"federation": {"serviceAccountRef": {"name": "Billing"}}}}),
            "spec.source.federation.serviceAccountRef.name",
        ),
        (json!({"renewBefore": "5"}), "spec.renewBefore"),
        (json!({"renewBefore": "-5m"}), "spec.renewBefore"),
        (json!({"renewBefore": "1y"}), "spec.renewBefore"),
        (json!({"renewBefore": ""}), "spec.renewBefore"),
        (json!({"renewBefore": "1h ago"}), "spec.renewBefore"),
        (json!({"renewBefore": 300}), "spec.renewBefore"),
        (json!({"includeEmail": "yes"}), "spec.includeEmail"),
        (json!({"suspend": "true"}), "spec.suspend"),
        (target(json!({"name": "Billing"})), "spec.target.name"),
        (target(json!({"name": "../other/billing"})), "spec.target.name"),
        (target(json!({"key": "a/b"})), "spec.target.key"),
        (target(json!({"key": ""})), "spec.target.key"),
        (
            target(json!({"creationPolicy": "Merge"})),
            "spec.target.creationPolicy",
        ),
        (
            template(json!({"type": "kubernetes.io/service-account-token"})),
            "spec.target.template.type",
        ),
        (
            template(json!({"type": "kubernetes.io/tls"})),
            "spec.target.template.type",
        ),
        (template(json!({"type": "xOpaque"})), "spec.target.template.type"),
        (template(json!({"data": many(33)})), "spec.target.template.data"),
        (
            template(json!({"data": {"a": "x".repeat(8192), "b": "x".repeat(8192)}})),
            "at most 16384 characters",
        ),
        (
            template(json!({"data": {"a": "😀".repeat(8192), "b": "😀".repeat(8192)}})),
            "at most 16384 characters",
        ),
        (
            template(json!({"metadata": {"annotations": {"a".repeat(16384): ""}}})),
            "spec",
        ),
        (
            json!({"audience": "a".repeat(2048), "target": {"template": {
                "data": {"a": "x".repeat(8192)}, "metadata": {"annotations": {"a": "x".repeat(4096), "b": "x".repeat(4096)}},
            }}}),
            "at most 16384 characters",
        ),
        (
            template(json!({"data": {"a": "x".repeat(8193)}})),
            "spec.target.template.data",
        ),
        (
            template(json!({"metadata": {"labels": many(33)}})),
            "spec.target.template.metadata.labels",
        ),
        (
            template(json!({"metadata": {"labels": {"a": "x".repeat(64)}}})),
            "spec.target.template.metadata.labels",
        ),
        (
            template(json!({"metadata": {"annotations": many(33)}})),
            "spec.target.template.metadata.annotations",
        ),
    ];
    let wrong = accepted(&api, "IdTokenRequest", &base, &cases).await?;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_grants_are_refused_by_field() -> Result<()> {
    let world = without_operator().await?;
    let api: Api<DynamicObject> =
        Api::all_with(world.client.clone(), &ApiResource::erase::<IdTokenGrant>(&()));
    let to = json!({"serviceAccounts": [CALLER], "audiences": [AUDIENCE]});
    let base = json!({"from": [{"namespace": "shop"}], "to": [to]});
    let changed = |changes: Value| json!({"to": [with(&to, &changes)]});
    for (name, changes) in [
        ("base", json!({})),
        ("everyone", json!({"from": [{"allNamespaces": true}]})),
        (
            "domain",
            changed(json!({"serviceAccounts": ["*@p.iam.gserviceaccount.com", "123"]})),
        ),
        (
            "paths",
            changed(
                json!({"audiences": ["https://api.example.com/*", "https://api.example.com/v1*", "http://h:8080/*"]}),
            ),
        ),
        (
            "sources",
            changed(json!({"sources": ["Impersonation", "MetadataServer"], "delegates": [CALLER]})),
        ),
    ] {
        let created = api
            .create(
                &PostParams::default(),
                &object("IdTokenGrant", name, &with(&base, &changes))?,
            )
            .await;
        created.with_context(|| format!("{name}: {changes}"))?;
    }
    let audience = |audience: &str| (changed(json!({"audiences": [audience]})), "spec.to[0].audiences");
    let account = |account: &str| {
        (
            changed(json!({"serviceAccounts": [account]})),
            "spec.to[0].serviceAccounts",
        )
    };
    let cases = [
        audience("*"),
        audience("https://*"),
        audience("https://api.example.com*"),
        audience("https://*.example.com/"),
        audience("https://api.example.com/*/x"),
        audience("https://api.example.com/*x"),
        audience("https://api.example.com/**"),
        audience("123*.apps.googleusercontent.com"),
        audience("https:///*"),
        audience("https://a b/"),
        audience(""),
        account("*"),
        account("*@*"),
        account("call*@p.iam.gserviceaccount.com"),
        account("caller@*.iam.gserviceaccount.com"),
        account("**@p.iam.gserviceaccount.com"),
        account("caller@p.iam.gserviceaccount.com\n"),
        (
            changed(json!({"delegates": ["*@p.iam.gserviceaccount.com"]})),
            "spec.to[0].delegates",
        ),
        (changed(json!({"sources": ["Federation"]})), "spec.to[0].sources"),
        (changed(json!({"sources": []})), "spec.to[0].sources"),
        (
            changed(json!({"sources": ["Developer", "Developer"]})),
            "spec.to[0].sources",
        ),
        (changed(json!({"audiences": []})), "spec.to[0].audiences"),
        (changed(json!({"audiences": null})), "spec.to[0].audiences"),
        (
            changed(json!({"serviceAccounts": null})),
            "spec.to[0].serviceAccounts",
        ),
        (json!({"to": []}), "spec.to"),
        (json!({"to": null}), "spec.to"),
        (json!({"from": []}), "spec.from"),
        (json!({"from": null}), "spec.from"),
        (json!({"from": [{}]}), "spec.from[0]"),
        (
            json!({"from": [{"namespaceSelector": {}}]}),
            "allNamespaces: true",
        ),
        (
            json!({"from": [{"namespaceSelector": {"matchlabels": {"team": "shop"}}}]}),
            "a selector needs a requirement",
        ),
        (
            json!({"from": [{"allNamespaces": false}]}),
            "spec.from[0].allNamespaces",
        ),
        (
            json!({"from": [{"namespace": "shop", "allNamespaces": true}]}),
            "spec.from[0]",
        ),
        (
            json!({"from": [{"namespace": "shop", "namespaceSelector": {}}]}),
            "spec.from[0]",
        ),
        (json!({"from": [{"namespace": null}]}), "exactly one of namespace"),
        (
            json!({"from": [{"namespaceSelector": {"matchLabels": {"team": "shop", "tier": null}}}]}),
            "a label needs a value",
        ),
        (
            json!({"from": [{"namespaceSelector": {"matchLabels": {"tier": null},
                "matchExpressions": [{"key": "team", "operator": "Exists"}]}}]}),
            "a label needs a value",
        ),
        (
            json!({"from": [{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": [null]}]}}]}),
            "values[0]",
        ),
        (changed(json!({"audiences": [null]})), "spec.to[0].audiences[0]"),
        (changed(json!({"delegates": [null]})), "spec.to[0].delegates[0]"),
        (json!({"from": [{"namespace": "*"}]}), "spec.from[0].namespace"),
        (json!({"from": [{"namespace": ""}]}), "spec.from[0].namespace"),
    ];
    let wrong = accepted(&api, "IdTokenGrant", &base, &cases).await?;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_spec_stays_as_it_was_written() -> Result<()> {
    let world = without_operator().await?;
    let api = requests(&world);
    for (name, spec) in [
        ("short", json!({"audience": AUDIENCE, "serviceAccount": CALLER})),
        (
            "long",
            json!({
                "audience": AUDIENCE, "serviceAccount": CALLER, "includeEmail": false, "includeOrganizationNumber": true,
                "source": {"impersonation": {"delegates": []}}, "renewBefore": "1h0m", "suspend": false,
                "target": {
                    "name": "b", "key": "k", "creationPolicy": "Orphan",
                    "template": {"type": "Opaque", "metadata": {"labels": {"a": ""}, "annotations": {}}, "data": {"h": "$(token)"}},
                },
            }),
        ),
    ] {
        api.create(&PostParams::default(), &object("IdTokenRequest", name, &spec)?)
            .await?;
        let read = api.get(name).await?;
        assert_eq!(read.data["spec"], spec);
        // kstatus takes that for "in progress".
        assert_eq!(read.data["status"], json!({"observedGeneration": -1}));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_schema_cannot_say_a_condition_does() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let template = |data: Value| json!({"target": {"template": {"data": data}}});
    let labels = json!({"target": {"template": {"metadata": {"labels": {"idtoken.dev/request": "x"}}}}});
    let federation = json!({"source": {"federation": {"serviceAccountRef": {"name": "billing"}}}});
    for (name, more, reason, part) in [
        (
            "federation",
            federation,
            "InvalidSpec",
            "spec.source.federation.provider",
        ),
        (
            "developer",
            json!({"source": {"developer": {}}, "serviceAccount": null}),
            "SourceUnavailable",
            "--allow-developer-source",
        ),
        (
            "unknown",
            template(json!({"h": "$(password)"})),
            "InvalidSpec",
            "spec.target.template.data[h]",
        ),
        (
            "same",
            template(json!({"token": "x"})),
            "InvalidSpec",
            "spec.target.template.data[token]",
        ),
        ("reserved", labels, "InvalidSpec", "idtoken.dev/request"),
    ] {
        world.request("shop", name, more).await?;
        let object = world
            .until("shop", name, "it is reported", |object| {
                has(object, "Ready", "False", reason)
            })
            .await?;
        assert!(has(&object, "Stalled", "True", reason));
        let message = crate::common::condition(&object, "Ready")
            .map(|ready| ready.message.clone())
            .unwrap_or_default();
        assert!(message.contains(part), "{part} is missing in: {message}");
    }
    assert_eq!(world.google.calls(), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_the_state() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let shown = world.cluster.kubectl(["get", "idtr", "-n", "shop"]).await?;
    let lines: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        ["NAME", "READY", "REASON", "AUDIENCE", "EXPIRES", "RENEWS", "AGE"]
    );
    assert_eq!(lines[1][..4], ["billing", "True", "Issued", AUDIENCE]);
    assert_eq!(lines[1].len(), 7, "{shown}");
    let wide = world
        .cluster
        .kubectl(["get", "idtr", "-n", "shop", "-o", "wide"])
        .await?;
    for part in [
        "SERVICE ACCOUNT",
        "SOURCE",
        "SECRET",
        "MESSAGE",
        CALLER,
        "Impersonation",
    ] {
        assert!(wide.contains(part), "{part} is missing in\n{wide}");
    }
    let grants = world.cluster.kubectl(["get", "idtg"]).await?;
    for part in [
        "NAMESPACES",
        "SERVICE ACCOUNTS",
        "shop",
        "*@p.iam.gserviceaccount.com",
    ] {
        assert!(grants.contains(part), "{part} is missing in\n{grants}");
    }
    let explained = world
        .cluster
        .kubectl(["explain", "idtokenrequest.spec.target.template.data"])
        .await?;
    assert!(explained.contains("$(token)"), "{explained}");
    Ok(())
}
