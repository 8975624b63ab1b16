//! A whole cluster of one node on this machine: the control plane, and the programs that run pods.
//!
//! [`Node::start`] works only inside of [`isolation`]: in mount, process and network namespaces of its own. Addresses,
//! ports, iptables rules and mounts belong to the node alone, and the kernel removes all of them when the process that
//! entered the namespaces exits for any reason.
//!
//! Pods reach each other, Services, the API server and the cluster's DNS, and nothing else. The bridge plugin does not
//! enforce NetworkPolicies.

mod cgroups;
mod control_plane;
pub mod isolation;
mod kubelet;
mod kubernetes_version;
mod network;
pub mod packages;
mod programs;
mod runtime;

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Mutex;

pub use programs::NodePrograms;

use crate::{ControlPlane, Process, until};
use runtime::Containerd;

/// The node's name.
pub const NAME: &str = "node-1";
/// Generous: the steps take seconds on an idle machine.
const TIMEOUT: Duration = Duration::from_secs(180);

/// A running cluster of one node. Dropping it stops everything, and so does the exit of the process that entered the namespaces.
#[derive(Debug)]
pub struct Node {
    // Fields are dropped in this order: a program before the ones that it depends on.
    kubelet: Mutex<Process>,
    containerd: Containerd,
    _network: Vec<Process>,
    _control: Vec<Process>,
    kubelet_command: std::process::Command,
    cluster: ControlPlane,
}

impl Node {
    /// Starts everything, and waits until the node is Ready and pods are admitted. `registry` is the address of one that speaks plain
    /// HTTP; it stands for docker.io too. `sandbox` is the name of the image that holds a pod's namespaces.
    ///
    /// # Errors
    /// Outside of [`isolation`]; when a program does not start. The error then has the end of its log.
    pub async fn start(programs: &NodePrograms, registry: &str, sandbox: &str) -> Result<Self> {
        isolation::assert_entered()?;
        let cluster = control_plane::start(programs).await?;
        let containerd = Containerd::start(programs, &cluster, registry, sandbox).await?;
        let control = control_plane::start_controllers(programs, &cluster)?;
        let network = network::start(programs, &cluster).await?;
        let kubelet_command = kubelet::command(programs, &cluster)?;
        let kubelet = Process::spawn("kubelet", &kubelet_command, cluster.dir())?;
        let node = Self {
            kubelet: Mutex::new(kubelet),
            containerd,
            _network: network,
            _control: control,
            kubelet_command,
            cluster,
        };
        node.wait_ready(None).await?;
        node.wait_admitting().await?;
        Ok(node)
    }

    /// The control plane, with kubeconfigs and a client.
    pub fn cluster(&self) -> &ControlPlane {
        &self.cluster
    }

    /// Stops kubelet and containerd. Containers keep running, as during an upgrade of a node's software.
    ///
    /// # Errors
    /// When one cannot be stopped.
    pub async fn stop_runtime(&self) -> Result<()> {
        self.kubelet.lock().await.terminate(TIMEOUT).await?;
        self.containerd.stop().await
    }

    /// Starts containerd and kubelet again, and waits until the node is Ready.
    ///
    /// # Errors
    /// When one does not start. The error has the end of its log.
    pub async fn start_runtime(&self) -> Result<()> {
        self.containerd.restart().await?;
        let started = jiff::Timestamp::now();
        let process = Process::spawn("kubelet", &self.kubelet_command, self.cluster.dir())?;
        *self.kubelet.lock().await = process;
        self.wait_ready(Some(started)).await
    }

    /// Waits until the controllers have created the first namespace's ServiceAccount. Without it no pod is admitted.
    async fn wait_admitting(&self) -> Result<()> {
        let probe = async || {
            let result = self.cluster.kubectl(["get", "serviceaccount", "default"]).await;
            Ok(result.ok().map(drop))
        };
        until("there is a default ServiceAccount", TIMEOUT, probe).await
    }

    /// Waits until kubelet reports that the node is Ready, at or after `since` if given.
    async fn wait_ready(&self, since: Option<jiff::Timestamp>) -> Result<()> {
        let path = "{range .status.conditions[?(@.type=='Ready')]}{.status} {.lastHeartbeatTime}{end}";
        let probe = async || {
            let kubelet = self.kubelet.lock().await;
            if let Some(status) = kubelet.try_wait()? {
                anyhow::bail!("kubelet exited ({status})");
            }
            let result = self
                .cluster
                .kubectl(["get", "node", NAME, "-o", &format!("jsonpath={path}")])
                .await;
            let Ok(condition) = result else { return Ok(None) };
            let Some(time) = condition.strip_prefix("True ") else {
                return Ok(None);
            };
            let time: jiff::Timestamp = time.trim().parse()?;
            Ok(since
                .is_none_or(|since| time.as_second() >= since.as_second())
                .then_some(()))
        };
        let result = until("the node is Ready", TIMEOUT, probe).await;
        let kubelet = self.kubelet.lock().await;
        result.with_context(|| format!("the log of kubelet ends with:\n{}\n", kubelet.log_tail()))
    }
}
