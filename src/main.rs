//! The operator's binary: parses the command line and runs [`idtoken_operator::app`].

use std::process::ExitCode;

use clap::Parser;
use idtoken_operator::{app, cli::Cli};

// One thread for all work, and one for probes and metrics (admin.rs): the work waits for others nearly all the time, so that a second
// thread would cost a switch at most steps and gain little (docs/performance.md).
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // One provider for kube and reqwest; fails only where one is set already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match app::run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
