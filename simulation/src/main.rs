//! Days of a million requests in seconds: the decisions of the operator, a virtual clock, and a Google with outages and quotas.
//!
//! `cargo run --release --package idtoken-simulation` prints a table; docs/performance.md says what follows from it.

mod calendar;
mod scenarios;
mod tally;
#[cfg(test)]
mod tests;
mod upstream;
mod world;

use std::num::NonZeroU32;

use anyhow::Result;
use clap::Parser;
use scenarios::What;

/// Simulates the schedule of many requests, and prints what came of it as a table in Markdown.
#[derive(Clone, Debug, Parser)]
#[command(name = "idtoken-simulation")]
struct Arguments {
    /// What is simulated; absent means all.
    #[arg(value_enum)]
    what: Vec<What>,
    /// How many requests.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000,1000000", value_parser = clap::value_parser!(u32).range(1..))]
    counts: Vec<u32>,
    /// How many operators share them.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    shards: Vec<u16>,
    /// How many namespaces they are spread over.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    namespaces: u32,
    /// How long steady operation is simulated, in hours.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..))]
    hours: u64,
    /// How long outages of Google last, in minutes.
    #[arg(long, value_delimiter = ',', default_value = "10,30,60")]
    outages: Vec<u64>,
    /// Each operator's flag of this name.
    #[arg(long)]
    google_rate: Option<NonZeroU32>,
    /// Each operator's flag of this name.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    google_max_in_flight: u16,
    /// Each operator's flag of this name.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Tokens that Google issues in a minute, for all operators together; it answers 429 to calls beyond.
    #[arg(long, default_value_t = 60_000)]
    quota: u64,
    /// How long an answer of Google's usually takes, in milliseconds.
    #[arg(long, default_value_t = 200)]
    answer: u64,
    /// How long the writes of a Secret and a status take together, in milliseconds.
    #[arg(long, default_value_t = 20)]
    writes: u64,
}

fn main() -> Result<()> {
    scenarios::run(&Arguments::parse())
}
