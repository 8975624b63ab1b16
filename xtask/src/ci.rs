//! `cargo xtask ci` and `cargo xtask nightly`: every check of the project, side by side where that saves time.
//!
//! `ci` is what each change must pass. `nightly` runs that, and then what takes long and seldom fails where `ci` passes; it is run before a
//! release.

mod jobs;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use jiff::Timestamp;

use crate::e2e::tested::OLDEST;
use crate::progress::Output;
use jobs::{Job, Jobs};

/// Niceness of jobs that others wait for.
const SOON: u8 = 5;
/// Niceness of jobs that nothing waits for: they run while the tests wait.
const LATE: u8 = 10;

/// Which jobs, and since when.
#[derive(Clone, Debug, Args)]
pub(crate) struct CiArgs {
    /// Only these jobs. Default: all.
    jobs: Vec<String>,
    /// When .ci/run started, in seconds since 1970. The summary includes the time since then.
    #[arg(long, value_name = "SECONDS")]
    began: Option<i64>,
}

impl CiArgs {
    fn before(&self) -> Duration {
        let began = self.began.unwrap_or(i64::MAX);
        let passed = Timestamp::now().as_second().saturating_sub(began);
        Duration::from_secs(u64::try_from(passed).unwrap_or(0))
    }
}

/// Runs what each change must pass.
///
/// # Errors
/// When something fails: with its name; its output has been shown.
pub(crate) async fn run(output: &Output, args: &CiArgs) -> Result<()> {
    let jobs = only(ci(&Commands::of_this_process()?), &args.jobs)?;
    Jobs::new(output, &crate::workspace(), args.before())
        .run(jobs)
        .await
}

/// Runs every check.
///
/// # Errors
/// When something fails: with its name; its output has been shown.
pub(crate) async fn run_nightly(output: &Output, args: &CiArgs) -> Result<()> {
    let jobs = only(nightly(&Commands::of_this_process()?), &args.jobs)?;
    Jobs::new(output, &crate::workspace(), args.before())
        .run(jobs)
        .await
}

/// The jobs with these `names`, or all. They wait for no other job.
fn only(mut jobs: Vec<Job>, names: &[String]) -> Result<Vec<Job>> {
    let all: Vec<_> = jobs.iter().map(|job| job.name).collect();
    if let Some(name) = names.iter().find(|name| !all.contains(&name.as_str())) {
        bail!("there is no job {name}; there are {}", all.join(", "));
    }
    if !names.is_empty() {
        let wanted = |name: &str| names.iter().any(|wanted| wanted == name);
        jobs.retain(|job| wanted(job.name));
        for job in &mut jobs {
            job.after.retain(|name| wanted(name));
            job.needs.retain(|name| wanted(name));
        }
    }
    Ok(jobs)
}

/// How cargo and this program are called.
struct Commands {
    cargo: String,
    xtask: String,
}

impl Commands {
    fn of_this_process() -> Result<Self> {
        // The path, not the file: a build may replace the file meanwhile.
        let xtask = std::env::current_exe().context("the name of this program is unknown")?;
        Ok(Self {
            cargo: std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()),
            xtask: xtask.to_string_lossy().into_owned(),
        })
    }

    fn cargo(&self, name: &'static str, arguments: &str) -> Job {
        job(name, &self.cargo, arguments)
    }

    fn xtask(&self, name: &'static str, arguments: &str) -> Job {
        job(name, &self.xtask, arguments)
    }
}

fn job(name: &'static str, program: &str, arguments: &str) -> Job {
    let arguments = arguments.split_whitespace().map(str::to_owned);
    Job {
        name,
        command: std::iter::once(program.to_owned()).chain(arguments).collect(),
        ..Job::default()
    }
}

