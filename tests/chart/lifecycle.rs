//! Install, upgrade, uninstall: what changes and what stays.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use idtoken_testenv::{ControlPlane, until};
use serde_json::{Value, json};

use crate::cluster::{LIMIT, foreign_kinds, get, start};
use crate::helm::{CHART, Helm, NAMESPACE, Version};

const REQUESTS: &str = "crd/idtokenrequests.idtoken.dev";
const RELEASE: &str = "idtoken-operator";

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => {
                std::fs::copy(entry.path(), target)?;
            }
        }
    }
    Ok(())
}

/// A package of the chart as an earlier version could have been: its definition of requests lacks a column that this one has, and that of
/// grants the rules on selectors. It has no value `test`.
async fn earlier(helm: &Helm, dir: &Path) -> Result<PathBuf> {
    let chart = dir.join("earlier");
    copy(Path::new(CHART), &chart)?;
    let file = chart.join("files/crds/idtokenrequests.yaml");
    let mut crd: Value = serde_saphyr::from_str(&std::fs::read_to_string(&file)?)?;
    let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array_mut();
    columns.context("no columns")?.pop().context("no column")?;
    std::fs::write(&file, serde_saphyr::to_string(&crd)?)?;
    let file = chart.join("files/crds/idtokengrants.yaml");
    let mut crd: Value = serde_saphyr::from_str(&std::fs::read_to_string(&file)?)?;
    without_rules(&mut crd);
    std::fs::write(&file, serde_saphyr::to_string(&crd)?)?;
    std::fs::remove_dir_all(chart.join("templates/tests"))?;
    let file = chart.join("values.yaml");
    let mut values: Value = serde_saphyr::from_str(&std::fs::read_to_string(&file)?)?;
    values.as_object_mut().context("no values")?.remove("test");
    std::fs::write(&file, values.to_string())?;
    let file = chart.join("values.schema.json");
    let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let required = schema["required"].as_array_mut().context("requires nothing")?;
    required.retain(|key| key != "test");
    std::fs::write(&file, schema.to_string())?;
    package(helm, &chart, "0.0.1", dir).await
}

fn without_rules(schema: &mut Value) {
    if let Some(fields) = schema.as_object_mut() {
        fields.remove("x-kubernetes-validations");
        fields.values_mut().for_each(without_rules);
    }
    if let Some(items) = schema.as_array_mut() {
        items.iter_mut().for_each(without_rules);
    }
}

async fn package(helm: &Helm, chart: &Path, version: &str, dir: &Path) -> Result<PathBuf> {
    let (chart, to) = (chart.to_string_lossy(), dir.to_string_lossy());
    helm.run(["package", &chart, "--version", version, "--destination", &to])
        .await?;
    Ok(dir.join(format!("idtoken-operator-{version}.tgz")))
}

/// A request and a grant of a user's.
async fn ask(cluster: &ControlPlane) -> Result<()> {
    cluster.wait_for_crds().await?;
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    for file in ["grant.yaml", "idtokenrequest.yaml"] {
        cluster
            .apply(&std::fs::read_to_string(format!("{examples}/{file}"))?)
            .await?;
    }
    Ok(())
}

/// UIDs of what users have and must not lose.
async fn users(cluster: &ControlPlane) -> Result<Vec<Value>> {
    let mut uids = Vec::new();
    for object in [
        REQUESTS,
        "crd/idtokengrants.idtoken.dev",
        "idtg/shop-billing",
        "idtr/billing",
    ] {
        let object = get(cluster, "shop", object).await?.context(object)?;
        uids.push(object["metadata"]["uid"].clone());
    }
    Ok(uids)
}

async fn columns(cluster: &ControlPlane) -> Result<usize> {
    let crd = get(cluster, "", REQUESTS).await?.context("no definition")?;
    let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array();
    Ok(columns.map_or(0, Vec::len))
}

