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

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::cli::Cli;
use crate::decisions::destination::DestinationError;
use crate::token_args::InvalidFlag;

fn main() -> ExitCode {
    let cli = Cli::parse_from(arguments(std::env::args_os().collect()));
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

/// kubectl's completion runs a program of this name, which may be a link to this one.
const COMPLETER: &str = "kubectl_complete-idtoken";

fn arguments(mut all: Vec<OsString>) -> Vec<OsString> {
    let program = all.first().map(Path::new).and_then(Path::file_stem);
    if program.is_some_and(|name| name == COMPLETER) {
        all.insert(1, "__complete".into());
    }
    all
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
