//! docs/tutorial.md: its code blocks, run one after the other as they are written.

use anyhow::Result;

use crate::suite::Suite;

/// Runs the tutorial.
pub(crate) async fn run(_suite: &Suite<'_>) -> Result<()> {
    Ok(())
}
