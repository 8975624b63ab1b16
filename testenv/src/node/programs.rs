//! The programs of a node, built from Go modules. runc and iptables are packages (see [`super::packages`]).

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;

use super::kubernetes_version;
use crate::go_module::{GoModule, GoTool};
use crate::{Assets, Progress, binaries};

/// containerd v2.4.2, without the snapshotters that need a file system of their own.
const CONTAINERD: GoModule = GoModule {
    name: "containerd",
    go_mod: include_str!("../../tools/containerd/go.mod"),
    go_sum: include_str!("../../tools/containerd/go.sum"),
    files: &[],
    ldflags: "-s -w -X github.com/containerd/containerd/v2/version.Version=v2.4.2",
    tags: "no_btrfs,no_devmapper,no_zfs",
    optimized: false,
    tools: &[
        GoTool {
            name: "containerd",
            package: "github.com/containerd/containerd/v2/cmd/containerd",
        },
        GoTool {
            name: "containerd-shim-runc-v2",
            package: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        },
        GoTool {
            name: "ctr",
            package: "github.com/containerd/containerd/v2/cmd/ctr",
        },
    ],
};

/// The CNI plugins v1.9.1.
const CNI: GoModule = GoModule {
    name: "cni",
    go_mod: include_str!("../../tools/cni/go.mod"),
    go_sum: include_str!("../../tools/cni/go.sum"),
    files: &[],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[
        GoTool {
            name: "bridge",
            package: "github.com/containernetworking/plugins/plugins/main/bridge",
        },
        GoTool {
            name: "host-local",
            package: "github.com/containernetworking/plugins/plugins/ipam/host-local",
        },
        GoTool {
            name: "loopback",
            package: "github.com/containernetworking/plugins/plugins/main/loopback",
        },
        GoTool {
            name: "portmap",
            package: "github.com/containernetworking/plugins/plugins/meta/portmap",
        },
    ],
};

/// CoreDNS v1.15.0 with the plugins for the cluster's own names.
const COREDNS: GoModule = GoModule {
    name: "coredns",
    go_mod: include_str!("../../tools/coredns/go.mod"),
    go_sum: include_str!("../../tools/coredns/go.sum"),
    files: &[("main.go", include_str!("../../tools/coredns/main.go"))],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "coredns",
        package: ".",
    }],
};

/// The programs of Kubernetes that a node needs.
const KUBERNETES: [&str; 6] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];

/// The paths of a node's programs.
#[derive(Clone, Debug)]
pub struct NodePrograms {
    etcd: PathBuf,
    kubernetes: PathBuf,
    containerd: PathBuf,
    cni: PathBuf,
    coredns: PathBuf,
}

impl NodePrograms {
    /// Builds the programs that are not built yet: about 10 minutes on two cores, once. Blocks. `version` selects another Kubernetes
    /// version than the pinned one, such as `v1.34.2`.
    ///
    /// # Errors
    /// When Go is missing, too old or fails; when there is no such version.
    pub fn build(version: Option<&str>, progress: Progress) -> Result<Self> {
        let kubernetes = match version {
            Some(version) => kubernetes_version::module(version, progress)?,
            None => binaries::KUBERNETES,
        };
        Ok(Self {
            etcd: binaries::KUBERNETES.build(&["etcd"], progress)?.join("etcd"),
            kubernetes: kubernetes.build(&KUBERNETES, progress)?,
            containerd: build_all(&CONTAINERD, progress)?,
            cni: build_all(&CNI, progress)?,
            coredns: build_all(&COREDNS, progress)?,
        })
    }

    /// etcd, kube-apiserver and kubectl.
    #[must_use]
    pub fn assets(&self) -> Assets {
        Assets {
            etcd: self.etcd.clone(),
            kube_apiserver: self.kubernetes("kube-apiserver"),
            kubectl: self.kubernetes("kubectl"),
        }
    }

    pub(super) fn kubernetes(&self, name: &str) -> PathBuf {
        self.kubernetes.join(name)
    }

    pub(super) fn containerd(&self, name: &str) -> PathBuf {
        self.containerd.join(name)
    }

    pub(super) fn cni(&self) -> PathBuf {
        self.cni.clone()
    }

    pub(super) fn coredns(&self) -> PathBuf {
        self.coredns.join("coredns")
    }

    /// A `PATH` in which containerd finds its shim and runc.
    pub(super) fn path(&self) -> Result<OsString> {
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.containerd.clone())
            .chain(std::env::split_paths(&inherited))
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
        Ok(std::env::join_paths(folders)?)
    }
}

fn build_all(module: &GoModule, progress: Progress) -> Result<PathBuf> {
    let names: Vec<_> = module.tools.iter().map(|tool| tool.name).collect();
    module.build(&names, progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_have_the_documented_versions() {
        for (module, line) in [
            (CONTAINERD, "github.com/containerd/containerd/v2 v2.4.2"),
            (CNI, "github.com/containernetworking/plugins v1.9.1"),
            (COREDNS, "github.com/coredns/coredns v1.15.0"),
        ] {
            assert!(module.go_mod.contains(line), "{line}");
        }
        assert!(CONTAINERD.ldflags.ends_with("Version=v2.4.2"));
    }
}
