//! The programs under test.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use idtoken_testenv::{Process, clean_command};

use crate::cluster::Cluster;
use crate::process::Usage;
use crate::process::connections;

static STARTS: AtomicUsize = AtomicUsize::new(0);

const TIMEOUT: Duration = Duration::from_secs(120);
/// A program is idle if it uses less than [`IDLE_SHARE`] of a core for this time.
const IDLE_TIME: Duration = Duration::from_millis(500);
const IDLE_SHARE: f64 = 0.05;
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// A program that can be measured.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// The operator, or another build of it.
    Operator(PathBuf),
    /// The reference in Go.
    Reference(PathBuf),
}

/// A running program.
pub(crate) struct ProcessUnderTest {
    process: Process,
    /// The address of its probes and metrics, if it has any.
    address: Option<String>,
    http: reqwest::Client,
}

impl Program {
    /// Starts it, and waits until it works.
    pub(crate) async fn start(&self, cluster: &Cluster) -> Result<ProcessUnderTest> {
        let subject = self.spawn(cluster)?;
        subject.ready().await
    }

    /// Starts it.
    pub(crate) fn spawn(&self, cluster: &Cluster) -> Result<Starting> {
        let path = match self {
            Self::Operator(path) | Self::Reference(path) => path,
        };
        let mut command = clean_command(path);
        // Hides the caller's gcloud credentials.
        command
            .env("HOME", cluster.plane.dir())
            .envs(cluster.google.environment());
        let name = match self {
            Self::Operator(_) => {
                command
                    .args(["run", "--listen", "127.0.0.1:0"])
                    .args(["--leader-elect", "--lease-namespace", "idtoken-system"])
                    .env("KUBECONFIG", cluster.operator_kubeconfig()?)
                    // A scenario asks for renewals again and again.
                    .env("IDTOKEN_MIN_RENEW_INTERVAL", "0");
                "idtoken-operator"
            }
            Self::Reference(_) => {
                command.env("KUBECONFIG", cluster.plane.admin_kubeconfig());
                "reference"
            }
        };
        // A log for each start, so that lines of an earlier one do not count.
        let name = format!("{name}-{}", STARTS.fetch_add(1, Ordering::Relaxed));
        let process = Process::spawn(&name, &command, cluster.plane.dir())?;
        Ok(Starting {
            process,
            is_operator: matches!(self, Self::Operator(_)),
        })
    }
}

/// A program that is starting.
pub(crate) struct Starting {
    process: Process,
    is_operator: bool,
}

impl Starting {
    /// Waits until it works: until the operator leads, or the reference's workers run.
    pub(crate) async fn ready(self) -> Result<ProcessUnderTest> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        if !self.is_operator {
            self.process.wait_for_line("Starting workers", TIMEOUT).await?;
            return Ok(ProcessUnderTest {
                process: self.process,
                address: None,
                http,
            });
        }
        let line = self.process.wait_for_line("listen=", TIMEOUT).await?;
        let listen = line
            .rsplit_once("listen=")
            .and_then(|(_, rest)| rest.split_whitespace().next());
        let address = listen
            .context("the operator does not log its address")?
            .to_owned();
        self.process.wait_for_http(&address, "/readyz", TIMEOUT).await?;
        let subject = ProcessUnderTest {
            process: self.process,
            address: Some(address),
            http,
        };
        idtoken_testenv::until("the operator leads", TIMEOUT, async || {
            Ok((subject.metric("idtoken_leader").await? == Some(1.0)).then_some(()))
        })
        .await?;
        Ok(subject)
    }
}

impl ProcessUnderTest {
    /// Its resources.
    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.process.pid())
    }

    /// The address of its probes and metrics.
    pub(crate) fn address(&self) -> Result<&str> {
        self.address.as_deref().context("the program has no metrics")
    }

    /// The sum of all series of a metric; none if there is no series yet.
    pub(crate) async fn metric(&self, name: &str) -> Result<Option<f64>> {
        self.series(name, "").await
    }

    /// The number of requests that are not Ready.
    pub(crate) async fn not_ready(&self) -> Result<f64> {
        let count = self.series("idtoken_requests", "ready=\"False\"").await?;
        Ok(count.unwrap_or_default())
    }

    /// The sum of the series of a metric whose labels contain `label`; none if there is none.
    async fn series(&self, name: &str, label: &str) -> Result<Option<f64>> {
        let address = self.address()?;
        let url = format!("http://{address}/metrics");
        let text = self.http.get(url).send().await?.text().await?;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            labels.contains(label).then(|| value.parse::<f64>().ok())?
        });
        Ok(values.reduce(|sum, value| sum + value))
    }

    /// The sum of all series of a metric that must exist.
    pub(crate) async fn counted(&self, name: &str) -> Result<f64> {
        let value = self.metric(name).await?;
        value.with_context(|| format!("the program has no metric {name}"))
    }

    /// The number of its reconciles.
    pub(crate) async fn reconciles(&self) -> Result<f64> {
        Ok(self.metric("idtoken_reconcile_total").await?.unwrap_or_default())
    }

    /// The number of its connections to the API server and to Google.
    pub(crate) fn connections(&self, cluster: &Cluster) -> Result<(usize, usize)> {
        let to = |port| connections(self.process.pid(), port);
        Ok((to(cluster.admin.port()?)?, to(cluster.google.port())?))
    }

    /// Waits until it uses no more CPU.
    pub(crate) async fn wait_idle(&self) -> Result<()> {
        let started = Instant::now();
        let mut before = self.usage()?.cpu;
        while started.elapsed() < IDLE_TIMEOUT {
            tokio::time::sleep(IDLE_TIME).await;
            let now = self.usage()?.cpu;
            if now - before < IDLE_SHARE * IDLE_TIME.as_secs_f64() {
                return Ok(());
            }
            before = now;
        }
        Ok(())
    }

    /// Waits until it has reconciled `count` requests.
    pub(crate) async fn wait_reconciled(&self, count: usize) -> Result<()> {
        loop {
            if self.reconciles().await? >= count as f64 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops it, and waits until it exits.
    pub(crate) async fn stop(self) -> Result<()> {
        self.process.terminate(TIMEOUT).await.map(drop)
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}
