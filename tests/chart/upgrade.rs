//! From the chart and the operator of an earlier commit to these, and back. docs/upgrade-policy.md has the result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use idtoken_emulator::ServiceAccount;
use idtoken_testenv::until;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cluster::LIMIT;
use crate::helm::CHART;
use crate::run::{CALLER, OPERATOR, PROVIDER, Pod, RELEASE, World};

/// A folder with an earlier commit's `charts/` and its program, `idtoken-operator`.
const EARLIER: &str = "IDTOKEN_EARLIER";
/// Requests of each kind.
const EACH: usize = 10;
const TENANT: &str = "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/\
    system:serviceaccount:shop:tenant";

/// Specs that differ in what a token's and a Secret's hash are made of.
fn kinds() -> Vec<(&'static str, Value)> {
    let caller = |more: Value| {
        let mut spec = json!({"serviceAccount": CALLER});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        spec
    };
    let template = |template: Value| caller(json!({"target": {"template": template}}));
    vec![
        ("plain", caller(json!({}))),
        ("without-email", caller(json!({"includeEmail": false}))),
        ("early", caller(json!({"renewBefore": "40m"}))),
        ("named", caller(json!({"target": {"key": "jwt"}}))),
        (
            "orphaned",
            caller(json!({"target": {"creationPolicy": "Orphan"}})),
        ),
        (
            "templated",
            template(
                json!({"data": {"header": "Authorization: Bearer $(token)", "until": "$(expirationTime)"}}),
            ),
        ),
        (
            "labelled",
            template(
                json!({"metadata": {"labels": {"team": "shop"}, "annotations": {"example.com/a": "b"}}}),
            ),
        ),
        (
            "by-id",
            json!({"serviceAccount": ServiceAccount::new(CALLER).unique_id()}),
        ),
        (
            "federated",
            caller(json!({"source": {"federation": {"serviceAccountRef": {"name": "tenant"}}}})),
        ),
        (
            "attached",
            json!({"serviceAccount": OPERATOR, "source": {"metadataServer": {}}}),
        ),
    ]
}

fn requests() -> Vec<Value> {
    let one = |(kind, spec): &(&str, Value), number: usize| {
        let mut spec = spec.clone();
        spec["audience"] = json!(format!("https://tokens.example.com/{kind}/{number}"));
        if *kind == "named" {
            spec["target"]["name"] = json!(format!("another-{number}"));
        }
        json!({"apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest", "spec": spec,
            "metadata": {"namespace": "shop", "name": format!("{kind}-{number}")}})
    };
    kinds()
        .iter()
        .flat_map(|kind| (0..EACH).map(move |number| one(kind, number)))
        .collect()
}

/// What a request has at a moment.
#[derive(Clone, Debug, PartialEq)]
struct Has {
    token: String,
    expires: Timestamp,
    /// The version of its Secret.
    version: String,
    /// Since when it has been Ready.
    ready: String,
}

async fn all(world: &World) -> Result<BTreeMap<String, Has>> {
    let list = async |kind: &str| -> Result<Vec<Value>> {
        let text = world
            .cluster
            .kubectl(["get", kind, "-n", "shop", "-o", "json"])
            .await?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    };
    let secrets = list("secrets").await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all = BTreeMap::new();
    for request in list("idtokenrequests").await? {
        let name = text(&request["metadata"]["name"]);
        let status = &request["status"];
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
        let ready = ready.next().with_context(|| format!("{name} has no condition"))?;
        ensure!(ready["status"] == "True", "{name}: {ready}");
        let target = &request["spec"]["target"];
        let secret = target["name"].as_str().unwrap_or(&name);
        let mut found = secrets.iter().filter(|found| found["metadata"]["name"] == secret);
        let secret = found.next().with_context(|| format!("{name} has no Secret"))?;
        let has = Has {
            token: text(&secret["data"][target["key"].as_str().unwrap_or("token")]),
            expires: text(&status["token"]["expirationTime"]).parse()?,
            version: text(&secret["metadata"]["resourceVersion"]),
            ready: text(&ready["lastTransitionTime"]),
        };
        ensure!(has.expires > Timestamp::now(), "{name} has expired: {has:?}");
        ensure!(!has.token.is_empty(), "{name} has no token");
        all.insert(name, has);
    }
    Ok(all)
}

/// The sum of a metric's series.
async fn metric(pod: &Pod, name: &str) -> Result<f64> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let page = client
        .get(format!("http://{}/metrics", pod.address))
        .send()
        .await?
        .text()
        .await?;
    let series = page
        .lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name));
    let values = series.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>());
    Ok(values.collect::<Result<Vec<_>, _>>()?.iter().sum())
}

/// Waits until the pod, which has just started, has reconciled everything.
async fn settled(pod: &Pod) -> Result<()> {
    let count = requests().len() as f64;
    let waited = until("all are reconciled", LIMIT, async || {
        let done = metric(pod, "idtoken_reconcile_total").await? >= count
            && metric(pod, "idtoken_requests").await? == count
            && metric(pod, "idtoken_queue_depth").await? == 0.0
            && metric(pod, "idtoken_reconciles_in_flight").await? == 0.0;
        Ok(done.then_some(()))
    });
    waited.await.with_context(|| pod.process.log_tail())
}

