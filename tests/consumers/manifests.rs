//! Every manifest of `examples/` and of the docs is one that the API server takes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use idtoken_operator::api::crds;
use idtoken_testenv::{ControlPlane, Options, Progress, consumers};
use serde_json::{Value, json};

use crate::example;

/// Files that are not for a cluster.
const NOT_MANIFESTS: [&str; 2] = ["demo/policy.yaml", "tutorial/values.yaml"];
/// Groups of kinds that no API server here knows: Argo CD has no Go module of its types alone.
const UNKNOWN_GROUPS: [&str; 1] = ["argoproj.io"];

fn manifests(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(manifests(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "yaml")
            && !NOT_MANIFESTS.iter().any(|other| path.ends_with(other))
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// README.md and all pages of `docs/`.
fn pages_of_docs() -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md")];
    for dir in [root.join("docs"), root.join("docs/sources")] {
        for entry in std::fs::read_dir(dir)? {
            pages.push(entry?.path());
        }
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    Ok(pages)
}

/// The fenced blocks of YAML, each with the line that it begins on.
pub(crate) fn yaml_blocks(page: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (index, line) in page.lines().enumerate() {
        match &mut block {
            None if line.trim_end() == "```yaml" => block = Some((index + 2, String::new())),
            None => {}
            Some(_) if line.starts_with("```") => blocks.extend(block.take()),
            Some((_, text)) => text.push_str(&format!("{line}\n")),
        }
    }
    blocks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_takes_every_manifest() -> Result<()> {
    // An error means that another test was faster, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut kinds = consumers::foreign_crds(Progress::Stderr).await?;
    let cluster = ControlPlane::start(Options::default()).await?;
    for crd in crds() {
        kinds.push(serde_json::to_string(&crd)?);
    }
    cluster.apply(&kinds.join("\n---\n")).await?;
    cluster.wait_for_crds().await?;

    let examples = manifests(&example::folder())?;
    ensure!(examples.len() >= 10, "where are the examples? {examples:?}");
    let mut sources = Vec::new();
    for file in &examples {
        sources.push((file.display().to_string(), std::fs::read_to_string(file)?));
    }
    for page in pages_of_docs()? {
        let blocks = yaml_blocks(&std::fs::read_to_string(&page)?);
        let manifests = blocks
            .into_iter()
            .filter(|(_, text)| text.contains("apiVersion:"))
            .filter(|(_, text)| {
                let mut unknown = UNKNOWN_GROUPS
                    .map(|group| format!("apiVersion: {group}/"))
                    .into_iter();
                !unknown.any(|version| text.contains(&version))
            });
        sources.extend(manifests.map(|(line, text)| (format!("{}:{line}", page.display()), text)));
    }
    ensure!(
        sources.len() >= examples.len() + 7,
        "where are the manifests of the docs?"
    );
    let mut namespaces = BTreeSet::new();
    for (place, text) in &sources {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).with_context(|| place.clone())?;
        let names = documents
            .iter()
            .filter_map(|document| document["metadata"]["namespace"].as_str());
        namespaces.extend(names.map(str::to_owned));
    }
    for name in namespaces.iter().filter(|name| *name != "default") {
        cluster.kubectl(["create", "namespace", name]).await?;
    }
    let mut wrong = Vec::new();
    let file = cluster.dir().join("manifest.yaml");
    for (place, text) in &sources {
        std::fs::write(&file, text)?;
        // Strict: unknown and repeated fields are errors.
        let flags = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-f",
        ];
        let mut dry: Vec<&OsStr> = flags.map(OsStr::new).into();
        dry.push(file.as_os_str());
        if let Err(error) = cluster.kubectl(dry).await {
            wrong.push(format!("{place}: {error}"));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    pods_are_restricted(&cluster, &examples).await
}

/// Each pod of the examples passes the Pod Security Standard *restricted*, also those of Deployments and CronJobs, for which the API
/// server would only warn.
async fn pods_are_restricted(cluster: &ControlPlane, examples: &[PathBuf]) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "restricted", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    cluster.apply(&namespace.to_string()).await?;
    let mut checked = 0;
    for file in examples {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(file)?)?;
        for document in documents {
            let spec = match document["kind"].as_str() {
                Some("Pod") => &document["spec"],
                Some("Deployment" | "Job") => &document["spec"]["template"]["spec"],
                Some("CronJob") => &document["spec"]["jobTemplate"]["spec"]["template"]["spec"],
                _ => continue,
            };
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "pod", "namespace": "restricted"}, "spec": spec});
            let containers = pod["spec"]["containers"]
                .as_array()
                .context("a pod has containers")?;
            let sidecars = pod["spec"]["initContainers"].as_array();
            for container in containers.iter().chain(sidecars.into_iter().flatten()) {
                let context = &container["securityContext"];
                ensure!(
                    context["readOnlyRootFilesystem"] == true,
                    "{}: {container}",
                    file.display()
                );
            }
            let path = cluster.dir().join("pod.json");
            let accepted = async |pod: &Value| {
                std::fs::write(&path, pod.to_string())?;
                let args = ["create", "--dry-run=server", "-f", &path.to_string_lossy()];
                cluster.kubectl(args).await
            };
            accepted(&pod).await.with_context(|| file.display().to_string())?;
            // The namespace does refuse.
            pod["spec"]["containers"][0]["securityContext"]["capabilities"] = json!({});
            let refused = accepted(&pod).await.unwrap_err().to_string();
            ensure!(refused.contains("violates PodSecurity"), "{refused}");
            checked += 1;
        }
    }
    ensure!(checked >= 9, "only {checked} pods were found");
    Ok(())
}
