//! Collects the pages that the README and the index of the documentation lead to, and the files that they name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The pages from which all others are reached, in the order in which those of the site follow.
const FIRST: [&str; 2] = ["docs/README.md", "README.md"];

/// What mdBook reads.
pub(super) struct Book {
    /// Paths below `src`, with their content.
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(super) pages: usize,
}

/// The page, with each link outside of code as `link` gives it.
fn rewrite(page: &str, mut link: impl FnMut(&str) -> Result<String>) -> Result<String> {
    let mut text = String::new();
    // Code may go on in the next line, not in the next paragraph.
    let (mut fenced, mut code) = (false, false);
    for line in page.split_inclusive('\n') {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if fence || fenced {
            text.push_str(line);
            continue;
        }
        let mut rest = line;
        code &= !line.trim().is_empty();
        while let Some(at) = rest.find(['`', ']']) {
            let (before, after) = rest.split_at(at);
            text.push_str(before);
            let target = after
                .strip_prefix("](")
                .filter(|_| !code)
                .and_then(|after| after.split_once(')'))
                .filter(|(target, _)| !target.contains(['(', ' ']));
            if let Some((target, after)) = target {
                text.push_str(&format!("]({})", link(target)?));
                rest = after;
            } else {
                code ^= after.starts_with('`');
                text.push_str(&after[..1]);
                rest = &after[1..];
            }
        }
        text.push_str(rest);
    }
    Ok(text)
}

/// `a/b/../c` as `a/c`.
fn plain(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir => {}
            part => parts.push(part),
        }
    }
    parts
}

/// Where a file of the project is in the site: mdBook wants an index where GitHub wants a README, and leaves out hidden files.
fn placed(path: &Path) -> PathBuf {
    let mut placed = PathBuf::new();
    for part in path.components() {
        placed.push(part.as_os_str().to_string_lossy().trim_start_matches('.'));
    }
    if placed.ends_with("README.md") {
        placed.set_file_name("index.md");
    }
    placed
}

/// The path from the folder of `page` to `target`, both below `src`.
fn relative(page: &Path, target: &Path) -> String {
    let up = page.components().count().saturating_sub(1);
    let mut path: PathBuf = std::iter::repeat_n("..", up).collect();
    path.push(target);
    path.to_string_lossy().into_owned()
}

/// A page with the files of a folder that has no README.
fn listing(folder: &Path, name: &Path) -> Result<String> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let lines: String = names.iter().map(|name| format!("- [{name}]({name})\n")).collect();
    Ok(format!("# {}/\n\n{lines}", name.display()))
}

/// Reads the project below `root`.
///
/// # Errors
/// When a page cannot be read, or links to what is not there.
pub(super) fn collect(root: &Path) -> Result<Book> {
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut titles: Vec<(PathBuf, String)> = Vec::new();
    let mut seen: BTreeSet<PathBuf> = FIRST.iter().map(PathBuf::from).collect();
    let mut todo: VecDeque<PathBuf> = FIRST.iter().map(PathBuf::from).collect();
    while let Some(page) = todo.pop_front() {
        let path = root.join(&page);
        let text = match path.parent() {
            // A folder, as its links have it.
            Some(folder) if page.ends_with("README.md") && !path.exists() => {
                listing(folder, page.parent().unwrap_or(&page))?
            }
            _ => std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?,
        };
        let mut found = Vec::new();
        let rewritten = rewrite(&text, |link| {
            if link.contains("://") || link.starts_with("mailto:") || link.starts_with('#') {
                return Ok(link.to_owned());
            }
            let (target, anchor) = link
                .split_once('#')
                .map_or((link, None), |(path, anchor)| (path, Some(anchor)));
            let mut target = plain(&page.parent().unwrap_or(&page).join(target));
            if root.join(&target).is_dir() {
                target.push("README.md");
            } else if !root.join(&target).is_file() {
                bail!("{}: there is no {}", page.display(), target.display());
            }
            found.push(target.clone());
            let anchor = anchor.map_or(String::new(), |anchor| format!("#{anchor}"));
            Ok(relative(&placed(&page), &placed(&target)) + &anchor)
        })?;
        let title = text.lines().find_map(|line| line.strip_prefix("# "));
        titles.push((page.clone(), title.unwrap_or("Untitled").replace('`', "")));
        files.insert(placed(&page), rewritten.into_bytes());
        for target in found {
            if target.extension().is_some_and(|extension| extension == "md") {
                if seen.insert(target.clone()) {
                    todo.push_back(target);
                }
            } else {
                let content = std::fs::read(root.join(&target))?;
                files.insert(placed(&target), content);
            }
        }
    }
    files.insert("SUMMARY.md".into(), summary(&titles).into_bytes());
    Ok(Book {
        files,
        pages: titles.len(),
    })
}

