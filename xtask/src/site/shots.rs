//! Pictures of the site in Chromium, for a look at it by a person.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use idtoken_testenv::Progress;
use idtoken_testenv::node::packages;

use crate::cargo;
use crate::progress::Output;

/// What is looked at: a page with diagrams, one with wide tables, one with long commands.
const PAGES: [&str; 4] = [
    "index.html",
    "docs/index.html",
    "docs/targets.html",
    "docs/installation.html",
];
/// Width and height of a phone and of a desktop.
const SIZES: [(&str, u32, u32); 2] = [("phone", 500, 1000), ("desktop", 1366, 900)];

/// Takes a picture of each page in each size.
///
/// # Errors
/// When Chromium cannot be installed, or takes no picture.
pub(super) async fn take(output: &Output, html: &Path, folder: &Path) -> Result<()> {
    let install = || packages::install(&[("chromium", "chromium")], Progress::Stderr);
    tokio::task::spawn_blocking(install).await??;
    std::fs::create_dir_all(folder)?;
    let step = output.begin("pictures");
    for page in PAGES {
        for (size, width, height) in SIZES {
            let picture = folder.join(format!(
                "{}-{size}.png",
                page.replace('/', "-").replace(".html", "")
            ));
            let mut chromium = Command::new("chromium");
            chromium
                .args([
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--no-first-run",
                    "--hide-scrollbars",
                ])
                .args([
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                ])
                .arg("--allow-file-access-from-files")
                // Time of the page, for the diagrams.
                .arg("--virtual-time-budget=10000")
                .arg(format!("--user-data-dir={}", folder.join("profile").display()))
                .arg(format!("--window-size={width},{height}"))
                .arg(format!("--screenshot={}", picture.display()))
                .arg(format!("file://{}", html.join(page).display()));
            cargo::run(chromium, &step, |_| ())
                .await
                .with_context(|| page.to_owned())?;
            if !picture.is_file() {
                bail!("Chromium took no picture of {page}");
            }
        }
    }
    std::fs::remove_dir_all(folder.join("profile")).ok();
    step.done(&format!("pictures are in {}", folder.display()));
    Ok(())
}