/// What Helm gets for a chart. Verification of tokens that come over plain HTTP is newer than the earlier chart.
async fn install(world: &World, chart: &Path, more: &[&str]) -> Result<()> {
    let google = world.google.url();
    let values = json!({
        "grants": [{"name": "shop", "from": [{"namespace": "shop"}], "to": [{
            "serviceAccounts": [CALLER, OPERATOR, ServiceAccount::new(CALLER).unique_id()],
            "audiences": ["https://tokens.example.com/*"],
            "sources": ["Impersonation", "MetadataServer"],
        }]}],
        "google": {
            "workloadIdentityFederation": {"provider": PROVIDER, "serviceAccount": OPERATOR},
            "iamCredentialsUrl": google,
            "stsUrl": google,
        },
        "federation": {
            "mode": "enabled", "provider": PROVIDER,
            "apiServerAudiences": [world.cluster.service_account_issuer()],
        },
        "log": {"format": "text"},
    });
    let file = world.cluster.dir().join("values.yaml");
    std::fs::write(&file, values.to_string())?;
    let (chart, file) = (chart.to_string_lossy(), file.to_string_lossy());
    let args = ["upgrade", "--install", RELEASE, &chart, "--values", &file];
    world.helm.release(&[&args, more].concat()).await.map(drop)
}

/// Names of those whose token, and of those whose Secret alone, is another one.
fn changed(before: &BTreeMap<String, Has>, after: &BTreeMap<String, Has>) -> Result<[Vec<String>; 2]> {
    ensure!(before.keys().eq(after.keys()), "requests came or went");
    let mut changed = [Vec::new(), Vec::new()];
    for (name, then) in before {
        let now = &after[name];
        ensure!(then.ready == now.ready, "{name} was not Ready: {then:?}, {now:?}");
        if then.token != now.token {
            changed[0].push(name.clone());
        } else if then.version != now.version {
            changed[1].push(name.clone());
        }
    }
    Ok(changed)
}

/// One request of each kind is renewed by its author: what one version wrote, the other renews.
async fn renew(world: &World, value: &str) -> Result<()> {
    let before = all(world).await?;
    let asked: Vec<_> = kinds().iter().map(|(kind, _)| format!("{kind}-0")).collect();
    for name in &asked {
        let annotation = format!("idtoken.dev/renew={value}");
        let annotate = [
            "annotate",
            "idtokenrequest",
            name,
            "-n",
            "shop",
            "--overwrite",
            &annotation,
        ];
        world.cluster.kubectl(annotate).await?;
    }
    // The metadata server gives the token again that it has.
    let asked: Vec<_> = asked
        .into_iter()
        .filter(|name| !name.starts_with("attached"))
        .collect();
    until("those asked for are renewed", LIMIT, async || {
        let [renewed, _] = changed(&before, &all(world).await?)?;
        let others = renewed.iter().find(|name| !asked.contains(name));
        ensure!(others.is_none(), "{others:?} is renewed too");
        Ok((renewed.len() == asked.len()).then_some(()))
    })
    .await
}

#[ignore = "needs an earlier commit's operator: in cargo xtask nightly"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_tokens_outlive_an_upgrade_and_a_downgrade() -> Result<()> {
    let earlier = std::env::var_os(EARLIER).map(PathBuf::from).context(EARLIER)?;
    let earlier_chart = earlier.join("charts/idtoken-operator");
    let earlier_program = earlier.join("idtoken-operator");
    let (now_chart, now_program) = (
        Path::new(CHART),
        Path::new(env!("CARGO_BIN_EXE_idtoken-operator")),
    );

    let world = World::new().await?;
    let mut policy = world.google.policy();
    let caller = policy
        .service_accounts
        .iter_mut()
        .find(|account| account.email == CALLER);
    let caller = caller.context("no account")?;
    *caller = caller.clone().impersonated_by(TENANT);
    world.google.set_policy(policy)?;
    let metadata = world.google.address().to_string();
    let env = [("GCE_METADATA_HOST", metadata.as_str())];
    world
        .cluster
        .kubectl(["create", "serviceaccount", "tenant", "-n", "shop"])
        .await?;

    install(&world, &earlier_chart, &[]).await?;
    world.cluster.wait_for_crds().await?;
    let pod = world.start_program(&earlier_program, "before", &env, &[]).await?;
    let documents: Vec<_> = requests().iter().map(Value::to_string).collect();
    world.cluster.apply(&documents.join("\n---\n")).await?;
    let first = until("all are Ready", LIMIT, async || {
        Ok(all(&world).await.ok().filter(|all| all.len() == requests().len()))
    });
    let first = first.await.with_context(|| pod.process.log_tail())?;
    settled(&pod).await?;

    // The old replica serves until the new one takes over, as in a rolling update.
    let steps: [(&str, &Path, &Path, &[&str]); 2] = [
        ("after", now_chart, now_program, &["--set=google.keysUrl=KEYS"]),
        (
            "back",
            &earlier_chart,
            &earlier_program,
            &["--set=crds.enabled=false"],
        ),
    ];
    let (mut pod, mut before) = (pod, first);
    for (name, chart, program, more) in steps {
        let keys = format!("{}/oauth2/v3/certs", world.google.url());
        let more: Vec<_> = more.iter().map(|set| set.replace("KEYS", &keys)).collect();
        let more: Vec<_> = more.iter().map(String::as_str).collect();
        let minted = world.google.mint_count();
        install(&world, chart, &more).await?;
        let next = world.start_program(program, name, &env, &[]).await?;
        pod.process.request_stop()?;
        ensure!(
            pod.process.wait(LIMIT).await?.success(),
            "the operator before {name} failed"
        );
        settled(&next).await?;
        let now = all(&world).await?;
        let [tokens, secrets] = changed(&before, &now)?;
        let minted = world.google.mint_count() - minted;
        println!("{name}: {minted} minted; other tokens: {tokens:?}; written again: {secrets:?}");
        ensure!(
            minted == 0 && tokens.is_empty(),
            "{name}: {minted} minted, {tokens:?}"
        );
        renew(&world, name).await?;
        before = all(&world).await?;
        pod = next;
    }
    Ok(())
}
