//! The project's tasks: `cargo xtask demo`, `test`, `bench`, `instructions`, `layers`, `crds`, `docs` and `manifests`.

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
mod programs;
mod progress;
mod release;
mod test;
mod values;
mod values_schema;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use progress::Output;
use tokio::signal::unix::{SignalKind, signal};

/// Exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT.
const INTERRUPTED: i32 = 130;
/// Exit status where this machine cannot do the task (EX_UNAVAILABLE of sysexits.h): nothing was tested.
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
    /// Run what takes long and seldom fails where ci passes: counts of instructions, long simulations, and so on.
    Nightly(ci::CiArgs),
    /// Show the operator at work: a real Kubernetes API server, an emulated Google, one token issued and renewed.
    Demo {
        /// Leave everything running until Ctrl-C and print how to use it.
        #[arg(long)]
        keep: bool,
    },
    /// Run all tests: unit, protocol, and against a real API server. Suites run side by side, and what they need is built meanwhile.
    ///
    /// Tests with Google's own libraries need Python 3.10 or newer; without it they are skipped with a message, unless
    /// IDTOKEN_REQUIRE_REFEREES=1.
    Test(test::TestArgs),
    /// Build the programs of others that tests need: etcd, Kubernetes, Helm, Prometheus and so on. Needs Go.
    Programs {
        /// Which. Absent: all.
        #[arg(value_enum)]
        programs: Vec<programs::Programs>,
    },
    /// Measure the operator beside the floor that the API server sets, and beside a plain operator in Go. Fails where a goal is missed.
    Bench {
        /// A commit whose operator is measured by turns with this one.
        #[arg(long, value_name = "REV")]
        against: Option<String>,
        /// What to measure and how; -- --help tells.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Count the instructions of what a reconcile decides, and fail where there are more than the committed counts allow. Installs
    /// valgrind where it is missing.
    Instructions(instructions::InstructionsArgs),
    /// Write the CustomResourceDefinitions to crds/ and into the chart.
    Crds {
        /// Write nothing; fail where crds/ is not what the code says.
        #[arg(long)]
        check: bool,
    },
    /// Write docs/api.md from the CustomResourceDefinitions and docs/flags.md from the command line.
    Docs {
        /// Write nothing; fail where a page is not what the code says.
        #[arg(long)]
        check: bool,
    },
    /// Write the chart's schema and table of values, and to config/ what it makes of some values: RBAC, roles and admission policies.
    /// Builds helm first.
    Manifests {
        /// Write nothing; fail where one of them is not what the chart says.
        #[arg(long)]
        check: bool,
    },
    /// Check the order of imports in src/ and ctl/src/ by xtask/layers.txt, circles of files, and the length of files. Prints the layers.
    Layers {
        /// Write xtask/layers-baseline.txt, the list of today's violations; fail where it would grow.
        #[arg(long)]
        write: bool,
    },
    /// Check licences, sources and duplicates of the crates by cargo-deny, which is installed where it is missing.
    Deny {
        /// Known vulnerabilities too, which fails when one is published, with no change of the code.
        #[arg(long)]
        advisories: bool,
    },
    /// Run the end-to-end tests on a node of this machine, as root.
    E2e(e2e::E2eArgs),
    /// Make the operator's container image as an OCI archive, with no container engine.
    Image(image::ImageArgs),
    /// Make everything that a release consists of in target/dist; docs/releasing.md has the whole way.
    Release(release::ReleaseArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    // One provider for every TLS client; fails only where one is set already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    let output = Output::new();
    let result = tokio::select! {
        result = run(cli.task, &output) => result,
        result = interrupted() => match result {
            // What was started ended when the other branch was dropped.
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
            // Not by returning: the runtime would wait for blocking work, such as a build under way.
            std::process::exit(1);
        }
    }
}

async fn run(task: Task, output: &Output) -> Result<()> {
    match task {
        Task::Ci(args) => ci::run(output, &args).await,
        Task::Nightly(args) => ci::run_nightly(output, &args).await,
        Task::Demo { keep } => demo::run(output, keep).await,
        Task::Test(args) => test::run(output, &args).await,
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

/// Says that the task is left undone, and ends.
fn unavailable(output: &Output, why: &str) -> ! {
    output.warn(why);
    std::process::exit(UNAVAILABLE);
}

/// The root of the workspace.
fn workspace() -> PathBuf {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
