//! The project's tasks: `cargo xtask --help` names them.

mod bench;
mod cargo;
mod cargo_tools;
mod ci;
mod crds;
mod demo;
mod deny;
mod docs;
mod e2e;
mod image;
mod instructions;
mod layers;
mod manifests;
mod plan_rules;
mod programs;
mod progress;
mod release;
mod site;
mod test;
mod upgrade;
mod values;
mod values_schema;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use idtoken_conformance::ConformanceArgs;
use progress::Output;
use tokio::signal::unix::{SignalKind, signal};

/// Exit status after Ctrl-C, as in shells: 128 plus the number of SIGINT.
const INTERRUPTED: i32 = 130;
/// Exit status if this machine cannot do the task (EX_UNAVAILABLE of sysexits.h): nothing was tested.
const UNAVAILABLE: i32 = 69;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The project's tasks",
    version
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run everything that a change must pass, and print how long each part took. .ci/run does this from a clean checkout.
    Ci(ci::CiArgs),
    /// Run the jobs of ci, and then what takes long and seldom fails where they pass: counts of instructions, long simulations, and so on.
    Nightly(ci::CiArgs),
    /// Show the operator at work: a real Kubernetes API server, an emulated Google, one token issued and renewed.
    Demo {
        /// Keep everything running until Ctrl-C, and print commands to try.
        #[arg(long)]
        keep: bool,
        /// Write a picture of this run, as SVG. docs/demo.svg is one.
        #[arg(long, value_name = "FILE")]
        picture: Option<PathBuf>,
        /// Instead of the demo: serve several teams for five minutes, while a real Prometheus observes the operator, and draw the answers to
        /// the dashboard's queries as SVG. docs/dashboard.svg is one.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["keep", "picture"])]
        dashboard: Option<PathBuf>,
    },
    /// Run all tests: unit, protocol, and against a real API server. Suites run side by side, and what they need is built meanwhile.
    ///
    /// Tests with Google's own libraries need Python 3.10 or newer; without it they are skipped with a message, unless
    /// IDTOKEN_REQUIRE_REFEREES=1.
    Test(test::TestArgs),
    /// Ask the emulator what the assertions about Google's protocol say.
    Conformance(ConformanceArgs),
    /// Build the third-party programs that tests need: etcd, Kubernetes, Helm, Prometheus and so on. Needs Go.
    Programs {
        /// Which programs. Default: all.
        #[arg(value_enum)]
        programs: Vec<programs::Programs>,
    },
    /// Measure the operator beside the minimum that the API server allows, and beside a plain operator in Go. Fails if a target is missed.
    Bench {
        /// A commit whose operator is measured alternately with this one.
        #[arg(long, value_name = "REV")]
        against: Option<String>,
        /// What to measure and how: see -- --help.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Count the instructions of a reconcile's decisions, and fail if the committed counts are exceeded. Installs
    /// valgrind if it is missing.
    Instructions(instructions::InstructionsArgs),
    /// Write the CustomResourceDefinitions to crds/ and into the chart.
    Crds {
        /// Write nothing; fail if crds/ differs from the code.
        #[arg(long)]
        check: bool,
    },
    /// Write docs/api.md from the CustomResourceDefinitions, docs/flags.md from the command line, and the tables of docs/conformance.md
    /// and docs/emulator.md from the assertions.
    Docs {
        /// Write nothing; fail if a page differs from the code.
        #[arg(long)]
        check: bool,
    },
    /// Write the chart's schema and table of values, and the manifests of config/: RBAC, roles and admission policies.
    /// Builds helm first.
    Manifests {
        /// Write nothing; fail if a file differs from the chart.
        #[arg(long)]
        check: bool,
    },
    /// Check the order of imports in src/ and ctl/src/ by xtask/layers.txt, circles of files, and the length of files. Prints the layers.
    Layers {
        /// Write xtask/layers-baseline.txt, the list of today's violations; fail where it would grow.
        #[arg(long)]
        write: bool,
    },
    /// Check licences, sources and duplicates of the crates by cargo-deny, which is installed if it is missing.
    Deny {
        /// Check for known vulnerabilities too. This can fail without a change of the code: when an advisory is published.
        #[arg(long)]
        advisories: bool,
    },
    /// Build the documentation site in target/site/html from the pages, and check its links and anchors. Installs mdBook, and fetches
    /// Mermaid with npm.
    Site {
        /// Take pictures of some pages with Chromium, as wide as a phone and a desktop. Installs Chromium if it is missing.
        #[arg(long)]
        shots: bool,
    },
    /// Remove each rule of the planner alone, in a copy, and fail where its model test does not notice.
    PlanRules,
    /// Upgrade from the chart and the operator of an earlier commit to these, and back, with 100 tokens that must outlive it.
    Upgrade(upgrade::UpgradeArgs),
    /// Run the end-to-end tests on a local Kubernetes node, as root.
    E2e(e2e::E2eArgs),
    /// Build the operator's container image as an OCI archive, without a container engine.
    Image(image::ImageArgs),
    /// Build everything that a release consists of in target/dist. docs/releasing.md has all steps.
    Release(release::ReleaseArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    // One provider for every TLS client. Fails only if one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    // It deletes what it made before it ends, also when it is interrupted.
    if let Task::Conformance(args) = cli.task {
        return idtoken_conformance::main(args).await;
    }
    let output = Output::new();
    let result = tokio::select! {
        result = run(cli.task, &output) => result,
        result = interrupted() => match result {
            // Everything that was started stopped when the other branch was dropped.
            Ok(()) => {
                output.warn("interrupted; everything that was started is stopped");
                std::process::exit(INTERRUPTED);
            }
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.fail(&format!("{error:#}"));
            // Not by returning: the runtime would wait for blocking work, such as a running build.
            std::process::exit(1);
        }
    }
}

async fn run(task: Task, output: &Output) -> Result<()> {
    match task {
        Task::Ci(args) => ci::run(output, &args).await,
        Task::Nightly(args) => ci::run_nightly(output, &args).await,
        Task::Demo {
            dashboard: Some(file),
            ..
        } => demo::record(output, &file).await,
        Task::Demo { keep, picture, .. } => demo::run(output, keep, picture.as_deref()).await,
        Task::Test(args) => test::run(output, &args).await,
        Task::Conformance(_) => Ok(()),
        Task::Programs { programs } => programs::run(output, &programs).await,
        Task::Bench { against, arguments } => bench::run(output, against.as_deref(), &arguments).await,
        Task::Instructions(args) => instructions::run(output, &args).await,
        Task::Crds { check: true } => crds::check(output),
        Task::Crds { check: false } => crds::write(output),
        Task::Docs { check: true } => docs::check(output),
        Task::Docs { check: false } => docs::write(output),
        Task::Manifests { check: true } => manifests::check(output).await,
        Task::Manifests { check: false } => manifests::write(output).await,
        Task::Layers { write: false } => layers::check(output),
        Task::Layers { write: true } => layers::write(output),
        Task::Deny { advisories } => deny::run(output, advisories).await,
        Task::Site { shots } => site::run(output, shots).await,
        Task::Upgrade(args) => upgrade::run(output, &args).await,
        Task::PlanRules => plan_rules::run(output).await,
        Task::E2e(args) => e2e::run(output, &args).await,
        Task::Image(args) => image::run(output, &args).await.map(drop),
        Task::Release(args) => release::run(output, &args).await,
    }
}

async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// Warns that the task was not done, and exits.
fn unavailable(output: &Output, why: &str) -> ! {
    output.warn(why);
    std::process::exit(UNAVAILABLE);
}

/// The root of the workspace, where it is another than the one that this program was built in.
const WORKSPACE: &str = "IDTOKEN_XTASK_WORKSPACE";

/// The root of the workspace.
fn workspace() -> PathBuf {
    if let Some(other) = std::env::var_os(WORKSPACE) {
        return other.into();
    }
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
