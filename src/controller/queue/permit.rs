//! How many reconciles use the Kubernetes API at once. Reconciles that wait for Google do not count: slow or many calls of one tenant must
//! not block the reconciles of the others.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The right of a reconcile to call the Kubernetes API. The reconcile releases it while it waits for Google.
pub(crate) struct Permit {
    permits: Arc<Semaphore>,
    acquired: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// Acquires one of `permits`; none if no permit is free.
    pub(crate) fn try_acquire(permits: &Arc<Semaphore>) -> Option<Self> {
        let acquired = Arc::clone(permits).try_acquire_owned().ok()?;
        Some(Self {
            permits: Arc::clone(permits),
            acquired: Some(acquired),
        })
    }

    /// Waits for a permit, unless this one is acquired.
    async fn acquire(&mut self) {
        if self.acquired.is_none() {
            // The semaphore is never closed, so there is no error.
            self.acquired = Arc::clone(&self.permits).acquire_owned().await.ok();
        }
    }

    /// Does `work` while it holds the permit. It is acquired first if an attempt timed out while it was released.
    pub(crate) async fn holding<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.acquire().await;
        work.await
    }

    /// Releases the permit for `work`, and acquires it again after it.
    pub(crate) async fn released_while<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.acquired = None;
        let result = work.await;
        self.acquire().await;
        result
    }
}
