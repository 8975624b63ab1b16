//! A whole cluster of one node on this machine: the control plane, and what runs pods.
//!
//! [`Node::start`] works only inside of [`isolation`]: in mount, process and network namespaces of its own. Addresses,
//! ports, iptables rules and mounts are then nobody else's, and the kernel takes all of them away when the process that
//! entered the namespaces ends, however it ends.
//!
//! Pods reach each other, Services, the API server and the cluster's DNS, and nothing outside. The bridge plugin does
//! not enforce NetworkPolicies.

mod cgroups;
mod control_plane;
pub mod isolation;
mod kubelet;
mod kubernetes_version;
mod network;
pub mod packages;
mod programs;
mod runtime;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Mutex;

pub use programs::NodePrograms;

use crate::{ControlPlane, Process, until};
use runtime::Containerd;

/// The node's name.
pub const NAME: &str = "node-1";
/// For what takes seconds; a busy machine gets all of it.
const LIMIT: Duration = Duration::from_secs(180);

/// A running cluster of one node. Everything ends when it is dropped, and with the process that entered the namespaces.
#[derive(Debug)]
pub struct Node {
    // The order is the order of dropping: what depends on others goes first.
    kubelet: Mutex<Process>,
    containerd: Containerd,
    _network: Vec<Process>,
    _control: Vec<Process>,
    kubelet_command: std::process::Command,
    cluster: ControlPlane,
}

impl Node {
    /// Starts everything and waits until the node is Ready and pods are admitted. `images` are archives (OCI or docker) that the node has from
    /// the start; `sandbox` is the name of the one among them that holds a pod's namespaces.
    ///
    /// # Errors
    /// When a program does not start: with the end of its log. Outside of [`isolation`].
    pub async fn start(programs: &NodePrograms, images: &[PathBuf], sandbox: &str) -> Result<Self> {
        isolation::assert_entered()?;
        network::make_bridge()?;
        let cluster = control_plane::start(programs).await?;
        let containerd = Containerd::start(programs, &cluster, sandbox).await?;
        for image in images {
            containerd.import(image).await?;
        }
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

    /// Adds the images of an archive (OCI or docker) to those that the node has.
    ///
    /// # Errors
    /// With what `ctr` said.
    pub async fn import(&self, archive: &Path) -> Result<()> {
        self.containerd.import(archive).await
    }

    /// Stops kubelet and containerd. Containers go on, as at an upgrade of a node's software.
    ///
    /// # Errors
    /// When one cannot be stopped.
    pub async fn stop_runtime(&self) -> Result<()> {
        self.kubelet.lock().await.terminate(LIMIT).await?;
        self.containerd.stop().await
    }

    /// Starts containerd and kubelet again, and waits until the node is Ready.
    ///
    /// # Errors
    /// When one does not start: with the end of its log.
    pub async fn start_runtime(&self) -> Result<()> {
        self.containerd.start_again().await?;
        let started = jiff::Timestamp::now();
        let process = Process::spawn("kubelet", &self.kubelet_command, self.cluster.dir())?;
        *self.kubelet.lock().await = process;
        self.wait_ready(Some(started)).await
    }

    /// Waits until the controllers have given the first namespace its ServiceAccount, without which no pod is admitted.
    async fn wait_admitting(&self) -> Result<()> {
        let ask = async || {
            let asked = self.cluster.kubectl(["get", "serviceaccount", "default"]).await;
            Ok(asked.ok().map(drop))
        };
        until("there is a default ServiceAccount", LIMIT, ask).await
    }

    /// Waits until the kubelet says that the node is Ready, after `since` where that is given.
    async fn wait_ready(&self, since: Option<jiff::Timestamp>) -> Result<()> {
        let path = "{range .status.conditions[?(@.type=='Ready')]}{.status} {.lastHeartbeatTime}{end}";
        let ask = async || {
            let kubelet = self.kubelet.lock().await;
            if let Some(status) = kubelet.try_wait()? {
                anyhow::bail!("kubelet ended ({status})");
            }
            let asked = self
                .cluster
                .kubectl(["get", "node", NAME, "-o", &format!("jsonpath={path}")])
                .await;
            let Ok(said) = asked else { return Ok(None) };
            let Some(time) = said.strip_prefix("True ") else {
                return Ok(None);
            };
            let time: jiff::Timestamp = time.trim().parse()?;
            Ok(since
                .is_none_or(|since| time.as_second() >= since.as_second())
                .then_some(()))
        };
        let result = until("the node is Ready", LIMIT, ask).await;
        let kubelet = self.kubelet.lock().await;
        result.with_context(|| format!("the log of kubelet ends with:\n{}\n", kubelet.log_tail()))
    }
}
