//! Operators that share a cluster: by namespaces and by labels of requests.

use anyhow::Result;
use idtoken_emulator::Endpoint;
use idtoken_testenv::until;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::common::{AUDIENCE, CALLER, LIMIT, Setup, World, condition, config, has, of, token};

fn flags(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaced_mode_reads_nothing_cluster_wide() -> Result<()> {
    let grants = json!([
        {"name": "both", "from": [{"namespace": "shop"}, {"namespace": "farm"}, {"namespace": "other"}],
         "to": [{"serviceAccounts": [CALLER], "audiences": [AUDIENCE]}]},
    ]);
    let world = World::with(Setup {
        operator: false,
        flags: flags(&["--namespace=shop", "--namespace", "farm"]),
        grants_file: Some(grants.to_string()),
        ..Setup::default()
    })
    .await?;
    for namespace in ["shop", "farm", "other"] {
        world.namespace(namespace).await?;
    }
    world.request("shop", "early", json!({})).await?;
    world.request("other", "elsewhere", json!({})).await?;
    let start = world.mark().await?;
    world.start_operator().await?;
    world.ready("shop", "early").await?;
    let farm = world.issued("farm", "late", json!({})).await?;
    let grant = farm
        .status
        .and_then(|status| status.grant)
        .map(|grant| grant.name);
    assert_eq!(grant.as_deref(), Some("file:both"));
    // Both caches follow: what is taken away comes back, without a mint.
    world
        .meddle(
            "farm",
            "late",
            json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}}),
        )
        .await?;
    world
        .wait("the label is put back", async || {
            let labels = world.secret("farm", "late").await?.metadata.labels;
            Ok(labels.is_some_and(|all| all["app.kubernetes.io/managed-by"] == "idtoken-operator"))
        })
        .await?;
    assert_eq!(world.google.mint_count(), 2);
    // The way to a grant is another one here.
    world
        .request("farm", "denied", json!({"audience": "https://other.example.com"}))
        .await?;
    let denied = world
        .until("farm", "denied", "it is denied", |object| {
            has(object, "Ready", "False", "NotGranted")
        })
        .await?;
    let message = condition(&denied, "Ready").map(|ready| ready.message.as_str());
    assert!(
        message.is_some_and(|message| message.contains("--grants-file")),
        "{message:?}"
    );
    assert!(world.secret("other", "elsewhere").await.is_err());

    world.mark().await?;
    let calls = world.calls_since(start)?;
    let wide: Vec<_> = calls.iter().filter(|call| call.namespace.is_empty()).collect();
    assert!(wide.is_empty(), "{wide:#?}");
    assert!(calls.iter().all(|call| call.namespace != "other"), "{calls:#?}");
    Ok(())
}

/// The operator's Role in `namespace` with its binding, without the rules about `without`.
fn role(namespace: &str, without: &str) -> Result<String> {
    let all: Vec<Value> = serde_saphyr::from_multiple(&config("rbac-namespaces.yaml")?)?;
    let mut found = Vec::new();
    for mut object in all {
        if object["metadata"]["namespace"] != "shop" {
            continue;
        }
        object["metadata"]["namespace"] = namespace.into();
        if let Some(rules) = object.get_mut("rules").and_then(Value::as_array_mut) {
            rules.retain(|rule| rule["resources"][0] != without);
        }
        found.push(object.to_string());
    }
    anyhow::ensure!(found.len() == 2, "{found:?}");
    Ok(found.join("\n---\n"))
}