/// Installed by one version of Helm; all that comes after by another.
async fn life(first: Version, then: Version) -> Result<()> {
    let cluster = start().await?;
    let helm = Helm::new(then, &cluster.admin_kubeconfig(), cluster.dir()).await?;
    let earlier = earlier(&helm, cluster.dir()).await?;
    let now = package(&helm, Path::new(CHART), "0.0.2", cluster.dir()).await?;
    let (earlier, now) = (earlier.to_string_lossy(), now.to_string_lossy());

    let notes = Helm::new(first, &cluster.admin_kubeconfig(), cluster.dir())
        .await?
        .release(&["install", RELEASE, &earlier])
        .await?;
    ensure!(
        notes.contains("kind: IdTokenGrant") && notes.contains("kind: IdTokenRequest"),
        "{notes}"
    );
    ask(&cluster).await?;
    let everyone = "{apiVersion: idtoken.dev/v1alpha1, kind: IdTokenGrant, metadata: {name: everyone}, spec: {from: \
                    [{namespaceSelector: {}}], to: [{serviceAccounts: ['1'], audiences: [aud]}]}}";
    cluster.apply(everyone).await?;
    let before = users(&cluster).await?;
    let had = columns(&cluster).await?;

    // The values of the installation alone lack what is new; with the new defaults they suffice.
    let reused = helm.run(["upgrade", RELEASE, &now, "--reuse-values"]).await;
    let said = reused.unwrap_err().to_string();
    ensure!(said.contains("missing property 'test'"), "{said}");
    helm.run(["upgrade", RELEASE, &now, "--reset-then-reuse-values"])
        .await?;
    helm.run(["rollback", RELEASE, "1"]).await?;

    let gke = format!("--values={CHART}/ci/any-cluster-values.yaml");
    let notes = helm
        .release(&["upgrade", RELEASE, &now, &gke, "--set", "replicaCount=2"])
        .await?;
    ensure!(notes.contains("- IdTokenGrant everyone\n"), "{notes}");
    assert_eq!(users(&cluster).await?, before, "by the upgrade");
    assert_eq!(columns(&cluster).await?, had + 1, "the definition is upgraded");
    let deployment = get(&cluster, NAMESPACE, "deployment/idtoken-operator").await?;
    assert_eq!(deployment.context("no Deployment")?["spec"]["replicas"], 2);
    ensure!(get(&cluster, NAMESPACE, "pdb/idtoken-operator").await?.is_some());
    helm.run(["rollback", RELEASE, "1"]).await?;
    assert_eq!(users(&cluster).await?, before, "by the rollback");
    ensure!(get(&cluster, NAMESPACE, "pdb/idtoken-operator").await?.is_none());

    helm.run(["uninstall", RELEASE]).await?;
    assert_eq!(users(&cluster).await?, before, "by the uninstallation");
    let left = [
        "deployment/idtoken-operator",
        "clusterrole/idtoken-operator",
        "sa/idtoken-operator",
        "validatingadmissionpolicy/idtoken-operator-secret-writes",
        "configmap/idtoken-operator-grants",
    ];
    for object in left {
        ensure!(
            get(&cluster, NAMESPACE, object).await?.is_none(),
            "{object} is left"
        );
    }

    // Again under the same name, then under another, which has to say that it takes over.
    helm.release(&["install", RELEASE, &now]).await?;
    helm.run(["uninstall", RELEASE]).await?;
    let other = helm
        .release(&["install", "tokens", &now])
        .await
        .unwrap_err()
        .to_string();
    ensure!(other.contains("invalid ownership metadata"), "{other}");
    helm.release(&["install", "tokens", &now, "--take-ownership"])
        .await?;
    assert_eq!(users(&cluster).await?, before, "by the new releases");

    helm.release(&["upgrade", "tokens", &now, "--set", "crds.keep=false"])
        .await?;
    helm.run(["uninstall", "tokens"]).await?;
    ensure!(
        get(&cluster, "", REQUESTS)
            .await?
            .is_none_or(|crd| crd["metadata"]["deletionTimestamp"].is_string())
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helm_3_upgrades_and_uninstalls_and_users_keep_what_they_have() -> Result<()> {
    life(Version::Three, Version::Three).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helm_4_takes_over_from_helm_3_and_users_keep_what_they_have() -> Result<()> {
    life(Version::Three, Version::Four).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_share_a_cluster_by_selector_and_namespaces() -> Result<()> {
    let cluster = start().await?;
    let helm = Helm::new(Version::Three, &cluster.admin_kubeconfig(), cluster.dir()).await?;
    cluster.kubectl(["create", "namespace", "yard"]).await?;
    helm.release(&["install", "a", CHART, "--set=selector=shard=a"])
        .await?;
    for values in ["selector=shard=b", "watchNamespaces={shop,yard}"] {
        let name = values[..1].to_owned();
        helm.release(&[
            "install",
            &name,
            CHART,
            "--set=crds.enabled=false",
            "--set",
            values,
        ])
        .await?;
    }
    let list = cluster
        .kubectl(["get", "deployment", "-n", NAMESPACE, "-o", "json"])
        .await?;
    let list: Value = serde_json::from_str(&list)?;
    let selectors: std::collections::BTreeSet<_> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|deployment| deployment["spec"]["selector"].to_string())
        .collect();
    assert_eq!(selectors.len(), 3, "{}", json!(selectors));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_absent_or_terminating_stops_no_release() -> Result<()> {
    let cluster = start().await?;
    cluster.kubectl(["create", "namespace", "yard"]).await?;
    let values = "--set=watchNamespaces={shop,yard,farm}";
    let role = async |namespace: &str| {
        let role = get(&cluster, namespace, "role/idtoken-operator").await?;
        let binding = get(&cluster, namespace, "rolebinding/idtoken-operator").await?;
        ensure!(
            role.is_some() == binding.is_some(),
            "one without the other in {namespace}"
        );
        anyhow::Ok(role.is_some())
    };
    for version in [Version::Three, Version::Four] {
        let helm = Helm::new(version, &cluster.admin_kubeconfig(), cluster.dir()).await?;
        let notes = helm.release(&["install", RELEASE, CHART, values]).await?;
        ensure!(
            notes.contains("not served") && notes.contains("   - farm\n"),
            "{notes}"
        );
        ensure!(!notes.contains("   - shop\n"), "{notes}");
        ensure!(role("shop").await? && role("yard").await?);
        let deployment = get(&cluster, NAMESPACE, "deployment/idtoken-operator").await?;
        let deployment = deployment.context("no Deployment")?.to_string();
        ensure!(deployment.contains("--namespace=shop,yard,farm"), "{deployment}");
        // All of them, by a name of one label.
        let notes = helm
            .release(&["upgrade", RELEASE, CHART, "--set=watchNamespaces={farm}"])
            .await?;
        ensure!(notes.contains("   - farm\n") && !role("shop").await?, "{notes}");
        if matches!(version, Version::Three) {
            helm.run(["uninstall", RELEASE]).await?;
        }
    }
    let helm = Helm::new(Version::Three, &cluster.admin_kubeconfig(), cluster.dir()).await?;
    // Nothing removes its finalizer here, so it goes on terminating.
    cluster
        .kubectl(["delete", "namespace", "yard", "--wait=false"])
        .await?;
    cluster.kubectl(["create", "namespace", "farm"]).await?;
    let notes = helm.release(&["upgrade", RELEASE, CHART, values]).await?;
    ensure!(
        notes.contains("   - yard\n") && !notes.contains("   - farm\n"),
        "{notes}"
    );
    ensure!(role("shop").await? && role("farm").await?);
    let wrong = helm
        .release(&["upgrade", RELEASE, CHART, "--set=watchNamespaces={Shop}"])
        .await
        .unwrap_err()
        .to_string();
    ensure!(
        wrong.contains("watchNamespaces: \"Shop\" is no name of a namespace"),
        "{wrong}"
    );
    Ok(())
}

/// What Helm says where it refuses an installation.
async fn refused(helm: &Helm, args: &[&str]) -> String {
    let install = [&["install", RELEASE, CHART], args].concat();
    helm.release(&install).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_that_the_cluster_lacks_are_named_before_anything_is_installed() -> Result<()> {
    let cluster = start().await?;
    let request = r#"--set-json=extraObjects=[{"apiVersion":"idtoken.dev/v1alpha1","kind":"IdTokenRequest","metadata":{"name":"billing","namespace":"shop"},"spec":{"audience":"https://billing-x.run.app","serviceAccount":"caller@my-project.iam.gserviceaccount.com"}}]"#;
    let monitors = [
        ("metrics.serviceMonitor.enabled", "ServiceMonitor"),
        ("metrics.podMonitor.enabled", "PodMonitor"),
        ("metrics.prometheusRule.enabled", "PrometheusRule"),
    ];
    for version in [Version::Three, Version::Four] {
        let helm = Helm::new(version, &cluster.admin_kubeconfig(), cluster.dir()).await?;
        for (value, kind) in monitors {
            let said = refused(&helm, &[&format!("--set={value}=true")]).await;
            let sentence =
                format!("{value}: the cluster does not know the kind {kind} of monitoring.coreos.com/v1");
            ensure!(said.contains(&sentence), "{said}");
        }
        let said = refused(&helm, &[request]).await;
        ensure!(
            said.contains("extraObjects: the cluster does not know the kind IdTokenRequest"),
            "{said}"
        );
        ensure!(
            get(&cluster, "", REQUESTS).await?.is_none(),
            "something was installed"
        );
    }

    // As the sentences say.
    let helm = Helm::new(Version::Three, &cluster.admin_kubeconfig(), cluster.dir()).await?;
    helm.release(&["install", RELEASE, CHART]).await?;
    cluster.wait_for_crds().await?;
    cluster.apply(&foreign_kinds().await?).await?;
    cluster.wait_for_crds().await?;
    let values = [
        "--set=metrics.serviceMonitor.enabled=true",
        "--set=metrics.prometheusRule.enabled=true",
        request,
    ];
    helm.release(&[&["upgrade", RELEASE, CHART], &values[..]].concat())
        .await?;
    for (namespace, object) in [
        (NAMESPACE, "servicemonitor/idtoken-operator"),
        (NAMESPACE, "prometheusrule/idtoken-operator"),
        ("shop", "idtr/billing"),
    ] {
        ensure!(get(&cluster, namespace, object).await?.is_some(), "no {object}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_of_another_universe_gets_tokens_for_its_providers() -> Result<()> {
    let cluster = start().await?;
    let helm = Helm::new(Version::Three, &cluster.admin_kubeconfig(), cluster.dir()).await?;
    let values = [
        "--set=google.universeDomain=example-universe.com",
        "--set=federation.mode=enabled",
    ];
    helm.release(&[&["install", RELEASE, CHART], &values[..]].concat())
        .await?;
    cluster
        .kubectl(["create", "serviceaccount", "billing", "-n", "shop"])
        .await?;
    let ask = async |host: &str| {
        let provider =
            format!("--audience=//{host}/projects/1/locations/global/workloadIdentityPools/p/providers/q");
        let user = format!("--as=system:serviceaccount:{NAMESPACE}:{RELEASE}");
        let answer = cluster
            .kubectl(["create", "token", "billing", "-n", "shop", &provider, &user])
            .await;
        answer.err().map(|error| error.to_string())
    };
    // Until the policy is in force, everything is allowed.
    until("providers of others are refused", LIMIT, async || {
        let said = ask("iam.other-universe.com").await;
        Ok(said
            .filter(|said| said.contains("may not get Kubernetes tokens for"))
            .map(drop))
    })
    .await?;
    for host in ["iam.example-universe.com", "iam.googleapis.com"] {
        assert_eq!(ask(host).await, None, "{host}");
    }
    for host in [
        "iam.example-universexcom",
        "example-universe.com",
        "iam.googleapis.com.example-universe.com",
    ] {
        ensure!(ask(host).await.is_some(), "{host}");
    }
    Ok(())
}
