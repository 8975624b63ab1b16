//! Programs from packages of Debian and Ubuntu.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::builder::run;
use crate::progress::{Progress, Step};
use crate::skip::{is_all_required, or_skip};

/// A program and its package.
pub type Package = (&'static str, &'static str);

/// Counts instructions: <https://valgrind.org/docs/manual/cl-manual.html>.
pub const VALGRIND: [Package; 1] = [("valgrind", "valgrind")];

/// The packages of a node. runc is among them because a plain Go build of it lacks seccomp.
pub const NODE: [Package; 8] = [
    ("busybox", "busybox-static"),
    ("conntrack", "conntrack"),
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("mount", "mount"),
    ("runc", "runc"),
    ("unshare", "util-linux"),
];

/// The packages of `programs` that are not in `PATH`, `/usr/sbin` or `/sbin`.
fn missing(programs: &[Package]) -> Vec<&'static str> {
    let absent = programs.iter().filter(|(program, _)| find(program).is_none());
    absent.map(|(_, package)| *package).collect()
}

/// The path of a program.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The path of a program that a test needs. Where it is missing, it is installed if the project's checks need it
/// (`IDTOKEN_REQUIRE_REFEREES=1`); otherwise a line says that the test is skipped.
///
/// # Errors
/// When it is needed and cannot be installed.
pub fn find_or_skip(package: Package, progress: Progress) -> Result<Option<PathBuf>> {
    if is_all_required() {
        install(&[package], progress)?;
    }
    or_skip(package.0, find(package.0).context("it is not installed"))
}

/// Installs the missing ones of `programs` with apt-get. Blocks. Needs root.
///
/// # Errors
/// When there is no apt-get, or it fails. The error has its output.
pub fn install(programs: &[Package], progress: Progress) -> Result<()> {
    let packages = missing(programs);
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    if find("apt-get").is_none() {
        bail!("these programs' packages are missing, and there is no apt-get to install them: {names}");
    }
    let mut step = Step::new(progress);
    let what = format!("installing {names}");
    // The package lists of a new machine are often empty or old.
    if !apt_get(&packages, &what, &mut step)?.0 {
        apt_get(&["update"], "reading the package lists", &mut step)?;
        let (installed, output) = apt_get(&packages, &what, &mut step)?;
        if !installed {
            bail!("apt-get cannot install {names}:\n{output}");
        }
    }
    step.finish(&format!("installed {names}"));
    match missing(programs) {
        missing if missing.is_empty() => Ok(()),
        missing => bail!("apt-get installed no program of {}", missing.join(" ")),
    }
}

/// Runs `apt-get update`, or installs packages. Returns whether it succeeded, and its output.
fn apt_get(arguments: &[&str], what: &str, step: &mut Step) -> Result<(bool, String)> {
    let mut command = Command::new("apt-get");
    command
        .current_dir(Path::new("/"))
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=300"]);
    if arguments != ["update"] {
        command.args(["install", "--yes", "--no-install-recommends"]);
    }
    command.args(arguments);
    let (status, output) = run(&command, what, step)?;
    Ok((status.success(), output))
}