/// Waits until `/readyz?verbose` and the metrics of a ready operator name exactly these namespaces as not served.
async fn not_served(world: &World, expected: &[&str]) -> Result<String> {
    let operator = world.running()?;
    until(&format!("not served: {expected:?}"), LIMIT, async || {
        let page = operator.get("/readyz?verbose").await?;
        let (status, text) = (page.status(), page.text().await?);
        let named = |text: &str, before: &str, after: char| -> Vec<String> {
            let names = text
                .lines()
                .filter_map(|line| line.strip_prefix(before)?.split(after).next());
            names.map(str::to_owned).collect()
        };
        let lines = named(&text, "[-]namespace ", ' ');
        let series = "idtoken_namespace_failing_since_timestamp_seconds{namespace=\"";
        let mut metrics = named(&operator.scrape().await?, series, '"');
        metrics.sort();
        Ok((status == 200 && lines == expected && metrics == expected).then_some(text))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_absent_or_lacks_rights_costs_the_others_nothing() -> Result<()> {
    let names = ["shop", "yard", "farm"];
    let from = names.map(|name| json!({"namespace": name}));
    let to = json!([{"serviceAccounts": [CALLER], "audiences": [AUDIENCE]}]);
    let world = World::with(Setup {
        operator: false,
        rbac: "rbac-namespaces.yaml",
        namespaces: &["shop", "yard"],
        flags: flags(&["--namespace=shop,yard,farm"]),
        grants_file: Some(json!([{"name": "all", "from": from, "to": to}]).to_string()),
        ..Setup::default()
    })
    .await?;
    world.start_operator().await?;
    for namespace in ["shop", "yard"] {
        world.issued(namespace, "first", json!({})).await?;
    }
    let text = not_served(&world, &["farm"]).await?;
    assert!(
        text.contains("[+]caches ok\n") && text.contains("cannot list resource"),
        "{text}"
    );
    let log = world.operator_log();
    let said = log
        .lines()
        .filter(|line| line.contains("the namespace is not served"));
    assert_eq!(said.count(), 1, "{log}");

    // Of yard, requests can be listed and Secrets cannot: which tokens its Secrets hold is not known, so none is asked for.
    world.stop_operator(false).await?;
    world.cluster.apply(&role("yard", "secrets")?).await?;
    world.start_operator().await?;
    not_served(&world, &["farm", "yard"]).await?;
    world.request("yard", "second", json!({})).await?;
    world.issued("shop", "second", json!({})).await?;
    assert_eq!(world.google.mint_count(), 3);
    let status = world.get("yard", "second").await?.status;
    let undecided = status.as_ref().is_none_or(|status| status.conditions.is_empty());
    assert!(undecided, "{status:?}");
    world.cluster.apply(&role("yard", "")?).await?;
    world.ready("yard", "second").await?;
    assert_eq!(world.google.mint_count(), 4);
    not_served(&world, &["farm"]).await?;

    // A list without the watch that follows it shows no change.
    world.stop_operator(false).await?;
    let listed = role("yard", "")?.replace("\"watch\"", "\"get\"");
    world.cluster.apply(&listed).await?;
    world.start_operator().await?;
    not_served(&world, &["farm", "yard"]).await?;
    world.cluster.apply(&role("yard", "")?).await?;
    not_served(&world, &["farm"]).await?;

    world.namespace("farm").await?;
    world.cluster.apply(&role("farm", "")?).await?;
    world.issued("farm", "first", json!({})).await?;
    not_served(&world, &[]).await?;
    assert_eq!(world.google.mint_count(), 5);

    // It terminates: Kubernetes deletes its Secrets, none can be created, and the rights in it go too.
    let terminate = ["delete", "namespace", "farm", "--wait=false"];
    world.cluster.kubectl(terminate).await?;
    world
        .secrets("farm")
        .delete("first", &DeleteParams::default())
        .await?;
    world.issued("shop", "third", json!({})).await?;
    let rights = ["delete", "rolebindings", "--all", "--namespace=farm"];
    world.cluster.kubectl(rights).await?;
    world.stop_operator(false).await?;
    world.start_operator().await?;
    not_served(&world, &["farm"]).await?;
    world.issued("yard", "third", json!({})).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_can_serve_none_of_its_namespaces_is_not_ready() -> Result<()> {
    let world = World::with(Setup {
        operator: false,
        rbac: "rbac-namespaces.yaml",
        namespaces: &["shop", "yard"],
        ..Setup::default()
    })
    .await?;
    let flags = flags(&["--namespace=farm,mall"]);
    let (google, config) = (world.google.address(), &world.kubeconfig);
    let operator = world.replica(google, config, &flags, &[]).await?;
    for name in ["farm", "mall"] {
        let series = format!("idtoken_namespace_failing_since_timestamp_seconds{{namespace=\"{name}\"}}");
        until("it is named", LIMIT, async || {
            Ok((operator.metric(&series).await? > 0.0).then_some(()))
        })
        .await?;
    }
    let page = operator.get("/readyz?verbose").await?;
    assert_eq!(page.status(), 503);
    let text = page.text().await?;
    assert!(text.contains("[-]namespace mall "), "{text}");
    world.namespace("mall").await?;
    world.cluster.apply(&role("mall", "")?).await?;
    operator.ready().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_share_a_namespace_without_a_fight() -> Result<()> {
    let world = World::with(Setup {
        operator: false,
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    let (google, config) = (world.google.address(), &world.kubeconfig);
    let a = world
        .replica(google, config, &flags(&["--selector=shard=a"]), &[])
        .await?;
    let b = world
        .replica(google, config, &flags(&["--selector", "shard!=a"]), &[])
        .await?;
    a.ready().await?;
    b.ready().await?;
    let start = world.mark().await?;
    let label = async |name: &str, shard: &str| {
        let patch = json!({"metadata": {"labels": {"shard": shard}}});
        world.change("shop", name, patch).await.map(drop)
    };
    world.issued("shop", "one", json!({})).await?;
    world.issued("shop", "two", json!({})).await?;
    let mark = |secret: &k8s_openapi::api::core::v1::Secret| {
        let labels = secret.metadata.labels.clone().unwrap_or_default();
        labels["idtoken.dev/shard"].clone()
    };
    let before = world.secret("shop", "one").await?;
    assert_eq!(b.metric("idtoken_requests{").await?, 2.0);
    assert_eq!(a.metric("idtoken_requests{").await?, 0.0);

    // A request that moves takes its token along.
    label("one", "a").await?;
    world
        .wait("the other shard has the Secret", async || {
            Ok(mark(&world.secret("shop", "one").await?) != mark(&before))
        })
        .await?;
    world
        .wait("both shards know", async || {
            let counts = (
                a.metric("idtoken_requests{").await?,
                b.metric("idtoken_requests{").await?,
            );
            Ok(counts == (1.0, 1.0))
        })
        .await?;
    assert!(token(&world.secret("shop", "one").await?) == token(&before));
    assert_eq!(world.google.mint_count(), 2);

    // Two requests of different shards for one Secret: who has it keeps it.
    let thief = json!({"target": {"name": "one"}});
    world.request("shop", "thief", thief).await?;
    world
        .until("shop", "thief", "the Secret is another request's", |request| {
            has(request, "Ready", "False", "SecretConflict")
        })
        .await?;
    world.renewed("shop", "one", "now").await?;
    let (_, claims) = world.claims("shop", "one").await?;
    assert_eq!(claims["aud"], AUDIENCE);
    world.mark().await?;
    let writes = world.writes_since(start)?;
    let patches = of(&writes, "patch", "secrets");
    assert_eq!(patches.len(), 2, "the move and the renewal: {patches:#?}");
    assert!(of(&writes, "delete", "secrets").is_empty());
    let asked = world.google.count(Endpoint::GenerateIdToken);
    assert!(asked <= 4, "{asked} calls for 3 tokens and a conflict");
    Ok(())
}
