//! A bounded cache in which one caller makes a value and all others that want the same wait for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Values by key, each for a time of its own. A failure is not kept, but all that waited for the attempt hear of it: otherwise each
/// of them would try in turn.
pub struct Cache<K, V, E> {
    slots: Mutex<HashMap<K, Arc<Slot<V, E>>>>,
    capacity: usize,
}

struct Slot<V, E> {
    /// How many attempts have ended.
    attempts: AtomicU64,
    /// Locked by the caller that makes the value.
    making: tokio::sync::Mutex<Option<(u64, E)>>,
    value: Mutex<Option<(Arc<V>, Instant)>>,
}

impl<V, E> Slot<V, E> {
    fn fresh(&self, now: Instant) -> Option<Arc<V>> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, until) = value.as_ref()?;
        (*until > now).then(|| Arc::clone(value))
    }

    fn until(&self) -> Option<Instant> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        value.as_ref().map(|(_, until)| *until)
    }
}

impl<K: Eq + Hash + Clone, V, E: Clone> Cache<K, V, E> {
    /// A cache of at most `capacity` values, those aside that are being made.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            slots: Mutex::default(),
            capacity,
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<K, Arc<Slot<V, E>>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value of `key`: the cached one, or what `make` gives, which says for how long it may be cached.
    ///
    /// # Errors
    /// Those of `make`, by whomever it was called.
    pub async fn get<F>(&self, key: &K, make: impl FnOnce() -> F) -> Result<Arc<V>, E>
    where
        F: Future<Output = Result<(V, Duration), E>>,
    {
        let slot = self.slot(key);
        let seen = slot.attempts.load(Ordering::Acquire);
        let mut failure = slot.making.lock().await;
        if let Some(value) = slot.fresh(Instant::now()) {
            return Ok(value);
        }
        if let Some((attempt, error)) = failure.as_ref()
            && *attempt > seen
        {
            return Err(error.clone());
        }
        let made = make().await;
        let attempt = slot.attempts.fetch_add(1, Ordering::AcqRel) + 1;
        match made {
            Ok((value, lifetime)) => {
                let value = Arc::new(value);
                *failure = None;
                *slot.value.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((Arc::clone(&value), Instant::now() + lifetime));
                Ok(value)
            }
            Err(error) => {
                *failure = Some((attempt, error.clone()));
                Err(error)
            }
        }
    }

    fn slot(&self, key: &K) -> Arc<Slot<V, E>> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(key) {
            return Arc::clone(slot);
        }
        if slots.len() >= self.capacity {
            retain_used(&mut slots);
        }
        if slots.len() >= self.capacity {
            let idle = slots.iter().filter(|(_, slot)| Arc::strong_count(slot) == 1);
            let first = idle
                .min_by_key(|(_, slot)| slot.until())
                .map(|(key, _)| key.clone());
            first.map(|key| slots.remove(&key));
        }
        let slot = Arc::new(Slot {
            attempts: AtomicU64::new(0),
            making: tokio::sync::Mutex::new(None),
            value: Mutex::new(None),
        });
        slots.insert(key.clone(), Arc::clone(&slot));
        slot
    }

    /// Drops the values whose key `is_dropped`. Whoever makes such a value at the moment still gets it; it is not cached.
    pub fn remove(&self, is_dropped: impl Fn(&K) -> bool) {
        self.slots().retain(|key, _| !is_dropped(key));
    }

    /// Drops the value of `key` if it is this very one.
    pub fn reject(&self, key: &K, value: &Arc<V>) {
        let mut slots = self.slots();
        let is_current = |slot: &Arc<Slot<V, E>>| {
            let current = slot.value.lock().unwrap_or_else(PoisonError::into_inner);
            current
                .as_ref()
                .is_some_and(|(current, _)| Arc::ptr_eq(current, value))
        };
        if slots.get(key).is_some_and(is_current) {
            slots.remove(key);
        }
    }

    /// Drops what has expired.
    pub fn sweep(&self) {
        retain_used(&mut self.slots());
    }

    /// How many values are cached or being made.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots().len()
    }

    /// Whether nothing is cached or being made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn retain_used<K, V, E>(slots: &mut HashMap<K, Arc<Slot<V, E>>>) {
    let now = Instant::now();
    slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.fresh(now).is_some());
}

