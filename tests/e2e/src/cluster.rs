//! A cluster as its users have it: by kubectl and helm.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// For what takes seconds or a minute; a busy machine gets all of it.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// Which cluster, and with which programs.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// `KUBECONFIG`, whose current context is the cluster's.
    pub(crate) kubeconfig: PathBuf,
    /// Where the images are; absent where the nodes have them.
    pub(crate) registry: Option<String>,
    /// `PATH` with kubectl, helm and kubectl-idtoken.
    pub(crate) path: OsString,
    /// The root of the workspace, where commands run.
    pub(crate) workspace: PathBuf,
    /// A folder for caches.
    pub(crate) scratch: PathBuf,
}

impl Cluster {
    /// The name of an image in this cluster.
    pub(crate) fn image(&self, name: &str) -> String {
        match &self.registry {
            Some(registry) => format!("{registry}/{name}"),
            None => name.to_owned(),
        }
    }

    /// Runs kubectl with `arguments`, separated by spaces.
    ///
    /// # Errors
    /// With its own words.
    pub(crate) async fn kubectl(&self, arguments: &str) -> Result<String> {
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        self.kubectl_with(&arguments, "").await
    }

    /// Runs kubectl with `arguments` and `input`.
    ///
    /// # Errors
    /// With its own words.
    pub(crate) async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.run("kubectl", arguments, input).await
    }

    /// Runs helm with `arguments`, separated by spaces.
    ///
    /// # Errors
    /// With its own words.
    pub(crate) async fn helm(&self, arguments: &str) -> Result<String> {
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        self.run("helm", &arguments, "").await
    }

    /// Applies YAML documents, in which images have the suite's own names.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub(crate) async fn apply(&self, yaml: &str) -> Result<()> {
        let yaml = match &self.registry {
            Some(registry) => yaml.replace("image: idtoken-", &format!("image: {registry}/idtoken-")),
            None => yaml.to_owned(),
        };
        self.kubectl_with(&["apply", "-f", "-"], &yaml).await.map(drop)
    }

    /// An object; null where there is none.
    ///
    /// # Errors
    /// When it cannot be asked for.
    pub(crate) async fn get(&self, kind: &str, name: &str, namespace: &str) -> Result<Value> {
        let arguments = format!("get {kind} {name} -n {namespace} --ignore-not-found -o json");
        let text = self.kubectl(&arguments).await?;
        match text.trim() {
            "" => Ok(Value::Null),
            // The error would quote what it cannot read.
            text => serde_json::from_str(text).ok().context("kubectl gave no JSON"),
        }
    }

    /// What an HTTP service in the cluster answers to a GET, by the API server.
    ///
    /// # Errors
    /// When it does not answer with success.
    pub(crate) async fn service(&self, namespace: &str, name_and_port: &str, path: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/services/{name_and_port}/proxy{path}");
        self.kubectl_with(&["get", "--raw", &path], "").await
    }

    /// Runs a program with the users' environment.
    ///
    /// # Errors
    /// With its own words.
    pub(crate) async fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        let shown = format!("{program} {}", arguments.join(" "));
        let mut command = self.command(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may end without reading all; its status tells what went wrong.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = tokio::time::timeout(2 * LIMIT, child.wait_with_output())
            .await
            .with_context(|| format!("`{shown}` takes too long"))??;
        if !output.status.success() {
            bail!(
                "`{shown}` failed ({}): {} {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim(),
                String::from_utf8_lossy(&output.stdout).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A command in the workspace's root, for this cluster.
    pub(crate) fn command(&self, program: &str) -> Command {
        // Looked up here: the command's own PATH is not what it is looked up by.
        let found = std::env::split_paths(&self.path)
            .map(|folder| folder.join(program))
            .find(|file| file.is_file());
        let mut command = Command::new(found.unwrap_or_else(|| program.into()));
        command
            .current_dir(&self.workspace)
            .env("PATH", &self.path)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.scratch.join("kubectl"))
            .env("HELM_CACHE_HOME", self.scratch.join("helm"))
            .env("HELM_CONFIG_HOME", self.scratch.join("helm"))
            .env("HELM_DATA_HOME", self.scratch.join("helm"))
            .kill_on_drop(true);
        command
    }
}
