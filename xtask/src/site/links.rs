//! Whether the links and anchors of a built site lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Pages that mdBook makes besides the ones it was given: the same content once more, or a frame.
const NOT_PAGES: [&str; 3] = ["print.html", "404.html", "toc.html"];

/// The values of an attribute.
fn values<'p>(page: &'p str, attribute: &str) -> impl Iterator<Item = &'p str> {
    let start = format!(" {attribute}=\"");
    let found: Vec<_> = page
        .match_indices(&start)
        .map(|(at, _)| at + start.len())
        .collect();
    found.into_iter().filter_map(|at| page[at..].split('"').next())
}

fn pages(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            found.extend(pages(&path)?);
        } else if name.ends_with(".html") && !NOT_PAGES.contains(&name.as_str()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// How many links within the site were looked at, and what is wrong.
///
/// # Errors
/// When a page cannot be read.
pub(super) fn check(folder: &Path) -> Result<(usize, Vec<String>)> {
    let mut texts = BTreeMap::new();
    for page in pages(folder)? {
        let text =
            std::fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
        texts.insert(page.canonicalize()?, text);
    }
    let ids: BTreeMap<_, BTreeSet<_>> = texts
        .iter()
        .map(|(page, text)| (page, values(text, "id").collect()))
        .collect();
    let (mut count, mut wrong) = (0, Vec::new());
    for (page, text) in &texts {
        let links = values(text, "href").chain(values(text, "src"));
        for link in links.filter(|link| !link.contains(':') && !link.is_empty()) {
            count += 1;
            let (path, anchor) = link
                .split_once('#')
                .map_or((link, None), |(path, anchor)| (path, Some(anchor)));
            let target = match path {
                "" => page.clone(),
                path => page.parent().unwrap_or(page).join(path),
            };
            let said = match target.canonicalize() {
                Err(_) => Some("there is no such file"),
                Ok(target) => anchor
                    .filter(|anchor| !anchor.is_empty())
                    .filter(|anchor| ids.get(&target).is_some_and(|ids| !ids.contains(anchor)))
                    .map(|_| "that page has no such heading"),
            };
            let name = page.strip_prefix(folder.canonicalize()?).unwrap_or(page);
            wrong.extend(said.map(|said| format!("{}: {link}: {said}", name.display())));
        }
    }
    Ok((count, wrong))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_link_and_an_anchor_that_lead_nowhere_are_found() {
        let dir = idtoken_testenv::RunDir::create("links").unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "a.html",
            "<h1 id=\"x\"></h1><a href=\"b.html#y\">b</a><a href=\"#x\"></a><a href=\"https://e.com/z\"></a><img src=\"c.svg\">",
        );
        write(
            "b.html",
            "<h1 id=\"y\"></h1><a href=\"a.html#z\"></a><a href=\"d.html\"></a><a href=\"#\"></a>",
        );
        write("c.svg", "");
        write("print.html", "<a href=\"nowhere\"></a>");
        let (count, wrong) = check(dir.path()).unwrap();
        assert_eq!(count, 6);
        assert_eq!(
            wrong,
            [
                "b.html: a.html#z: that page has no such heading",
                "b.html: d.html: there is no such file"
            ]
        );
    }
}
