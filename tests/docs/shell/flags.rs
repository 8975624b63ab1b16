//! Which long flags a program has: by `flags.txt`, or by what the program itself says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use anyhow::{Context, Result, ensure};
use regex::Regex;

use super::run::{Call, tools};

/// Programs that every machine has, and shell functions of a page: not looked at.
const OF_THE_MACHINE: [&str; 14] = [
    "base64",
    "cat",
    "claims",
    "curl",
    "cut",
    "grep",
    "idtoken-emulator",
    "jq",
    "mkdir",
    "sed",
    "seq",
    "sleep",
    "tr",
    "xargs",
];

static LISTED: LazyLock<BTreeMap<String, BTreeSet<String>>> = LazyLock::new(|| {
    let lines = include_str!("flags.txt").lines();
    let listed = lines.filter_map(|line| line.split_once(':').filter(|_| !line.starts_with('#')));
    let flags = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    listed
        .map(|(command, text)| (command.to_owned(), flags(text)))
        .collect()
});

/// The call's long flags.
fn used(call: &Call) -> impl Iterator<Item = &str> {
    let words = call.words.iter().skip(1).take_while(|word| *word != "--");
    words.filter_map(|word| Some(word.strip_prefix("--")?.split('=').next().unwrap_or_default()))
}

/// What is wrong with a call: its command or one of its flags is not known.
pub(super) fn unknown(call: &Call) -> Result<Option<String>> {
    let program = call.words[0].as_str();
    if OF_THE_MACHINE.contains(&program) || program.is_empty() {
        return Ok(None);
    }
    // The tasks' own tests read what the pages say of them: xtask/src/docs/commands.rs.
    if program == "cargo" && call.words.get(1).is_some_and(|task| task == "xtask") {
        return Ok(None);
    }
    let Some((command, known)) = known(call)? else {
        let said: Vec<_> = call.words.iter().take(3).map(String::as_str).collect();
        return Ok(Some(format!(
            "{}: {}: no such command is known",
            call.block,
            said.join(" ")
        )));
    };
    let mut wrong = used(call).filter(|flag| !known.contains(*flag));
    Ok(wrong
        .next()
        .map(|flag| format!("{}: {command} has no flag --{flag}", call.block)))
}

/// The call's command and its flags; none where it is not known.
fn known(call: &Call) -> Result<Option<(String, BTreeSet<String>)>> {
    let program = call.words[0].as_str();
    if matches!(program, "kubectl" | "helm") && !LISTED.contains_key(&longest(call, 3)) {
        return asked(call).map(Some);
    }
    let prefix = format!("{program} ");
    let has_commands = LISTED.keys().any(|command| command.starts_with(&prefix));
    for count in (1..=call.words.len().min(7)).rev() {
        let command = longest(call, count);
        if let Some(flags) = LISTED.get(&command).filter(|_| count > 1 || !has_commands) {
            let mut flags = flags.clone();
            flags.extend(LISTED.get(program).cloned().unwrap_or_default());
            return Ok(Some((command, flags)));
        }
    }
    Ok(None)
}

fn longest(call: &Call, count: usize) -> String {
    let words: Vec<_> = call.words.iter().take(count).map(String::as_str).collect();
    words.join(" ")
}

/// The flags that kubectl, its plugin or Helm have, as their help says.
fn asked(call: &Call) -> Result<(String, BTreeSet<String>)> {
    static ANSWERS: Mutex<BTreeMap<String, BTreeSet<String>>> = Mutex::new(BTreeMap::new());
    let plain: Vec<&str> = call
        .words
        .iter()
        .map(String::as_str)
        .take_while(|word| !word.starts_with('-'))
        .collect();
    let is_group = |words: &[&str]| {
        matches!(
            words,
            [
                "kubectl",
                "idtoken" | "create" | "rollout" | "auth" | "config",
                ..
            ]
        )
    };
    let depth = match plain[..] {
        ["kubectl", "create", "secret", ..] => 4,
        _ if is_group(&plain) => 3,
        _ => 2,
    };
    let command = &plain[..plain.len().min(depth)];
    let name = command.join(" ");
    if let Some(flags) = ANSWERS.lock().unwrap().get(&name) {
        return Ok((name, flags.clone()));
    }
    let tools = tools()?;
    let find = |program: &str| -> PathBuf { tools.join(program) };
    let (program, arguments) = match command {
        ["kubectl", "idtoken", rest @ ..] => (find("kubectl-idtoken"), rest),
        [program, rest @ ..] => (find(program), rest),
        [] => (PathBuf::new(), &command[..0]),
    };
    let help = Command::new(&program).args(arguments).arg("--help").output();
    let help = help.with_context(|| format!("cannot run {}", program.display()))?;
    let mut text = String::from_utf8_lossy(&help.stdout).into_owned();
    if name.starts_with("kubectl") && !name.starts_with("kubectl idtoken") {
        let options = Command::new(&program).arg("options").output()?;
        text.push_str(&String::from_utf8_lossy(&options.stdout));
    }
    let flag = Regex::new("--([a-z][a-z0-9-]+)").unwrap();
    let flags: BTreeSet<_> = flag
        .captures_iter(&text)
        .map(|found| found[1].to_owned())
        .collect();
    ensure!(
        help.status.success() && !flags.is_empty(),
        "{name} --help says nothing; is the program older than the page? cargo build --workspace"
    );
    ANSWERS.lock().unwrap().insert(name.clone(), flags.clone());
    Ok((name, flags))
}
