//! Simulates days of a million requests in seconds: the operator's own decisions, a virtual clock, and a Google with outages and quotas.
//! The README lists the modules and the commands.

mod event_queue;
mod goals;
mod scenarios;
mod simulation;
mod statistics;
#[cfg(test)]
mod tests;
mod time;
mod upstream;

use std::num::NonZeroU32;

use anyhow::Result;
use clap::Parser;
use scenarios::Scenario;

/// Simulates the schedule of many requests, and prints the results as a table in Markdown.
#[derive(Clone, Debug, Parser)]
#[command(name = "idtoken-simulation")]
struct Arguments {
    /// Scenarios to simulate; all by default.
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// Number of requests.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000,1000000", value_parser = clap::value_parser!(u32).range(1..))]
    counts: Vec<u32>,
    /// Number of requests of the goals.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..))]
    goal_requests: u32,
    /// Number of operators that share the requests.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    shards: Vec<u16>,
    /// Number of namespaces of the requests.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    namespaces: u32,
    /// Length of the steady scenario, in hours.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..))]
    hours: u64,
    /// Lengths of Google's outages, in minutes.
    #[arg(long, value_delimiter = ',', default_value = "10,30,60")]
    outages: Vec<u64>,
    /// The operator's `--google-rate`.
    #[arg(long, default_value = "1000")]
    google_rate: NonZeroU32,
    /// The operator's `--google-max-in-flight`.
    #[arg(long, default_value_t = 320, value_parser = clap::value_parser!(u16).range(1..))]
    google_max_in_flight: u16,
    /// The operator's `--concurrency`.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Tokens that Google issues in a minute to all operators together. Further calls get 429.
    #[arg(long, default_value_t = 60_000)]
    quota: u64,
    /// Mean latency of Google's responses, in milliseconds.
    #[arg(long, default_value_t = 200)]
    answer: u64,
    /// Time for the writes of a Secret and a status together, in milliseconds.
    #[arg(long, default_value_t = 20)]
    writes: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let are_goals = |scenario: &Scenario| *scenario == Scenario::Goals;
    if arguments.scenarios.iter().any(are_goals) {
        goals::run_all(&arguments)?;
    }
    match !arguments.scenarios.is_empty() && arguments.scenarios.iter().all(are_goals) {
        true => Ok(()),
        false => scenarios::run_all(&arguments),
    }
}
