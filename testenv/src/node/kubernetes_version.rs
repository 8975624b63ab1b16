//! The Go module of another Kubernetes version than the pinned one.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::binaries::{KUBERNETES, KUBERNETES_VERSION};
use crate::go_module::{GoModule, GoTool};
use crate::{Progress, builder, paths, progress};

/// The module of `version`, such as `v1.34.2`: the pinned one's tools, what that version's own go.mod replaces, and the other
/// requirements that `go mod tidy` finds, which needs the network the first time. Without etcd, which has versions of its own.
pub(super) fn module(version: &str, progress: Progress) -> Result<GoModule> {
    let (minor, patch) = parse(version)
        .with_context(|| format!("{version:?} is not a version of Kubernetes 1: write it as v1.34.2"))?;
    let dir = paths::testenv_dir().join(format!("kubernetes-{version}-module"));
    let tidy = dir.join(".tidy");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let _lock = builder::lock(&dir.join(".lock"), "the module of Kubernetes", progress)?;
    if !tidy.is_file() {
        let own = own_go_mod(version, &dir)?;
        write(
            &dir.join("go.mod"),
            &requirements(version, &format!("v0.{minor}.{patch}"), &own)?,
        )?;
        write(&dir.join("go.sum"), "")?;
        let mut step = progress::Step::new(progress);
        let mut command = Command::new("go");
        command
            .args(["mod", "tidy"])
            .current_dir(&dir)
            .env("GOWORK", "off");
        let what = format!("finding the modules of Kubernetes {version}");
        let (status, output) = builder::run(&command, &what, &mut step)?;
        ensure!(status.success(), "go cannot find Kubernetes {version}:\n{output}");
        step.finish(&format!("found the modules of Kubernetes {version}"));
        write(&tidy, "")?;
    }
    let ldflags = KUBERNETES
        .ldflags
        .replace(KUBERNETES_VERSION, version)
        .replace("Minor=37", &format!("Minor={minor}"));
    let tools: Vec<GoTool> = KUBERNETES
        .tools
        .iter()
        .filter(|tool| tool.name != "etcd")
        .copied()
        .collect();
    // Leaked once a run: every other module's texts are part of the program.
    Ok(GoModule {
        go_mod: read(&dir.join("go.mod"))?.leak(),
        go_sum: read(&dir.join("go.sum"))?.leak(),
        ldflags: ldflags.leak(),
        tools: tools.leak(),
        ..KUBERNETES
    })
}

/// `v1.34.2` → 34 and 2.
fn parse(version: &str) -> Option<(u32, u32)> {
    let (minor, patch) = version.strip_prefix("v1.")?.split_once('.')?;
    Some((minor.parse().ok()?, patch.parse().ok()?))
}

/// The go.mod that this version of Kubernetes has itself.
fn own_go_mod(version: &str, dir: &Path) -> Result<String> {
    let output = Command::new("go")
        .args([
            "mod",
            "download",
            "-json",
            &format!("k8s.io/kubernetes@{version}"),
        ])
        .current_dir(dir)
        .env("GOWORK", "off")
        .output()
        .context("cannot run go")?;
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let Some(path) = said["GoMod"].as_str() else {
        bail!(
            "there is no Kubernetes {version}: {} {}",
            said["Error"].as_str().unwrap_or_default(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    };
    read(Path::new(path))
}

/// The pinned go.mod's tools, with Kubernetes as the only requirement. What Kubernetes has in its own folder `staging` are modules of the
/// version `staging`. GODEBUG is that of the Go that the version was made for.
fn requirements(version: &str, staging: &str, own: &str) -> Result<String> {
    let go = own.lines().find_map(|line| line.strip_prefix("go 1."));
    let go = go
        .and_then(|rest| rest.split('.').next())
        .context("its go.mod names no Go")?;
    let mut text = String::new();
    for line in KUBERNETES.go_mod.lines().take_while(|line| *line != "require (") {
        let line = match line.starts_with("godebug ") {
            true => format!("godebug default=go1.{go}"),
            false => line.to_owned(),
        };
        if !line.contains("go.etcd.io/") {
            text.push_str(&format!("{line}\n"));
        }
    }
    text.push_str(&format!("require k8s.io/kubernetes {version}\n\nreplace (\n"));
    for line in own.lines() {
        if let Some((name, _)) = line.trim().split_once(" => ./staging/") {
            text.push_str(&format!("\t{name} => {name} {staging}\n"));
        }
    }
    text.push_str(")\n");
    Ok(text)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_replaced_everywhere() {
        assert_eq!(parse("v1.34.2"), Some((34, 2)));
        assert_eq!(parse("1.34"), None);
        let own = "module k8s.io/kubernetes\n\ngo 1.22.0\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\
                   \tk8s.io/legacy-cloud-providers => ./staging/src/k8s.io/legacy-cloud-providers\n)\n";
        let text = requirements("v1.30.14", "v0.30.14", own).unwrap();
        assert!(text.contains("require k8s.io/kubernetes v1.30.14\n"));
        assert!(text.contains("\tk8s.io/api => k8s.io/api v0.30.14\n"));
        // The pinned version has none of that name.
        assert!(text.contains("\tk8s.io/legacy-cloud-providers => k8s.io/legacy-cloud-providers v0.30.14\n"));
        assert!(
            text.contains("\tk8s.io/kubernetes/cmd/kubelet\n") && text.contains("godebug default=go1.22\n")
        );
        assert!(!text.contains(".37.") && !text.contains("etcd") && !text.contains("indirect"));
        assert!(requirements("v1.30.14", "v0.30.14", "").is_err());
    }
}
