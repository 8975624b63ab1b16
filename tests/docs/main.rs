//! The pages say what is: their links lead somewhere, and the flags, values, metrics, objects and tests that they name exist.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod forms;
mod links;
mod names;
mod objects;
mod shell;
mod workflows;

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All pages in Markdown, but for what is built or hidden.
fn pages(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            found.extend(pages(&path));
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The page without its fenced blocks.
fn prose(page: &str) -> String {
    let mut fenced = false;
    let mut lines = Vec::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push(line);
        }
    }
    lines.join("\n")
}

/// The fenced blocks of a page, each with its language.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut fenced = false;
    for line in page.lines() {
        match line.trim_start().strip_prefix("```") {
            Some(language) if !fenced => {
                fenced = true;
                found.push((language.to_owned(), String::new()));
            }
            Some(_) => fenced = false,
            None if fenced => {
                let (_, text) = found.last_mut().unwrap();
                text.push_str(line);
                text.push('\n');
            }
            None => {}
        }
    }
    found
}

/// What stands between single backticks.
fn spans(page: &str) -> Vec<String> {
    let span = regex::Regex::new("`([^`\n]+)`").unwrap();
    let text = prose(page);
    span.captures_iter(&text)
        .map(|found| found[1].to_owned())
        .collect()
}

/// Pages with their text; the name is below the root.
fn texts() -> Vec<(String, String)> {
    let read = |page: PathBuf| {
        let name = page.strip_prefix(root()).unwrap().display().to_string();
        (name, std::fs::read_to_string(&page).unwrap())
    };
    pages(root()).into_iter().map(read).collect()
}

#[test]
fn blocks_and_spans_are_told_apart() {
    let page = "a `b` c\n```sh\nd `e`\n```\n`f`\n```yaml\ng\n```\n";
    assert_eq!(spans(page), ["b", "f"]);
    let block = |language: &str, text: &str| (language.to_owned(), text.to_owned());
    assert_eq!(blocks(page), [block("sh", "d `e`\n"), block("yaml", "g\n")]);
}
