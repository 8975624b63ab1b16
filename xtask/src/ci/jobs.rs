//! Runs jobs side by side in the order that they require, and prints how long each took.

#[cfg(test)]
mod tests;

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use idtoken_testenv::{Process, RunDir};

use crate::UNAVAILABLE;
use crate::progress::Output;

const POLL: Duration = Duration::from_millis(200);
/// How often the running jobs are printed.
const STATUS_INTERVAL: Duration = Duration::from_secs(60);
/// Lines that are shown of a failed job's log.
const MAX_LOG_LINES: usize = 400;
/// Lines of it that are repeated under the summary: why the job failed.
const MAX_LAST_LINES: usize = 20;
/// Runs a command, and writes the processor time of it and its children to the file `$0`.
const TIMED: &str = "\"$@\"; status=$?; times >\"$0\"; exit $status";

/// A command, and what it waits for.
#[derive(Clone, Debug, Default)]
pub(super) struct Job {
    /// A short name.
    pub(super) name: &'static str,
    /// The program and its arguments.
    pub(super) command: Vec<String>,
    /// Jobs that must have ended before, with any result.
    pub(super) after: Vec<&'static str>,
    /// Jobs that must have passed before.
    pub(super) needs: Vec<&'static str>,
    /// Niceness: background jobs leave the processors to the jobs that others wait for.
    pub(super) nice: u8,
    /// Its output is shown as it is written; otherwise only after a failure.
    pub(super) shown: bool,
    /// Exit status 69 means that this machine cannot run the job, and is no failure.
    pub(super) may_be_left_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    LeftOut,
    /// A job that it needs did not pass.
    Skipped,
}

/// A line of the summary.
struct Row {
    name: String,
    outcome: Outcome,
    started: Duration,
    wall: Duration,
    /// Processor time; unknown of a job that was killed.
    cpu: Option<Duration>,
}

/// A job that runs.
struct Running {
    job: Job,
    process: Process,
    started: Instant,
    times: PathBuf,
    /// How much of the log has been shown.
    seen: u64,
}

/// Runs jobs.
pub(super) struct Jobs<'o> {
    output: &'o Output,
    folder: PathBuf,
    begun: Instant,
    /// The time of the run before `begun`.
    before: Duration,
    rows: Vec<Row>,
    /// The last lines of each failed job, by its name.
    last_lines: Vec<(&'static str, String)>,
}

impl<'o> Jobs<'o> {
    /// Commands run in `folder`. `before` is what building this program took.
    pub(super) fn new(output: &'o Output, folder: &Path, before: Duration) -> Self {
        let rows = (!before.is_zero()).then(|| Row {
            name: "cargo xtask itself".to_owned(),
            outcome: Outcome::Passed,
            started: Duration::ZERO,
            wall: before,
            cpu: None,
        });
        Self {
            output,
            folder: folder.to_owned(),
            begun: Instant::now(),
            before,
            rows: rows.into_iter().collect(),
            last_lines: Vec::new(),
        }
    }

    /// Runs all of them, also after a failure, and prints the summary.
    ///
    /// # Errors
    /// When a job fails: with the names of those that did.
    pub(super) async fn run(mut self, mut jobs: Vec<Job>) -> Result<()> {
        let dir = RunDir::create("jobs")?;
        let mut running: Vec<Running> = Vec::new();
        let mut reported = Instant::now();
        loop {
            let mut index = 0;
            while index < jobs.len() {
                match self.state(&jobs[index])? {
                    State::Ready => running.push(self.start(jobs.remove(index), dir.path())?),
                    State::Useless => {
                        let job = jobs.remove(index);
                        self.end(job.name, Outcome::Skipped, Instant::now(), None);
                    }
                    State::Waiting => index += 1,
                }
            }
            if running.is_empty() {
                break;
            }
            tokio::time::sleep(POLL).await;
            for index in (0..running.len()).rev() {
                // Before the log is read, so that its last lines are not missed.
                let status = running[index].process.try_wait()?;
                if running[index].job.shown {
                    self.show(&mut running[index], status.is_some())?;
                }
                if let Some(status) = status {
                    let ended = running.swap_remove(index);
                    self.finish(&ended, status.code());
                }
            }
            if reported.elapsed() >= STATUS_INTERVAL {
                reported = Instant::now();
                self.report_running(&running);
            }
        }
        if let Some(job) = jobs.first() {
            bail!("{} waits for a job that there is not", job.name);
        }
        self.summarize()
    }

    fn state(&self, job: &Job) -> Result<State> {
        let outcome = |name: &&str| {
            self.rows
                .iter()
                .find(|row| row.name == **name)
                .map(|row| row.outcome)
        };
        let needed: Vec<_> = job.needs.iter().map(outcome).collect();
        if needed.iter().flatten().any(|outcome| *outcome != Outcome::Passed) {
            return Ok(State::Useless);
        }
        let ended =
            needed.iter().all(Option::is_some) && job.after.iter().all(|name| outcome(name).is_some());
        Ok(if ended { State::Ready } else { State::Waiting })
    }

    fn start(&self, job: Job, dir: &Path) -> Result<Running> {
        self.output.line(&format!("▶ {}", job.name));
        let file = job.name.replace([' ', '/'], "-");
        let times = dir.join(format!("{file}.times"));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", TIMED]).arg(&times);
        if job.nice > 0 {
            command.args(["nice", "-n", &job.nice.to_string()]);
        }
        command.args(&job.command).current_dir(&self.folder);
        Ok(Running {
            process: Process::spawn(&file, &command, dir)?,
            job,
            started: Instant::now(),
            times,
            seen: 0,
        })
    }

