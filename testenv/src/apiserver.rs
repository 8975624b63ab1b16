//! kube-apiserver.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::pki::{Authority, SigningPair, write_private};
use crate::ports::Port;
use crate::{Assets, Options, Process, audit, wait};

/// Generous: the start takes 3 s on a fast machine, but several may start at once beside a compiler.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(180);

/// The first address of `SERVICE_RANGE`, which the `kubernetes` Service gets.
const SERVICE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
const SERVICE_RANGE: &str = "10.96.0.0/16";

/// The files that kube-apiserver reads, and the audit log that it writes.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    pub(crate) ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    issuer_public: PathBuf,
    pub(crate) issuer_key: PathBuf,
    kubelet_certificate: PathBuf,
    kubelet_key: PathBuf,
    policy: PathBuf,
    pub(crate) audit_log: PathBuf,
}

impl Files {
    /// Writes all files into `dir`.
    pub(crate) fn write(dir: &Path, ca: &Authority, issuer: &SigningPair, options: &Options) -> Result<Self> {
        let files = Self {
            dir: dir.to_owned(),
            ca: dir.join("ca.crt"),
            certificate: dir.join("apiserver.crt"),
            key: dir.join("apiserver.key"),
            issuer_public: dir.join("service-account.pub"),
            issuer_key: dir.join("service-account.key"),
            kubelet_certificate: dir.join("kubelet-client.crt"),
            kubelet_key: dir.join("kubelet-client.key"),
            policy: dir.join("audit-policy.yaml"),
            audit_log: dir.join("audit.jsonl"),
        };
        let mut addresses = vec![SERVICE_ADDRESS, options.address];
        addresses.extend(&options.certificate_addresses);
        let server = ca.server(&addresses)?;
        write_private(&files.ca, &ca.certificate())?;
        write_private(&files.certificate, &server.certificate)?;
        write_private(&files.key, &server.key)?;
        write_private(&files.issuer_public, &issuer.public)?;
        write_private(&files.issuer_key, &issuer.key)?;
        let kubelet = ca.client("kube-apiserver-kubelet-client", &["system:masters"])?;
        write_private(&files.kubelet_certificate, &kubelet.certificate)?;
        write_private(&files.kubelet_key, &kubelet.key)?;
        write_private(&files.policy, audit::POLICY)?;
        Ok(files)
    }
}

/// The settings that stay the same at each start of one API server.
#[derive(Debug)]
pub(crate) struct ApiServer {
    binary: PathBuf,
    port: Port,
    options: Options,
    etcd_url: String,
}

impl ApiServer {
    pub(crate) fn new(assets: &Assets, options: &Options, etcd_url: &str) -> Result<Self> {
        Ok(Self {
            binary: assets.kube_apiserver.clone(),
            port: Port::reserve()?,
            options: options.clone(),
            etcd_url: etcd_url.to_owned(),
        })
    }

    /// The URL for clients: `https://host:port`.
    pub(crate) fn url(&self) -> String {
        let address = if self.options.address.is_unspecified() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            self.options.address
        };
        format!("https://{}", SocketAddr::new(address, self.port.number))
    }

    pub(crate) fn issuer(&self) -> String {
        self.options
            .service_account_issuer
            .clone()
            .unwrap_or_else(|| self.url())
    }

    /// Reserves another port. Only for an API server that was never ready.
    pub(crate) fn change_port(&mut self) -> Result<()> {
        self.port = Port::reserve()?;
        Ok(())
    }

    pub(crate) fn spawn(&self, files: &Files) -> Result<Process> {
        let url = self.url();
        let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        let mut command = Command::new(&self.binary);
        command
            .arg(format!("--etcd-servers={}", self.etcd_url))
            .arg(format!("--bind-address={}", self.options.address))
            .arg(format!("--secure-port={}", self.port.number))
            .arg(format!("--service-cluster-ip-range={SERVICE_RANGE}"))
            // Endpoints must not contain a loopback address, and nothing here reads them.
            .arg("--endpoint-reconciler-type=none")
            .arg(file("tls-cert-file", &files.certificate))
            .arg(file("tls-private-key-file", &files.key))
            .arg(file("cert-dir", &files.dir))
            .arg(file("client-ca-file", &files.ca))
            .arg("--authorization-mode=RBAC")
            .arg("--allow-privileged=true")
            .arg(format!("--service-account-issuer={}", self.issuer()))
            .arg(format!("--service-account-jwks-uri={url}/openid/v1/jwks"))
            .arg(file("service-account-key-file", &files.issuer_public))
            .arg(file("service-account-signing-key-file", &files.issuer_key))
            .arg(file("kubelet-client-certificate", &files.kubelet_certificate))
            .arg(file("kubelet-client-key", &files.kubelet_key))
            .arg("--enable-admission-plugins=OwnerReferencesPermissionEnforcement,ValidatingAdmissionPolicy")
            .arg(file("audit-policy-file", &files.policy))
            .arg(file("audit-log-path", &files.audit_log))
            .arg("--audit-log-format=json")
            // Rotation would hide events from the tests; lumberjack rotates at 100 MB by default.
            .arg("--audit-log-maxsize=100000");
        if self.options.address.is_loopback() {
            command.arg(format!("--advertise-address={}", self.options.address));
        }
        if !self.options.service_account_admission {
            command.arg("--disable-admission-plugins=ServiceAccount");
        }
        command.args(&self.options.apiserver_flags);
        Process::spawn("kube-apiserver", &command, &files.dir)
    }
}

/// Waits until `/readyz` returns ok, which includes the default RBAC rules.
pub(crate) async fn wait_ready(process: &Process, client: &kube::Client) -> Result<()> {
    let probe = async || {
        if let Some(status) = process.try_wait()? {
            bail!("kube-apiserver exited ({status}) before it was ready");
        }
        Ok(ready(client).await.ok())
    };
    wait::until("kube-apiserver is ready", READY_TIMEOUT, probe)
        .await
        .with_context(|| format!("the log of kube-apiserver ends with:\n{}\n", process.log_tail()))
}

async fn ready(client: &kube::Client) -> Result<()> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    tokio::time::timeout(Duration::from_secs(5), client.request_text(request))
        .await
        .map_err(|_| anyhow!("no response from /readyz within 5 s"))??;
    Ok(())
}
