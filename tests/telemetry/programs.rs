//! Prometheus, promtool and kube-state-metrics.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use idtoken_testenv::consumers::{KUBE_STATE_METRICS, PROMETHEUS};
use idtoken_testenv::{GoModule, Port, Process, Progress};
use serde_json::{Value, json};

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

/// A Prometheus that scrapes every second.
pub(crate) struct Prometheus {
    process: Process,
    address: String,
    client: reqwest::Client,
}

impl Prometheus {
    /// Starts Prometheus with the shipped alerts; `jobs` are names and addresses.
    pub(crate) async fn start(dir: &Path, jobs: &[(&str, &str)]) -> Result<Self> {
        let job = |(name, address): &(&str, &str)| json!({"job_name": name, "honor_labels": true, "static_configs": [{"targets": [address]}]});
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [file("alerts.yaml")],
            "scrape_configs": jobs.iter().map(job).collect::<Vec<_>>(),
        });
        let path = dir.join("prometheus.yml");
        std::fs::write(&path, config.to_string())?;
        let mut command = Command::new(built(PROMETHEUS, "prometheus").await?);
        command
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .current_dir(dir)
            .env("NO_PROXY", "*");
        let process = Process::spawn("prometheus", &command, dir)?;
        let line = process.wait_for_line("Listening on", LIMIT).await?;
        let address = line.split("address=").nth(1);
        let address = address.and_then(|rest| rest.split_whitespace().next());
        let address = address
            .context("Prometheus does not say where it listens")?
            .to_owned();
        Ok(Self {
            process,
            address,
            client: reqwest::Client::builder().no_proxy().build()?,
        })
    }

    /// Calls the API of Prometheus, and returns the data.
    pub(crate) async fn api(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        let url = format!("http://{}/api/v1/{path}", self.address);
        let answer: Value = self.client.get(url).query(query).send().await?.json().await?;
        if answer["status"] != "success" {
            bail!(
                "{path} {query:?}: {}\n{}",
                answer["error"],
                self.process.log_tail()
            );
        }
        Ok(answer["data"].clone())
    }

    /// The present series of a query, each with its labels and value.
    pub(crate) async fn query(&self, expr: &str) -> Result<Vec<(Value, f64)>> {
        let data = self.api("query", &[("query", expr)]).await?;
        let series = |series: &Value| {
            let value = series["value"][1].as_str().and_then(|text| text.parse().ok());
            (series["metric"].clone(), value.unwrap_or(f64::NAN))
        };
        Ok(data["result"]
            .as_array()
            .into_iter()
            .flatten()
            .map(series)
            .collect())
    }
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
