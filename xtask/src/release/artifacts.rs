//! The chart and the manifests: as files, and as artifacts for a registry. Both are the same bytes for the same commit.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use idtoken_testenv::archive::{self, Entry};
use idtoken_testenv::{Artifact, Progress, binaries};
use serde_json::{Value, json};

use super::VERSION;
use crate::image::Commit;
use crate::progress::Output;

/// Packages the chart: as Helm does, but with the commit's time for each file.
///
/// # Errors
/// When Helm refuses it, or a file cannot be written.
pub(super) async fn chart(output: &Output, commit: &Commit, dist: &Path) -> Result<()> {
    let helm = tokio::task::spawn_blocking(|| binaries::HELM.build(&["helm"], Progress::Stderr)).await??;
    let step = output.begin("chart");
    let folder = crate::workspace().join("charts/idtoken-operator");
    let done = Command::new(helm.join("helm"))
        .arg("package")
        .arg(&folder)
        .arg("--destination")
        .arg(dist)
        .output()
        .context("cannot run helm")?;
    if !done.status.success() {
        bail!(
            "helm cannot package the chart: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    let name = format!("idtoken-operator-{VERSION}.tgz");
    let packaged = std::fs::read(dist.join(&name)).with_context(|| format!("helm made no {name}"))?;
    let package = archive::again(&packaged, commit.time)?;
    std::fs::write(dist.join(&name), &package)?;
    let metadata = std::fs::read_to_string(folder.join("Chart.yaml")).context("cannot read Chart.yaml")?;
    let metadata: Value = serde_saphyr::from_str(&metadata).context("Chart.yaml is no YAML")?;
    let digest = Artifact::chart(package, &metadata)?.write(
        &dist.join(format!("idtoken-operator-{VERSION}-chart.oci.tar")),
        commit.time,
        commit.revision.as_deref(),
    )?;
    step.done(&format!("{name} is the chart, in a registry {digest}"));
    Ok(())
}

/// The definitions as one file, and what kubectl applies in place of the chart.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn manifests(output: &Output, commit: &Commit, dist: &Path) -> Result<()> {
    let step = output.begin("manifests");
    let workspace = crate::workspace();
    let mut entries = Vec::new();
    let mut crds = String::new();
    for folder in ["crds", "config"] {
        let mut paths: Vec<_> = std::fs::read_dir(workspace.join(folder))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        paths.sort();
        for path in paths {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if folder == "crds" {
                crds.push_str(&format!("---\n{text}"));
            }
            entries.push(Entry::text(
                path.strip_prefix(&workspace)?.to_string_lossy(),
                text,
            ));
        }
    }
    std::fs::write(dist.join(format!("idtoken-operator-{VERSION}-crds.yaml")), crds)?;
    let content = archive::tar_gz(&entries, commit.time)?;
    let name = format!("idtoken-operator-{VERSION}-manifests.tar.gz");
    std::fs::write(dist.join(&name), &content)?;
    let what = json!({
        "name": "idtoken-operator",
        "version": VERSION,
        "description": "CustomResourceDefinitions and manifests of idtoken-operator",
    });
    let digest = Artifact::manifests(content, &what).write(
        &dist.join(format!("idtoken-operator-{VERSION}-manifests.oci.tar")),
        commit.time,
        commit.revision.as_deref(),
    )?;
    step.done(&format!(
        "{name} and the definitions are written, in a registry {digest}"
    ));
    Ok(())
}
