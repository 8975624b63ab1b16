//! The operator's release, as helm makes, changes and removes it.

use anyhow::{Context, Result, ensure};
use idtoken_testenv::Registry;
use serde_json::Value;

use crate::google::{Google, PROVIDER, config_map};
use crate::released::Released;
use crate::suite::{NAMESPACE, OwnNode, Suite, condition, text};

const RELEASE: &str = "idtoken-operator";
/// The chart's folder, and its name in a registry.
pub(crate) const CHART: &str = "charts/idtoken-operator";
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
const PODS: &str = "-l app.kubernetes.io/name=idtoken-operator,app.kubernetes.io/component!=test";
/// The tag of an image that differs in its name alone.
pub(crate) const NEXT: &str = "next";

/// `helm install` with two replicas.
pub(crate) async fn install(suite: &Suite<'_>, google: &Google) -> Result<()> {
    let image = suite.cluster.image("idtoken-operator");
    let released = released(suite);
    let words = [
        ("IMAGE", image.as_str()),
        ("DIGEST", released.map_or("", |released| released.image.as_str())),
        ("PROVIDER", PROVIDER),
        ("ISSUER", &google.issuer),
    ];
    let values = suite.manifest("values.yaml", &words)?;
    std::fs::write(values_file(suite), values).context("cannot write the values")?;
    if let Some(own) = suite.own
        && released.is_none()
    {
        push_chart(suite, &own.registry).await?;
    }
    helm_install(suite).await?;
    let ready = pods(suite).await?;
    ensure!(ready.len() == 2, "there are {} pods of the operator", ready.len());
    if let Some(own) = suite.own {
        let pulled = pulled(&own.registry, &format!("{image}:{VERSION}"), &ready)?;
        suite
            .report
            .note(format!("installed from {}; its pods run {pulled}", chart(suite)));
    }
    Ok(())
}

/// The release that is tested, if it is one.
fn released<'s>(suite: &Suite<'s>) -> Option<&'s Released> {
    suite.own.and_then(|own| own.released.as_ref())
}

/// Packages the chart and pushes it, as a release does.
async fn push_chart(suite: &Suite<'_>, registry: &Registry) -> Result<()> {
    let to = suite.cluster.scratch.display();
    suite
        .cluster
        .helm(&format!("package {CHART} --destination {to}"))
        .await?;
    let package = format!("{to}/{RELEASE}-{VERSION}.tgz");
    let charts = format!("oci://{}/charts", registry.address());
    suite
        .cluster
        .helm(&format!("push {package} {charts} --plain-http"))
        .await
        .map(drop)
}

/// What Helm installs: the chart of the registry, where there is one of ours; else the folder.
fn chart(suite: &Suite<'_>) -> String {
    match suite.own {
        Some(OwnNode {
            released: Some(released),
            ..
        }) => format!("{} --plain-http", released.chart),
        Some(own) => format!(
            "oci://{}/{CHART} --version {VERSION} --plain-http",
            own.registry.address()
        ),
        None => CHART.to_owned(),
    }
}

/// The pods' image came from the registry: an image that is imported has no digest there. Returns its name and digest, which is that of the
/// index where an image has one (containerd, `internal/cri/server/container_status.go`).
fn pulled(registry: &Registry, image: &str, pods: &[Value]) -> Result<String> {
    let name = image.rsplit_once(':').map_or(image, |(name, _)| name);
    let wanted = format!("{name}@{}", registry.digest(image)?);
    for pod in pods {
        let found = text(&pod["status"]["containerStatuses"][0]["imageID"]);
        ensure!(found == wanted, "a pod runs {found}, and {wanted} was pushed");
    }
    Ok(wanted)
}

async fn helm_install(suite: &Suite<'_>) -> Result<()> {
    let arguments = format!(
        "install {RELEASE} {} -n {NAMESPACE} -f {} --wait --timeout 10m",
        chart(suite),
        values_file(suite)
    );
    suite.cluster.helm(&arguments).await.map(drop)
}

fn values_file(suite: &Suite<'_>) -> String {
    suite.cluster.scratch.join("values.yaml").display().to_string()
}

/// The operator's pods; all must be Ready.
pub(crate) async fn pods(suite: &Suite<'_>) -> Result<Vec<Value>> {
    let list = suite
        .cluster
        .kubectl(&format!("get pods -n {NAMESPACE} {PODS} -o json"))
        .await?;
    let list: Value = serde_json::from_str(&list)?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let running: Vec<_> = pods
        .into_iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .collect();
    for pod in &running {
        let ready = condition(pod, "Ready");
        ensure!(
            ready["status"] == "True",
            "pod {} is not Ready",
            pod["metadata"]["name"]
        );
    }
    Ok(running)
}

/// `helm test`.
pub(crate) async fn test(suite: &Suite<'_>) -> Result<()> {
    let said = suite
        .cluster
        .helm(&format!("test {RELEASE} -n {NAMESPACE} --timeout 10m"))
        .await?;
    ensure!(said.contains("Succeeded"), "helm test says:\n{said}");
    Ok(())
}

