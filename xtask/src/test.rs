//! `cargo xtask test`: runs every test of the workspace, suites side by side, while the third-party programs that they need are built.

mod runner;
mod suites;

use anyhow::{Result, bail};
use clap::Args;

use crate::programs::Programs;
use crate::progress::Output;
use crate::{cargo, crds};
use runner::{Builder, Runner};
use suites::Suite;

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
    let mut suites = compile(output, args.unit).await?;
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
        let mut needed: Vec<Programs> = suites.iter().flat_map(|suite| suite.needs()).copied().collect();
        needed.sort_unstable();
        needed.dedup();
        Builder::start(&needed)
    });
    let jobs = args.jobs.unwrap_or_else(usual_jobs).max(1);
    let count = suites.len();
    let totals = Runner::new(output, builder, jobs, filter).run(suites).await?;
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

/// As many as there are processors. A suite with an API server mostly waits, but tokens of 30 seconds expire where one more waits for a
/// processor.
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
    let mut found = Vec::new();
    for suite in suites {
        if suite.has(filter)? {
            found.push(suite);
        }
    }
    Ok(found)
}
