//! The control groups of a node's pods, below one folder in each hierarchy.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const MOUNT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "idtoken-testenv-";
/// The controllers of a unified hierarchy (cgroup v2) that kubelet and runc need.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// The name of the node's control group for kubelet. The process `id` owns the namespaces.
pub(super) fn name(id: u32) -> String {
    format!("{PREFIX}{id}")
}

/// The roots of all hierarchies: one of cgroup v2, or several of v1, possibly with one of v2 without controllers.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return Ok(vec![mount.to_owned()]);
    }
    let entries = std::fs::read_dir(mount).with_context(|| format!("cannot read {MOUNT}"))?;
    let found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect();
    if found.is_empty() {
        bail!("no control groups are mounted at {MOUNT}");
    }
    Ok(found)
}

/// The controllers to enable for children in a hierarchy of cgroup v2; none in v1, where children have all of them.
fn delegable_controllers(root: &Path) -> Vec<&'static str> {
    let available = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let is_available = |wanted: &&str| available.split_whitespace().any(|name| name == *wanted);
    CONTROLLERS.into_iter().filter(is_available).collect()
}

/// Why no control group can be created on this machine, if so.
pub(super) fn obstacle() -> Option<String> {
    let name = format!("{PREFIX}probe-{}", std::process::id());
    let result = create(&name);
    let _ = remove(&name);
    result.err().map(|error| format!("{error:#}"))
}

/// Creates the control group in every hierarchy.
///
/// # Errors
/// When it cannot be created, or controllers cannot be enabled.
pub(super) fn create(name: &str) -> Result<()> {
    for root in hierarchies()? {
        let wanted: Vec<_> = delegable_controllers(&root)
            .iter()
            .map(|name| format!("+{name}"))
            .collect();
        if !wanted.is_empty() {
            let control = root.join("cgroup.subtree_control");
            std::fs::write(&control, wanted.join(" "))
                .with_context(|| format!("cannot write {}", control.display()))?;
        }
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    Ok(())
}

/// Removes a node's control groups. No process may be left in them.
///
/// # Errors
/// When one cannot be removed.
pub(super) fn remove(name: &str) -> Result<()> {
    for root in hierarchies()? {
        remove_tree(&root.join(name))?;
    }
    Ok(())
}

/// Removes the control groups of killed nodes.
pub(super) fn sweep() {
    let roots = hierarchies().unwrap_or_default();
    let names = roots
        .iter()
        .filter_map(|root| std::fs::read_dir(root).ok())
        .flatten()
        .flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.rsplit('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            let _ = remove(&name);
        }
    }
}

fn remove_tree(dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    // Not remove_dir_all: a control group's files cannot be removed, and disappear with their folder.
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(dir).with_context(|| format!("cannot remove {}", dir.display()))
}
