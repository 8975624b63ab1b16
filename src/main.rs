//! The operator's binary: parses the command line and runs [`idtoken_operator::app`].

#![deny(clippy::disallowed_methods)]

use std::process::ExitCode;

use clap::Parser;
use idtoken_operator::{app, cli::Cli};

// One thread for all reconciles, and one for probes and metrics (admin.rs). Reconciles wait for responses most of the time, so more threads
// would gain little and cost context switches (docs/performance.md).
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // One provider for kube and reqwest. Fails only if one is already set.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match app::run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
