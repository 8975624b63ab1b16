//! How many reconciles use the Kubernetes API at once. Those that wait for Google do not count: one tenant's slow or many calls must
//! not keep the others from their work.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Context;

/// The right to work, lent out while Google is asked.
pub(super) struct Turn {
    turns: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// None yet.
    pub(super) fn new(ctx: &Context) -> Self {
        Self {
            turns: Arc::clone(&ctx.turns),
            taken: None,
        }
    }

    /// Waits for a turn, unless it is held.
    pub(super) async fn take(&mut self) {
        if self.taken.is_none() {
            // An error means that the semaphore was closed, which nobody does.
            self.taken = Arc::clone(&self.turns).acquire_owned().await.ok();
        }
    }

    /// Does `work` with a turn.
    pub(super) async fn within<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.take().await;
        work.await
    }

    /// Does `work` without a turn, and waits for one after it.
    pub(super) async fn aside<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.taken = None;
        let result = work.await;
        self.take().await;
        result
    }
}
