//! etcd and kube-apiserver together.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::{Mutex, MutexGuard};

use crate::apiserver::{self, ApiServer, Files};
use crate::etcd::Etcd;
use crate::pki::{self, Authority, write_private};
use crate::{Assets, AuditEvent, Options, Process, RunDir, audit, kubeconfig};

/// A running control plane: etcd and kube-apiserver, with a folder of their own.
///
/// [`ControlPlane::stop`] stops it, and so does dropping it or the death of the process that started it. It belongs to no tokio
/// runtime, so several tests can share one through a static. A client belongs to the runtime that creates it.
#[derive(Debug)]
pub struct ControlPlane {
    // Fields are dropped in this order: the API server before etcd, the folder last.
    apiserver: Mutex<Option<Process>>,
    etcd: Etcd,
    server: ApiServer,
    files: Files,
    authority: Authority,
    assets: Assets,
    admin: PathBuf,
    kubeconfigs: AtomicU32,
    dir: RunDir,
}

impl ControlPlane {
    /// Starts a control plane and waits until it is ready: about 3 s, plus minutes if the binaries must be built.
    ///
    /// # Errors
    /// When the binaries can be neither found nor built, or do not start. The error has the end of their logs.
    pub async fn start(options: Options) -> Result<Self> {
        let assets = match &options.assets {
            Some(assets) => assets.clone(),
            None => {
                let progress = options.progress;
                tokio::task::spawn_blocking(move || Assets::locate(progress))
                    .await
                    .context("the search for the binaries was cancelled")??
            }
        };
        let dir = RunDir::create("control-plane")?;
        let authority = Authority::new()?;
        let files = Files::write(dir.path(), &authority, &pki::service_account_key()?, &options)?;
        let etcd = Etcd::start(&assets, &options, dir.path()).await?;
        let server = ApiServer::new(&assets, &options, &etcd.url())?;
        let mut cluster = Self {
            apiserver: Mutex::new(None),
            etcd,
            server,
            files,
            authority,
            assets,
            admin: PathBuf::new(),
            kubeconfigs: AtomicU32::new(0),
            dir,
        };
        cluster.first_start().await?;
        cluster
            .publish_issuer_keys()
            .await
            .context("cannot publish the keys of the service-account issuer")?;
        Ok(cluster)
    }

    /// Lets anyone read the keys of the service-account issuer, as in clusters with a public issuer: Google's STS, for example, has
    /// no credentials for the cluster.
    async fn publish_issuer_keys(&self) -> Result<()> {
        let group = "rbac.authorization.k8s.io".to_owned();
        let binding = ClusterRoleBinding {
            metadata: ObjectMeta {
                name: Some("testenv-public-service-account-issuer".to_owned()),
                ..ObjectMeta::default()
            },
            role_ref: RoleRef {
                api_group: Some(group.clone()),
                kind: "ClusterRole".to_owned(),
                name: "system:service-account-issuer-discovery".to_owned(),
            },
            subjects: Some(vec![Subject {
                api_group: Some(group),
                kind: "Group".to_owned(),
                name: "system:unauthenticated".to_owned(),
                namespace: None,
            }]),
        };
        Api::all(self.client().await?)
            .create(&PostParams::default(), &binding)
            .await?;
        Ok(())
    }

    async fn first_start(&mut self) -> Result<()> {
        let mut attempt = 1;
        loop {
            self.admin = self.kubeconfig_for("admin", &["system:masters"])?;
            let process = self.server.spawn(&self.files)?;
            let result = apiserver::wait_ready(&process, &self.probe_client().await?).await;
            match result {
                Ok(()) => {
                    *self.apiserver.get_mut() = Some(process);
                    return Ok(());
                }
                Err(_) if attempt < 5 && process.log_tail().contains("address already in use") => {
                    attempt += 1;
                    self.server.change_port()?;
                }
                Err(error) => return Err(error.context("kube-apiserver does not start")),
            }
        }
    }

    /// The folder with logs, certificates, audit log and data.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The binaries in use.
    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// The API server's URL: `https://host:port`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// etcd's URL, plain HTTP on loopback.
    pub fn etcd_url(&self) -> String {
        self.etcd.url()
    }

    /// The issuer (`iss`) of service-account tokens. Its keys can be read without credentials.
    pub fn service_account_issuer(&self) -> String {
        self.server.issuer()
    }

    /// The file with the certificate (PEM) of the CA that signed the API server's certificate and all client certificates, including the
    /// one that the API server presents to kubelets.
    pub fn ca_file(&self) -> &Path {
        &self.files.ca
    }

    /// The file with the private key (PEM, PKCS #8) that signs service-account tokens. A kube-controller-manager needs it.
    pub fn service_account_key_file(&self) -> &Path {
        &self.files.issuer_key
    }

