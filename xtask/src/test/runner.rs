//! Runs suites side by side, each as soon as its programs are built, and reports each when it ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::Result;
use idtoken_testenv::{Assets, Process, Progress, RunDir};

use super::suites::{Suite, Times};
use crate::programs::Programs;
use crate::progress::{Output, Step};

const POLL: Duration = Duration::from_millis(100);

/// Builds third-party programs one after another, in a thread.
pub(super) struct Builder {
    results: Receiver<Built>,
    /// What is being built, and what follows.
    waiting: Vec<Programs>,
}

struct Built {
    programs: Programs,
    took: Duration,
    /// The folder of the control plane, where that was built; or why nothing was.
    result: Result<Option<PathBuf>, String>,
}

impl Builder {
    /// Starts to build `wanted`, in this order.
    pub(super) fn start(wanted: &[Programs]) -> Self {
        let (sender, results) = channel();
        let waiting = wanted.to_vec();
        let todo = waiting.clone();
        std::thread::spawn(move || build(&todo, &sender));
        Self { results, waiting }
    }
}

fn build(todo: &[Programs], sender: &Sender<Built>) {
    for programs in todo.iter().copied() {
        let started = Instant::now();
        let result = programs.build(Progress::Quiet).and_then(|()| match programs {
            Programs::ControlPlane => {
                let assets = Assets::locate(Progress::Quiet)?;
                Ok(assets.etcd.parent().map(PathBuf::from))
            }
            _ => Ok(None),
        });
        let built = Built {
            programs,
            took: started.elapsed(),
            result: result.map_err(|error| format!("{error:#}")),
        };
        if sender.send(built).is_err() {
            // The tests are over.
            return;
        }
    }
}

/// The result of all suites.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// How many tests passed.
    pub(super) passed: u32,
    /// The tests that failed, and the suites that ended without a result.
    pub(super) failures: Vec<String>,
    /// What programs and suites took.
    pub(super) took: Vec<(String, Duration)>,
}

impl Totals {
    /// How many tests failed.
    pub(super) fn failed(&self) -> usize {
        self.failures.len()
    }
}

/// A suite that runs.
struct Running {
    suite: Suite,
    process: Process,
    started: Instant,
}

/// Runs suites.
pub(super) struct Runner<'r> {
    output: &'r Output,
    builder: Builder,
    jobs: usize,
    filter: Option<&'r str>,
    built: BTreeMap<Programs, Result<(), String>>,
    control_plane: Option<PathBuf>,
    times: Times,
    totals: Totals,
}

impl<'r> Runner<'r> {
    pub(super) fn new(output: &'r Output, builder: Builder, jobs: usize, filter: Option<&'r str>) -> Self {
        Self {
            output,
            builder,
            jobs,
            filter,
            built: BTreeMap::new(),
            control_plane: None,
            times: Times::read(),
            totals: Totals::default(),
        }
    }

    /// Runs all of them, also after a failure.
    ///
    /// # Errors
    /// When a suite cannot be started or waited for.
    pub(super) async fn run(mut self, mut suites: Vec<Suite>) -> Result<Totals> {
        self.times.sort(&mut suites);
        let (output, count) = (self.output, suites.len());
        let step = output.begin("tests");
        let dir = RunDir::create("tests")?;
        let mut running: Vec<Running> = Vec::new();
        while !(suites.is_empty() && running.is_empty()) {
            self.take_built();
            while running.len() < self.jobs
                && let Some(suite) = self.next(&mut suites)
            {
                running.push(self.start(suite, &dir)?);
            }
            for index in (0..running.len()).rev() {
                if let Some(status) = running[index].process.try_wait()? {
                    let ended = running.swap_remove(index);
                    self.report(&ended, status.success());
                }
            }
            self.show(&step, count - suites.len() - running.len(), count, &running);
            tokio::time::sleep(POLL).await;
        }
        // The times of filtered tests would mislead the next run.
        if self.filter.is_none() {
            self.times.write()?;
        }
        Ok(self.totals)
    }

    fn take_built(&mut self) {
        loop {
            match self.builder.results.try_recv() {
                Ok(built) => self.add_built(built),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => break,
            }
        }
        // The thread ends after its last program, or by a panic, whose message was printed.
        for programs in std::mem::take(&mut self.builder.waiting) {
            self.built.insert(programs, Err("the build panicked".to_owned()));
        }
    }

