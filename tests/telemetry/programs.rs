//! Prometheus, promtool and kube-state-metrics.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use idtoken_testenv::consumers::{KUBE_STATE_METRICS, PROMETHEUS};
use idtoken_testenv::{GoModule, Port, Process, Progress, Prometheus};
use serde_json::json;

use crate::common::LIMIT;

/// A file of the chart.
pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("charts/idtoken-operator/files")
        .join(name)
}

/// Builds the program unless it is built already.
async fn built(module: GoModule, name: &'static str) -> Result<PathBuf> {
    let dir = tokio::task::spawn_blocking(move || module.build(&[name], Progress::Stderr)).await??;
    Ok(dir.join(name))
}

/// Runs promtool with a file as its input, and returns its output.
pub(crate) async fn promtool(args: &[&str], dir: &Path, input: Option<&Path>) -> Result<String> {
    let mut command = Command::new(built(PROMETHEUS, "promtool").await?);
    command.args(args).current_dir(dir);
    command.stdin(match input {
        Some(path) => Stdio::from(std::fs::File::open(path)?),
        None => Stdio::null(),
    });
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(output.status.success(), "promtool {args:?} says\n{text}");
    Ok(text)
}

/// Starts a Prometheus that scrapes every second, with the shipped alerts. `jobs` are names and addresses.
pub(crate) async fn prometheus(dir: &Path, jobs: &[(&str, &str)]) -> Result<Prometheus> {
    let job = |(name, address): &(&str, &str)| json!({"job_name": name, "honor_labels": true, "static_configs": [{"targets": [address]}]});
    let config = json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [file("alerts.yaml")],
        "scrape_configs": jobs.iter().map(job).collect::<Vec<_>>(),
    });
    Prometheus::start(dir, &config).await
}

/// A kube-state-metrics with the shipped configuration.
pub(crate) struct KubeStateMetrics {
    process: Process,
    /// Where it serves `/metrics`.
    pub(crate) address: String,
    _ports: [Port; 2],
}

impl KubeStateMetrics {
    /// Starts kube-state-metrics with metrics of our kinds only.
    pub(crate) async fn start(dir: &Path, kubeconfig: &Path) -> Result<Self> {
        let ports = [Port::reserve()?, Port::reserve()?];
        let mut command = Command::new(built(KUBE_STATE_METRICS, "kube-state-metrics").await?);
        command
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!(
                "--custom-resource-state-config-file={}",
                file("kube-state-metrics.yaml").display()
            ))
            .args([
                "--custom-resource-state-only",
                "--host=127.0.0.1",
                "--telemetry-host=127.0.0.1",
            ])
            .arg(format!("--port={}", ports[0].number()))
            .arg(format!("--telemetry-port={}", ports[1].number()))
            .current_dir(dir)
            .env("NO_PROXY", "*");
        let process = Process::spawn("kube-state-metrics", &command, dir)?;
        let address = format!("127.0.0.1:{}", ports[0].number());
        process.wait_for_http(&address, "/healthz", LIMIT).await?;
        Ok(Self {
            process,
            address,
            _ports: ports,
        })
    }

    /// The log.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}
