//! The programs that are measured.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use idtoken_testenv::{Process, clean_command};

use crate::cluster::Cluster;
use crate::sockets::connections;
use crate::usage::Usage;

static STARTS: AtomicUsize = AtomicUsize::new(0);

const LIMIT: Duration = Duration::from_secs(120);
/// A program is quiet when it uses less than this share of a core for so long.
const QUIET: Duration = Duration::from_millis(500);
const QUIET_SHARE: f64 = 0.05;
const QUIET_LIMIT: Duration = Duration::from_secs(10);

/// A program that can be measured.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// The operator, or another build of it.
    Operator(PathBuf),
    /// The reference in Go.
    Reference(PathBuf),
}

/// It, running.
pub(crate) struct System {
    process: Process,
    /// Where its probes and metrics are; none where it has none.
    address: Option<String>,
    http: reqwest::Client,
}

impl Program {
    /// Starts it and waits until it works.
    pub(crate) async fn start(&self, cluster: &Cluster) -> Result<System> {
        let system = self.spawn(cluster)?;
        system.ready().await
    }

    /// Starts it.
    pub(crate) fn spawn(&self, cluster: &Cluster) -> Result<Starting> {
        let path = match self {
            Self::Operator(path) | Self::Reference(path) => path,
        };
        let mut command = clean_command(path);
        // No gcloud credentials of whoever runs it are found there.
        command.env("HOME", cluster.plane.dir());
        let name = match self {
            Self::Operator(_) => {
                command
                    .args([
                        "run",
                        "--listen",
                        "127.0.0.1:0",
                        "--iam-credentials-url",
                        &cluster.google.url,
                    ])
                    .args(["--leader-elect", "--lease-namespace", "idtoken-system"])
                    .env("KUBECONFIG", cluster.operator_kubeconfig()?)
                    .env("GCE_METADATA_HOST", cluster.google.address());
                "idtoken-operator"
            }
            Self::Reference(_) => {
                command
                    .env("KUBECONFIG", cluster.plane.admin_kubeconfig())
                    .env("GOOGLE_URL", &cluster.google.url);
                "reference"
            }
        };
        // A log of its own for each start: what the one before said is not this one's.
        let name = format!("{name}-{}", STARTS.fetch_add(1, Ordering::Relaxed));
        let process = Process::spawn(&name, &command, cluster.plane.dir())?;
        Ok(Starting {
            process,
            is_operator: matches!(self, Self::Operator(_)),
        })
    }
}

/// A program that was started a moment ago.
pub(crate) struct Starting {
    process: Process,
    is_operator: bool,
}

impl Starting {
    /// Waits until it works: the operator until it leads, the reference until its workers run.
    pub(crate) async fn ready(self) -> Result<System> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        if !self.is_operator {
            self.process.wait_for_line("Starting workers", LIMIT).await?;
            return Ok(System {
                process: self.process,
                address: None,
                http,
            });
        }
        let line = self.process.wait_for_line("listen=", LIMIT).await?;
        let listen = line
            .rsplit_once("listen=")
            .and_then(|(_, rest)| rest.split_whitespace().next());
        let address = listen
            .context("the operator does not say where it listens")?
            .to_owned();
        self.process.wait_for_http(&address, "/readyz", LIMIT).await?;
        let system = System {
            process: self.process,
            address: Some(address),
            http,
        };
        idtoken_testenv::until("the operator leads", LIMIT, async || {
            Ok((system.metric("idtoken_leader").await? == Some(1.0)).then_some(()))
        })
        .await?;
        Ok(system)
    }
}

impl System {
    /// What it has used.
    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.process.pid())
    }

    /// The value of a metric, all its series together; none where it has none yet.
    pub(crate) async fn metric(&self, name: &str) -> Result<Option<f64>> {
        let address = self.address.as_ref().context("it has no metrics")?;
        let url = format!("http://{address}/metrics");
        let text = self.http.get(url).send().await?.text().await?;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once("} ")?.1,
                None => rest.strip_prefix(' ')?,
            };
            value.parse::<f64>().ok()
        });
        Ok(values.reduce(|sum, value| sum + value))
    }

    /// The value of a metric that it must have.
    pub(crate) async fn counted(&self, name: &str) -> Result<f64> {
        let value = self.metric(name).await?;
        value.with_context(|| format!("it has no metric {name}"))
    }

    /// How many times it has looked at a request.
    pub(crate) async fn reconciles(&self) -> Result<f64> {
        Ok(self.metric("idtoken_reconcile_total").await?.unwrap_or_default())
    }

    /// How many connections it has to the API server and to Google.
    pub(crate) fn connections(&self, cluster: &Cluster) -> Result<(usize, usize)> {
        let to = |port| connections(self.process.pid(), port);
        Ok((to(cluster.admin.port()?)?, to(cluster.google.port()?)?))
    }

    /// Waits until what it had begun is done: it uses no more CPU.
    pub(crate) async fn quiet(&self) -> Result<()> {
        let begun = Instant::now();
        let mut before = self.usage()?.cpu;
        while begun.elapsed() < QUIET_LIMIT {
            tokio::time::sleep(QUIET).await;
            let now = self.usage()?.cpu;
            if now - before < QUIET_SHARE * QUIET.as_secs_f64() {
                return Ok(());
            }
            before = now;
        }
        Ok(())
    }

    /// Waits until it has looked at `count` requests and nothing is due.
    pub(crate) async fn looked_at(&self, count: usize) -> Result<()> {
        loop {
            if self.reconciles().await? >= count as f64 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks it to end, and waits for it.
    pub(crate) async fn stop(self) -> Result<()> {
        self.process.terminate(LIMIT).await.map(drop)
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}
