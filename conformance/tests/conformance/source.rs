//! Reads source code of this repository, for what it names: nobody can add something there and forget it here.

use std::path::{Path, PathBuf};

use regex::Regex;

/// A file of the repository without its tests, which stand last.
pub(crate) fn code(path: &str) -> String {
    code_of(&root().join(path))
}

/// All Rust files below a folder, without tests: path and code.
pub(crate) fn all_code(folder: &str) -> Vec<(String, String)> {
    let (root, mut found, mut folders) = (root(), Vec::new(), vec![root().join(folder)]);
    while let Some(dir) = folders.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
                let shown = path.strip_prefix(&root).unwrap().to_str().unwrap();
                found.push((shown.to_owned(), code_of(&path)));
            }
        }
    }
    found.sort();
    found
}

/// What the first group of a pattern matches.
pub(crate) fn found(pattern: &str, code: &str) -> Vec<String> {
    let pattern = Regex::new(pattern).unwrap();
    let groups = pattern.captures_iter(code);
    groups.map(|groups| groups[1].to_owned()).collect()
}

/// The variants of an enum, as serde writes them in camel case.
pub(crate) fn variants(code: &str, name: &str) -> Vec<String> {
    let (_, rest) = code.split_once(&format!("pub enum {name} {{")).unwrap();
    let (body, _) = rest.split_once("\n}").unwrap();
    let names = found(r"(?m)^    ([A-Z][A-Za-z0-9]*)(?:,| \{|\()", body);
    assert!(!names.is_empty(), "{name} has no variants");
    let camel = |name: &String| name[..1].to_lowercase() + &name[1..];
    names.iter().map(camel).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn code_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned()
}

#[test]
fn variants_and_words_are_found() {
    let code = "pub enum Kind {\n    /// A.\n    First,\n    SecondOne {\n        /// B.\n        field: u32,\n    },\n    Third(u32),\n}\n";
    assert_eq!(variants(code, "Kind"), ["first", "secondOne", "third"]);
    assert_eq!(
        found(r#"says\("([^"]+)"\)"#, r#"says("a b") || says("c")"#),
        ["a b", "c"]
    );
}
