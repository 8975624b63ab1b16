//! A running Prometheus.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::consumers::PROMETHEUS;
use crate::{Process, Progress};

/// Limit of its start, which takes a second on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A Prometheus on a free port of the loopback interface. Dropping it stops it.
#[derive(Debug)]
pub struct Prometheus {
    /// Its process.
    pub process: Process,
    address: String,
    client: reqwest::Client,
}

impl Prometheus {
    /// Starts Prometheus, which is built where it is not built yet. `config` is its configuration; `dir` keeps it, the data and the log.
    ///
    /// # Errors
    /// When it cannot be built or does not start.
    pub async fn start(dir: &Path, config: &Value) -> Result<Self> {
        let build = || PROMETHEUS.build(&["prometheus"], Progress::Stderr);
        let program = tokio::task::spawn_blocking(build).await??.join("prometheus");
        let path = dir.join("prometheus.yml");
        std::fs::write(&path, config.to_string())?;
        let mut command = Command::new(program);
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

    /// Calls its HTTP API, and returns the data: <https://prometheus.io/docs/prometheus/latest/querying/api/>.
    ///
    /// # Errors
    /// When it does not answer, or answers with an error.
    pub async fn api(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
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
    ///
    /// # Errors
    /// As of [`Prometheus::api`].
    pub async fn query(&self, expr: &str) -> Result<Vec<(Value, f64)>> {
        let data = self.api("query", &[("query", expr)]).await?;
        let series = |series: &Value| {
            let value = series["value"][1].as_str().and_then(|text| text.parse().ok());
            (series["metric"].clone(), value.unwrap_or(f64::NAN))
        };
        let all = data["result"].as_array().into_iter().flatten();
        Ok(all.map(series).collect())
    }
}
