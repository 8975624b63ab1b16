//! `cargo xtask bench`: builds what is measured, and measures it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use idtoken_testenv::{GoModule, GoTool, Process, Progress, RunDir, target_dir};
use serde_json::Value;

use crate::progress::Output;
use crate::{cargo, image, programs};

/// A plain operator in Go, to compare with.
const REFERENCE: GoModule = GoModule {
    name: "bench-reference",
    go_mod: include_str!("../../bench/reference-go/go.mod"),
    go_sum: include_str!("../../bench/reference-go/go.sum"),
    files: &[("main.go", include_str!("../../bench/reference-go/main.go"))],
    ldflags: "-s -w",
    tags: "",
    optimized: true,
    tools: &[GoTool {
        name: "reference",
        package: ".",
    }],
};

/// Builds everything and hands `arguments` to idtoken-bench. With `against`, a commit, its operator is measured alternately with this one.
///
/// # Errors
/// When a build or a measurement fails, or a target is missed.
pub(crate) async fn run(output: &Output, against: Option<&str>, arguments: &[String]) -> Result<()> {
    output.heading("Building");
    let root = crate::workspace();
    let arch = idtoken_testenv::oci::Arch::of_this_machine()?;
    let ours = image::build_static(output, "idtoken-operator", arch, image::RELEASE, &[]).await?;
    let programs = release(output, &["idtoken-emulator", "idtoken-bench"]).await?;
    let other = match against {
        Some(revision) => Some(checked_out(output, revision).await?),
        None => None,
    };
    let step = output.begin("the reference");
    let reference =
        tokio::task::spawn_blocking(|| REFERENCE.build(&["reference"], Progress::default())).await??;
    step.done("the reference in Go is built");
    let assets = programs::control_plane(output).await?;

    output.heading("Measuring");
    let mut command = Command::new(found(&programs, "idtoken-bench")?);
    command
        .arg("--operator")
        .arg(&ours.path)
        .arg("--emulator")
        .arg(found(&programs, "idtoken-emulator")?)
        .arg("--reference")
        .arg(reference.join("reference"))
        .arg("--workspace")
        .arg(&root)
        .args(arguments)
        .env(
            "KUBEBUILDER_ASSETS",
            assets.etcd.parent().context("etcd is in no folder")?,
        );
    if let Some(other) = other {
        command.arg("--other").arg(other);
    }
    let dir = RunDir::create("bench")?;
    let bench = Process::spawn("idtoken-bench", &command, dir.path())?;
    let mut shown = 0;
    loop {
        let ended = bench.try_wait()?;
        let log = bench.log();
        let until = log.rfind('\n').map_or(0, |end| end + 1);
        log[shown..until.max(shown)]
            .lines()
            .for_each(|line| output.line(line));
        shown = until.max(shown);
        match ended {
            None => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("a target was missed or a measurement failed ({status}); see above"),
        }
    }
}

/// The operator of the commit `revision`, built once in its own folder.
///
/// # Errors
/// When there is no such commit, or its operator cannot be built.
pub(crate) async fn checked_out(output: &Output, revision: &str) -> Result<PathBuf> {
    let commit = git(&["rev-parse", "--verify", &format!("{revision}^{{commit}}")])?;
    let bench = target_dir().join("bench");
    let kept = bench.join(format!("operator-{commit}"));
    if kept.is_file() {
        output.line(&format!("the operator of {revision} is kept from before"));
        return Ok(kept);
    }
    let sources = bench.join(&commit);
    unpack(&commit, &[], &sources)?;
    // By its own command, with its own flags.
    let step = output.begin("cargo xtask image");
    let mut cargo = cargo::cargo();
    cargo
        .args(["run", "--locked", "--package", "xtask", "--", "image"])
        .current_dir(&sources)
        .env("CARGO_TARGET_DIR", bench.join("target"));
    cargo::run(cargo, &step, |_| ()).await?;
    step.done(&format!("the operator of {revision} is built as it is released"));
    let triple = image::triple(idtoken_testenv::oci::Arch::of_this_machine()?);
    let built = bench.join("target").join(triple).join("release/idtoken-operator");
    // Kept as a copy, since the next commit is built in the same folder. Renamed into place, so that an interrupted copy is not used.
    let copy = kept.with_extension("part");
    std::fs::copy(&built, &copy)
        .and_then(|_| std::fs::rename(&copy, &kept))
        .context("cannot keep the other operator")?;
    std::fs::remove_dir_all(&sources)?;
    Ok(kept)
}

/// Writes the `paths` of a commit, or all, to the folder `to`. A plain copy: git would list a work tree until it is pruned.
///
/// # Errors
/// When git or tar fails.
pub(crate) fn unpack(commit: &str, paths: &[&str], to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let archive = to.join("archive.tar");
    git(&[&["archive", "--output", text(&archive)?, commit], paths].concat())?;
    let mut tar = Command::new("tar");
    tar.args(["-xf", text(&archive)?, "-C", text(to)?]);
    let unpacked = tar.status().context("cannot run tar")?;
    ensure!(unpacked.success(), "tar cannot unpack {}", archive.display());
    std::fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the target folder's name is not UTF-8")
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(crate::workspace())
        .output()?;
    if !output.status.success() {
        bail!(
            "git {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Release builds of `packages`: name and path of each program.
async fn release(output: &Output, packages: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let step = output.begin("cargo build --release");
    let mut cargo = cargo::cargo();
    cargo.args([
        "build",
        "--release",
        "--locked",
        "--bins",
        "--message-format=json-render-diagnostics",
    ]);
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    let log = cargo::run(cargo, &step, |_| ()).await?;
    let built = log.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let path = message["executable"].as_str()?.into();
        Some((message["target"]["name"].as_str()?.to_owned(), path))
    });
    let built = built.collect();
    step.done(&format!("{} built for release", packages.join(", ")));
    Ok(built)
}

fn found<'b>(built: &'b [(String, PathBuf)], name: &str) -> Result<&'b Path> {
    let program = built.iter().find(|(built, _)| built == name);
    program
        .map(|(_, path)| path.as_path())
        .with_context(|| format!("cargo build made no {name}"))
}
