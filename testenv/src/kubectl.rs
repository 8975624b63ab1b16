//! kubectl against a control plane.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::ControlPlane;

const TIMEOUT: Duration = Duration::from_secs(180);

impl ControlPlane {
    /// kubectl as the user of `kubeconfig`, without arguments yet. Its discovery cache is in the control plane's folder, because other
    /// control planes use the same ports later.
    pub fn kubectl_command(&self, kubeconfig: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(&self.assets().kubectl);
        command
            .env("KUBECONFIG", kubeconfig)
            .env("KUBECACHEDIR", self.dir().join("kubectl-cache"));
        command.env("NO_PROXY", "*");
        command
    }

    /// Runs kubectl as admin. Returns its stdout.
    ///
    /// # Errors
    /// When kubectl fails, with its stderr; when kubectl takes longer than 3 minutes and is killed.
    pub async fn kubectl<I>(&self, args: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.kubectl_as(&self.admin_kubeconfig(), args).await
    }

    /// Runs kubectl as the user of `kubeconfig`. Returns its stdout.
    ///
    /// # Errors
    /// As [`ControlPlane::kubectl`].
    pub async fn kubectl_as<I>(&self, kubeconfig: &Path, args: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let mut command = self.kubectl_command(kubeconfig);
        command.args(args);
        run(command, "").await
    }

    /// Applies `yaml` (one or more documents) as admin, server-side. Returns kubectl's stdout.
    ///
    /// # Errors
    /// As [`ControlPlane::kubectl`].
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        self.apply_as(&self.admin_kubeconfig(), yaml).await
    }

    /// Waits until the API server serves every CustomResourceDefinition.
    ///
    /// # Errors
    /// One is not established within a minute.
    pub async fn wait_for_crds(&self) -> Result<()> {
        let established = [
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd",
            "--all",
        ];
        self.kubectl(established).await.map(drop)
    }

    /// Applies `yaml` (one or more documents) as the user of `kubeconfig`, server-side. Returns kubectl's stdout.
    ///
    /// # Errors
    /// As [`ControlPlane::kubectl`].
    pub async fn apply_as(&self, kubeconfig: &Path, yaml: &str) -> Result<String> {
        let mut command = self.kubectl_command(kubeconfig);
        command.args(["apply", "--server-side", "--force-conflicts", "--filename=-"]);
        run(command, yaml).await
    }
}

async fn run(command: std::process::Command, input: &str) -> Result<String> {
    let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let command_line = format!("kubectl {}", args.join(" "));
    let mut command = Command::from(command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {command_line}"))?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // kubectl may exit without reading all of its input. Its exit status then has the reason.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(TIMEOUT, both)
        .await
        .with_context(|| format!("{command_line} took longer than {} s", TIMEOUT.as_secs()))?
        .with_context(|| format!("cannot run {command_line}"))?;
    if !output.status.success() {
        bail!(
            "{command_line} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command_line} wrote output that is not UTF-8"))
}
