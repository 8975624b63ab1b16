//! Reads the grants file, such as a mounted ConfigMap, again whenever it changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::controller::queue::Enqueuer;
use crate::controller::watch::grants::report;
use crate::grants::file::{parse_file, read_text};
use crate::grants::index::Grant;
use crate::grants::object::spec_problem;
use crate::grants::store::GrantStore;
use crate::metrics::{GrantOrigin, Metrics};

const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Reads the grants file whenever its content changes. A file that cannot be read or parsed leaves the grants as they are: it is logged once
/// a change, and the store and the metrics say since when.
pub(super) async fn watch(
    path: PathBuf,
    grants: Arc<GrantStore>,
    metrics: Arc<Metrics>,
    enqueuer: Enqueuer,
    clock: Clock,
) {
    // Starts with nothing, so that the file is read once more: it may have changed since app.rs read it, and a grant that was removed must
    // not stay.
    let mut known = None;
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    loop {
        ticks.tick().await;
        let content = read_text(&path);
        // The content is compared, not the times: a ConfigMap is mounted by a symbolic link. All files that cannot be read are the same.
        if known.as_ref() == Some(&content.as_ref().ok().cloned()) {
            continue;
        }
        known = Some(content.as_ref().ok().cloned());
        match content.and_then(|text| parse_file(&text)) {
            Ok(read) => {
                tracing::info!(path = %path.display(), grants = read.len(), "grants file reloaded");
                install(read, &grants, &metrics);
                enqueuer.all();
            }
            Err(error) => {
                let since = grants.fail_file(error.kind(), clock.now());
                metrics.set_grants_file_failing_since(Some(since));
                tracing::error!(path = %path.display(), "grants file changed but is invalid, keeping the previous grants: {error}");
            }
        }
    }
}

/// Replaces the grants of the file by those that were `read`. Logs each of them that is invalid in whole or in part.
pub(crate) fn install(read: Vec<Grant>, grants: &GrantStore, metrics: &Metrics) {
    for grant in &read {
        report(&grant.id, spec_problem(&grant.spec).as_ref());
    }
    metrics.set_grants(GrantOrigin::File, grants.set_file(read));
    metrics.set_grants_file_failing_since(None);
}
