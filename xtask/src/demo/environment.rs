//! The demo's environment: a control plane, an emulated Google, and the operator with only its own permissions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use idtoken_operator::api::annotations::RENEW;
use idtoken_testenv::{Assets, ControlPlane, Options, Process, clean_command};
use serde_json::Value;

use super::token::Token;
use super::{LIMIT, NAME, NAMESPACE};
use crate::cargo::Programs;
use crate::progress::Output;

/// The user that the API server sees for the ServiceAccount of config/rbac.yaml.
const OPERATOR_USER: &str = "system:serviceaccount:idtoken-system:idtoken-operator";
/// The running processes. Dropping it stops them, the operator first.
pub(crate) struct Environment {
    operator: Process,
    emulator: Process,
    cluster: ControlPlane,
    plugins: PathBuf,
    /// The emulator's URL.
    pub(crate) emulator_url: String,
    /// Host and port where the operator serves its metrics.
    pub(crate) metrics_address: String,
}

impl Environment {
    /// Starts everything and waits until the operator is ready.
    ///
    /// # Errors
    /// When something does not start: with the end of its log.
    pub(crate) async fn start(
        output: &Output,
        assets: Assets,
        programs: &Programs,
        lifetime: Duration,
    ) -> Result<Self> {
        let step = output.begin("the control plane");
        let options = Options {
            assets: Some(assets),
            ..Options::default()
        };
        let cluster = ControlPlane::start(options).await?;
        let root = crate::workspace();
        for file in [
            "crds/idtokenrequests.yaml",
            "crds/idtokengrants.yaml",
            "config/rbac.yaml",
        ] {
            cluster.apply(&read(&root.join(file))?).await?;
        }
        cluster.wait_for_crds().await?;
        let version = cluster.client().await?.apiserver_version().await?.git_version;
        step.done(&format!(
            "etcd and kube-apiserver {version} run, with crds/ and config/rbac.yaml"
        ));

        let step = output.begin("the emulator");
        let mut command = clean_command(&programs.emulator);
        command
            .arg("--policy")
            .arg(root.join("examples/demo/policy.yaml"));
        command.args(["--log", "warn", "--lifetime", &format!("{}s", lifetime.as_secs())]);
        let emulator = Process::spawn("idtoken-emulator", &command, cluster.dir())?;
        let emulator_url = emulator.wait_for_line("http://", LIMIT).await?.trim().to_owned();
        let address = emulator_url
            .strip_prefix("http://")
            .context("the emulator's URL is not http")?;
        step.done(&format!(
            "Google is emulated at {emulator_url}; its ID tokens live {} s",
            lifetime.as_secs()
        ));

        let step = output.begin("the operator");
        let mut command = clean_command(&programs.operator);
        command
            .args([
                "run",
                "--listen",
                "127.0.0.1:0",
                "--iam-credentials-url",
                &emulator_url,
                "--google-keys-url",
                &format!("{emulator_url}/oauth2/v3/certs"),
            ])
            .env("KUBECONFIG", cluster.kubeconfig_for(OPERATOR_USER, &[])?)
            .env("GCE_METADATA_HOST", address)
            // No gcloud credentials of whoever runs the demo are found there.
            .env("HOME", cluster.dir());
        let operator = Process::spawn("idtoken-operator", &command, cluster.dir())?;
        let line = operator.wait_for_line("listen=", LIMIT).await?;
        let listen = line
            .rsplit_once("listen=")
            .and_then(|(_, rest)| rest.split_whitespace().next());
        let listen = listen.context("the operator does not say where it listens")?;
        operator.wait_for_http(listen, "/readyz", LIMIT).await?;
        step.done("the operator is ready, as a user with the rights of config/rbac.yaml only");
        let metrics_address = listen.to_owned();
        Ok(Self {
            operator,
            emulator,
            cluster,
            plugins: programs.plugins.clone(),
            emulator_url,
            metrics_address,
        })
    }

