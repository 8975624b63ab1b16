//! Links between the project's pages lead somewhere, and every page is reached.

use std::collections::BTreeSet;
use std::path::Path;

use regex::Regex;

use crate::{pages, prose, root};

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

/// Folders without a page whose files are applied or read as a whole.
const AS_A_WHOLE: [&str; 3] = ["conformance/assertions", "config", "crds"];

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
    if target.is_dir() && !target.join("README.md").is_file() {
        let is_whole = AS_A_WHOLE.iter().any(|folder| {
            let folder = root().join(folder).canonicalize();
            folder.is_ok_and(|folder| target.canonicalize().is_ok_and(|target| target == folder))
        });
        return (!is_whole).then(|| format!("{link}: this folder has no page"));
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
fn every_runbook_of_an_alert_is_a_section() {
    let alerts = std::fs::read_to_string(root().join("charts/idtoken-operator/files/alerts.yaml")).unwrap();
    let links = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("runbook: "));
    let wrong: Vec<_> = links
        .clone()
        .filter_map(|link| broken(&root().join("README.md"), link))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(links.count() > 10);
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
fn a_link_that_leads_nowhere_is_found() {
    let page = root().join("docs/README.md");
    for good in [
        "../crds/",
        "../emulator/",
        "installation.md",
        "installation.md#gke",
        "#for-teams",
    ] {
        assert_eq!(broken(&page, good), None);
    }
    for (bad, said) in [
        ("../examples/consumers/", "has no page"),
        ("absent.md", "no such file"),
        ("installation.md#absent", "no such heading"),
    ] {
        assert!(broken(&page, bad).is_some_and(|why| why.contains(said)), "{bad}");
    }
}

#[test]
fn links_and_headings_are_read_as_github_does() {
    let page = "# A `b`: c, d\n## Same\n## Same\n[x](a.md#b) `[no](no.md)` [y](https://e.com) [`z`](#same)\n```\n[no](no)\n# no\n```\n";
    assert_eq!(links(page), ["a.md#b", "#same"]);
    let anchors: Vec<_> = anchors(page).into_iter().collect();
    assert_eq!(anchors, ["a-b-c-d", "same", "same-1"]);
}
