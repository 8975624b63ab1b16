//! The operator's binary: parses the command line and runs [`idtoken_operator::app`].

use std::process::ExitCode;

use clap::Parser;
use idtoken_operator::{app, cli::Cli};

#[tokio::main]
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