impl<K, V, E> std::fmt::Debug for Cache<K, V, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use futures::future::join_all;

    use super::*;

    type Numbers = Cache<&'static str, u32, &'static str>;

    const MINUTE: Duration = Duration::from_secs(60);

    async fn made(cache: &Numbers, key: &'static str, value: u32) -> u32 {
        let made = cache.get(&key, || async move { Ok((value, MINUTE)) });
        *made.await.expect("a value")
    }

    #[tokio::test]
    async fn many_want_it_and_one_makes_it() {
        let (cache, calls) = (Numbers::new(10), AtomicU32::new(0));
        let make = || async {
            tokio::task::yield_now().await;
            Ok((calls.fetch_add(1, Ordering::Relaxed), MINUTE))
        };
        let all = join_all((0..200).map(|_| cache.get(&"a", make))).await;
        assert!(
            all.iter()
                .all(|value| value.as_ref().is_ok_and(|value| **value == 0))
        );
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_that_wait_and_forgotten() {
        let (cache, calls) = (Numbers::new(10), AtomicU32::new(0));
        let fail = || async {
            tokio::task::yield_now().await;
            calls.fetch_add(1, Ordering::Relaxed);
            Err("no")
        };
        let all = join_all((0..200).map(|_| cache.get(&"a", fail))).await;
        assert!(all.iter().all(|value| *value == Err("no")));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert_eq!(made(&cache, "a", 7).await, 7, "the next one tries again");
    }

    #[tokio::test]
    async fn whoever_gives_up_leaves_it_to_the_next() {
        let cache = Numbers::new(10);
        let hung = cache.get(&"a", || async {
            std::future::pending::<()>().await;
            Ok((0, MINUTE))
        });
        let (gone, next) = tokio::join!(
            tokio::time::timeout(Duration::from_millis(20), hung),
            made(&cache, "a", 7)
        );
        assert!(gone.is_err());
        assert_eq!(next, 7);
    }

    #[tokio::test]
    async fn one_key_does_not_wait_for_another() {
        let cache = Numbers::new(10);
        let hung = cache.get(&"a", || async {
            std::future::pending::<()>().await;
            Ok((0, MINUTE))
        });
        tokio::select! {
            biased;
            _ = hung => panic!("it hangs"),
            value = made(&cache, "b", 7) => assert_eq!(value, 7),
        }
    }

    #[tokio::test]
    async fn it_is_bounded_and_drops_what_ends_first() {
        let cache = Numbers::new(2);
        for (key, seconds) in [("long", 50), ("short", 10), ("new", 30)] {
            let lifetime = Duration::from_secs(seconds);
            let value = cache.get(&key, || async move { Ok((1, lifetime)) }).await;
            assert!(value.is_ok());
        }
        assert_eq!(cache.len(), 2);
        assert_eq!(made(&cache, "long", 2).await, 1, "still the first");
        assert_eq!(made(&cache, "short", 2).await, 2, "made anew");
    }

    #[tokio::test]
    async fn values_go_when_told_and_when_they_end() {
        let cache = Numbers::new(10);
        assert_eq!(made(&cache, "a", 1).await, 1);
        assert_eq!(made(&cache, "b", 1).await, 1);
        cache.remove(|key| *key == "a");
        assert_eq!(made(&cache, "a", 2).await, 2);
        let old = cache.get(&"b", || async { Err("cached") }).await.expect("cached");
        cache.reject(&"b", &old);
        assert_eq!(made(&cache, "b", 2).await, 2);
        cache.reject(&"b", &old);
        assert_eq!(
            made(&cache, "b", 3).await,
            2,
            "another than the one that was rejected"
        );
        let weak = Arc::downgrade(&old);
        drop(old);
        assert!(weak.upgrade().is_none());
        cache.sweep();
        assert_eq!(cache.len(), 2);
        let brief = || async { Ok((1, Duration::ZERO)) };
        assert_eq!(cache.get(&"c", brief).await.map(|value| *value), Ok(1));
        assert_eq!(made(&cache, "c", 2).await, 2, "the first has ended");
        cache.remove(|_| true);
        assert_eq!(cache.get(&"c", brief).await.map(|value| *value), Ok(1));
        cache.sweep();
        assert!(cache.is_empty());
    }
}