    fn add_built(&mut self, built: Built) {
        let (names, seconds) = (built.programs.names(), built.took.as_secs_f64());
        self.totals.took.push((names.to_owned(), built.took));
        self.builder
            .waiting
            .retain(|programs| *programs != built.programs);
        let result = match built.result {
            Ok(folder) => {
                self.output.passed(&format!("{names}: ready ({seconds:.1} s)"));
                self.control_plane = self.control_plane.take().or(folder);
                Ok(())
            }
            Err(error) => {
                self.output.fail(&error);
                Err(error)
            }
        };
        self.built.insert(built.programs, result);
    }

    /// Takes the first suite that can start. A suite whose programs cannot be built is reported as failed.
    fn next(&mut self, suites: &mut Vec<Suite>) -> Option<Suite> {
        let mut index = 0;
        while index < suites.len() {
            let needs = suites[index].awaits();
            let states: Vec<_> = needs.iter().map(|need| self.built.get(need)).collect();
            if states.iter().any(|state| matches!(state, Some(Err(_)))) {
                let suite = suites.remove(index);
                let failure = format!("{}: a program that it needs cannot be built", suite.name);
                self.output.fail(&failure);
                self.totals.failures.push(failure);
            } else if states.iter().all(Option::is_some) {
                return Some(suites.remove(index));
            } else {
                index += 1;
            }
        }
        None
    }

    fn start(&self, suite: Suite, dir: &RunDir) -> Result<Running> {
        let mut command = suite.command(self.filter);
        if let Some(folder) = &self.control_plane {
            // So that no test searches for it or builds it again.
            command.env("KUBEBUILDER_ASSETS", folder);
        }
        let name = suite.name.replace([':', ' '], "-");
        Ok(Running {
            process: Process::spawn(&name, &command, dir.path())?,
            suite,
            started: Instant::now(),
        })
    }

    fn report(&mut self, ended: &Running, success: bool) {
        let (name, took) = (&ended.suite.name, ended.started.elapsed());
        self.totals.took.push((name.clone(), took));
        let log = ended.process.log();
        let passed: u32 = log.lines().filter_map(passed).sum();
        self.totals.passed += passed;
        let seconds = took.as_secs_f64();
        if success {
            self.times.add(&ended.suite, took);
            self.output
                .passed(&format!("{name}: {passed} passed ({seconds:.1} s)"));
            for line in log.lines().filter(|line| line.starts_with(COUNTED)) {
                self.output.line(line);
            }
            return;
        }
        let mut failed: Vec<String> = log
            .lines()
            .filter_map(failing)
            .map(|test| format!("{name}: {test}{}", panic(&log, test)))
            .collect();
        if failed.is_empty() {
            failed.push(format!("{name}: it exited without a result"));
        }
        self.output.fail(&format!(
            "{name}: {passed} passed, {} failed ({seconds:.1} s)",
            failed.len()
        ));
        self.output.quote(&log);
        self.totals.failures.append(&mut failed);
    }

    fn show(&self, step: &Step<'_>, done: usize, count: usize, running: &[Running]) {
        let names: Vec<_> = running
            .iter()
            .map(|running| format!("{} {} s", running.suite.name, running.started.elapsed().as_secs()))
            .collect();
        let building = self.builder.waiting.first();
        let building = building.map_or(String::new(), |programs| {
            format!("; getting {}", programs.names())
        });
        step.progress(&format!(
            "{done} of {count} suites: {}{building}",
            names.join(", ")
        ));
    }
}

/// How lines of a log begin that are shown of suites that pass, too.
const COUNTED: &str = "counted: ";

/// The number of passed tests in a suite's last line.
fn passed(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("test result: ")?;
    let (_, rest) = rest.split_once(". ")?;
    rest.split_once(" passed")?.0.trim().parse().ok()
}

fn failing(line: &str) -> Option<&str> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    rest.contains("FAILED").then_some(name)
}

