//! `cargo xtask site`: the pages as a site with a search, dark colours and drawn diagrams, and a check of its links.

mod book;
mod links;
mod mermaid;
mod shots;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cargo_tools::MDBOOK;
use crate::progress::Output;
use crate::{cargo, crds};

/// Draws the diagrams, in colours that fit those of the page.
const DIAGRAMS: &str = include_str!("site/diagrams.js");

/// Makes tables with five columns fit beside the contents, and leaves space around the diagrams.
const STYLE: &str = "\
:root { --content-max-width: 1100px; }
table { font-size: 0.85em; }
table td, table th { padding: 3px 8px; }
table code { padding: 0.1em 0.2em; }
.mermaid { margin: 1.2em 0; }
";

const CONFIGURATION: &str = r#"[book]
title = "idtoken-operator"
description = "Google ID tokens in Kubernetes Secrets"
language = "en"

[build]
build-dir = "html"
create-missing = false

[output.html]
default-theme = "light"
preferred-dark-theme = "navy"
no-section-label = true
additional-css = ["site.css"]
additional-js = ["mermaid.min.js", "diagrams.js"]

[output.html.fold]
enable = true
level = 1
"#;

/// Builds the site and checks it; with `shots`, takes pictures of it too.
///
/// # Errors
/// When a tool fails, a page links to what is not there, or a link of the site leads nowhere.
pub(crate) async fn run(output: &Output, shots: bool) -> Result<()> {
    let folder = idtoken_testenv::target_dir().join("site");
    let mdbook = match MDBOOK.install(output).await {
        Ok(folder) => folder.join("mdbook"),
        Err(error) => crate::unavailable(output, &format!("{error:#}")),
    };
    let mermaid = mermaid::fetch(output).await?;

    let step = output.begin("pages");
    let count = write(&folder, &mermaid)?;
    step.done(&format!("{count} pages are collected"));

    let step = output.begin("mdbook");
    let mut build = std::process::Command::new(mdbook);
    build.arg("build").arg(&folder);
    cargo::run(build, &step, |_| ()).await?;
    let html = folder.join("html");
    let (checked, wrong) = links::check(&html)?;
    if !wrong.is_empty() {
        bail!("links of the site lead nowhere:\n{}", wrong.join("\n"));
    }
    step.done(&format!(
        "{} is built; its {checked} links and anchors lead somewhere",
        crds::shown(&html.join("index.html"))
    ));
    if shots {
        shots::take(output, &html, &folder.join("shots")).await?;
    }
    Ok(())
}

/// Writes what mdBook reads. How many pages there are.
fn write(folder: &Path, mermaid: &Path) -> Result<usize> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let book = book::collect(&crate::workspace())?;
    for (path, text) in &book.files {
        let path = folder.join("src").join(path);
        let parent: PathBuf = path.parent().unwrap_or(&path).into();
        std::fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    std::fs::copy(mermaid, folder.join("mermaid.min.js"))?;
    std::fs::write(folder.join("diagrams.js"), DIAGRAMS)?;
    std::fs::write(folder.join("site.css"), STYLE)?;
    std::fs::write(folder.join("book.toml"), CONFIGURATION)?;
    Ok(book.pages)
}
