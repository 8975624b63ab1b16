//! Measures a program that keeps ID tokens in Secrets from outside: on a real etcd and kube-apiserver, with the emulator as Google.
//!
//! Machines differ, so each time is a ratio: to the baseline, a bare client that makes the same writes, to a plain Go operator, or to
//! another build of this one. `cargo xtask bench` builds everything and runs it. The README lists the modules.

mod api;
mod apiserver_calls;
mod baseline_client;
mod churn;
mod cluster;
mod cold_start;
mod emulator;
mod environment;
mod host;
mod idle;
mod latency;
mod leak;
mod memory;
mod namespaces;
mod noisy;
mod process;
mod quota;
mod ready_watch;
mod report;
mod restart;
mod resuming_watch;
mod subject;
mod template;
mod workload;
mod writes;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use report::Report;

/// Measures the operator, compared with a bare client that makes the same calls.
///
/// Exits with status 1 if a target is missed. The summary at the end lists the missed ones.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// The operator.
    #[arg(long, value_name = "FILE", hide = true)]
    operator: PathBuf,
    /// Another build of the operator, to compare with.
    #[arg(long, value_name = "FILE", hide = true)]
    other: Option<PathBuf>,
    /// The reference in Go.
    #[arg(long, value_name = "FILE", hide = true)]
    reference: Option<PathBuf>,
    /// The emulator.
    #[arg(long, value_name = "FILE", hide = true)]
    emulator: PathBuf,
    /// The workspace.
    #[arg(long, value_name = "FOLDER", hide = true)]
    workspace: PathBuf,
    /// What to measure; everything but `noisy` by default.
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// Numbers of requests.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000", value_parser = at_least_one)]
    counts: Vec<usize>,
    /// Repetitions of a comparison, with alternating sides; the median pair counts.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Number of namespaces of the requests. Default: 1, and 500 for `spread`.
    #[arg(long, value_parser = at_least_one)]
    namespaces: Option<usize>,
    /// Number of grants, of which one allows the requests. Default: 1, and 1,000 for `spread`.
    #[arg(long, value_parser = at_least_one)]
    grants: Option<usize>,
    /// Latencies of Google's responses with an ID token, in milliseconds, with a column of figures each. What does not depend on it is
    /// measured with the first one only.
    #[arg(long, value_delimiter = ',', default_value = "200,20")]
    answer: Vec<u64>,
    /// Length of `idle` and `churn`, in seconds. Default: 60 for `idle` and 600 for `churn`.
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..))]
    seconds: Option<u64>,
    /// File to write the figures to, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Arguments {
    /// Google's latency: the first one.
    fn latency(&self) -> u64 {
        self.answer.first().copied().unwrap_or_default()
    }

    /// The same with this latency only.
    fn with_latency(&self, milliseconds: u64) -> Self {
        Self {
            answer: vec![milliseconds],
            ..self.clone()
        }
    }
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// The time from the first request's creation until all are Ready, and the cost of each request.
    Cold,
    /// The same with many namespaces and grants, compared with one of each.
    Spread,
    /// Memory after a list of all requests, and with many foreign Secrets.
    Memory,
    /// The time from the start until all Ready requests are reconciled.
    Restart,
    /// The time from one request's creation until it is Ready, alone and while others renew.
    Latency,
    /// CPU and calls without changes.
    Idle,
    /// Growth of memory, connections, tasks and files under mixed changes.
    Churn,
    /// The API server's cost of full updates, merge patches and server-side apply.
    Writes,
    /// A cold start and an outage while Google enforces a quota.
    Quota,
    /// What a neighbour notices of a namespace that attacks. Only if it is named.
    Noisy,
}

const ALL: [Scenario; 9] = [
    Scenario::Cold,
    Scenario::Spread,
    Scenario::Memory,
    Scenario::Restart,
    Scenario::Latency,
    Scenario::Idle,
    Scenario::Churn,
    Scenario::Writes,
    Scenario::Quota,
];

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    // One provider for every TLS client. Fails only if one is set already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let scenarios = match arguments.scenarios.is_empty() {
        true => ALL.to_vec(),
        false => arguments.scenarios.clone(),
    };
    let mut report = Report::new(&arguments);
    for scenario in &scenarios {
        let before = report.len();
        match scenario {
            Scenario::Cold => cold_start::measure(&arguments, &mut report).await?,
            Scenario::Spread | Scenario::Latency => {
                for &latency in &arguments.answer {
                    let arguments = arguments.with_latency(latency);
                    report.at_latency(latency);
                    match scenario {
                        Scenario::Spread => namespaces::measure(&arguments, &mut report).await?,
                        _ => latency::measure(&arguments, &mut report).await?,
                    }
                }
            }
            Scenario::Memory => memory::measure(&arguments, &mut report).await?,
            Scenario::Restart => restart::measure(&arguments, &mut report).await?,
            Scenario::Idle => idle::measure(&arguments, &mut report).await?,
            Scenario::Churn => churn::measure(&arguments, &mut report).await?,
            Scenario::Writes => writes::measure(&arguments, &mut report).await?,
            Scenario::Quota => quota::measure(&arguments, &mut report).await?,
            Scenario::Noisy => noisy::measure(&arguments, &mut report).await?,
        }
        report.at_latency(arguments.latency());
        // Written now, so that the figures are not lost if the next scenario fails.
        report.print(before);
        if let Some(file) = &arguments.json {
            report.write(file)?;
        }
    }
    if scenarios.len() > 1 {
        report.print(0);
    }
    match report.summary() {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::FAILURE),
    }
}