/// Where `test` panicked and the first line of why, as libtest shows it. Empty if it failed by its result.
fn panic(log: &str, test: &str) -> String {
    let begin = format!("thread '{test}' ");
    let mut lines = log.lines().skip_while(|line| !line.starts_with(&begin));
    let place = lines.next().and_then(|line| line.split_once(" panicked at "));
    place.map_or_else(String::new, |(_, place)| {
        format!(" at {place} {}", lines.next().unwrap_or_default())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A suite that is a shell script.
    fn suite(dir: &RunDir, name: &str, script: &str) -> Suite {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Suite::for_tests(name, path)
    }

    #[tokio::test]
    async fn runs_all_suites_and_counts_each_failure() {
        let dir = RunDir::create("runner").unwrap();
        let all = vec![
            suite(
                &dir,
                "kubectl-idtoken: mint",
                "echo test a ... ok; echo 'test result: ok. 2 passed; 0 failed'",
            ),
            suite(
                &dir,
                "idtoken-operator: specs",
                "test \"$KUBEBUILDER_ASSETS\" = /assets && echo 'test result: ok. 3 passed; 0 failed'",
            ),
            suite(
                &dir,
                "idtoken-operator: google",
                "echo 'test a::b ... FAILED'; echo 'test result: FAILED. 4 passed; 1 failed'; exit 101",
            ),
            suite(&dir, "idtoken-emulator: binary", "kill -9 $$"),
            suite(
                &dir,
                "idtoken-testenv: oci",
                "echo 'test result: ok. 50 passed; 0 failed'",
            ),
        ];
        let (sender, results) = channel();
        let waiting = vec![Programs::ControlPlane, Programs::Tools];
        let builder = Builder { results, waiting };
        let results = [Ok(Some(PathBuf::from("/assets"))), Err("no Go".to_owned())];
        for (programs, result) in builder.waiting.iter().zip(results) {
            sender.send(built(*programs, Duration::ZERO, result)).unwrap();
        }
        let output = Output::new();
        let mut totals = Runner::new(&output, builder, 2, Some("any"))
            .run(all)
            .await
            .unwrap();
        totals.failures.sort();
        assert_eq!(totals.passed, 9);
        assert_eq!(
            totals.failures,
            [
                "idtoken-emulator: binary: it exited without a result",
                "idtoken-operator: google: a::b",
                "idtoken-testenv: oci: a program that it needs cannot be built",
            ]
        );
    }

    fn built(programs: Programs, took: Duration, result: Result<Option<PathBuf>, String>) -> Built {
        Built {
            programs,
            took,
            result,
        }
    }

    #[tokio::test]
    async fn tests_that_need_no_program_do_not_wait_for_one() {
        let dir = RunDir::create("runner").unwrap();
        let ran = dir.path().join("ran");
        let counted = "echo 'test result: ok. 1 passed; 0 failed'";
        let all = vec![
            suite(
                &dir,
                "idtoken-testenv: oci",
                &format!("test -e {} && {counted}", ran.display()),
            ),
            suite(
                &dir,
                "kubectl-idtoken: mint",
                &format!("touch {} && {counted}", ran.display()),
            ),
        ];
        let (sender, results) = channel();
        let (programs, took) = (Programs::Tools, Duration::from_secs(7));
        // The build ends only after the other suite.
        let build = async {
            idtoken_testenv::until("the suite ran", Duration::from_secs(60), async || {
                Ok(ran.exists().then_some(()))
            })
            .await
            .unwrap();
            sender.send(built(programs, took, Ok(None))).unwrap();
        };
        let output = Output::new();
        let builder = Builder {
            results,
            waiting: vec![programs],
        };
        let run = Runner::new(&output, builder, 1, Some("any")).run(all);
        let (totals, ()) = tokio::join!(run, build);
        let totals = totals.unwrap();
        assert_eq!((totals.passed, totals.failed()), (2, 0));
        let mut took: Vec<_> = totals.took.iter().map(|(name, _)| name.as_str()).collect();
        took.sort_unstable();
        assert_eq!(
            took,
            [programs.names(), "idtoken-testenv: oci", "kubectl-idtoken: mint"]
        );
    }

    #[tokio::test]
    async fn a_build_that_panics_fails_what_needs_it() {
        let dir = RunDir::create("runner").unwrap();
        let all = vec![suite(&dir, "idtoken-testenv: oci", "exit 0")];
        let (_, results) = channel();
        let builder = Builder {
            results,
            waiting: vec![Programs::Tools],
        };
        let output = Output::new();
        let totals = Runner::new(&output, builder, 2, Some("any"))
            .run(all)
            .await
            .unwrap();
        assert_eq!(totals.failed(), 1);
    }

    #[test]
    fn reads_the_lines_of_a_suite() {
        let closing =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.52s";
        assert_eq!(passed(closing), Some(12));
        assert_eq!(passed("test result: FAILED. 3 passed; 1 failed"), Some(3));
        assert_eq!(passed("test a::b ... ok"), None);
        let log =
            "---- a::b stdout ----\n\nthread 'a::b' (7) panicked at tests/a.rs:1:2:\nno token\nnote: more\n";
        assert_eq!(panic(log, "a::b"), " at tests/a.rs:1:2: no token");
        assert_eq!(panic(log, "a"), "");
        assert_eq!(failing("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failing("test a::b ... ok"), None);
    }
}
