//! The lines of source files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use syn::Item;
use syn::spanned::Spanned;

use super::syntax::is_test;

/// The most lines of a file, tests aside.
pub(super) const MAX_LINES: usize = 400;

/// Every Rust file below `workspace` with more than [`MAX_LINES`], with its lines; folders and files of tests are left out.
///
/// # Errors
/// A folder or file that cannot be read.
pub(super) fn long_files(workspace: &Path) -> Result<BTreeMap<String, usize>> {
    let mut long = BTreeMap::new();
    let mut folders = vec![workspace.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if entry.file_type()?.is_dir() {
                if !(name.starts_with('.') || name == "tests" || name == "target") {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") && !is_test_file(&name) {
                let lines = count(&path)?;
                if lines > MAX_LINES {
                    let relative = path.strip_prefix(workspace).unwrap_or(&path);
                    long.insert(relative.to_string_lossy().into_owned(), lines);
                }
            }
        }
    }
    Ok(long)
}

/// The lines of `file`, without those of tests where all of them would be too many.
fn count(file: &Path) -> Result<usize> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let lines = text.lines().count();
    if lines <= MAX_LINES {
        return Ok(lines);
    }
    let parsed = syn::parse_file(&text).with_context(|| format!("{} cannot be parsed", file.display()))?;
    Ok(without_tests(&text, &parsed))
}

/// The lines of a file, without those of items that exist only in tests.
pub(super) fn without_tests(text: &str, parsed: &syn::File) -> usize {
    let tests = parsed.items.iter().filter_map(|item| match item {
        Item::Mod(module) if is_test(&module.attrs) => Some(module.span()),
        Item::Fn(function) if is_test(&function.attrs) => Some(function.span()),
        _ => None,
    });
    let tests: usize = tests.map(|span| span.end().line + 1 - span.start().line).sum();
    text.lines().count().saturating_sub(tests)
}

fn is_test_file(name: &str) -> bool {
    name.ends_with("_tests.rs") || name == "tests.rs" || name == "fixtures.rs"
}
