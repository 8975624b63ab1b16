//! With every file of `ci/`, the chart passes Helm's linter, and its objects Kubernetes' schemas and Pod Security.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use idtoken_testenv::{ControlPlane, Options, Progress, binaries, until};
use serde_json::{Value, json};

use crate::cluster::{LIMIT, foreign_kinds};
use crate::helm::{CHART, Helm, Version, matrix, read};
use crate::schemas;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_helms_lint_and_render_the_same() -> Result<()> {
    let helms = [
        Helm::offline(Version::Three).await?,
        Helm::offline(Version::Four).await?,
    ];
    for file in matrix()? {
        let values = format!("--values={}", file.display());
        let mut rendered = Vec::new();
        for helm in &helms {
            helm.run(["lint", "--strict", "--kube-version=1.30.0", CHART, &values])
                .await?;
            rendered.push(helm.objects(&[&values]).await?);
        }
        let [three, four] = [&rendered[0], &rendered[1]];
        ensure!(three.len() >= 3, "{} renders next to nothing", file.display());
        ensure!(three == four, "{} renders otherwise by Helm 4", file.display());
    }
    Ok(())
}

/// What the API server publishes once it knows the foreign kinds.
async fn openapi(cluster: &ControlPlane) -> Result<Value> {
    cluster.apply(&foreign_kinds().await?).await?;
    until("the foreign kinds are published", LIMIT, async || {
        let text = cluster.kubectl(["get", "--raw", "/openapi/v2"]).await?;
        let openapi: Value = serde_json::from_str(&text)?;
        let known = |kind| openapi["definitions"].get(format!("com.coreos.monitoring.v1.{kind}"));
        let all = ["PodMonitor", "PrometheusRule", "ServiceMonitor"]
            .iter()
            .all(|kind| known(kind).is_some());
        Ok(all.then_some(openapi))
    })
    .await
}

/// Judges a manifest. Kinds without a schema are an error.
async fn kubeconform(schemas: &Path, manifest: &Path) -> Result<()> {
    let build = || binaries::KUBECONFORM.build(&["kubeconform"], Progress::Stderr);
    let program = tokio::task::spawn_blocking(build).await??.join("kubeconform");
    let mut command = Command::new(program);
    command
        .args(["-strict", "-summary", "-schema-location"])
        .arg(schemas.join(schemas::FILE))
        .arg(manifest);
    let output = tokio::process::Command::from(command).output().await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}:\n{said}", manifest.display());
    ensure!(said.contains("Skipped: 0"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_takes_what_is_rendered_and_pod_security_its_pods() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cluster = ControlPlane::start(Options::default()).await?;
    let schemas = cluster.dir().join("schemas");
    std::fs::create_dir(&schemas)?;
    schemas::write(openapi(&cluster).await?, &schemas)?;
    cluster
        .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "restricted", "labels": {
            "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}}}).to_string())
        .await?;
    cluster
        .kubectl(["create", "priorityclass", "platform-critical", "--value=1000"])
        .await?;

    let helm = Helm::offline(Version::Three).await?;
    quota(&cluster, &helm).await?;
    let manifest = cluster.dir().join("manifest.yaml");
    let (files, mut tried) = (matrix()?, 0);
    for file in &files {
        let rendered = helm.template(&[&format!("--values={}", file.display())]).await?;
        std::fs::write(&manifest, &rendered)?;
        kubeconform(&schemas, &manifest)
            .await
            .with_context(|| file.display().to_string())?;
        let pods = pods(&rendered)?;
        ensure!(!pods.is_empty(), "{} has no pod", file.display());
        tried += pods.len();
        for pod in pods {
            // Beyond the standard.
            let container = &pod["spec"]["containers"][0];
            ensure!(
                container["securityContext"]["readOnlyRootFilesystem"] == true,
                "{container}"
            );
            std::fs::write(&manifest, pod.to_string())?;
            create(&cluster, &manifest)
                .await
                .with_context(|| file.display().to_string())?;
        }
        if let Some(pod) = test_pod(&rendered)? {
            std::fs::write(&manifest, pod.to_string())?;
            create(&cluster, &manifest)
                .await
                .with_context(|| format!("beside a quota: {}", file.display()))?;
        }
    }

    ensure!(tried > files.len(), "where are the pods of helm test?");

    // What is wrong is seen.
    let bad = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "dat": {}});
    std::fs::write(&manifest, bad.to_string())?;
    ensure!(kubeconform(&schemas, &manifest).await.is_err());
    let privileged = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "restricted"},
        "spec": {"containers": [{"name": "x", "image": "x"}]}});
    std::fs::write(&manifest, privileged.to_string())?;
    let refused = create(&cluster, &manifest).await.unwrap_err().to_string();
    ensure!(refused.contains("violates PodSecurity"), "{refused}");
    Ok(())
}

/// Makes namespace `quota`, whose ResourceQuota admits only pods with all requests and limits, and waits until it does. Its status is what
/// the controller of quotas would have counted.
async fn quota(cluster: &ControlPlane, helm: &Helm) -> Result<()> {
    let amounts = |cpu: &str, memory: &str| json!({"requests.cpu": cpu, "limits.cpu": cpu, "requests.memory": memory, "limits.memory": memory});
    let status = json!({"status": {"hard": amounts("1", "1Gi"), "used": amounts("0", "0")}}).to_string();
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "all", "namespace": "quota"},
        "spec": {"hard": amounts("1", "1Gi")}});
    cluster.kubectl(["create", "namespace", "quota"]).await?;
    cluster.apply(&quota.to_string()).await?;
    let patch = [
        "patch",
        "resourcequota",
        "all",
        "-n",
        "quota",
        "--subresource=status",
    ];
    cluster
        .kubectl(patch.iter().chain(&["--type=merge", "-p", &status]))
        .await?;
    let without = helm
        .template(&["--set-json=test.resources={\"requests\":null,\"limits\":null}"])
        .await?;
    let mut pod = test_pod(&without)?.context("no pod of helm test")?;
    pod["metadata"]["name"] = json!("without");
    let file = cluster.dir().join("without.json");
    std::fs::write(&file, pod.to_string())?;
    until("the quota is in force", LIMIT, async || {
        let said = create(cluster, &file).await.err().map(|error| error.to_string());
        Ok(said
            .filter(|said| said.contains("must specify limits.cpu"))
            .map(drop))
    })
    .await
}

/// The pod of helm test for namespace `quota`; none where there is none.
fn test_pod(manifest: &str) -> Result<Option<Value>> {
    let pod = read(manifest)?.into_iter().find(|object| object["kind"] == "Pod");
    Ok(pod.map(|mut pod| {
        pod["metadata"]["namespace"] = json!("quota");
        pod
    }))
}

/// Has the API server judge an object.
async fn create(cluster: &ControlPlane, file: &Path) -> Result<String> {
    let path = file.to_string_lossy();
    cluster
        .kubectl(["create", "--dry-run=server", "--validate=strict", "-f", &path])
        .await
}

/// The pods of a manifest, also those that a Deployment would make, for namespace `restricted`.
fn pods(manifest: &str) -> Result<Vec<Value>> {
    let objects = read(manifest)?;
    let pod = |object: &Value| {
        let mut pod = match object["kind"].as_str()? {
            "Pod" => object.clone(),
            "Deployment" => object["spec"]["template"].clone(),
            _ => return None,
        };
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!("pod");
        pod["metadata"]["namespace"] = json!("restricted");
        Some(pod)
    };
    Ok(objects.iter().filter_map(pod).collect())
}
