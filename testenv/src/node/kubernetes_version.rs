//! The Go module of another Kubernetes version than the pinned one.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::binaries::{KUBERNETES, KUBERNETES_VERSION};
use crate::go_module::{GoModule, GoTool};
use crate::{Progress, builder, paths, progress};

/// The module of `version`, such as `v1.34.2`: the pinned one with the version replaced everywhere, and with the other requirements
/// that `go mod tidy` finds, which needs the network the first time. Without etcd, which has versions of its own.
pub(super) fn module(version: &str, progress: Progress) -> Result<GoModule> {
    let (minor, patch) = parse(version).with_context(|| {
        format!(
            "{version:?} is not a version of Kubernetes 1: write it as v1.34.2 (Go modules exist from v1.34 on)"
        )
    })?;
    let dir = paths::testenv_dir().join(format!("kubernetes-{version}-module"));
    let tidy = dir.join(".tidy");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let _lock = builder::lock(&dir.join(".lock"), "the module of Kubernetes", progress)?;
    if !tidy.is_file() {
        write(&dir.join("go.mod"), &requirements(version, minor, patch))?;
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

/// The pinned go.mod's tools and replacements, with Kubernetes as the only requirement.
fn requirements(version: &str, minor: u32, patch: u32) -> String {
    let staging = KUBERNETES_VERSION.replacen("v1.", "v0.", 1);
    let mut text = format!("require k8s.io/kubernetes {version}\n\n");
    let mut required = false;
    for line in KUBERNETES.go_mod.lines() {
        required |= line == "require (";
        if !required && !line.contains("go.etcd.io/") {
            text.push_str(&line.replace(&staging, &format!("v0.{minor}.{patch}")));
            text.push('\n');
        }
        required &= line != ")";
    }
    text
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
        let text = requirements("v1.34.2", 34, 2);
        assert!(text.contains("require k8s.io/kubernetes v1.34.2\n"));
        assert!(text.contains("\tk8s.io/api => k8s.io/api v0.34.2\n"));
        assert!(text.contains("\tk8s.io/kubernetes/cmd/kubelet\n"));
        assert!(!text.contains(".37.") && !text.contains("etcd") && !text.contains("indirect"));
    }
}
