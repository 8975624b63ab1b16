//! Child processes that never outlive the process that started them.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// The guard: a sub-shell in the program's process group that reads from a pipe whose only writer is the parent. The
/// pipe closes when the parent drops the [`Process`] or dies for any reason, and the guard then kills the group. While
/// the guard lives, no other process can get the group's id, so it never kills another process. Unlike
/// PR_SET_PDEATHSIG this works on macOS, does not fire when only the spawning thread exits, and needs no unsafe code.
const GUARDED_EXEC: &str = "exec 3<&0 </dev/null
( trap '' HUP INT QUIT TERM; exec >/dev/null 2>&1; read -r _ <&3; kill -9 -$$ ) &
exec 3<&-
exec \"$@\"";

const POLL: Duration = Duration::from_millis(20);
const TAIL_LINES: usize = 40;

/// A child process in a process group of its own, with stdout and stderr in one log file.
///
/// The process and its descendants are killed when this is dropped and when the parent dies, even by SIGKILL. It belongs to no tokio
/// runtime, so tests can share it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    pid: Pid,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    child: Child,
    guard: Option<ChildStdin>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`. Appends its output to `dir/<name>.log`.
    ///
    /// Uses the program, the arguments, the working directory and the individual environment variables of `command`. Ignores
    /// `env_clear`, its stdio settings and its exec hooks.
    ///
    /// # Errors
    /// When the log cannot be written or no shell can be started. A program that does not exist has exit status 127 and a line in the
    /// log.
    pub fn spawn(name: &str, command: &Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let errors = output
            .try_clone()
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = guarded(command)
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let guard = child.stdin.take();
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("the child has no process id")?;
        Ok(Self {
            name: name.to_owned(),
            log,
            pid,
            state: Mutex::new(State {
                child,
                guard,
                status: None,
            }),
        })
    }

    /// The name given to [`Process::spawn`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The log file.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The output to stdout and stderr.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map_or_else(
            |_| String::new(),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// The last lines of the log, for error messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// The exit status, or `None` while the process runs (or is stopped by SIGSTOP).
    ///
    /// # Errors
    /// When the operating system reports an error.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        let mut state = self.state();
        if state.status.is_none() {
            state.status = state
                .child
                .try_wait()
                .with_context(|| format!("cannot wait for {}", self.name))?;
            if state.status.is_some() {
                // Kills the descendants too.
                state.guard = None;
            }
        }
        Ok(state.status)
    }

    /// Waits until the process exits.
    ///
    /// # Errors
    /// When it still runs after `limit`. It keeps running.
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        wait::until(&format!("{} exits", self.name), limit, async || self.try_wait()).await
    }

    /// Waits for a line with `text` in the log. Returns that line.
    ///
    /// # Errors
    /// When the process exits first or `limit` passes. The error has the end of the log.
    pub async fn wait_for_line(&self, text: &str, limit: Duration) -> Result<String> {
        let what = format!("{} writes a line with {text:?}", self.name);
        let find = async || {
            // Checked before the log is read, so that the last output of an exited process counts.
            let exited = self.try_wait()?;
            let log = self.log();
            match (log.lines().find(|line| line.contains(text)), exited) {
                (Some(line), _) => Ok(Some(line.to_owned())),
                (None, Some(status)) => bail!("{} exited ({status}) before it wrote {text:?}", self.name),
                (None, None) => Ok(None),
            }
        };
        wait::until(&what, limit, find)
            .await
            .with_context(|| self.tail_for_errors())
    }

    /// Waits until a GET of `http://<address><path>` returns 200.
    ///
    /// # Errors
    /// When the process exits first or `limit` passes. The error has the end of the log.
    pub async fn wait_for_http(&self, address: &str, path: &str, limit: Duration) -> Result<()> {
        let what = format!("{} returns 200 at http://{address}{path}", self.name);
        let probe = async || {
            if let Some(status) = self.try_wait()? {
                bail!(
                    "{} exited ({status}) before it served http://{address}{path}",
                    self.name
                );
            }
            Ok((wait::http_status(address, path).await.ok() == Some(200)).then_some(()))
        };
        wait::until(&what, limit, probe)
            .await
            .with_context(|| self.tail_for_errors())
    }

    /// Sends SIGTERM, waits up to `limit`, then sends SIGKILL. Returns the exit status.
    ///
    /// # Errors
    /// When the process cannot be signalled or waited for.
    pub async fn terminate(&self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        match self.wait(limit).await {
            Ok(status) => Ok(status),
            Err(_) => self.kill().await,
        }
    }

    /// Sends SIGKILL to the process and its descendants, and waits until it exits.
    ///
    /// # Errors
    /// When the process cannot be signalled or waited for.
    pub async fn kill(&self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.state().guard = None;
        self.wait(Duration::from_secs(30)).await
    }

    /// Sends SIGTERM and returns at once.
    ///
    /// # Errors
    /// When the process cannot be signalled.
    pub fn request_stop(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Pauses the process with SIGSTOP: its connections stay open and get no response.
    ///
    /// # Errors
    /// When the process cannot be signalled.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Resumes the process after [`Process::pause`].
    ///
    /// # Errors
    /// When the process cannot be signalled.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        // Under the lock, so that no other thread reaps the child and frees its id between the check and the signal.
        let mut state = self.state();
        if state.status.is_none() {
            state.status = state
                .child
                .try_wait()
                .with_context(|| format!("cannot wait for {}", self.name))?;
        }
        match state.status {
            Some(_) => Ok(()),
            None => kill_process(self.pid, signal).with_context(|| format!("cannot signal {}", self.name)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tail_for_errors(&self) -> String {
        format!("the log of {} ends with:\n{}\n", self.name, self.log_tail())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.guard = None;
        if state.status.is_none() {
            let _ = state.child.kill();
            // Reaps the child, so that its files and ports are free afterwards. The limit keeps a process in an uninterruptible wait
            // from hanging a test.
            let started = Instant::now();
            while matches!(state.child.try_wait(), Ok(None)) && started.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(POLL);
            }
        }
    }
}

fn guarded(command: &Command) -> Command {
    let mut guarded = Command::new("/bin/sh");
    guarded
        .arg("-c")
        .arg(GUARDED_EXEC)
        .arg("sh")
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => guarded.env(key, value),
            None => guarded.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        guarded.current_dir(dir);
    }
    guarded.stdin(Stdio::piped()).process_group(0);
    guarded
}
