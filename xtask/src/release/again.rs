//! A release that is made once more, elsewhere and later: what it consists of has to be the same bytes.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use idtoken_testenv::{Process, RunDir, target_dir};

use super::{VERSION, sign};
use crate::progress::Output;

/// Makes the release of the same commit in a clone, with another target folder, file times, time zone, language and umask, and compares
/// its checksums with those of target/dist.
///
/// # Errors
/// When it cannot be made, or a file differs: with its name.
pub(super) async fn run(output: &Output) -> Result<()> {
    let first = checksums(&target_dir())?;
    let dir = RunDir::create("again")?;
    let (sources, target) = (dir.path().join("sources/elsewhere"), dir.path().join("built"));
    let clone = Command::new("git")
        .args(["clone", "--quiet", "--no-hardlinks"])
        .arg(crate::workspace())
        .arg(&sources)
        .output()?;
    ensure!(
        clone.status.success(),
        "git cannot clone: {}",
        String::from_utf8_lossy(&clone.stderr)
    );
    // The programs of others that check the release.
    std::fs::create_dir(&target)?;
    symlink(target_dir().join("testenv"), target.join("testenv"))?;

    let script = r#"umask 077; find . -path ./.git -prune -o -exec touch -h -d @1000000000 {} +; exec "$@""#;
    let mut again = Command::new("sh");
    again
        .args(["-c", script, "sh"])
        .arg(std::env::current_exe()?)
        .args(["release", "--snapshot"])
        .current_dir(&sources)
        .env(crate::WORKSPACE, &sources)
        .env("CARGO_TARGET_DIR", &target)
        .env("TZ", "Pacific/Apia")
        .env("LC_ALL", "C");
    let step = output.begin("the release once more");
    let process = Process::spawn("release", &again, dir.path())?;
    loop {
        match process.try_wait()? {
            Some(status) if status.success() => break,
            Some(status) => bail!("it cannot be made once more ({status}):\n{}", process.log_tail()),
            None => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
        }
    }
    let differ = differences(&first, &checksums(&target)?);
    if !differ.is_empty() {
        bail!(
            "made once more of the commit, these are other bytes (changes that are not committed are in none): {}",
            differ.join(", ")
        );
    }
    step.done(&format!(
        "{} files are the same bytes, made in another folder at another time",
        first.len()
    ));
    output.quote(&std::fs::read_to_string(
        target.join("dist").join(VERSION).join(sign::SUMS),
    )?);
    Ok(())
}

/// Names and checksums of the release below a target folder.
fn checksums(target: &Path) -> Result<BTreeMap<String, String>> {
    let file = target.join("dist").join(VERSION).join(sign::SUMS);
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}: run `cargo xtask release` first", file.display()))?;
    let line = |line: &str| {
        let (sum, name) = line.split_once("  ").context("no checksum")?;
        Ok((name.to_owned(), sum.to_owned()))
    };
    text.lines().map(line).collect()
}

/// Names that only one has, or that have another checksum there.
fn differences(first: &BTreeMap<String, String>, second: &BTreeMap<String, String>) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = first.keys().chain(second.keys()).collect();
    let differ = |name: &&&String| first.get(**name) != second.get(**name);
    names.iter().filter(differ).map(|name| (**name).clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let release = |files: &[(&str, &str)]| {
            let dir = RunDir::create("again-test").expect("a folder");
            let dist = dir.path().join("dist").join(VERSION);
            std::fs::create_dir_all(&dist).expect("a folder");
            for (name, text) in files {
                std::fs::write(dist.join(name), text).expect("a file");
            }
            sign::checksums(&dist).expect("checksums");
            checksums(dir.path()).expect("checksums")
        };
        let first = release(&[("chart", "a"), ("image", "b"), ("plugin", "c")]);
        assert_eq!(differences(&first, &first), [""; 0]);
        let second = release(&[("chart", "a"), ("image", "B"), ("notes", "")]);
        assert_eq!(differences(&first, &second), ["image", "notes", "plugin"]);
    }
}
