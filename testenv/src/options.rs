//! The options of a control plane.

use std::net::{IpAddr, Ipv4Addr};

use crate::{Assets, Progress};

/// The options of a control plane. The defaults suit tests.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address that the API server listens on and clients use. Default: 127.0.0.1.
    pub address: IpAddr,
    /// Further addresses for the API server's certificate.
    pub certificate_addresses: Vec<IpAddr>,
    /// `--service-account-issuer`. Default: the API server's own URL, so that OIDC discovery works. The API server serves
    /// the keys of another issuer too, at `/openid/v1/jwks`.
    pub service_account_issuer: Option<String>,
    /// Whether the ServiceAccount admission plugin is on. Default: off, because without a kube-controller-manager no
    /// namespace gets its `default` ServiceAccount, and the plugin would reject every pod.
    pub service_account_admission: bool,
    /// Further flags for kube-apiserver. They override the others.
    pub apiserver_flags: Vec<String>,
    /// Further flags for etcd.
    pub etcd_flags: Vec<String>,
    /// The binaries. Default: [`Assets::locate`].
    pub assets: Option<Assets>,
    /// Where builds of the binaries report progress.
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
