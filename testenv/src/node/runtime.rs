//! containerd and its images.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tokio::sync::Mutex;

use super::{NodePrograms, TIMEOUT, network};
use crate::pki::write_private;
use crate::{ControlPlane, Process, until};

/// containerd's socket, in the node's own /run.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

/// A containerd that can be stopped and started.
#[derive(Debug)]
pub(super) struct Containerd {
    process: Mutex<Process>,
    command: Command,
    ctr: PathBuf,
    dir: PathBuf,
}

impl Containerd {
    /// Starts containerd and waits until it responds.
    pub(super) async fn start(
        programs: &NodePrograms,
        cluster: &ControlPlane,
        registry: &str,
        sandbox: &str,
    ) -> Result<Self> {
        let cni = network::cni(cluster)?;
        let path = cluster.dir().join("containerd.toml");
        let registries = cluster.dir().join("registries");
        for host in [registry, "docker.io"] {
            let dir = registries.join(host);
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            write_private(&dir.join("hosts.toml"), &plain_http(registry))?;
        }
        write_private(&path, &config(programs, &cni, &registries, sandbox))?;
        let mut command = Command::new(programs.containerd("containerd"));
        command.arg("--config").arg(&path);
        command.env("PATH", programs.path()?);
        let process = Process::spawn("containerd", &command, cluster.dir())?;
        let containerd = Self {
            process: Mutex::new(process),
            command,
            ctr: programs.containerd("ctr"),
            dir: cluster.dir().to_owned(),
        };
        containerd.wait_ready().await?;
        Ok(containerd)
    }

    /// Stops it. Containers keep running.
    pub(super) async fn stop(&self) -> Result<()> {
        self.process.lock().await.terminate(TIMEOUT).await?;
        Ok(())
    }

    /// Starts it after [`Containerd::stop`].
    pub(super) async fn restart(&self) -> Result<()> {
        *self.process.lock().await = Process::spawn("containerd", &self.command, &self.dir)?;
        self.wait_ready().await
    }

    async fn wait_ready(&self) -> Result<()> {
        let probe = async || {
            if let Some(status) = self.process.lock().await.try_wait()? {
                bail!("containerd exited ({status})");
            }
            Ok(self.ctr(&["version"]).await.ok().map(drop))
        };
        let result = until("containerd responds", TIMEOUT, probe).await;
        let process = self.process.lock().await;
        result.with_context(|| format!("the log of containerd ends with:\n{}\n", process.log_tail()))
    }

    async fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::new(&self.ctr);
        command
            .args(["--address", SOCKET, "--namespace", "k8s.io"])
            .args(arguments)
            .kill_on_drop(true);
        let output = tokio::time::timeout(TIMEOUT, command.output())
            .await
            .context("ctr timed out")?
            .context("cannot run ctr")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// <https://github.com/containerd/containerd/blob/main/docs/hosts.md>
fn plain_http(registry: &str) -> String {
    format!(
        r#"server = "http://{registry}"

[host."http://{registry}"]
  capabilities = ["pull", "resolve"]
"#
    )
}

fn config(programs: &NodePrograms, cni: &Path, registries: &Path, sandbox: &str) -> String {
    let plugins = programs.cni();
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]

[grpc]
  address = "{SOCKET}"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{sandbox}"

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "{}"

[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE the score cannot be lowered.
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{}"]
  conf_dir = "{}"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
"#,
        registries.display(),
        plugins.display(),
        cni.display(),
    )
}
