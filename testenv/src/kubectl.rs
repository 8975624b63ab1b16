//! kubectl against a control plane.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::ControlPlane;

const LIMIT: Duration = Duration::from_secs(180);

impl ControlPlane {
    /// kubectl as the user of `kubeconfig`, to be given arguments and run. Its discovery cache is in the control plane's
    /// folder: other control planes use the same ports later.
    pub fn kubectl_command(&self, kubeconfig: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(&self.assets().kubectl);
        command
            .env("KUBECONFIG", kubeconfig)
            .env("KUBECACHEDIR", self.dir().join("kubectl-cache"));
        command.env("NO_PROXY", "*");
        command
    }

    /// Runs kubectl as admin and gives its stdout.
    ///
    /// # Errors
    /// With kubectl's stderr when it fails; when it takes longer than 3 minutes, after which it is killed.
    pub async fn kubectl<I>(&self, args: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.kubectl_as(&self.admin_kubeconfig(), args).await
    }

    /// Runs kubectl as the user of `kubeconfig` and gives its stdout.
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

    /// Applies `yaml` (one or more documents) as admin, server-side, and gives kubectl's stdout.
    ///
    /// # Errors
    /// As [`ControlPlane::kubectl`].
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        self.apply_as(&self.admin_kubeconfig(), yaml).await
    }

    /// Applies `yaml` (one or more documents) as the user of `kubeconfig`, server-side, and gives kubectl's stdout.
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
    let shown = format!("kubectl {}", args.join(" "));
    let mut command = Command::from(command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // kubectl may end without reading all; its status tells what went wrong.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(LIMIT, both)
        .await
        .with_context(|| format!("{shown} took longer than {} s", LIMIT.as_secs()))?
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!(
            "{shown} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{shown} wrote something that is not text"))
}