    /// Prints the new complete lines; after the job's end also an incomplete one.
    fn show(&self, running: &mut Running, ended: bool) -> Result<()> {
        let path = running.process.log_path();
        let mut file =
            std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        file.seek(SeekFrom::Start(running.seen))?;
        let mut new = Vec::new();
        file.read_to_end(&mut new)?;
        let whole = new
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let until = if ended { new.len() } else { whole };
        for line in String::from_utf8_lossy(&new[..until]).lines() {
            self.output.line(&format!("{} │ {line}", running.job.name));
        }
        running.seen += until as u64;
        Ok(())
    }

    fn finish(&mut self, ended: &Running, code: Option<i32>) {
        let job = &ended.job;
        let outcome = match code {
            Some(0) => Outcome::Passed,
            Some(UNAVAILABLE) if job.may_be_left_out => Outcome::LeftOut,
            _ => Outcome::Failed,
        };
        let log = ended.process.log();
        if outcome == Outcome::Failed {
            if !job.shown {
                self.output.quote(&last_lines(&log, MAX_LOG_LINES));
            }
            self.last_lines.push((job.name, last_lines(&log, MAX_LAST_LINES)));
        }
        if outcome == Outcome::LeftOut && !job.shown {
            self.output.quote(&log);
        }
        let cpu = std::fs::read_to_string(&ended.times)
            .ok()
            .and_then(|text| processor_time(&text));
        self.end(job.name, outcome, ended.started, cpu);
    }

    fn end(&mut self, name: &str, outcome: Outcome, started: Instant, cpu: Option<Duration>) {
        let wall = started.elapsed();
        let took = minutes(wall);
        match outcome {
            Outcome::Passed => self.output.passed(&format!("{name} ({took} min)")),
            Outcome::Failed => self.output.fail(&format!("{name} failed after {took} min")),
            Outcome::Skipped => self
                .output
                .fail(&format!("{name} is skipped: what it needs failed")),
            Outcome::LeftOut => self.output.warn(&format!(
                "LEFT OUT: {}: this machine cannot do it (see above)",
                name.to_uppercase()
            )),
        }
        self.rows.push(Row {
            name: name.to_owned(),
            outcome,
            started: self.before + started.duration_since(self.begun),
            wall,
            cpu,
        });
    }

    /// Prints the running jobs, with the last line of those whose output is not shown.
    fn report_running(&self, running: &[Running]) {
        let all = self.before + self.begun.elapsed();
        for running in running {
            let log = running.process.log();
            let last = log
                .lines()
                .rfind(|line| !line.trim().is_empty())
                .unwrap_or_default();
            let last: String = last
                .trim()
                .chars()
                .filter(|_| !running.job.shown)
                .take(100)
                .collect();
            self.output.line(&format!(
                "… {} min: {} ({} min) {last}",
                minutes(all),
                running.job.name,
                minutes(running.started.elapsed()),
            ));
        }
    }

    fn summarize(&self) -> Result<()> {
        self.output.heading("Summary, in minutes");
        self.output.line(&format!(
            "  {:<28} {:>7} {:>7} {:>7}",
            "", "started", "took", "cpu"
        ));
        for row in &self.rows {
            let (mark, note) = match row.outcome {
                Outcome::Passed => ("✓", ""),
                Outcome::Failed => ("✗", "  failed"),
                Outcome::LeftOut => ("!", "  LEFT OUT"),
                Outcome::Skipped => ("✗", "  skipped"),
            };
            self.output.line(&format!(
                "{mark} {:<28} {:>7} {:>7} {:>7}{note}",
                row.name,
                minutes(row.started),
                minutes(row.wall),
                row.cpu.map_or("-".to_owned(), minutes),
            ));
        }
        let cpu: Duration = self.rows.iter().filter_map(|row| row.cpu).sum();
        self.output.line(&format!(
            "  {:<28} {:>7} {:>7} {:>7}",
            "all",
            "",
            minutes(self.before + self.begun.elapsed()),
            minutes(cpu)
        ));
        for (name, lines) in &self.last_lines {
            self.output.heading(&format!("The last lines of {name}"));
            self.output.quote(lines);
        }
        let failed = self.rows.iter().filter(|row| row.outcome.is_failure());
        let failed: Vec<&str> = failed.map(|row| row.name.as_str()).collect();
        if !failed.is_empty() {
            bail!("failed or skipped: {}", failed.join(", "));
        }
        Ok(())
    }
}

impl Outcome {
    const fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::Skipped)
    }
}

enum State {
    Ready,
    Waiting,
    Useless,
}

fn last_lines(log: &str, count: usize) -> String {
    let lines: Vec<_> = log.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn minutes(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() / 60.0)
}

/// The times of the children in what the shell's `times` prints: `1m2.5s 0m3.25s`, in its second line.
fn processor_time(text: &str) -> Option<Duration> {
    let mut sum = 0.0;
    for time in text.lines().nth(1)?.split_whitespace() {
        let (minutes, seconds) = time.strip_suffix('s')?.split_once('m')?;
        sum += minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?;
    }
    Duration::try_from_secs_f64(sum).ok()
}
