//! `cargo xtask plan-rules`: whether the model test of the planner notices where one of its rules is removed.
//!
//! One build has all removals, and the environment says which one is in effect: cargo-mutants would build once for each, and has no
//! mutation that removes an `if`. The source is a copy, so that nothing of the working tree changes.

use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::cargo;
use crate::progress::Output;

const RULES: &str = "xtask/plan-rules.txt";
const FOLDER: &str = "src/controller/reconcile";
const FILE: &str = "plan.rs";
const TEST: &str = "controller::reconcile::plan::tests::model::promises_hold_whatever_happens";
/// So many that a removal which matters in rare cases is noticed for sure.
const CASES: &str = "8000";
const SWITCH: &str = r#"
macro_rules! rule {
    ($number:literal, $without:expr, $with:expr) => {
        if is_removed($number) { $without } else { $with }
    };
}

fn is_removed(rule: usize) -> bool {
    static REMOVED: std::sync::LazyLock<Option<usize>> =
        std::sync::LazyLock::new(|| std::env::var("REMOVED_RULE").ok()?.parse().ok());
    *REMOVED == Some(rule)
}

use "#;

/// A rule of the planner, and how it is removed.
struct Rule<'t> {
    name: &'t str,
    /// What occurs once in the planner: before the part that is replaced, that part, and after it.
    code: [&'t str; 3],
    without: &'t str,
}

/// Removes each rule alone, and runs the test.
///
/// # Errors
/// When the test does not fail without a rule, or fails with all of them.
pub(crate) async fn run(output: &Output) -> Result<()> {
    let workspace = crate::workspace();
    let text = std::fs::read_to_string(workspace.join(RULES)).with_context(|| format!("no {RULES}"))?;
    let rules = parse(&text)?;
    let path = workspace.join(FOLDER).join(FILE);
    let planner =
        std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let copy = workspace.join("target/plan-rules");
    link(&workspace, &copy, &switchable(&planner, &rules)?)?;

    let step = output.begin("cargo test --no-run");
    let mut cargo = cargo::cargo();
    cargo.args(["test", "--workspace", "--lib", "--locked", "--no-run"]);
    cargo.args(["--message-format=json-render-diagnostics", "--target-dir"]);
    // Where the crates of others are built already. What the copy's own packages become has other names there.
    cargo.arg(workspace.join("target")).current_dir(&copy);
    let log = cargo::run(cargo, &step, |_| ()).await?;
    let program = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "idtoken_operator")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo test made no tests of the operator")?;
    step.done("the planner is built with a switch for each rule");

    let step = output.begin(TEST);
    if let Some(broken) = broken_promise(&program, None).await? {
        bail!("{TEST} fails with all rules: {broken}");
    }
    let mut unnoticed = Vec::new();
    for (number, rule) in rules.iter().enumerate() {
        step.progress(rule.name);
        match broken_promise(&program, Some(number)).await? {
            Some(promise) => output.line(&format!("  {}: {promise}", rule.name)),
            None => unnoticed.push(rule.name),
        }
    }
    if !unnoticed.is_empty() {
        bail!("{TEST} passes without these rules:\n  {}", unnoticed.join("\n  "));
    }
    step.done(&format!(
        "the test fails without each of the {} rules",
        rules.len()
    ));
    Ok(())
}

fn parse(text: &str) -> Result<Vec<Rule<'_>>> {
    fn rule(line: &str) -> Option<Rule<'_>> {
        let [name, code, without] = line.split(" → ").collect::<Vec<_>>().try_into().ok()?;
        let code = match code.contains('⟨') {
            true => code.split(['⟨', '⟩']).collect::<Vec<_>>().try_into().ok()?,
            false => ["", code, ""],
        };
        Some(Rule { name, code, without })
    }
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| rule(line).with_context(|| format!("{RULES}: {line}")))
        .collect()
}

/// `planner` with a switch in place of the code of each rule.
fn switchable(planner: &str, rules: &[Rule<'_>]) -> Result<String> {
    let mut text = planner.replacen("\nuse ", SWITCH, 1);
    for (number, Rule { name, code, without }) in rules.iter().enumerate() {
        let [before, part, after] = code;
        let code = code.concat();
        let found = text.matches(&code).count();
        ensure!(
            found == 1,
            "{RULES}: {name}: `{code}` occurs {found} times in {FILE}"
        );
        text = text.replace(
            &code,
            &format!("{before}rule!({number}, {without}, {part}){after}"),
        );
    }
    Ok(text)
}

/// Makes `copy` a workspace whose files are those of `workspace`, by links, but for `planner`.
fn link(workspace: &Path, copy: &Path, planner: &str) -> Result<()> {
    let mut folder = PathBuf::new();
    for next in FOLDER.split('/').chain([FILE]) {
        std::fs::create_dir_all(copy.join(&folder))?;
        for entry in std::fs::read_dir(workspace.join(&folder))? {
            let name = entry?.file_name();
            if name == next || name == "target" || name == ".git" {
                continue;
            }
            match symlink(
                workspace.join(&folder).join(&name),
                copy.join(&folder).join(&name),
            ) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => made?,
            }
        }
        folder.push(next);
    }
    Ok(std::fs::write(copy.join(folder), planner)?)
}

/// What the test says is broken without the rule of that number, or with all rules; none if it passes.
async fn broken_promise(program: &Path, removed: Option<usize>) -> Result<Option<String>> {
    let mut test = Command::new(program);
    test.args(["--exact", TEST]).kill_on_drop(true);
    if let Some(number) = removed {
        test.env("REMOVED_RULE", number.to_string())
            .env("PROPTEST_CASES", CASES)
            .env("PROPTEST_MAX_SHRINK_ITERS", "0");
    }
    let tested = test.output().await.context("the test cannot be run")?;
    let said = String::from_utf8_lossy(&tested.stdout);
    if said.contains("test result: ok. 1 passed") {
        return Ok(None);
    }
    ensure!(
        said.contains("test result: FAILED. 0 passed; 1 failed"),
        "{TEST} did not run: {said}"
    );
    let line = said.lines().find(|line| line.starts_with("Test "));
    Ok(Some(line.unwrap_or("it panics").to_owned()))
}