/// The tests, the demo, the check of the image and the end-to-end tests start servers and have time limits. They run one after another,
/// and everything else beside them with less priority: rustc and Go compile while the tests wait.
fn ci(commands: &Commands) -> Vec<Job> {
    let mut clippy = commands.cargo(
        "clippy",
        "clippy --workspace --all-targets --locked -- -D warnings",
    );
    (clippy.after, clippy.nice) = (vec!["compile-tests"], LATE);
    let mut rustdoc = job("rustdoc", "env", "RUSTDOCFLAGS=-Dwarnings");
    let doc = [&commands.cargo, "doc", "--workspace", "--no-deps", "--locked"];
    rustdoc.command.extend(doc.map(str::to_owned));
    (rustdoc.after, rustdoc.nice) = (vec!["clippy"], LATE);
    vec![
        commands.xtask("layers", "layers"),
        commands.xtask("crds", "crds --check"),
        commands.xtask("docs", "docs --check"),
        Job {
            nice: SOON,
            ..commands.xtask(
                "programs-for-tests",
                "programs control-plane controllers chart tools consumers",
            )
        },
        Job {
            after: vec!["programs-for-tests"],
            nice: SOON,
            ..commands.xtask("programs-for-e2e", "programs node")
        },
        Job {
            after: vec!["programs-for-tests"],
            nice: SOON,
            ..commands.xtask("chart", "manifests --check")
        },
        commands.xtask("compile-tests", "test --no-run"),
        clippy,
        rustdoc,
        Job {
            after: vec!["compile-tests"],
            nice: SOON,
            ..commands.xtask("compile-image", "image --profile e2e")
        },
        Job {
            after: vec!["rustdoc", "compile-image"],
            nice: LATE,
            may_be_left_out: true,
            ..commands.xtask("cargo-deny", "deny")
        },
        Job {
            after: vec!["cargo-deny"],
            nice: LATE,
            may_be_left_out: true,
            ..commands.xtask("site", "site")
        },
        Job {
            needs: vec!["compile-tests"],
            shown: true,
            ..commands.xtask("tests", "test")
        },
        Job {
            needs: vec!["compile-tests"],
            after: vec!["tests"],
            shown: true,
            ..commands.xtask("demo", "demo")
        },
        Job {
            needs: vec!["compile-image"],
            after: vec!["demo"],
            shown: true,
            ..commands.xtask("image", "image --profile e2e --check")
        },
        Job {
            needs: vec!["compile-tests"],
            after: vec!["image", "programs-for-e2e"],
            shown: true,
            may_be_left_out: true,
            ..commands.xtask("e2e", "e2e")
        },
    ]
}

