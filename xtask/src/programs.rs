//! `cargo xtask programs`: builds the third-party programs that tests need. target/testenv keeps each by a hash of its sources.

use anyhow::Result;
use clap::ValueEnum;
use idtoken_testenv::node::NodePrograms;
use idtoken_testenv::{Assets, CRANE, GoModule, Progress, binaries, consumers};

use crate::progress::Output;

/// Programs that are needed together, in the order of their builds: first what most tests wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Programs {
    /// etcd, kube-apiserver and kubectl, downloaded where they can be
    ControlPlane,
    /// kube-controller-manager
    Controllers,
    /// Helm 3, Helm 4 and kubeconform
    Chart,
    /// crane and actionlint
    Tools,
    /// Prometheus, kube-state-metrics, OpenTelemetry Collector, Caddy, controller-gen and what reads recipes
    Consumers,
    /// The rest of Kubernetes, containerd, the CNI plugins and CoreDNS
    Node,
}

impl Programs {
    /// What the suites of `cargo xtask test` need.
    pub(crate) const OF_TESTS: [Self; 5] = [
        Self::ControlPlane,
        Self::Controllers,
        Self::Chart,
        Self::Tools,
        Self::Consumers,
    ];

    /// The programs, for messages.
    pub(crate) const fn names(self) -> &'static str {
        match self {
            Self::ControlPlane => "etcd, kube-apiserver and kubectl",
            Self::Controllers => "kube-controller-manager",
            Self::Chart => "Helm 3, Helm 4 and kubeconform",
            Self::Tools => "crane and actionlint",
            Self::Consumers => {
                "Prometheus, kube-state-metrics, OpenTelemetry Collector, Caddy, controller-gen and what reads recipes"
            }
            Self::Node => "Kubernetes, containerd, the CNI plugins and CoreDNS",
        }
    }

    /// Builds those that are not built yet. Blocks. Waits for a program that another process is building.
    ///
    /// # Errors
    /// When Go is missing, too old or fails.
    pub(crate) fn build(self, progress: Progress) -> Result<()> {
        let all = |modules: &[(GoModule, &str)]| {
            modules
                .iter()
                .try_for_each(|(module, program)| module.build(&[program], progress).map(drop))
        };
        match self {
            Self::ControlPlane => Assets::locate(progress).map(drop),
            // A folder that the user named has it, or the test that needs it builds it.
            Self::Controllers
                if std::env::var_os("KUBEBUILDER_ASSETS").is_some_and(|dir| !dir.is_empty()) =>
            {
                Ok(())
            }
            Self::Controllers => all(&[(binaries::KUBERNETES, "kube-controller-manager")]),
            Self::Chart => all(&[
                (binaries::HELM, "helm"),
                (binaries::HELM_4, "helm"),
                (binaries::KUBECONFORM, "kubeconform"),
            ]),
            Self::Tools => all(&[(CRANE, "crane"), (binaries::ACTIONLINT, "actionlint")]),
            Self::Consumers => consumers::build_all(progress),
            Self::Node => NodePrograms::build(None, progress).map(drop),
        }
    }
}

/// Finds, downloads or builds etcd, kube-apiserver and kubectl.
///
/// # Errors
/// When they can be neither found, downloaded nor built.
pub(crate) async fn control_plane(output: &Output) -> Result<Assets> {
    // The builder shows its own progress on stderr.
    let step = output.begin("etcd, kube-apiserver and kubectl");
    let assets = tokio::task::spawn_blocking(|| Assets::locate(Progress::Stderr)).await??;
    let dir = assets.etcd.parent().unwrap_or(&assets.etcd);
    let dir = dir.strip_prefix(crate::workspace()).unwrap_or(dir);
    step.done(&format!(
        "etcd, kube-apiserver and kubectl are in {}",
        dir.display()
    ));
    Ok(assets)
}

/// Builds `wanted`, or all.
///
/// # Errors
/// When one cannot be built.
pub(crate) async fn run(output: &Output, wanted: &[Programs]) -> Result<()> {
    let all = Programs::value_variants();
    let mut wanted = if wanted.is_empty() { all } else { wanted }.to_vec();
    wanted.sort_unstable();
    for programs in wanted {
        // The builder shows its own progress on stderr.
        let step = output.begin(programs.names());
        tokio::task::spawn_blocking(move || programs.build(Progress::Stderr)).await??;
        step.done(&format!("{}: ready", programs.names()));
    }
    Ok(())
}
