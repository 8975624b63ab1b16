//! What the builders of programs share: content hashes, a lock for one builder at a time, and commands with progress.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::digest::sha256;
use crate::progress::{Progress, Step};
use crate::{Process, RunDir};

const POLL: Duration = Duration::from_millis(200);

/// 16 hexadecimal digits of the SHA-256 of `parts`, each with its length.
pub(crate) fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut content = Vec::new();
    for part in parts {
        content.extend((part.len() as u64).to_be_bytes());
        content.extend(part.as_bytes());
    }
    let mut digest = sha256(&content);
    digest.truncate(16);
    digest
}

/// Waits until no other process builds or downloads `name`. Dropping the file releases the lock.
pub(crate) fn lock(path: &Path, name: &str, progress: Progress) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut step = Step::new(progress);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                step.update(&format!("waiting for another process, which gets {name}"))
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        std::thread::sleep(POLL);
    }
}

/// Runs a command. Returns its exit status and the last lines of its output. The command never outlives this process, because two
/// builds must not write one file.
pub(crate) fn run(command: &Command, what: &str, step: &mut Step) -> Result<(ExitStatus, String)> {
    step.update(what);
    let scratch = RunDir::create("build")?;
    let process = Process::spawn("build", command, scratch.path())?;
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok((status, process.log_tail()));
        }
        step.update(what);
        std::thread::sleep(POLL);
    }
}
