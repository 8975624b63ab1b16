//! The grants file: a mounted ConfigMap, for example.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::controller::queue::Enqueuer;
use crate::grants::file::read_file;
use crate::grants::store::GrantStore;
use crate::metrics::{GrantOrigin, Metrics};

const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Reads the grants file whenever its content changes. A file that cannot be read or parsed leaves the grants as they are, and is logged
/// once a change.
pub(super) async fn watch(path: PathBuf, grants: Arc<GrantStore>, metrics: Arc<Metrics>, enqueuer: Enqueuer) {
    // Starts with nothing, so that the file is read once more: it may have changed since app.rs read it, and a grant that was removed must
    // not stay.
    let mut known = None;
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    loop {
        ticks.tick().await;
        // The content is compared, not the times: a ConfigMap is mounted by a symbolic link.
        let content = tokio::fs::read(&path).await.ok();
        if content == known {
            continue;
        }
        match read_file(&path) {
            Ok(read) => {
                tracing::info!(path = %path.display(), grants = read.len(), "grants file reloaded");
                metrics.set_grants(GrantOrigin::File, read.len());
                grants.set_file(read);
                enqueuer.all();
            }
            Err(error) => {
                tracing::error!(path = %path.display(), "grants file changed but is invalid, keeping the previous grants: {error}");
            }
        }
        known = content;
    }
}
