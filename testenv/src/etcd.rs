//! etcd.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Mutex;

use crate::ports::Port;
use crate::{Assets, Options, Process};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A running etcd; its data is in `etcd/` of the run folder.
#[derive(Debug)]
pub(crate) struct Etcd {
    process: Mutex<Process>,
    command: Command,
    dir: PathBuf,
    client: Port,
    _peer: Port,
}

impl Etcd {
    /// Starts etcd on free ports and waits until it is healthy. Retries with other ports if another program took one meanwhile.
    pub(crate) async fn start(assets: &Assets, options: &Options, dir: &Path) -> Result<Self> {
        let mut attempt = 1;
        loop {
            let etcd = Self::spawn(assets, options, dir)?;
            match etcd.wait_ready().await {
                Ok(()) => return Ok(etcd),
                Err(_) if attempt < 5 && etcd.log_tail().await.contains("address already in use") => {
                    attempt += 1
                }
                Err(error) => return Err(error.context("etcd does not start")),
            }
        }
    }

    async fn log_tail(&self) -> String {
        self.process.lock().await.log_tail()
    }

    /// Its process id.
    pub(crate) async fn pid(&self) -> u32 {
        self.process.lock().await.pid()
    }

    /// Kills it. Its data stay.
    pub(crate) async fn kill(&self) -> Result<()> {
        self.process.lock().await.kill().await?;
        Ok(())
    }

    /// Starts it again after [`Etcd::kill`], with the current data folder.
    pub(crate) async fn restart(&self) -> Result<()> {
        *self.process.lock().await = Process::spawn("etcd", &self.command, &self.dir)?;
        self.wait_ready().await.context("etcd does not restart")
    }

    /// The folder with its data.
    pub(crate) fn data(&self) -> PathBuf {
        data(&self.dir)
    }

    async fn wait_ready(&self) -> Result<()> {
        // The log first: if the port was taken, another etcd may respond there.
        let process = self.process.lock().await;
        process
            .wait_for_line("serving client traffic", READY_TIMEOUT)
            .await?;
        process
            .wait_for_http(&self.address(), "/health", READY_TIMEOUT)
            .await
    }

    fn spawn(assets: &Assets, options: &Options, dir: &Path) -> Result<Self> {
        let (client, peer) = (Port::reserve()?, Port::reserve()?);
        let client_url = format!("http://127.0.0.1:{}", client.number);
        let peer_url = format!("http://127.0.0.1:{}", peer.number);
        let data = data(dir);
        // A failed attempt may have written its ports into the data.
        let _ = std::fs::remove_dir_all(&data);
        let mut command = Command::new(&assets.etcd);
        command
            .arg("--name=testenv")
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--listen-client-urls={client_url}"))
            .arg(format!("--advertise-client-urls={client_url}"))
            .arg(format!("--listen-peer-urls={peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .arg(format!("--initial-cluster=testenv={peer_url}"))
            // Only a crash of the machine could lose writes, and then the data is useless anyway.
            .arg("--unsafe-no-fsync")
            .args(&options.etcd_flags);
        let process = Process::spawn("etcd", &command, dir)?;
        Ok(Self {
            process: Mutex::new(process),
            command,
            dir: dir.to_owned(),
            client,
            _peer: peer,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client.number)
    }
}

fn data(dir: &Path) -> PathBuf {
    dir.join("etcd")
}
