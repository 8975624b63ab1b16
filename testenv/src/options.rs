//! What can be chosen about a control plane.

use std::net::{IpAddr, Ipv4Addr};

use crate::{Assets, Progress};

/// What can be chosen about a control plane. The default is what tests want.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the API server listens and how clients reach it. Default: 127.0.0.1.
    pub address: IpAddr,
    /// Further addresses for the API server's certificate.
    pub certificate_addresses: Vec<IpAddr>,
    /// `--service-account-issuer`. Default: the API server's own URL, so that OIDC discovery works. Where it is set, its
    /// keys are still served by the API server, at `/openid/v1/jwks`.
    pub service_account_issuer: Option<String>,
    /// Whether the ServiceAccount admission plugin is on. Default: off, because without a kube-controller-manager no
    /// namespace gets its `default` ServiceAccount, and the plugin would refuse every pod.
    pub service_account_admission: bool,
    /// Further flags for kube-apiserver; they come last, so they win.
    pub apiserver_flags: Vec<String>,
    /// Further flags for etcd.
    pub etcd_flags: Vec<String>,
    /// The binaries. Default: [`crate::binaries::locate`].
    pub assets: Option<Assets>,
    /// Where the progress of building the binaries is shown.
    pub progress: Progress,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            certificate_addresses: Vec::new(),
            service_account_issuer: None,
            service_account_admission: false,
            apiserver_flags: Vec::new(),
            etcd_flags: Vec::new(),
            assets: None,
            progress: Progress::default(),
        }
    }
}
