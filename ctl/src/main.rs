//! `kubectl idtoken`: inspects IdTokenRequests and IdTokenGrants as the caller, with the operator's own code.
//!
//! Imports run down this table only:
//!
//! | Module | Holds |
//! |---|---|
//! | `cli` | the command line: the only file that imports all commands |
//! | `commands` | one command a file: what it reads, writes and prints |
//! | `kubernetes` | calls of the Kubernetes API |
//! | `decisions` | what the commands decide, pure |
//! | `args`, `token_args` | flags that several commands share |
//! | `output` | the terminal |

mod args;
mod cli;
mod commands;
mod decisions;
mod kubernetes;
mod output;
mod token_args;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::cli::Cli;
use crate::decisions::destination::DestinationError;
use crate::token_args::InvalidFlag;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            // As clap exits for the errors that it finds.
            if error.is::<InvalidFlag>() || error.is::<DestinationError>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode> {
    // Fails only if a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(cli.command.run())
}
