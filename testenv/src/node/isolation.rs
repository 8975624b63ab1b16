//! The namespaces of a node: mounts, processes, network, IPC and host name.
//!
//! The caller creates an [`Isolation`] and runs [`Isolation::command`]. That program is the first process of its
//! namespaces, calls [`enter`] once and can then start a [`super::Node`]. When it exits, even by SIGKILL, the kernel kills its
//! descendants and removes mounts, interfaces and rules, and the [`Isolation`] removes the control groups.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{cgroups, network};

/// Passes the name of the control group to the process inside.
const CGROUP_VARIABLE: &str = "IDTOKEN_TESTENV_CGROUP";

/// Fixed folders that kubelet, containerd and its plugins write to. In the namespace they are in memory and disappear with it.
const PRIVATE_FOLDERS: [&str; 6] = [
    "/run",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];

/// Settings of the whole machine that kubelet would change, and its values (`setupKernelTunables` of its container manager). The
/// namespace has files with these values in their place, so that kubelet leaves the machine alone.
const TUNABLES: [(&str, &str); 6] = [
    ("/proc/sys/kernel/keys/root_maxbytes", "25000000"),
    ("/proc/sys/kernel/keys/root_maxkeys", "1000000"),
    ("/proc/sys/kernel/panic", "10"),
    ("/proc/sys/kernel/panic_on_oops", "1"),
    ("/proc/sys/vm/overcommit_memory", "1"),
    ("/proc/sys/vm/panic_on_oom", "0"),
];

const NAMESPACES: [&str; 5] = ["--mount", "--pid", "--net", "--ipc", "--uts"];

/// Shell commands that must succeed as root in new namespaces, and what a failure means.
const PROBES: [(&str, &str); 4] = [
    (
        "ip link add probe type bridge && ip link add probe1 type veth",
        "the kernel cannot create bridges",
    ),
    (
        "iptables -t nat -A POSTROUTING -m comment --comment probe -j MASQUERADE && \
         iptables -t nat -A OUTPUT -m statistic --mode random --probability 0.5 -j RETURN && \
         iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "the kernel does not support address translation by iptables",
    ),
    (
        "mount -t tmpfs probe /mnt && mkdir /mnt/a /mnt/b /mnt/c /mnt/d && \
         mount -t overlay probe -o lowerdir=/mnt/a,upperdir=/mnt/b,workdir=/mnt/c /mnt/d",
        "the kernel does not support overlay file systems",
    ),
    ("runc --version", "runc does not run"),
];

/// The lock of the one node that a machine can run: two would share mount points.
const LOCK: &str = "/run/idtoken-testenv-node.lock";

/// The control groups and mount points, which are outside of the namespaces. Dropping this removes them.
#[derive(Debug)]
pub struct Isolation {
    cgroup: String,
    created: Vec<PathBuf>,
    // Dropped last.
    _lock: File,
}

/// Why no node can run on this machine, even with the packages of [`super::packages`], if so.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("a node needs Linux".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("a node needs root: run it with sudo, or in a virtual machine".to_owned());
    }
    // Only outside of every user namespace are all ids mapped (https://man7.org/linux/man-pages/man7/user_namespaces.7.html).
    let ids = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !ids.split_whitespace().eq(["0", "0", "4294967295"]) {
        return Some(
            "a node needs the machine's root, not that of a user namespace (a rootless container)".to_owned(),
        );
    }
    if let Err(error) = run(&["true"]) {
        return Some(format!("this machine cannot create namespaces: {error:#}"));
    }
    cgroups::obstacle().map(|error| format!("this machine cannot create control groups: {error}"))
}

/// Why no node can run on this machine although root can create namespaces and the packages are installed, if so.
#[must_use]
pub fn missing_feature() -> Option<String> {
    PROBES.iter().find_map(|(script, meaning)| {
        let error = run(&["sh", "-c", script]).err()?;
        Some(format!("{meaning}: {error:#}"))
    })
}

impl Isolation {
    /// Creates the control groups and mount points, and removes the control groups of killed runs. Blocks while another node runs on this
    /// machine, and reports that once on stderr.
    ///
    /// # Errors
    /// When one cannot be created.
    pub fn new() -> Result<Self> {
        let lock = File::create(LOCK).with_context(|| format!("cannot write {LOCK}"))?;
        if lock.try_lock().is_err() {
            let _ = writeln!(
                std::io::stderr(),
                "testenv: another node runs on this machine; waiting until it stops"
            );
            lock.lock().with_context(|| format!("cannot lock {LOCK}"))?;
        }
        cgroups::sweep();
        let mut isolation = Self {
            cgroup: cgroups::name(std::process::id()),
            created: Vec::new(),
            _lock: lock,
        };
        cgroups::create(&isolation.cgroup)?;
        for folder in PRIVATE_FOLDERS.map(Path::new) {
            if !folder.exists() {
                std::fs::create_dir(folder).with_context(|| format!("cannot create {}", folder.display()))?;
                isolation.created.push(folder.to_owned());
            }
        }
        Ok(isolation)
    }

    /// A command that runs `program` as the first process of new namespaces. All other processes there die with it.
    #[must_use]
    pub fn command(&self, program: &OsStr) -> Command {
        let mut command = unshare();
        command.arg(program).env(CGROUP_VARIABLE, &self.cgroup);
        command
    }
}

impl Drop for Isolation {
    fn drop(&mut self) {
        // The processes leave their control groups shortly after the first process of their namespace has exited.
        for _ in 0..100 {
            if cgroups::remove(&self.cgroup).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        for folder in &self.created {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command
        .args(NAMESPACES)
        .args(["--fork", "--kill-child", "--mount-proc", "--propagation=private"])
        .arg("--");
    command
}

fn run(arguments: &[&str]) -> Result<()> {
    let output = unshare()
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("cannot run unshare (Debian package util-linux)")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Whether [`Isolation::command`] started this process.
#[must_use]
pub fn is_inside() -> bool {
    std::process::id() == 1 && std::env::var_os(CGROUP_VARIABLE).is_some()
}

pub(super) fn assert_entered() -> Result<()> {
    ensure!(
        is_inside(),
        "a node runs only as the first process of its own namespaces (Isolation::command)"
    );
    Ok(())
}

/// The node's control group.
pub(super) fn cgroup() -> Result<String> {
    std::env::var(CGROUP_VARIABLE).with_context(|| format!("{CGROUP_VARIABLE} is not set"))
}

/// Mounts private folders and settings over those that a node's programs write to, and creates the node's addresses.
///
/// # Errors
/// When something cannot be mounted or created, or outside of the namespaces.
pub fn enter() -> Result<()> {
    assert_entered()?;
    // kubelet's mounts must be visible in containers: mounts are shared from here on, within this namespace.
    mount(&["--make-rshared", "/"])?;
    for folder in PRIVATE_FOLDERS {
        mount(&["-t", "tmpfs", "-o", "mode=0755", "testenv", folder])?;
    }
    let dir = Path::new("/run/tunables");
    std::fs::create_dir(dir).context("cannot create a folder in /run")?;
    for (name, value) in TUNABLES {
        let file = dir.join(name.replace('/', "_"));
        std::fs::write(&file, format!("{value}\n")).context("cannot write to /run")?;
        mount(&["--bind", &file.to_string_lossy(), name])?;
    }
    network::create_bridge()
}

fn mount(arguments: &[&str]) -> Result<()> {
    let output = Command::new("mount")
        .args(arguments)
        .output()
        .context("cannot run mount")?;
    if !output.status.success() {
        bail!(
            "mount {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
