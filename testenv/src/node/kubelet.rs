//! kubelet.

use std::process::Command;

use anyhow::Result;
use serde_json::json;

use super::network::{ADDRESS, DNS};
use super::runtime::SOCKET;
use super::{NAME, NodePrograms, isolation};
use crate::ControlPlane;
use crate::pki::write_private;

/// How often kubelet syncs a pod without a change. Bounds the time from a Secret's change to its file. Kubernetes' default is
/// 1 minute.
const SYNC_FREQUENCY: &str = "10s";

/// The command that runs kubelet, with its configuration in the control plane's folder.
pub(super) fn command(programs: &NodePrograms, cluster: &ControlPlane) -> Result<Command> {
    let resolv = cluster.dir().join("resolv.conf");
    write_private(&resolv, "")?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": cluster.ca_file()},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", isolation::cgroup()?),
        "failCgroupV1": false,
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS],
        "resolvConf": resolv,
        "syncFrequency": SYNC_FREQUENCY,
        "podLogsDir": "/var/log/pods",
        // The node's disk is the machine's memory, so kubelet must not evict pods when it is nearly full.
        "localStorageCapacityIsolation": false,
        "evictionHard": {
            "imagefs.available": "0%", "imagefs.inodesFree": "0%", "memory.available": "0%",
            "nodefs.available": "0%", "nodefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    });
    let path = cluster.dir().join("kubelet.json");
    write_private(&path, &config.to_string())?;
    let kubeconfig = cluster.kubeconfig_for(&format!("system:node:{NAME}"), &["system:nodes"])?;
    let mut command = Command::new(programs.kubernetes("kubelet"));
    command
        .arg(format!("--config={}", path.display()))
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--hostname-override={NAME}"))
        .arg(format!("--node-ip={ADDRESS}"))
        .arg("--root-dir=/var/lib/kubelet")
        .arg("--cert-dir=/var/lib/kubelet/pki")
        .arg("--v=2");
    Ok(command)
}
