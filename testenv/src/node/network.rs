//! The pods' network: a bridge, kube-proxy for Services, and CoreDNS for names.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{NAME, NodePrograms, TIMEOUT};
use crate::pki::write_private;
use crate::{ControlPlane, Process};

/// The node's address: the bridge's, so that pods reach it.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// The address of CoreDNS.
pub(super) const DNS: Ipv4Addr = ADDRESS;
const DNS_READY: u16 = 8181;
const SUBNET: &str = "10.88.0.0/24";
const BRIDGE: &str = "cni0";

/// Creates the bridge before its CNI plugin does, because the API server listens on its address.
pub(super) fn create_bridge() -> Result<()> {
    ip("link set lo up")?;
    ip(&format!("link add {BRIDGE} type bridge"))?;
    ip(&format!("addr add {ADDRESS}/24 dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("cannot run ip (Debian package iproute2)")?;
    if !output.status.success() {
        bail!(
            "ip {arguments} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Writes the CNI configuration. Returns its folder.
pub(super) fn cni(cluster: &ControlPlane) -> Result<PathBuf> {
    let dir = cluster.dir().join("cni");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "testenv",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": SUBNET, "rangeStart": "10.88.0.10"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/run/cni",
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    write_private(&dir.join("10-testenv.conflist"), &config.to_string())?;
    Ok(dir)
}

/// Starts kube-proxy and CoreDNS, and waits until CoreDNS knows the cluster's Services.
pub(super) async fn start(programs: &NodePrograms, cluster: &ControlPlane) -> Result<Vec<Process>> {
    let proxy = proxy(programs, cluster)?;
    let dns = dns(programs, cluster)?;
    dns.wait_for_http(&format!("{DNS}:{DNS_READY}"), "/ready", TIMEOUT)
        .await?;
    Ok(vec![proxy, dns])
}

fn proxy(programs: &NodePrograms, cluster: &ControlPlane) -> Result<Process> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": cluster.kubeconfig_for("system:kube-proxy", &[])?},
        "hostnameOverride": NAME,
        "clusterCIDR": SUBNET,
        // Without br_netfilter in the kernel, a Service's pod on the same bridge would respond directly, past the node.
        "iptables": {"masqueradeAll": true},
        // Keeps the kernel's limits: a network namespace cannot set them.
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
    });
    let path = cluster.dir().join("kube-proxy.json");
    write_private(&path, &config.to_string())?;
    let mut command = Command::new(programs.kubernetes("kube-proxy"));
    command.arg(format!("--config={}", path.display()));
    Process::spawn("kube-proxy", &command, cluster.dir())
}

fn dns(programs: &NodePrograms, cluster: &ControlPlane) -> Result<Process> {
    let kubeconfig = cluster.kubeconfig_for("coredns", &["system:masters"])?;
    let path = cluster.dir().join("Corefile");
    let corefile = format!(
        ".:53 {{
    bind {DNS}
    ready {DNS}:{DNS_READY}
    errors
    cache 5
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {}
    }}
}}
",
        kubeconfig.display()
    );
    write_private(&path, &corefile)?;
    let mut command = Command::new(programs.coredns());
    command.arg("-conf").arg(&path);
    Process::spawn("coredns", &command, cluster.dir())
}
