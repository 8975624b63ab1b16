//! The manifest by which krew installs the kubectl plugin: <https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest/>.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use idtoken_testenv::{Progress, RunDir, binaries, oci};
use serde_json::{Value, json};

use super::{PLUGIN, VERSION, sign};
use crate::progress::Output;

/// Of `kubectl krew`, where it is known by it too.
const NAME: &str = "idtoken";

/// Writes the manifest, and has krew install the plugin from it and from its archive. `archives` are those of the platforms.
///
/// # Errors
/// When the manifest cannot be written, or krew refuses it.
pub(super) async fn write(output: &Output, archives: &[(oci::Arch, PathBuf)], dist: &Path) -> Result<()> {
    let chart = std::fs::read_to_string(crate::workspace().join("charts/idtoken-operator/Chart.yaml"));
    let chart: Value = serde_saphyr::from_str(&chart.context("cannot read Chart.yaml")?)?;
    let home = chart["home"].as_str().context("Chart.yaml names no home")?;
    let manifest = manifest(home, archives)?;
    let path = dist.join(format!("{PLUGIN}-{VERSION}-krew.yaml"));
    std::fs::write(&path, serde_saphyr::to_string(&manifest)?)?;
    let here = oci::Arch::of_this_machine()?;
    let Some((_, archive)) = archives.iter().find(|(arch, _)| *arch == here) else {
        output.warn("krew has not installed the plugin: it is for another machine");
        return Ok(());
    };
    let krew = tokio::task::spawn_blocking(|| binaries::KREW.build(&["krew"], Progress::Stderr)).await??;
    let step = output.begin("krew");
    install(&krew.join("krew"), &path, archive)?;
    step.done("krew installs the plugin from its manifest and archive");
    Ok(())
}

fn manifest(home: &str, archives: &[(oci::Arch, PathBuf)]) -> Result<Value> {
    let mut platforms = Vec::new();
    for (arch, archive) in archives {
        let name = archive.file_name().unwrap_or_default().display();
        platforms.push(json!({
            "selector": {"matchLabels": {"os": "linux", "arch": arch.as_str()}},
            "uri": format!("{home}/releases/download/v{VERSION}/{name}"),
            "sha256": sign::sha256(archive)?,
            "bin": PLUGIN,
        }));
    }
    Ok(json!({
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": NAME},
        "spec": {
            "version": format!("v{VERSION}"),
            "homepage": home,
            "shortDescription": "Explain, grant and renew Google ID tokens",
            "description": "Works with idtoken-operator: mints ID tokens, and says why a request has none, which grant it needs and what \
                the cluster allows.",
            "platforms": platforms,
        },
    }))
}

/// Installs into a folder that is removed, and asks the installed plugin for its version.
fn install(krew: &Path, manifest: &Path, archive: &Path) -> Result<()> {
    let root = RunDir::create("krew")?;
    let installed = Command::new(krew)
        .arg("install")
        .arg(format!("--manifest={}", manifest.display()))
        .arg(format!("--archive={}", archive.display()))
        .env("KREW_ROOT", root.path())
        .env("KREW_NO_UPGRADE_CHECK", "1")
        .output()
        .context("cannot run krew")?;
    let said = String::from_utf8_lossy(&installed.stderr);
    ensure!(
        installed.status.success(),
        "krew refuses the plugin: {}",
        said.trim()
    );
    let plugin = root.path().join("bin").join(format!("kubectl-{NAME}"));
    let version = Command::new(&plugin)
        .arg("--version")
        .output()
        .with_context(|| format!("krew has not installed {}", plugin.display()))?;
    ensure!(
        version.status.success() && String::from_utf8_lossy(&version.stdout).contains(VERSION),
        "the installed plugin says {version:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use idtoken_testenv::archive::{self, Entry};

    #[test]
    #[ignore = "builds krew: in cargo xtask nightly"]
    fn krew_installs_the_plugin_and_refuses_another_archive() {
        let dir = RunDir::create("krew-manifest").expect("a folder");
        let make = |program: &str| {
            let entry = Entry::program(PLUGIN, program.as_bytes().to_vec());
            archive::tar_gz(&[entry], jiff::Timestamp::UNIX_EPOCH).expect("an archive")
        };
        let path = dir.path().join("plugin.tar.gz");
        std::fs::write(&path, make(&format!("#!/bin/sh\necho {VERSION}\n"))).expect("a file");
        let here = oci::Arch::of_this_machine().expect("a processor");
        let manifest = manifest("https://example.com/a", &[(here, path.clone())]).expect("a manifest");
        assert_eq!(
            manifest["spec"]["platforms"][0]["uri"],
            format!("https://example.com/a/releases/download/v{VERSION}/plugin.tar.gz")
        );
        let file = dir.path().join("idtoken.yaml");
        std::fs::write(&file, serde_saphyr::to_string(&manifest).expect("YAML")).expect("a file");
        let krew = binaries::KREW
            .build(&["krew"], Progress::Stderr)
            .expect("krew")
            .join("krew");
        install(&krew, &file, &path).expect("it is installed");

        std::fs::write(&path, make("#!/bin/sh\necho evil\n")).expect("a file");
        let error = install(&krew, &file, &path)
            .expect_err("another archive")
            .to_string();
        assert!(error.contains("checksum"), "{error}");
    }
}
