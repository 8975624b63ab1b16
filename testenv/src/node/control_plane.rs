//! The control plane of a node's cluster: an API server for pods, the controllers and the scheduler.

use std::net::IpAddr;
use std::process::Command;

use anyhow::Result;

use super::NodePrograms;
use super::network::ADDRESS;
use crate::{ControlPlane, Options, Process};

/// Starts etcd and kube-apiserver at the address that pods use.
pub(super) async fn start(programs: &NodePrograms) -> Result<ControlPlane> {
    let options = Options {
        address: IpAddr::V4(ADDRESS),
        service_account_admission: true,
        assets: Some(programs.assets()),
        apiserver_flags: vec![
            format!("--advertise-address={ADDRESS}"),
            // Fills the endpoints of the Service `kubernetes`, which pods use.
            "--endpoint-reconciler-type=lease".to_owned(),
            // In addition to the modes and plugins of every control plane here.
            "--authorization-mode=Node".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ],
        ..Options::default()
    };
    ControlPlane::start(options).await
}

/// Starts kube-controller-manager with all its controllers, and kube-scheduler.
pub(super) fn start_controllers(programs: &NodePrograms, cluster: &ControlPlane) -> Result<Vec<Process>> {
    let manager = cluster.kubeconfig_for("system:kube-controller-manager", &[])?;
    let mut controllers = Command::new(programs.kubernetes("kube-controller-manager"));
    controllers
        .arg(format!("--kubeconfig={}", manager.display()))
        .arg(format!("--root-ca-file={}", cluster.ca_file().display()))
        .arg(format!(
            "--service-account-private-key-file={}",
            cluster.service_account_key_file().display()
        ))
        .args(["--use-service-account-credentials=true", "--leader-elect=false"])
        .arg("--bind-address=127.0.0.1");
    let scheduler_user = cluster.kubeconfig_for("system:kube-scheduler", &[])?;
    let mut scheduler = Command::new(programs.kubernetes("kube-scheduler"));
    scheduler
        .arg(format!("--kubeconfig={}", scheduler_user.display()))
        .args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
    Ok(vec![
        Process::spawn("kube-controller-manager", &controllers, cluster.dir())?,
        Process::spawn("kube-scheduler", &scheduler, cluster.dir())?,
    ])
}
