//! `kubectl idtoken`: looks at IdTokenRequests and IdTokenGrants as the caller, by the operator's own code.
//!
//! | Module | Holds |
//! |---|---|
//! | `cli` | the command line |
//! | `mint`, `explain`, `grant`, `can`, `renew`, `audit` | one command each: what it reads, writes and prints |
//! | `diagnosis`, `steps`, `document`, `misses`, `guard` | the decisions behind them, pure |
//! | `cluster` | calls of the Kubernetes API, and what their failures mean |
//! | `wanted` | flags that become the token of a request |
//! | `output`, `table`, `times` | what is printed |

mod audit;
mod can;
mod cli;
mod cluster;
mod diagnosis;
mod document;
mod explain;
mod grant;
mod guard;
mod mint;
mod misses;
mod output;
mod renew;
mod steps;
mod table;
mod times;
mod wanted;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::cli::{Cli, Command};
use crate::wanted::WrongFlag;

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
        .block_on(run(cli))
}

async fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Mint(args) => mint::run(args).await,
        Command::Explain(args) => explain::run(args).await,
        Command::Grant(args) => grant::run(args).await,
        Command::Can(args) => can::run(args).await,
        Command::Renew(args) => renew::run(args).await,
        Command::Audit(args) => audit::run(args).await,
    }
}
