//! `cargo xtask deny`: licences, sources and duplicates of the crates, by cargo-deny and deny.toml.

use anyhow::Result;

use crate::cargo;
use crate::cargo_tools::DENY;
use crate::progress::Output;

/// Runs cargo-deny, which is installed where it is missing.
///
/// # Errors
/// With what it found.
pub(crate) async fn run(output: &Output, advisories: bool) -> Result<()> {
    let mut cargo = cargo::cargo();
    let there = cargo.args(["deny", "--version"]).output();
    let mut cargo = cargo::cargo();
    if !there.is_ok_and(|output| output.status.success()) {
        match DENY.install(output).await {
            Ok(folder) => cargo.env("PATH", cargo::path_with(&folder)?),
            Err(error) => crate::unavailable(output, &format!("{error:#}")),
        };
    }
    let step = output.begin("cargo-deny");
    cargo.args(["deny", "--log-level", "error", "check", "--hide-inclusion-graph"]);
    cargo.args(["bans", "licenses", "sources"]);
    cargo.args(advisories.then_some("advisories"));
    cargo::run(cargo, &step, |_| ()).await?;
    step.done("licences, sources and duplicates of the crates are as deny.toml allows");
    Ok(())
}
