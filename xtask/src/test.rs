//! `cargo xtask test`: runs every test of the workspace, suites side by side, while the third-party programs that they need are built.

mod runner;
mod suites;

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use crate::programs::Programs;
use crate::progress::Output;
use crate::{cargo, crds};
use runner::{Builder, Runner};
use suites::Suite;

/// How many lines say what took the time.
const LONGEST: usize = 10;

/// Which tests, and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct TestArgs {
    /// Only unit tests. They need no programs of others.
    #[arg(long)]
    unit: bool,
    /// Compile the tests and run none.
    #[arg(long)]
    no_run: bool,
    /// How many suites run at once. Default: the number of processors, at most 8.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Only tests whose names contain this.
    filter: Option<String>,
}

/// Compiles the tests and runs them.
///
/// # Errors
/// When a test fails, or what the tests need cannot be built.
pub(crate) async fn run(output: &Output, args: &TestArgs) -> Result<()> {
    crds::check(output)?;
    let filter = args.filter.as_deref();
    // Without a filter, all programs are needed: their builds run beside rustc.
    let everything = filter.is_none() && !args.unit && !args.no_run;
    let early = everything.then(|| Builder::start(&Programs::OF_TESTS));
    let started = Instant::now();
    let mut suites = compile(output, args.unit).await?;
    let compiling = ("compiling the tests".to_owned(), started.elapsed());
    if args.no_run {
        return Ok(());
    }
    match filter {
        Some(filter) => suites = matching(suites, filter)?,
        None if !args.unit => suites.push(Suite::documentation()),
        None => {}
    }
    if suites.is_empty() {
        bail!("no test ran: is the filter right?");
    }
    let builder = early.unwrap_or_else(|| {
        let mut needed: Vec<Programs> = suites.iter().flat_map(Suite::needs).collect();
        needed.sort_unstable();
        needed.dedup();
        Builder::start(&needed)
    });
    let jobs = args.jobs.unwrap_or_else(usual_jobs).max(1);
    let count = suites.len();
    let totals = Runner::new(output, builder, jobs, filter).run(suites).await?;
    output.line("\nWhat took the longest, most of it side by side:");
    for line in longest(totals.took.iter().chain([&compiling])) {
        output.line(&line);
    }
    output.line(&format!("\n{count} suites"));
    output.line(&format!("{} passed, {} failed", totals.passed, totals.failed()));
    if totals.failed() > 0 {
        bail!("these failed:\n  {}", totals.failures.join("\n  "));
    }
    if totals.passed == 0 {
        bail!("no test ran: is the filter right?");
    }
    Ok(())
}

/// The longest of what took at least a second, as lines.
fn longest<'t>(took: impl Iterator<Item = &'t (String, Duration)>) -> Vec<String> {
    let mut took: Vec<_> = took.filter(|(_, time)| time.as_secs() > 0).collect();
    took.sort_by_key(|(what, time)| (Reverse(*time), what));
    let line = |(what, time): &&(String, Duration)| format!("  {:>7.1} s  {what}", time.as_secs_f64());
    took.iter().take(LONGEST).map(line).collect()
}

/// As many as there are processors. A suite with an API server mostly waits, but its short-lived tokens expire where it waits for a processor.
fn usual_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().min(8))
}

async fn compile(output: &Output, unit: bool) -> Result<Vec<Suite>> {
    let step = output.begin("cargo test --no-run");
    let mut cargo = cargo::cargo();
    cargo.args([
        "test",
        "--workspace",
        "--locked",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    if unit {
        cargo.args(["--lib", "--bins"]);
    }
    let log = cargo::run(cargo, &step, |_| ()).await?;
    let suites = Suite::all(&log);
    step.done(&format!("{} suites are compiled", suites.len()));
    Ok(suites)
}

fn matching(suites: Vec<Suite>, filter: &str) -> Result<Vec<Suite>> {
    let found = suites.into_iter().map(|suite| suite.only(filter));
    found.filter_map(Result::transpose).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_come_first() {
        let took = [("a", 900), ("b", 2000), ("c", 61_000)];
        let took = took.map(|(what, millis)| (what.to_owned(), Duration::from_millis(millis)));
        assert_eq!(longest(took.iter()), ["     61.0 s  c", "      2.0 s  b"]);
        let many: Vec<_> = (1..99)
            .map(|time| (String::new(), Duration::from_secs(time)))
            .collect();
        assert_eq!(longest(many.iter()).len(), LONGEST);
    }
}
