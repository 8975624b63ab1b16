//! The end-to-end tests: the chart, the operator, and programs that read its Secrets, on a real node.
//!
//! They use kubectl and helm as users do. The Google of the cluster is the emulator, in a pod.

mod cluster;
mod consumers;
mod failures;
mod federation;
mod google;
pub mod images;
mod metadata;
mod objects;
mod release;
mod released;
mod report;
mod suite;
mod tutorial;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use idtoken_testenv::node::{Node, NodePrograms, isolation};
use idtoken_testenv::{Progress, Registry, RunDir};

use cluster::Cluster;
use report::Report;
use suite::{OwnNode, Suite};

/// What the tests run with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `PATH` with kubectl, helm and kubectl-idtoken.
    pub path: OsString,
    /// The root of the workspace.
    pub workspace: PathBuf,
    /// The folder of a release, whose chart and images are what is tested. Without one it is the workspace's chart, and the images are
    /// among those that the tests get. Only for a node of our own.
    pub released: Option<PathBuf>,
    /// Whether the cluster stays until Ctrl-C, also after a failure.
    pub keep: bool,
}

/// Starts a node in the namespaces that this process is the first of, and runs the tests on it. Returns how many cases passed.
///
/// # Errors
/// When something does not start, or a test fails.
pub async fn run_on_node(settings: Settings, programs: &NodePrograms, images: &[PathBuf]) -> Result<usize> {
    isolation::enter()?;
    let scratch = RunDir::create("e2e")?;
    let report = Report::default();
    let push = report.begin("a registry, with the images");
    let registry = push.ended(pushed(images).await)?;
    let released = match &settings.released {
        Some(dist) => Some(released::publish(
            &report,
            &registry,
            &settings.workspace,
            dist,
            scratch.path(),
        )?),
        None => None,
    };
    let start = report.begin("a node: control plane, kubelet, containerd");
    let library = format!("{}/{}", registry.address(), images::LIBRARY);
    let sandbox = format!("{library}/{}", images::TOOLS);
    let node = start.ended(Node::start(programs, registry.address(), &sandbox).await)?;
    let own = OwnNode {
        node,
        registry,
        released,
    };
    let node = &own.node;
    let cluster = Cluster {
        kubeconfig: node.cluster().admin_kubeconfig(),
        registry: Some(library),
        path: settings.path,
        workspace: settings.workspace,
        scratch: scratch.path().to_owned(),
    };
    let suite = Suite {
        cluster: &cluster,
        own: Some(&own),
        report: &report,
    };
    let result = suite.run().await;
    report.table();
    if settings.keep {
        if let Err(error) = &result {
            println!("✗ {error:#}");
        }
        println!("Everything stays up until Ctrl-C. In a shell in the node's namespaces:");
        println!(
            "  export KUBECONFIG={}",
            node.cluster().admin_kubeconfig().display()
        );
        std::future::pending::<()>().await;
    }
    result.map(|()| report.passed())
}

/// A registry that has the images.
async fn pushed(archives: &[PathBuf]) -> Result<Registry> {
    let registry = Registry::start(Progress::Quiet).await?;
    images::push(&registry, archives)?;
    Ok(registry)
}

/// Runs the tests on an existing cluster, whose nodes have the images or get them from `registry`.
///
/// # Errors
/// When a test fails, or the cluster has the operator's kinds already.
pub async fn run_on_cluster(settings: Settings, context: &str, registry: Option<&str>) -> Result<()> {
    let scratch = RunDir::create("e2e")?;
    let report = Report::default();
    let kubeconfig = scratch.path().join("kubeconfig");
    let view = ["config", "view", "--minify", "--flatten", "--context", context];
    let output = tokio::process::Command::new("kubectl").args(view).output().await;
    let output = output.context("cannot run kubectl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "kubectl knows no context {context}: {said}"
    );
    std::fs::write(&kubeconfig, output.stdout).context("cannot write a kubeconfig")?;
    let cluster = Cluster {
        kubeconfig,
        registry: registry.map(str::to_owned),
        path: settings.path,
        workspace: settings.workspace,
        scratch: scratch.path().to_owned(),
    };
    let suite = Suite {
        cluster: &cluster,
        own: None,
        report: &report,
    };
    let result = suite.run().await;
    report.table();
    result
}
