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
use crate::{Assets, AuditEvent, Options, Process, RunDir, audit, binaries, kubeconfig};

/// A running control plane: etcd and kube-apiserver, with a folder of their own.
///
/// Stopped by [`ControlPlane::stop`], when dropped, and when the process that started it dies. It is tied to no tokio
/// runtime: several tests can share one through a static. Clients are tied to the runtime that makes them.
#[derive(Debug)]
pub struct ControlPlane {
    // The order is the order of dropping: the API server before etcd, the folder last.
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
    /// Starts a control plane and waits until it is ready: about 3 s, plus minutes where the binaries must be built.
    ///
    /// # Errors
    /// When the binaries can be neither found nor built, or do not start: with the end of their logs.
    pub async fn start(options: Options) -> Result<Self> {
        let assets = match &options.assets {
            Some(assets) => assets.clone(),
            None => {
                let progress = options.progress;
                tokio::task::spawn_blocking(move || binaries::locate(progress))
                    .await
                    .context("looking for the binaries was cut short")??
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
            .open_issuer()
            .await
            .context("cannot open the service-account issuer")?;
        Ok(cluster)
    }

    /// Lets anyone read the keys of the service-account issuer, as clusters with a public issuer do: outside parties such
    /// as Google's STS have no credentials for the cluster.
    async fn open_issuer(&self) -> Result<()> {
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
            let result = apiserver::wait_ready(&process, &self.quick_client().await?).await;
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

    /// The file with the certificate (PEM) of the authority behind the API server's certificate and all client
    /// certificates, among them the one the API server shows to kubelets.
    pub fn ca_file(&self) -> &Path {
        &self.files.ca
    }

    /// The file with the private key (PEM, PKCS #8) of service-account tokens, which a kube-controller-manager needs.
    pub fn service_account_key_file(&self) -> &Path {
        &self.files.issuer_key
    }

    /// A kubeconfig of the user `admin` in the group `system:masters`, who may do everything.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.admin.clone()
    }

    /// Makes a kubeconfig with a client certificate for `user` in `groups`; `system:authenticated` is added by the API
    /// server. A service account is the user `system:serviceaccount:<namespace>:<name>`, and the API server does not
    /// add its groups then.
    ///
    /// # Errors
    /// When the certificate cannot be made or the file cannot be written.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let credentials = self.authority.client(user, groups)?;
        let text = kubeconfig::render(&self.url(), &self.authority.certificate(), user, &credentials);
        let count = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        let path = self.dir().join(kubeconfig::file_name(user, count));
        write_private(&path, &text)?;
        Ok(path)
    }

    /// A client of the user `admin`, for the tokio runtime it is made in.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> Result<kube::Client> {
        self.client_of(&self.admin).await
    }

    /// A client that uses `kubeconfig`, for the tokio runtime it is made in.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client_of(&self, kubeconfig: &Path) -> Result<kube::Client> {
        Ok(kube::Client::try_from(config(kubeconfig).await?)?)
    }

    /// A client that neither retries nor waits long.
    async fn quick_client(&self) -> Result<kube::Client> {
        let mut config = config(&self.admin).await?;
        config.default_retry = false;
        config.read_timeout = Some(std::time::Duration::from_secs(5));
        Ok(kube::Client::try_from(config)?)
    }

    /// The audit log so far: every answered request, and every watch that has begun, oldest first. The file stays the
    /// same when the API server is stopped and started.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audit(&self) -> Result<Vec<AuditEvent>> {
        audit::read(&self.files.audit_log)
    }

    /// Kills the API server, as a crash would; etcd and its data stay. Nothing happens if it is stopped already.
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

    /// Starts the API server again, on the same port with the same data, and waits until it is ready. Nothing happens if
    /// it runs already.
    ///
    /// # Errors
    /// When it does not start: with the end of its log.
    pub async fn start_apiserver(&self) -> Result<()> {
        let mut slot = self.apiserver.lock().await;
        if slot.is_none() {
            let process = self.server.spawn(&self.files)?;
            apiserver::wait_ready(&process, &self.quick_client().await?).await?;
            *slot = Some(process);
        }
        Ok(())
    }

    /// Freezes the API server with SIGSTOP: connections stay, and nothing is answered.
    ///
    /// # Errors
    /// When it is stopped or cannot be signalled.
    pub async fn pause_apiserver(&self) -> Result<()> {
        running(&self.apiserver.lock().await)?.pause()
    }

    /// Lets the API server go on after [`ControlPlane::pause_apiserver`].
    ///
    /// # Errors
    /// When it is stopped or cannot be signalled.
    pub async fn resume_apiserver(&self) -> Result<()> {
        running(&self.apiserver.lock().await)?.resume()
    }

    /// Copies all data of the cluster. Both processes are stopped for it and started again.
    ///
    /// # Errors
    /// When one does not stop or start, or the data cannot be copied.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let count = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        let snapshot = Snapshot(self.dir().join(format!("snapshot-{count}")));
        self.without_etcd(|data| copy(data, &snapshot.0)).await?;
        Ok(snapshot)
    }

    /// Puts the cluster back to where it was at the snapshot, its resourceVersions included, as a plain restore of etcd does. Both
    /// processes are stopped for it and started again.
    ///
    /// # Errors
    /// When one does not stop or start, or the data cannot be copied.
    pub async fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        self.without_etcd(|data| {
            std::fs::remove_dir_all(data).with_context(|| format!("cannot remove {}", data.display()))?;
            copy(&snapshot.0, data)
        })
        .await
    }

    async fn without_etcd(&self, act: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.stop_apiserver().await?;
        self.etcd.kill().await?;
        act(&self.etcd.data())?;
        self.etcd.start_again().await?;
        self.start_apiserver().await
    }

    /// The process ids of what runs: etcd first, then the API server unless it is stopped.
    pub async fn pids(&self) -> Vec<u32> {
        let apiserver = self.apiserver.lock().await;
        std::iter::once(self.etcd.pid().await)
            .chain(apiserver.as_ref().map(Process::pid))
            .collect()
    }

    /// The API server's log so far; empty while it is stopped.
    pub async fn apiserver_log(&self) -> String {
        self.apiserver
            .lock()
            .await
            .as_ref()
            .map(Process::log)
            .unwrap_or_default()
    }

    /// Stops both and removes the folder (see `IDTOKEN_TESTENV_KEEP`). Nothing has to be saved, so both are killed.
    ///
    /// # Errors
    /// When one cannot be signalled.
    pub async fn stop(self) -> Result<()> {
        self.stop_apiserver().await?;
        self.etcd.kill().await
    }
}

/// All data of a cluster at one moment. Removed with the control plane that it is of.
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
