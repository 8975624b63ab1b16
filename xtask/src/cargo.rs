//! Runs cargo. Its progress is shown in one line, and it stops when this process exits.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use idtoken_testenv::{Process, RunDir};
use serde_json::Value;

use crate::progress::{Output, Step};

const INTERVAL: Duration = Duration::from_millis(100);

/// The programs of the workspace.
pub(crate) struct Programs {
    /// `idtoken-operator`.
    pub(crate) operator: PathBuf,
    /// `idtoken-emulator`.
    pub(crate) emulator: PathBuf,
    /// The folder of `kubectl-idtoken`, for `PATH`.
    pub(crate) plugins: PathBuf,
}

/// Builds the programs of the workspace.
///
/// # Errors
/// When cargo fails: with its output.
pub(crate) async fn build_programs(output: &Output) -> Result<Programs> {
    let step = output.begin("cargo build");
    let mut cargo = cargo();
    let packages = ["idtoken-operator", "idtoken-emulator", "kubectl-idtoken"];
    cargo.args(["build", "--bins", "--message-format=json-render-diagnostics"]);
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    let log = run(cargo, &step, |_| ()).await?;
    let program = |name: &str| {
        log.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["target"]["name"] == name)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .with_context(|| format!("cargo build made no {name}"))
    };
    let plugin = program("kubectl-idtoken")?;
    let programs = Programs {
        operator: program("idtoken-operator")?,
        emulator: program("idtoken-emulator")?,
        plugins: plugin.parent().unwrap_or(Path::new(".")).to_owned(),
    };
    step.done("idtoken-operator, idtoken-emulator and kubectl-idtoken are built");
    Ok(programs)
}

/// The cargo that started this program, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::workspace());
    cargo
}

/// `PATH` with `folder` first.
///
/// # Errors
/// A folder's name that `PATH` cannot hold.
pub(crate) fn path_with(folder: &Path) -> Result<OsString> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&paths));
    Ok(std::env::join_paths(paths)?)
}

/// Runs `command` and returns its output. The last line is shown as the progress of `step`; `each` gets every line as soon as it is
/// complete.
///
/// # Errors
/// When the command fails: with the end of its output.
pub(crate) async fn run(command: Command, step: &Step<'_>, mut each: impl FnMut(&str)) -> Result<String> {
    let shown = shown(&command);
    let dir = RunDir::create("xtask")?;
    let process = Process::spawn("cargo", &command, dir.path())?;
    let mut seen = 0;
    loop {
        // Before the log is read, so that the last lines of an exited process are not missed.
        let ended = process.try_wait()?;
        let log = process.log();
        let whole = log.rfind('\n').map_or(0, |end| end + 1);
        let until = if ended.is_some() { log.len() } else { whole };
        if until > seen {
            log[seen..until].lines().for_each(&mut each);
            seen = until;
        }
        let last = log[..until]
            .lines()
            .rfind(|line| !line.starts_with('{') && !line.is_empty());
        let last = last.map_or_else(|| shown.clone(), |line| line.trim().chars().take(80).collect());
        step.progress(&last);
        match ended {
            None => tokio::time::sleep(INTERVAL).await,
            Some(status) if status.success() => return Ok(log),
            Some(status) => {
                let said: Vec<_> = log.lines().filter(|line| !line.starts_with('{')).collect();
                let tail = said[said.len().saturating_sub(60)..].join("\n");
                bail!("`{shown}` failed ({status}):\n{tail}");
            }
        }
    }
}

fn shown(command: &Command) -> String {
    let args = command.get_args().map(|arg| arg.to_string_lossy());
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    args.fold(program.to_string_lossy().into_owned(), |line, arg| {
        format!("{line} {arg}")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The crates and their features that cargo compiles for `selection`.
    fn compiled(selection: &[&str]) -> BTreeSet<String> {
        let mut cargo = cargo();
        cargo.args([
            "tree",
            "--locked",
            "--offline",
            "--prefix=none",
            "--format={p} {f}",
        ]);
        let output = cargo.args(selection).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| line.trim_end_matches(" (*)").to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    }

    /// A feature that one package alone asks for would have most of the workspace compiled twice: for `cargo xtask`, and for the tests.
    #[test]
    fn every_crate_is_compiled_once() {
        let workspace = compiled(&["--workspace", "--edges=normal,build,dev"]);
        for packages in [
            &["--package=xtask"][..],
            &[
                "--package=idtoken-operator",
                "--package=idtoken-emulator",
                "--package=kubectl-idtoken",
            ],
        ] {
            let part = compiled(&[&["--edges=normal,build"], packages].concat());
            assert!(part.len() > 100, "{part:?}");
            let other: Vec<_> = part.difference(&workspace).collect();
            assert!(other.is_empty(), "{packages:?} has other features: {other:?}");
        }
    }
}
