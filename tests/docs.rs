//! Links between the project's pages lead somewhere, and tests that they name exist.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;

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

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(page).lines() {
        let text = line.trim_start_matches('#');
        if text.len() == line.len() || !text.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let plain: String = text.trim().to_lowercase().chars().filter(kept).collect();
        let slug = plain.replace(' ', "-");
        let again = (1..).map(|count| format!("{slug}-{count}"));
        let free = std::iter::once(slug.clone())
            .chain(again)
            .find(|slug| !anchors.contains(slug));
        anchors.extend(free);
    }
    anchors
}

/// Where the page's links lead that do not leave the project.
fn links(page: &str) -> Vec<String> {
    let code = Regex::new(r"`[^`\n]*`").unwrap();
    let link = Regex::new(r"\]\(([^()\s]+)\)").unwrap();
    let text = prose(page);
    // A link's own text may be code; what is code as a whole is none.
    let text = code.replace_all(&text, "code");
    let found = link.captures_iter(&text).map(|found| found[1].to_owned());
    found
        .filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
        .collect()
}

fn broken(page: &Path, link: &str) -> Option<String> {
    let (path, anchor) = link
        .split_once('#')
        .map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = match path {
        "" => page.to_owned(),
        path => page.parent().unwrap_or(root()).join(path),
    };
    if !target.exists() {
        return Some(format!("{link}: there is no such file"));
    }
    let anchor = anchor?;
    let text = std::fs::read_to_string(&target).unwrap_or_default();
    (!anchors(&text).contains(anchor)).then(|| format!("{link}: that page has no such heading"))
}

#[test]
fn every_link_leads_somewhere() {
    let mut checked = 0;
    let mut wrong = Vec::new();
    for page in pages(root()) {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            checked += 1;
            wrong.extend(broken(&page, &link).map(|why| format!("{}: {why}", page.display())));
        }
    }
    assert!(checked > 40, "only {checked} links were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_page_of_docs_can_be_reached_from_its_index() {
    let index = root().join("docs/README.md");
    let (mut seen, mut todo) = (BTreeSet::new(), vec![index.canonicalize().unwrap()]);
    while let Some(page) = todo.pop() {
        if !seen.insert(page.clone()) || page.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        for link in links(&std::fs::read_to_string(&page).unwrap()) {
            let path = link.split('#').next().unwrap_or_default();
            todo.extend(page.parent().unwrap().join(path).canonicalize());
        }
    }
    for page in pages(&root().join("docs")) {
        assert!(
            seen.contains(&page.canonicalize().unwrap()),
            "nothing links to {}",
            page.display()
        );
    }
}

#[test]
fn links_and_headings_are_read_as_github_does() {
    let page = "# A `b`: c, d\n## Same\n## Same\n[x](a.md#b) `[no](no.md)` [y](https://e.com) [`z`](#same)\n```\n[no](no)\n# no\n```\n";
    assert_eq!(links(page), ["a.md#b", "#same"]);
    let anchors: Vec<_> = anchors(page).into_iter().collect();
    assert_eq!(anchors, ["a-b-c-d", "same", "same-1"]);
}

#[test]
fn every_test_that_a_page_names_exists() {
    let reference = Regex::new("`([a-z0-9_/]+\\.rs)(?:::([a-z0-9_]+))?`").unwrap();
    let mut missing = Vec::new();
    let mut named = 0;
    for page in pages(root()) {
        let text = std::fs::read_to_string(&page).unwrap();
        for found in reference.captures_iter(&text) {
            // A bare file name is an example of one, not a reference.
            if !found[1].contains('/') {
                continue;
            }
            named += 1;
            let source = std::fs::read_to_string(root().join(&found[1])).unwrap_or_default();
            let exists = match found.get(2) {
                None => !source.is_empty(),
                Some(name) => source.split("#[").any(|item| {
                    let is_test = item.starts_with("test]") || item.starts_with("tokio::test");
                    is_test && item.contains(&format!("fn {}(", name.as_str()))
                }),
            };
            if !exists {
                missing.push(format!("{}: {}", page.display(), &found[0]));
            }
        }
    }
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
    assert!(named > 30, "only {named} references were found");
}
