//! `kubectl idtoken`: looks at IdTokenRequests and IdTokenGrants as the caller, by the operator's own code.
//!
//! Imports run down this list only:
//!
//! | Module | Holds |
//! |---|---|
//! | `cli` | the command line: the only file that imports all commands |
//! | `commands` | one command a file: what it reads, writes and prints |
//! | `output`, `kubernetes` | the terminal; calls of the Kubernetes API |
//! | `decisions` | what the commands decide, pure |
//! | `args`, `token_args` | flags that several commands share |

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
use crate::token_args::WrongFlag;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            // As clap does for what it can see itself.
            if error.is::<WrongFlag>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode> {
    // Refused only where one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime cannot be started")?
        .block_on(cli.command.run())
}
