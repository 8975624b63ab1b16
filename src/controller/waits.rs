//! Ends waits of requests before their time: after refusals, which may take 10 minutes, when the operator's identity at Google changes; after
//! failures of Google, when Google answers again.

use std::time::Duration;

use tokio::time::sleep;

use crate::clock::Clock;
use crate::controller::cache::Cache;
use crate::controller::queue::Enqueuer;
use crate::google::Minter;

/// How often the identity is checked while a request waits after a rejection. The metadata server is called once a minute at most.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Enqueues the requests that were refused once the operator's identity is another one. Never returns.
pub(super) async fn follow_identity(minter: &Minter, cache: &Cache, enqueuer: &Enqueuer) {
    let mut seen = minter.identity_changes();
    loop {
        sleep(CHECK_INTERVAL).await;
        // An operator without refusals makes no call for it.
        if cache.has_refusals() {
            minter.principal().await;
        }
        let changes = minter.identity_changes();
        if changes == seen {
            continue;
        }
        seen = changes;
        let refused = cache.end_refusals();
        if !refused.is_empty() {
            tracing::info!(
                requests = refused.len(),
                "the operator's identity has changed, reconciling the requests that were refused"
            );
        }
        enqueuer.requests(refused);
    }
}

/// Enqueues the requests that have no valid token because Google failed, when calls may start again. Never returns.
pub(super) async fn follow_recoveries(minter: &Minter, cache: &Cache, clock: &Clock, enqueuer: &Enqueuer) {
    loop {
        let namespaces = minter.recovered().await;
        enqueuer.requests(cache.end_waits_for_google(&namespaces, clock.now()));
    }
}
