//! Folders below the target directory.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// The workspace's target directory: `CARGO_TARGET_DIR`, relative to the workspace's root, or else `target` there.
pub fn target_dir() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = crate_dir.parent().unwrap_or(crate_dir);
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => workspace.join(dir),
        _ => workspace.join("target"),
    }
}

/// The folder for all files of this crate.
pub(crate) fn testenv_dir() -> PathBuf {
    target_dir().join("testenv")
}

fn keep() -> bool {
    std::env::var_os("IDTOKEN_TESTENV_KEEP").is_some_and(|value| value == "1")
}

/// A folder `target/testenv/run/<name>-…` of one run, readable by its owner only and removed when this is dropped.
///
/// `IDTOKEN_TESTENV_KEEP=1` keeps it and prints its path to stderr. The next run removes the folders of killed runs.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    // Held while the folder is in use. The kernel releases it even if the process is killed.
    _lock: File,
}

impl RunDir {
    /// Creates an empty folder.
    ///
    /// # Errors
    /// When it cannot be created or locked.
    pub fn create(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = testenv_dir().join("run");
        std::fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
        // Creating a folder and locking it are two steps. No sweep may run between them.
        let sweep_lock =
            File::create(parent.join(".lock")).context("cannot create the lock of the run folders")?;
        sweep_lock.lock().context("cannot lock the run folders")?;
        sweep(&parent);
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.subsec_nanos());
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{name}-{}-{count}-{nanos:08x}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let lock =
            File::create(path.join("lock")).with_context(|| format!("cannot write to {}", path.display()))?;
        lock.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        if keep() {
            File::create(path.join("keep")).with_context(|| format!("cannot write to {}", path.display()))?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if keep() {
            // Not eprintln!: libtest would show it for failed tests only.
            let _ = writeln!(std::io::stderr(), "testenv: kept {}", self.path.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes the folders of killed runs.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if !path.is_dir() || path.join("keep").exists() {
            continue;
        }
        let in_use = match File::open(path.join("lock")) {
            Ok(lock) => !matches!(lock.try_lock(), Ok(()) | Err(TryLockError::Error(_))),
            Err(_) => false,
        };
        if !in_use {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}