/// The jobs of CI and then the long ones, one after another: some measure.
fn nightly(commands: &Commands) -> Vec<Job> {
    let mut jobs = ci(commands);
    let all_of_ci = jobs.iter().map(|job| job.name).collect();
    jobs.extend([
        Job {
            after: all_of_ci,
            shown: true,
            may_be_left_out: true,
            ..commands.xtask("instructions", "instructions")
        },
        Job {
            after: vec!["instructions"],
            shown: true,
            ..commands.xtask("plan-rules", "plan-rules")
        },
        Job {
            after: vec!["plan-rules"],
            ..commands.cargo(
                "simulations",
                "test --release --locked --package idtoken-simulation -- --ignored",
            )
        },
        Job {
            after: vec!["simulations"],
            ..commands.cargo(
                "start-with-10000-requests",
                "test --locked --package idtoken-operator --test telemetry -- --ignored startup",
            )
        },
        Job {
            after: vec!["start-with-10000-requests"],
            ..commands.cargo(
                "memory-filled-to-its-limits",
                "test --locked --package idtoken-operator --test operator -- --ignored memory_that_is_filled",
            )
        },
        Job {
            after: vec!["memory-filled-to-its-limits"],
            ..commands.cargo(
                "published-and-tampered-with",
                "test --locked --package idtoken-operator --test release -- --ignored",
            )
        },
        Job {
            after: vec!["published-and-tampered-with"],
            ..commands.cargo("krew", "test --locked --package xtask --bins -- --ignored krew")
        },
        Job {
            after: vec!["krew"],
            shown: true,
            ..commands.xtask("image-as-released", "image --check")
        },
        // The emulator's image is checked by it too.
        Job {
            after: vec!["image-as-released"],
            shown: true,
            ..commands.xtask("release", "release --registry localhost:5005")
        },
        Job {
            after: vec!["release"],
            shown: true,
            ..commands.xtask("release-again", "release --again")
        },
        Job {
            after: vec!["release-again"],
            shown: true,
            ..commands.xtask("upgrade", "upgrade")
        },
        Job {
            after: vec!["upgrade"],
            shown: true,
            may_be_left_out: true,
            ..commands.xtask("e2e-as-released", "e2e --released")
        },
        Job {
            after: vec!["e2e-as-released"],
            shown: true,
            may_be_left_out: true,
            ..commands.xtask(
                "e2e-on-the-oldest-kubernetes",
                &format!("e2e --kubernetes {OLDEST}"),
            )
        },
        Job {
            after: vec!["e2e-on-the-oldest-kubernetes"],
            may_be_left_out: true,
            ..commands.xtask("advisories", "deny --advisories")
        },
    ]);
    jobs
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    fn commands() -> Commands {
        Commands {
            cargo: "cargo".to_owned(),
            xtask: "xtask".to_owned(),
        }
    }

    #[test]
    fn every_job_is_possible() {
        for jobs in [ci(&commands()), nightly(&commands())] {
            for (index, job) in jobs.iter().enumerate() {
                // A job waits only for jobs before it in the list, so there is no circle. A name occurs once.
                assert!(jobs[..index].iter().all(|before| before.name != job.name));
                for name in job.after.iter().chain(&job.needs) {
                    let before = jobs.iter().position(|before| before.name == *name);
                    assert!(
                        before.is_some_and(|before| before < index),
                        "{}: {name}",
                        job.name
                    );
                }
                if job.command[0] == "xtask" {
                    crate::Cli::try_parse_from(&job.command).unwrap();
                }
            }
        }
    }

    /// Each job of GitHub's workflows.
    fn jobs_of_workflows() -> Vec<Value> {
        let folder = crate::workspace().join(".github/workflows");
        let files = std::fs::read_dir(folder).unwrap();
        let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        let workflows = texts.map(|text| serde_saphyr::from_str::<Value>(&text).unwrap());
        workflows
            .flat_map(|workflow| workflow["jobs"].as_object().unwrap().clone())
            .map(|(_, job)| job)
            .collect()
    }

    #[test]
    fn workflows_run_tasks_that_there_are() {
        let mut found = Vec::new();
        for job in jobs_of_workflows() {
            for step in job["steps"].as_array().into_iter().flatten() {
                let run = step["run"].as_str().unwrap_or_default();
                for command in run.split("cargo xtask ").skip(1) {
                    let words = command.lines().next().unwrap_or_default().split_whitespace();
                    let cli = crate::Cli::try_parse_from(std::iter::once("xtask").chain(words));
                    let cli = cli.unwrap_or_else(|error| panic!("{command}: {error}"));
                    found.push(format!("{:?}", cli.task));
                    if matches!(cli.task, crate::Task::Nightly(_)) {
                        // The checkout has a single commit otherwise, and cargo xtask upgrade builds an earlier one.
                        assert_eq!(job["steps"][0]["with"]["fetch-depth"], 0, "{job}");
                    }
                }
            }
        }
        for task in ["Nightly(", "Deny { advisories: true }", "Release("] {
            assert!(
                found.iter().any(|found| found.starts_with(task)),
                "{task}: {found:?}"
            );
        }
    }

    #[test]
    fn nightly_runs_ci_and_then_one_job_after_another() {
        let (ci, nightly) = (ci(&commands()), nightly(&commands()));
        let names: Vec<_> = ci.iter().map(|job| job.name).collect();
        let (first, long) = nightly.split_at(ci.len());
        assert!(first.iter().map(|job| job.name).eq(names.iter().copied()));
        assert_eq!(long[0].after, names);
        assert!(long.windows(2).all(|pair| pair[1].after == [pair[0].name]));
    }

    #[test]
    fn the_time_before_is_counted() {
        let ago = |seconds| CiArgs {
            jobs: Vec::new(),
            began: Some(Timestamp::now().as_second() - seconds),
        };
        assert!((60..70).contains(&ago(60).before().as_secs()));
        assert_eq!(ago(-60).before(), Duration::ZERO);
        let unknown = CiArgs {
            began: None,
            ..ago(0)
        };
        assert_eq!(unknown.before(), Duration::ZERO);
    }

    #[test]
    fn some_jobs_wait_for_no_other() {
        let names = ["tests", "demo"].map(str::to_owned);
        let jobs = only(ci(&commands()), &names).unwrap();
        assert_eq!(jobs.len(), 2);
        assert_eq!(jobs[1].after, ["tests"]);
        assert!(jobs[0].needs.is_empty() && jobs[1].needs.is_empty());
        let error = only(ci(&commands()), &["test".to_owned()])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("there is no job test; there are layers, crds, "),
            "{error}"
        );
    }
}
