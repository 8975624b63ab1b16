//! docs/tutorial.md: its code blocks, run one after the other as they are written.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::LIMIT;
use crate::suite::{NAMESPACE, Suite};

const PAGE: &str = "docs/tutorial.md";

/// Removes what the other cases made, and runs the tutorial on what is left.
pub(crate) async fn run(suite: &Suite<'_>) -> Result<()> {
    let namespaces = format!("{NAMESPACE} google cloud-run shop monitoring tenant-a tenant-b");
    suite
        .cluster
        .kubectl(&format!("delete namespace {namespaces} --timeout=300s"))
        .await?;
    let page = suite.file(Path::new(PAGE), &[])?;
    let blocks = blocks(&page);
    ensure!(!blocks.is_empty(), "{PAGE} has no commands");
    for block in blocks {
        suite.report.progress(block.lines().next().unwrap_or_default());
        shell(suite, &block).await?;
    }
    Ok(())
}

async fn shell(suite: &Suite<'_>, block: &str) -> Result<()> {
    let mut command = suite.cluster.command("bash");
    command
        .args(["-euo", "pipefail", "-c", block])
        .stdin(Stdio::null());
    let output = tokio::time::timeout(2 * LIMIT, command.output())
        .await
        .with_context(|| format!("{PAGE}: this takes too long:\n{block}"))??;
    if !output.status.success() {
        bail!(
            "{PAGE}: this failed ({}):\n{block}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// The blocks fenced as `sh`. Those fenced as `console` are shown, not run.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in page.lines() {
        match (&mut block, line) {
            (None, "```sh") => block = Some(String::new()),
            (Some(_), "```") => blocks.extend(block.take()),
            (Some(text), line) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, _) => {}
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_blocks_that_are_to_be_run() {
        let page = "```sh\na\nb\n```\ntext\n```console\n$ c\n```\n```sh\nd\n```\n";
        assert_eq!(blocks(page), ["a\nb\n", "d\n"]);
    }
}