/// The table of contents: the documentation, with its folders folded, then everything else.
fn summary(titles: &[(PathBuf, String)]) -> String {
    let docs = Path::new("docs");
    let line = |indent: &str, (page, title): &(PathBuf, String)| {
        format!("{indent}- [{title}]({})\n", placed(page).display())
    };
    let mut text = String::from("# Summary\n\n");
    let first = titles.iter().find(|(page, _)| page == Path::new("README.md"));
    text.extend(first.map(|entry| line("", entry)));
    for entry in titles {
        let (page, folder) = (&entry.0, entry.0.parent().unwrap_or(&entry.0));
        if folder == docs {
            text.push_str(&line("", entry));
        } else if folder.starts_with(docs) && page.ends_with("README.md") {
            text.push_str(&line("", entry));
            let inner = titles
                .iter()
                .filter(|(inner, _)| inner != page && inner.parent() == Some(folder));
            // By their names, since decisions have numbers.
            let inner: BTreeSet<_> = inner.collect();
            text.extend(inner.into_iter().map(|entry| line("  ", entry)));
        }
    }
    text.push_str("\n# The project\n\n");
    let others = titles
        .iter()
        .filter(|(page, _)| !page.starts_with(docs) && page != Path::new("README.md"));
    text.extend(others.map(|entry| line("", entry)));
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_links_outside_of_code_are_rewritten() {
        let page = "[a](b) `[c](d)` [`e`](f#g)\n```\n[h](i)\n```\n[j](k) `m\nn` [o](p) [q\n";
        let rewritten = rewrite(page, |link| Ok(link.to_uppercase())).unwrap();
        assert_eq!(
            rewritten,
            "[a](B) `[c](d)` [`e`](F#G)\n```\n[h](i)\n```\n[j](K) `m\nn` [o](P) [q\n"
        );
    }

    #[test]
    fn pages_and_files_that_are_linked_are_collected() {
        let dir = idtoken_testenv::RunDir::create("book").unwrap();
        let root = dir.path();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "README.md",
            "# All\n[index](docs/README.md) [e](.hidden/e.yaml)\n",
        );
        write(
            "docs/README.md",
            "# Docs\n[a](a.md) [b](sub/README.md#x) [up](../README.md) [config](../config/)\n",
        );
        write("docs/a.md", "# `A` page\n[c](sub/c.md)\n");
        write("docs/sub/README.md", "# Sub\n");
        write("docs/sub/c.md", "# C\n");
        write("docs/unlinked.md", "# No\n");
        write(".hidden/e.yaml", "e: 1\n");
        write("config/f.yaml", "f: 1\n");
        let book = collect(root).unwrap();
        let text = |path: &str| String::from_utf8(book.files[Path::new(path)].clone()).unwrap();
        assert_eq!(
            text("index.md"),
            "# All\n[index](docs/index.md) [e](hidden/e.yaml)\n"
        );
        assert_eq!(
            text("docs/index.md"),
            "# Docs\n[a](../docs/a.md) [b](../docs/sub/index.md#x) [up](../index.md) [config](../config/index.md)\n"
        );
        assert_eq!(text("hidden/e.yaml"), "e: 1\n");
        assert_eq!(
            text("config/index.md"),
            "# config/\n\n- [f.yaml](../config/f.yaml)\n"
        );
        assert!(book.files.contains_key(Path::new("config/f.yaml")));
        assert_eq!(
            text("SUMMARY.md"),
            "# Summary\n\n- [All](index.md)\n- [Docs](docs/index.md)\n- [A page](docs/a.md)\n- [Sub](docs/sub/index.md)\n  \
             - [C](docs/sub/c.md)\n\n# The project\n\n- [config/](config/index.md)\n"
        );
        write("docs/a.md", "# A\n[c](sub/gone.md)\n");
        let error = collect(root).err().unwrap().to_string();
        assert_eq!(error, "docs/a.md: there is no docs/sub/gone.md");
    }
}
