//! Operators that share a cluster: by namespaces and by labels of requests.

use anyhow::Result;
use idtoken_emulator::Endpoint;
use serde_json::json;

use crate::common::{AUDIENCE, CALLER, Setup, World, condition, has, of, token};

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
