//! A Python environment with the packages that a requirements file pins.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::builder::{hash, lock, run};
use crate::paths;
use crate::progress::{Progress, Step};

/// The oldest version that the packages support.
const MIN_VERSION: (u32, u32) = (3, 10);
/// Written last, so that an interrupted build of the environment is repeated.
const READY_MARKER: &str = ".ready";

/// A virtual environment with exactly the packages of a requirements file, each checked by its hash.
#[derive(Clone, Copy, Debug)]
pub struct PythonEnvironment {
    /// A short name, for the folder and for messages.
    pub name: &'static str,
    /// The content of a requirements file, with a `--hash` for every file of every package.
    pub requirements: &'static str,
}

impl PythonEnvironment {
    /// Creates the environment unless it exists. Returns its interpreter,
    /// `target/testenv/python-<name>-<hash of all inputs>/bin/python`.
    ///
    /// Blocks. If several processes build the same environment, one builds it and the others wait.
    ///
    /// # Errors
    /// When Python is missing or too old, or a package is neither in pip's cache nor available from its index.
    pub fn build(&self, progress: Progress) -> Result<PathBuf> {
        let (version, base) = find_python()?;
        let parent = paths::testenv_dir();
        let dir = parent.join(format!(
            "python-{}-{}",
            self.name,
            hash([self.requirements, &version, &base])
        ));
        let python = dir.join("bin/python");
        if dir.join(READY_MARKER).is_file() {
            return Ok(python);
        }
        std::fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
        let _lock = lock(&dir.with_extension("lock"), self.name, progress)?;
        // Checked again: another process may have created it while this one waited.
        if dir.join(READY_MARKER).is_file() {
            return Ok(python);
        }

        let mut step = Step::new(progress);
        let mut create = Command::new("python3");
        create.args(["-m", "venv", "--clear"]).arg(&dir);
        let what = format!("creating the Python environment {}", self.name);
        let (status, output) = run(&create, &what, &mut step)?;
        if !status.success() {
            bail!(
                "python3 -m venv failed ({status}); Debian and Ubuntu have it in the package python3-venv:\n{output}"
            );
        }
        let requirements = dir.join("requirements.txt");
        std::fs::write(&requirements, self.requirements)
            .with_context(|| format!("cannot write {}", requirements.display()))?;
        let mut install = Command::new(&python);
        install.args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
        ]);
        install
            .args(["--require-hashes", "--no-deps", "--requirement"])
            .arg(&requirements);
        let (status, output) = run(
            &install,
            &format!("installing the packages of {}", self.name),
            &mut step,
        )?;
        if !status.success() {
            bail!(
                "pip cannot install the packages of {} ({status}); it needs its package index or a cache:\n{output}",
                self.name
            );
        }
        let ready = dir.join(READY_MARKER);
        std::fs::write(&ready, "").with_context(|| format!("cannot write {}", ready.display()))?;
        step.finish(&format!("created the Python environment {}", self.name));
        Ok(python)
    }
}

/// Version and folder of the Python in `PATH`.
fn find_python() -> Result<(String, String)> {
    let program = "import sys; print('%d.%d.%d' % sys.version_info[:3]); print(sys.base_prefix)";
    let output = Command::new("python3")
        .args(["-c", program])
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("there is no `python3` in PATH: install Python 3.10 or newer, with its venv module")
        }
        Err(error) => return Err(error).context("cannot run python3"),
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut lines = stdout.lines().map(str::to_owned);
    let (Some(version), Some(base)) = (lines.next(), lines.next()) else {
        bail!(
            "python3 does not work: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    };
    if parse_version(&version).is_none_or(|version| version < MIN_VERSION) {
        bail!("Python {version} is too old: install 3.10 or newer");
    }
    Ok((version, base))
}

fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_python_versions() {
        assert_eq!(parse_version("3.11.7"), Some((3, 11)));
        assert!(parse_version("3.9.2").is_some_and(|version| version < MIN_VERSION));
        assert_eq!(parse_version("nonsense"), None);
    }
}
