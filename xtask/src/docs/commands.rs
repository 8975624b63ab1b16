//! What the pages say of the project's tasks: each `cargo xtask …` of a page is one that this program takes.

use std::path::{Path, PathBuf};

use clap::Parser;

use crate::Cli;

fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(pages(&path));
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
    found
}

/// The arguments after `cargo xtask` in a text, until what ends a command.
fn commands(text: &str) -> Vec<Vec<String>> {
    let rest = text.split("cargo xtask ").skip(1);
    let command = rest.map(|rest| {
        rest.split(['\n', '`', '#', '&', '|', ';'])
            .next()
            .unwrap_or_default()
    });
    let words = |command: &str| command.split_whitespace().map(str::to_owned).collect();
    command.map(words).collect()
}

/// Why this program does not take these arguments.
fn refused(arguments: &[String]) -> Option<String> {
    let program = ["cargo xtask".to_owned()];
    let error = Cli::try_parse_from(program.iter().chain(arguments)).err()?;
    error.use_stderr().then(|| error.to_string())
}

#[test]
fn every_task_that_a_page_names_exists() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for page in pages(&crate::workspace()) {
        let text = std::fs::read_to_string(&page).unwrap();
        for arguments in commands(&text) {
            count += 1;
            let said = refused(&arguments)
                .map(|said| format!("{}: {}\n{said}", page.display(), arguments.join(" ")));
            wrong.extend(said);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 40, "only {count} tasks were found");
}

#[test]
fn a_task_that_does_not_exist_is_found() {
    let arguments = commands(
        "Run `cargo xtask dcs --check`, or\ncargo xtask test NAME   # one\n cargo xtask image && cargo xtask e2e --keeep",
    );
    let refused: Vec<_> = arguments
        .iter()
        .map(|arguments| refused(arguments).is_some())
        .collect();
    assert_eq!(refused, [true, false, false, true]);
}
