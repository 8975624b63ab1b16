//! `cargo xtask upgrade`: an earlier commit's chart and operator, and the test that upgrades them.

use std::process::Command;

use anyhow::{Result, ensure};
use clap::Args;
use idtoken_testenv::RunDir;

use crate::progress::Output;
use crate::{bench, cargo};

/// The command's arguments.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpgradeArgs {
    /// The earlier commit. The default is the one whose result docs/upgrade-policy.md has.
    #[arg(
        long,
        value_name = "REV",
        default_value = "443a9ce93aa7cb965ff26d11c8f9ba4834fe4cad"
    )]
    from: String,
}

/// Builds the earlier operator unless it is kept from before, and runs the test.
///
/// # Errors
/// When there is no such commit, a build fails or the test does.
pub(crate) async fn run(output: &Output, args: &UpgradeArgs) -> Result<()> {
    output.heading("Building");
    let program = bench::checked_out(output, &args.from).await?;
    let dir = RunDir::create("upgrade")?;
    bench::unpack(&args.from, &["charts"], dir.path())?;
    std::fs::copy(program, dir.path().join("idtoken-operator"))?;
    output.heading("Testing");
    let mut test: Command = cargo::cargo();
    test.args([
        "test",
        "--locked",
        "--package",
        "idtoken-operator",
        "--test",
        "chart",
    ])
    .args(["--", "--ignored", "--nocapture", "upgrade"])
    .env("IDTOKEN_EARLIER", dir.path());
    let status = tokio::process::Command::from(test)
        .kill_on_drop(true)
        .status()
        .await?;
    ensure!(status.success(), "the upgrade failed ({status})");
    Ok(())
}