/// `helm upgrade` with one more value.
pub(crate) async fn upgrade_with(suite: &Suite<'_>, set: &str) -> Result<()> {
    let arguments = format!(
        "upgrade {RELEASE} {} -n {NAMESPACE} --reuse-values --set {set} --wait --timeout 10m",
        chart(suite)
    );
    suite.cluster.helm(&arguments).await?;
    let what = "the operator's pods are the new ones";
    suite
        .wait(what, async || {
            Ok(pods(suite).await.ok().filter(|pods| pods.len() == 2).map(drop))
        })
        .await
}

/// `helm upgrade` with a changed value, which the new pods have.
pub(crate) async fn upgrade(suite: &Suite<'_>) -> Result<()> {
    upgrade_with(suite, "concurrency=16").await?;
    for pod in pods(suite).await? {
        let arguments = pod["spec"]["containers"][0]["args"].to_string();
        ensure!(arguments.contains("--concurrency=16"), "a pod has {arguments}");
    }
    Ok(())
}

/// `helm upgrade` to another image: nothing is minted for that, and every request stays Ready.
pub(crate) async fn roll(suite: &Suite<'_>) -> Result<()> {
    upgrade_with(suite, &format!("image.tag={NEXT},image.digest=")).await?;
    for pod in pods(suite).await? {
        let image = text(&pod["spec"]["containers"][0]["image"]);
        ensure!(
            image.ends_with(&format!(":{NEXT}")),
            "a pod has the image {image}"
        );
    }
    suite.wait_ready("shop", "billing", "True").await.map(drop)
}

/// A CA is added to the bundle's ConfigMap: each pod reads it once kubelet has brought it, and is the same pod.
pub(crate) async fn rotate_bundle(suite: &Suite<'_>) -> Result<()> {
    let cluster = suite.cluster;
    let read = async |name: &str, key: &str| -> Result<String> {
        let map = cluster.get("configmap", name, NAMESPACE).await?;
        Ok(text(&map["data"][key]))
    };
    let both = [
        read("google-ca", "ca.crt").await?,
        read("kube-root-ca.crt", "ca.crt").await?,
    ];
    config_map(suite, NAMESPACE, "google-ca", "ca.crt", &both.join("\n")).await?;
    for pod in pods(suite).await? {
        let name = text(&pod["metadata"]["name"]);
        let what = format!("pod {name} has read the new bundle");
        suite
            .wait(&what, async || {
                let log = cluster.kubectl(&format!("logs -n {NAMESPACE} {name}")).await?;
                Ok(log.contains("CA file reloaded").then_some(()))
            })
            .await?;
    }
    Ok(())
}

/// No pod of the operator has logged a token, nor restarted.
pub(crate) async fn logs(suite: &Suite<'_>) -> Result<()> {
    for pod in pods(suite).await? {
        let name = text(&pod["metadata"]["name"]);
        let log = suite
            .cluster
            .kubectl(&format!("logs -n {NAMESPACE} {name}"))
            .await?;
        ensure!(!log.is_empty(), "pod {name} has logged nothing");
        // How the header of every JWT begins in base64url: {"
        ensure!(!log.contains("eyJ"), "the log of {name} holds a token");
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "pod {name} has restarted {restarts} times");
    }
    Ok(())
}

/// `helm uninstall` with the default values keeps CRDs, requests and Secrets; `helm install` takes them over.
pub(crate) async fn uninstall_and_keep(suite: &Suite<'_>) -> Result<()> {
    helm_uninstall(suite).await?;
    let kept = suite.cluster.get("idtokenrequest", "billing", "shop").await?;
    ensure!(!kept.is_null(), "the request is gone");
    let secret = suite.cluster.get("secret", "billing", "shop").await?;
    ensure!(!secret.is_null(), "the Secret is gone");
    helm_install(suite).await?;
    suite.wait_ready("shop", "billing", "True").await.map(drop)
}

/// `helm uninstall` with `crds.keep=false` removes everything.
pub(crate) async fn uninstall(suite: &Suite<'_>) -> Result<()> {
    upgrade_with(suite, "crds.keep=false").await?;
    helm_uninstall(suite).await?;
    suite
        .wait("the CRDs, and Secrets with them, are gone", async || {
            let names =
                "get crd idtokenrequests.idtoken.dev idtokengrants.idtoken.dev --ignore-not-found -o name";
            let crds = suite.cluster.kubectl(names).await?;
            let secret = suite.cluster.get("secret", "billing", "shop").await?;
            Ok((crds.trim().is_empty() && secret.is_null()).then_some(()))
        })
        .await
}

async fn helm_uninstall(suite: &Suite<'_>) -> Result<()> {
    let arguments = format!("uninstall {RELEASE} -n {NAMESPACE} --wait --timeout 10m");
    suite.cluster.helm(&arguments).await.map(drop)
}
