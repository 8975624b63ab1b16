//! `cargo xtask instructions`: counts the instructions of a reconcile's decisions with callgrind, and compares with the committed counts.
//!
//! A library such as gungraun does not fit: it measures a profile with debug information, for which every crate is compiled again,
//! needs a runner of the same version, and keeps its baseline in the target folder. This task counts the program as it is released, built
//! from the crates that `cargo xtask image` compiles, and its baseline is a reviewed file.

mod baseline;
mod markdown;
mod profile;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use baseline::{ArchCounts, Baseline, Counts};
use clap::Args;
use idtoken_testenv::node::packages;
use idtoken_testenv::{Progress, oci};
use profile::Profile;

use crate::crds::shown;
use crate::image;
use crate::progress::Output;

const PACKAGE: &str = "idtoken-instructions";
/// The function of that program whose calls are counted.
const COUNTED: &str = "counted_part";
const BASELINE: &str = "bench/instructions/baseline.json";
const PAGE: &str = "docs/performance.md";

/// The command's arguments.
#[derive(Clone, Debug, Args)]
pub(crate) struct InstructionsArgs {
    /// Write the new counts to the baseline and to docs/performance.md.
    #[arg(long)]
    bless: bool,
    /// Print the tables as Markdown.
    #[arg(long)]
    markdown: bool,
}

/// The result of one case.
struct Counted {
    name: String,
    what: String,
    profile: Profile,
    /// Callgrind's output file.
    file: PathBuf,
}

/// Counts, and compares or writes the baseline.
///
/// # Errors
/// When something cannot be built or counted, or a case exceeds its limit.
pub(crate) async fn run(output: &Output, args: &InstructionsArgs) -> Result<()> {
    let step = output.begin("valgrind");
    let installed =
        tokio::task::spawn_blocking(|| packages::install(&packages::VALGRIND, Progress::Stderr)).await?;
    if let Err(error) = installed {
        let why = format!("instructions cannot be counted on this machine: {error:#}");
        crate::unavailable(output, &why);
    }
    let valgrind = packages::find("valgrind").context("there is no valgrind")?;
    step.done("valgrind is installed");
    let arch = oci::Arch::of_this_machine()?;
    // Callgrind needs the symbols to find the function.
    let flags = ["-Cstrip=none"];
    let program = image::build_static(output, PACKAGE, arch, image::RELEASE, &flags).await?;

    let step = output.begin("callgrind");
    let mut all = Vec::new();
    for (name, what) in cases(&program.path)? {
        step.progress(&name);
        let (valgrind, program) = (valgrind.clone(), program.path.clone());
        all.push(tokio::task::spawn_blocking(move || count(&valgrind, &program, name, what)).await??);
    }
    step.done(&format!("{} cases are counted", all.len()));

    let counts: Counts = all
        .iter()
        .map(|case| (case.name.clone(), case.profile.counted))
        .collect();
    let path = crate::workspace().join(BASELINE);
    let mut baseline = Baseline::read(&path)?;
    let now = ArchCounts {
        counted_with: tools(&valgrind)?,
        cases: counts,
    };
    let arch = std::env::consts::ARCH;
    let before = baseline.0.get(arch).cloned();
    let tables = markdown::tables(arch, &now.counted_with, &all);
    if args.markdown {
        output.line(&tables);
    } else {
        table(output, &all, before.as_ref().map(|before| &before.cases));
    }
    if args.bless {
        baseline.0.insert(arch.to_owned(), now);
        baseline.write(&path)?;
        markdown::write(&crate::workspace().join(PAGE), &tables)?;
        output.line(&format!("\n{BASELINE} and {PAGE} are written"));
        return Ok(());
    }
    let Some(before) = before else {
        output.warn(&format!(
            "{BASELINE} has no counts for {arch}: nothing is compared; --bless writes them"
        ));
        return Ok(());
    };
    if before.counted_with != now.counted_with {
        output.warn(&format!(
            "the committed counts are of {}; this is {}",
            before.counted_with.join(", "),
            now.counted_with.join(", ")
        ));
    }
    let comparison = baseline::compare(&before.cases, &now.cases);
    if !comparison.less.is_empty() {
        output.line(&format!(
            "\nfewer than before by more than {}: `cargo xtask instructions --bless` keeps it so: {}",
            baseline::limit(),
            comparison.less.join(", ")
        ));
    }
    if comparison.faults.is_empty() {
        return Ok(());
    }
    let files = all
        .iter()
        .filter(|case| comparison.more.contains(&case.name))
        .map(|case| format!("\n  callgrind_annotate --inclusive=yes {}", shown(&case.file)));
    bail!(
        "{}\n  where it goes:{}\n  where it is wanted: cargo xtask instructions --bless, and commit {BASELINE} with the reason",
        comparison.faults.join("\n  "),
        files.collect::<String>()
    );
}

/// The name of each case and what it does.
fn cases(program: &Path) -> Result<Vec<(String, String)>> {
    let listed = capture(&mut Command::new(program))?;
    let cases: Vec<_> = listed
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, what)| (name.to_owned(), what.to_owned()))
        .collect();
    if cases.is_empty() {
        bail!("{PACKAGE} lists no cases");
    }
    Ok(cases)
}

/// Runs one case in callgrind.
fn count(valgrind: &Path, program: &Path, name: String, what: String) -> Result<Counted> {
    let folder = idtoken_testenv::target_dir().join("instructions");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{}.out", name.replace('/', "-")));
    let _ = std::fs::remove_file(&file);
    let mut command = Command::new(valgrind);
    command
        // The environment's size moves the stack, and thereby the alignment of copied memory.
        .env_clear()
        .args([
            "-q",
            "--tool=callgrind",
            "--compress-strings=no",
            "--compress-pos=no",
        ])
        .arg(format!("--toggle-collect=*{COUNTED}*"))
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(program)
        .arg(&name);
    capture(&mut command)?;
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("callgrind wrote no {}", shown(&file)))?;
    let profile = Profile::parse(&text, COUNTED).with_context(|| format!("{name}, {}", shown(&file)))?;
    Ok(Counted {
        name,
        what,
        profile,
        file,
    })
}

/// Runs a command and returns its standard output.
fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The versions on which the counts depend: compiler, C library, callgrind.
fn tools(valgrind: &Path) -> Result<Vec<String>> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    Ok(vec![
        capture(
            Command::new(rustc)
                .arg("--version")
                .current_dir(crate::workspace()),
        )?,
        capture(Command::new("getconf").arg("GNU_LIBC_VERSION"))?,
        capture(Command::new(valgrind).arg("--version"))?,
    ])
}

fn table(output: &Output, all: &[Counted], before: Option<&Counts>) {
    let width = all.iter().map(|case| case.name.len()).max().unwrap_or(0);
    output.line(&format!(
        "\n{:width$} {:>12} {:>12} {:>8}  {:>12}",
        "case", "instructions", "committed", "", "cryptography"
    ));
    for case in all {
        let counted = case.profile.counted;
        let (committed, change) = match before.and_then(|before| before.get(&case.name)) {
            Some(before) => (before.to_string(), baseline::change(*before, counted)),
            None => ("none".to_owned(), String::new()),
        };
        output.line(&format!(
            "{:width$} {counted:>12} {committed:>12} {change:>8}  {:>12}",
            case.name, case.profile.cryptography
        ));
    }
}