    /// Applies YAML.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub(crate) async fn apply(&self, yaml: &str) -> Result<()> {
        self.cluster.apply(yaml).await.map(drop)
    }

    /// Runs kubectl and prints the command and what it printed.
    ///
    /// # Errors
    /// With kubectl's message.
    pub(crate) async fn show(&self, output: &Output, args: &str) -> Result<String> {
        let printed = self.kubectl(args).await?;
        output.command(&format!("kubectl {args}"), &printed);
        Ok(printed)
    }

    /// Runs kubectl with `args`, separated by spaces, as admin in the workspace's root. `kubectl idtoken` is in `PATH`.
    ///
    /// # Errors
    /// With kubectl's message.
    pub(crate) async fn kubectl(&self, args: &str) -> Result<String> {
        let mut command = self.cluster.kubectl_command(&self.cluster.admin_kubeconfig());
        command
            .args(args.split_whitespace())
            .env("PATH", self.path()?)
            .current_dir(crate::workspace());
        let mut command = tokio::process::Command::from(command);
        let output = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await;
        let output = output.with_context(|| format!("kubectl {args} takes too long"))??;
        if !output.status.success() {
            bail!(
                "kubectl {args} failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The Ready condition of the demo's request; null before there is one.
    ///
    /// # Errors
    /// When the request cannot be read.
    pub(crate) async fn ready_condition(&self) -> Result<Value> {
        let request = self.get("idtokenrequest").await?;
        let conditions = request["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == "Ready");
        Ok(ready.cloned().unwrap_or_default())
    }

    /// When the operator will renew the token.
    ///
    /// # Errors
    /// When the status has no renewal time.
    pub(crate) async fn renewal_time(&self) -> Result<jiff::Timestamp> {
        let request = self.get("idtokenrequest").await?;
        let time = request["status"]["renewalTime"].as_str();
        Ok(time.context("the status has no renewalTime")?.parse()?)
    }

    /// The demo's Secret.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn secret(&self) -> Result<Value> {
        self.get("secret").await
    }

    async fn get(&self, kind: &str) -> Result<Value> {
        let text = self
            .kubectl(&format!("get {kind} {NAME} -n {NAMESPACE} -o json"))
            .await?;
        // The error would quote what it cannot read.
        serde_json::from_str(&text)
            .ok()
            .with_context(|| format!("kubectl get {kind} gave no JSON"))
    }

    /// The processes whose logs contain one of `tokens`.
    pub(crate) fn leaks_in_logs(&self, tokens: &[&Token]) -> Option<&str> {
        [&self.operator, &self.emulator]
            .into_iter()
            .find(|process| {
                let log = process.log();
                tokens.iter().any(|token| token.is_in(&log))
            })
            .map(Process::name)
    }

    /// The folder of what runs.
    pub(crate) fn dir(&self) -> &Path {
        self.cluster.dir()
    }

    /// The end of the operator's log.
    pub(crate) fn operator_log_tail(&self) -> String {
        self.operator.log_tail()
    }

    /// Prints commands to try.
    pub(crate) fn print_how_to_use(&self, output: &Output) {
        let plugins = self.plugins.display();
        let kubectl = self
            .cluster
            .assets()
            .kubectl
            .parent()
            .unwrap_or(Path::new("."))
            .display();
        output.line(&format!(
            "  export KUBECONFIG={}",
            self.cluster.admin_kubeconfig().display()
        ));
        output.line(&format!("  export PATH={plugins}:{kubectl}:$PATH"));
        output.line("\n  kubectl get idtr -A -w                                   see it being renewed");
        output.line(
            "  kubectl idtoken explain billing -n shop                  its state, and what to do next",
        );
        output.line("  kubectl idtoken can billing -n shop                      the grant that allows it");
        output.line("  kubectl describe idtr billing -n shop                    conditions and events");
        output.line(&format!(
            "  kubectl annotate idtr billing -n shop --overwrite {RENEW}=\"$(date +%s)\"   renew now"
        ));
        output.line("  kubectl delete idtokengrants --all                       the next renewal is denied");
        output.line(&format!(
            "\n  the operator's log:  {}",
            self.operator.log_path().display()
        ));
        output.line(&format!("  the emulator:        {}", self.emulator_url));
    }

    /// Stops everything, in order.
    ///
    /// # Errors
    /// When the operator does not exit with success.
    pub(crate) async fn stop(self, output: &Output) -> Result<()> {
        let step = output.begin("stopping");
        let status = self.operator.terminate(LIMIT).await?;
        if !status.success() {
            bail!("the operator ended with {status}:\n{}", self.operator.log_tail());
        }
        self.emulator.terminate(LIMIT).await?;
        self.cluster.stop().await?;
        step.done("the operator exited on SIGTERM; everything is stopped and removed");
        Ok(())
    }

    fn path(&self) -> Result<std::ffi::OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.plugins.clone()).chain(std::env::split_paths(&path));
        Ok(std::env::join_paths(folders)?)
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
