//! The command line of `cargo xtask conformance`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::assertion::{Assertion, all};
use crate::emulated::Emulated;
use crate::google::{self, Outside};

/// What to run.
#[derive(Clone, Debug, Args)]
pub struct ConformanceArgs {
    /// Only assertions whose names contain this.
    filter: Option<String>,
    /// Also ask Google itself, in this project, with your own credentials: GOOGLE_OAUTH_ACCESS_TOKEN, or else gcloud's. Creates service
    /// accounts and a workload identity pool, compares Google's answers with the emulator's, and deletes what it created.
    #[arg(long, value_name = "PROJECT")]
    google: Option<String>,
    /// Whose access token it is, such as user:E-MAIL or serviceAccount:E-MAIL. Without it, Google is asked.
    #[arg(long, requires = "google")]
    member: Option<String>,
    /// Also ask the metadata server. This machine must be an instance of the project.
    #[arg(long, requires = "google")]
    metadata_server: bool,
    /// Delete what interrupted runs have left in this project. No run may be going on there.
    #[arg(long, value_name = "PROJECT", conflicts_with_all = ["google", "filter"])]
    cleanup: Option<String>,
}

/// Runs the suite, and prints what failed.
pub async fn main(args: ConformanceArgs) -> ExitCode {
    main_with(args, |_| {}).await
}

/// The same with another Google than the public one, which `prepare` sets.
pub async fn main_with(args: ConformanceArgs, prepare: impl FnOnce(&mut Outside)) -> ExitCode {
    match run(&args, prepare).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &ConformanceArgs, prepare: impl FnOnce(&mut Outside)) -> Result<()> {
    let outside = || {
        let mut outside = Outside::new(interrupts()?);
        prepare(&mut outside);
        anyhow::Ok(outside)
    };
    if let Some(project) = &args.cleanup {
        return google::clean_up(&outside()?, project).await;
    }
    let mut assertions = all()?;
    if let Some(filter) = &args.filter {
        assertions.retain(|assertion| assertion.name.contains(filter));
    }
    ensure!(!assertions.is_empty(), "no assertion has such a name");
    match &args.google {
        Some(project) => on_google(args, outside()?, project, &assertions).await,
        None => on_emulator(&assertions).await,
    }
}

async fn on_emulator(assertions: &[Assertion]) -> Result<()> {
    let emulated = Emulated::start().await?;
    let mut failed = 0;
    for assertion in assertions {
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

async fn on_google(
    args: &ConformanceArgs,
    mut outside: Outside,
    project: &str,
    assertions: &[Assertion],
) -> Result<()> {
    if args.metadata_server {
        outside.ask_metadata_server();
    }
    let report = google::run(&outside, project, args.member.as_deref(), assertions).await?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let version = version(&root).await;
    // A page with a part of the assertions would look like one with all.
    if args.filter.is_none() {
        google::write_pages(&root, &report, &version)?;
    }
    println!("{}", report.markdown(&version));
    ensure!(report.left.is_empty(), google::left(project, &report.left));
    ensure!(report.is_good(), "Google does not answer as the assertions say");
    Ok(())
}

/// The version of this project, with its commit if git knows it.
async fn version(root: &Path) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let git = tokio::process::Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude=*"])
        .current_dir(root)
        .output()
        .await;
    match git {
        Ok(output) if output.status.success() => {
            let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            format!("version {version}, commit {commit}")
        }
        _ => format!("version {version}"),
    }
}

/// Counts SIGINT, SIGTERM and SIGHUP from now on.
fn interrupts() -> Result<watch::Receiver<u32>> {
    let (count, interrupts) = watch::channel(0);
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let (mut signals, count) = (signal(kind)?, count.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                count.send_modify(|count| *count += 1);
            }
        });
    }
    Ok(interrupts)
}
