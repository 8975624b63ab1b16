//! Locks whose poisoning is ignored. Imports nothing.
//!
//! A lock is poisoned when a thread panics while it holds the lock. What our locks guard is valid after each single operation on it, so a
//! panic leaves nothing half done. To fail on a poisoned lock would turn the panic of one reconcile, which is caught and retried, into a
//! failure of all requests.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks `mutex`.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks `lock` for reading.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks `lock` for writing.
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_closes_no_lock() {
        let (mutex, rwlock) = (Mutex::new(1), RwLock::new(2));
        let panicked = std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _held = (lock(&mutex), write(&rwlock));
                panic!("on purpose");
            });
            holder.join().is_err()
        });
        assert!(panicked && mutex.is_poisoned() && rwlock.is_poisoned());
        *lock(&mutex) += 10;
        *write(&rwlock) += 10;
        assert_eq!((*lock(&mutex), *read(&rwlock)), (11, 12));
    }
}
