//! How many reconciles use the Kubernetes API at once. Those that wait for Google do not count: one tenant's slow or many calls must
//! not keep the others from their work.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The right to work, lent out while Google is asked.
pub(crate) struct Permit {
    turns: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// One that is free; none where all are taken.
    pub(crate) fn try_acquire(turns: &Arc<Semaphore>) -> Option<Self> {
        let taken = Arc::clone(turns).try_acquire_owned().ok()?;
        Some(Self {
            turns: Arc::clone(turns),
            taken: Some(taken),
        })
    }

    /// Waits for a turn, unless it is held.
    async fn take(&mut self) {
        if self.taken.is_none() {
            // An error means that the semaphore was closed, which nobody does.
            self.taken = Arc::clone(&self.turns).acquire_owned().await.ok();
        }
    }

    /// Does `work` with a turn.
    pub(crate) async fn holding<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.take().await;
        work.await
    }

    /// Does `work` without a turn, and waits for one after it.
    pub(crate) async fn released_while<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.taken = None;
        let result = work.await;
        self.take().await;
        result
    }
}
