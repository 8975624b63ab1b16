//! The command line of `cargo xtask conformance`.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;

use crate::assertion::all;
use crate::emulated::Emulated;

/// What to run.
#[derive(Clone, Debug, Args)]
pub struct ConformanceArgs {
    /// Only assertions whose names contain this.
    filter: Option<String>,
}

/// Runs the suite, and prints what failed.
pub async fn main(args: ConformanceArgs) -> ExitCode {
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &ConformanceArgs) -> Result<()> {
    let mut assertions = all()?;
    if let Some(filter) = &args.filter {
        assertions.retain(|assertion| assertion.name.contains(filter));
    }
    ensure!(!assertions.is_empty(), "no assertion has such a name");
    let emulated = Emulated::start().await?;
    let mut failed = 0;
    for assertion in &assertions {
        let failures = emulated.check(assertion).await?.failures;
        failed += usize::from(!failures.is_empty());
        for failure in failures {
            eprintln!("{}: {failure}", assertion.name);
        }
    }
    println!(
        "{} assertions hold for the emulator, {failed} fail",
        assertions.len() - failed
    );
    ensure!(failed == 0, "the emulator does not answer as its sources say");
    Ok(())
}