    /// The kubeconfig of the user `admin` in the group `system:masters`, which has all rights.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.admin.clone()
    }

    /// Writes a kubeconfig with a client certificate for `user` in `groups`. The API server adds `system:authenticated`. A service
    /// account is the user `system:serviceaccount:<namespace>:<name>`, and the API server does not add its groups.
    ///
    /// # Errors
    /// When the certificate cannot be created or the file cannot be written.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let credentials = self.authority.client(user, groups)?;
        let text = kubeconfig::render(&self.url(), &self.authority.certificate(), user, &credentials);
        let count = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        let path = self.dir().join(kubeconfig::file_name(user, count));
        write_private(&path, &text)?;
        Ok(path)
    }

    /// A client of the user `admin`, for the current tokio runtime.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> Result<kube::Client> {
        self.client_of(&self.admin).await
    }

    /// A client with `kubeconfig`, for the current tokio runtime.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client_of(&self, kubeconfig: &Path) -> Result<kube::Client> {
        Ok(kube::Client::try_from(config(kubeconfig).await?)?)
    }

    /// A client without retries and with a short timeout.
    async fn probe_client(&self) -> Result<kube::Client> {
        let mut config = config(&self.admin).await?;
        config.default_retry = false;
        config.read_timeout = Some(std::time::Duration::from_secs(5));
        Ok(kube::Client::try_from(config)?)
    }

    /// The audit log: every completed request and every started watch, oldest first. The file stays the same when the API server
    /// restarts.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audit(&self) -> Result<Vec<AuditEvent>> {
        audit::read(&self.files.audit_log)
    }

    /// Kills the API server, as a crash would. etcd and its data stay. Does nothing if the API server is stopped.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn stop_apiserver(&self) -> Result<()> {
        let mut slot = self.apiserver.lock().await;
        if let Some(process) = slot.as_ref() {
            process.kill().await?;
        }
        *slot = None;
        Ok(())
    }

    /// Starts the API server again, on the same port with the same data, and waits until it is ready. Does nothing if it runs.
    ///
    /// # Errors
    /// When it does not start. The error has the end of its log.
    pub async fn start_apiserver(&self) -> Result<()> {
        let mut slot = self.apiserver.lock().await;
        if slot.is_none() {
            let process = self.server.spawn(&self.files)?;
            apiserver::wait_ready(&process, &self.probe_client().await?).await?;
            *slot = Some(process);
        }
        Ok(())
    }

    /// Pauses the API server with SIGSTOP: connections stay open and get no response.
    ///
    /// # Errors
    /// When it is stopped or cannot be signalled.
    pub async fn pause_apiserver(&self) -> Result<()> {
        running(&self.apiserver.lock().await)?.pause()
    }

    /// Resumes the API server after [`ControlPlane::pause_apiserver`].
    ///
    /// # Errors
    /// When it is stopped or cannot be signalled.
    pub async fn resume_apiserver(&self) -> Result<()> {
        running(&self.apiserver.lock().await)?.resume()
    }

    /// Copies all data of the cluster. Restarts both processes.
    ///
    /// # Errors
    /// When one does not stop or start, or the data cannot be copied.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let count = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        let snapshot = Snapshot(self.dir().join(format!("snapshot-{count}")));
        self.with_etcd_stopped(|data| copy(data, &snapshot.0)).await?;
        Ok(snapshot)
    }

    /// Restores the cluster's data including resourceVersions, as a plain restore of etcd does. Restarts both processes.
    ///
    /// # Errors
    /// When one does not stop or start, or the data cannot be copied.
    pub async fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        self.with_etcd_stopped(|data| {
            std::fs::remove_dir_all(data).with_context(|| format!("cannot remove {}", data.display()))?;
            copy(&snapshot.0, data)
        })
        .await
    }

    async fn with_etcd_stopped(&self, change: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.stop_apiserver().await?;
        self.etcd.kill().await?;
        change(&self.etcd.data())?;
        self.etcd.restart().await?;
        self.start_apiserver().await
    }

    /// The process ids: etcd first, then the API server unless it is stopped.
    pub async fn pids(&self) -> Vec<u32> {
        let apiserver = self.apiserver.lock().await;
        std::iter::once(self.etcd.pid().await)
            .chain(apiserver.as_ref().map(Process::pid))
            .collect()
    }

    /// The API server's log; empty while it is stopped.
    pub async fn apiserver_log(&self) -> String {
        self.apiserver
            .lock()
            .await
            .as_ref()
            .map(Process::log)
            .unwrap_or_default()
    }

    /// Kills both processes, since no data must be saved, and removes the folder (see `IDTOKEN_TESTENV_KEEP`).
    ///
    /// # Errors
    /// When one cannot be signalled.
    pub async fn stop(self) -> Result<()> {
        self.stop_apiserver().await?;
        self.etcd.kill().await
    }
}

/// All data of a cluster at one moment. Removed with its control plane.
#[derive(Debug)]
pub struct Snapshot(PathBuf);

fn copy(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    std::fs::create_dir_all(to).with_context(context)?;
    for entry in std::fs::read_dir(from).with_context(context)? {
        let entry = entry.with_context(context)?;
        let target = to.join(entry.file_name());
        if entry.file_type().with_context(context)?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target).with_context(context)?;
        }
    }
    Ok(())
}

fn running<'a>(slot: &'a MutexGuard<'_, Option<Process>>) -> Result<&'a Process> {
    slot.as_ref().context("the API server is stopped")
}

async fn config(path: &Path) -> Result<kube::Config> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // The control plane is on this machine: a proxy from the environment cannot reach it.
    config.proxy_url = None;
    Ok(config)
}
