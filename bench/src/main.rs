//! Measures a program that keeps ID tokens in Secrets from outside: on a real etcd and kube-apiserver, with the emulator as Google.
//!
//! Machines differ, so each figure that takes time is a ratio: to the floor, which is a bare client that makes the same writes in the
//! same minutes, to a plain Go operator, or to another build of this one. `cargo xtask bench` builds everything and runs it.

mod api;
mod calls;
mod churn;
mod cluster;
mod cold;
mod floor;
mod follow;
mod google;
mod growth;
mod idle;
mod latency;
mod load;
mod machine;
mod memory;
mod report;
mod restart;
mod sample;
mod seen;
mod served;
mod sockets;
mod spread;
mod system;
mod usage;
mod writes;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use report::Report;

/// Measures the operator beside the floor that the API server sets.
///
/// Ends with status 1 where a goal is missed; the summary at the end says which.
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
    /// What to measure; absent means all.
    #[arg(value_enum)]
    what: Vec<What>,
    /// How many requests.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000", value_parser = at_least_one)]
    counts: Vec<usize>,
    /// How often a comparison of times is repeated, the sides by turns; the median pair counts.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// How many namespaces the requests are spread over; absent means 1, and 500 for `spread`.
    #[arg(long, value_parser = at_least_one)]
    namespaces: Option<usize>,
    /// How many grants there are, one of which allows the requests; absent means 1, and 1,000 for `spread`.
    #[arg(long, value_parser = at_least_one)]
    grants: Option<usize>,
    /// How long each answer of Google's takes, in milliseconds.
    #[arg(long, default_value_t = 20)]
    answer: u64,
    /// How long idleness and churn are watched, in seconds; absent means 60 for `idle` and 600 for `churn`.
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..))]
    seconds: Option<u64>,
    /// Where the figures are written as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// From the first request's creation until all are Ready, and what each request costs.
    Cold,
    /// The same with many namespaces and grants, beside one of each.
    Spread,
    /// Memory after a list of all requests, and with many Secrets of others.
    Memory,
    /// From the start until nothing is left to do, with Ready requests.
    Restart,
    /// From one request's creation until it is Ready, alone and while others renew.
    Latency,
    /// CPU and calls when nothing happens.
    Idle,
    /// Growth of memory, connections, tasks and files under mixed changes.
    Churn,
    /// What full updates, merge patches and server-side apply cost the API server.
    Writes,
}

const ALL: [What; 8] = [
    What::Cold,
    What::Spread,
    What::Memory,
    What::Restart,
    What::Latency,
    What::Idle,
    What::Churn,
    What::Writes,
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
    // One provider for every TLS client; fails only where one is set already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let what = match arguments.what.is_empty() {
        true => ALL.to_vec(),
        false => arguments.what.clone(),
    };
    let mut report = Report::new(&arguments);
    for what in &what {
        let before = report.len();
        match what {
            What::Cold => cold::measure(&arguments, &mut report).await?,
            What::Spread => spread::measure(&arguments, &mut report).await?,
            What::Memory => memory::measure(&arguments, &mut report).await?,
            What::Restart => restart::measure(&arguments, &mut report).await?,
            What::Latency => latency::measure(&arguments, &mut report).await?,
            What::Idle => idle::measure(&arguments, &mut report).await?,
            What::Churn => churn::measure(&arguments, &mut report).await?,
            What::Writes => writes::measure(&arguments, &mut report).await?,
        }
        // What was measured is not lost when what comes next fails.
        report.print(before);
        if let Some(file) = &arguments.json {
            report.write(file)?;
        }
    }
    if what.len() > 1 {
        report.print(0);
    }
    match report.summary() {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::FAILURE),
    }
}
