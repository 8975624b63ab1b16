//! The grants file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::controller::Context;
use crate::controller::watch::Enqueuer;
use crate::grants::store::read_file;
use crate::metrics::GrantOrigin;

const FILE_INTERVAL: Duration = Duration::from_secs(2);

/// Reads the grants file again whenever it changed. A file that cannot be read or parsed leaves the grants as they were, which is said
/// once a change.
pub(crate) async fn grants_file(ctx: Arc<Context>, path: PathBuf, triggers: Enqueuer) {
    // Read once more at the start: it may have changed since the flags were read, and a grant that was taken away must not be missed.
    let mut known = None;
    let mut ticks = tokio::time::interval(FILE_INTERVAL);
    loop {
        ticks.tick().await;
        // Compared by content: a mounted ConfigMap is swapped by a symbolic link, whose times say little.
        let content = tokio::fs::read(&path).await.ok();
        if content == known {
            continue;
        }
        match read_file(&path) {
            Ok(grants) => {
                tracing::info!(path = %path.display(), grants = grants.len(), "the grants file was read again");
                ctx.metrics.set_grants(GrantOrigin::File, grants.len());
                ctx.grants.set_file(grants);
                triggers.everything();
            }
            Err(error) => {
                tracing::error!(path = %path.display(), "the grants file changed and is not used: {error}")
            }
        }
        known = content;
    }
}
