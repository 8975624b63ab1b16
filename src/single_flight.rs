//! Single flight: one caller fetches a value, and all others that want the same value wait for it.
//!
//! [`SingleFlight`] holds one value, [`SingleFlightCache`] one for each key. Both know nothing of what they hold, and import the clock and
//! the locks only. They judge its age by a clock that goes on while the machine sleeps, as the clock of whoever issued it does.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::clock::{BootTime, Clock};
use crate::sync::lock;

/// A fetched value, and when it is to be replaced.
pub struct Fetched<V> {
    /// The value.
    pub value: V,
    /// When the next caller fetches a new one. Until `expires_at` the others go on with this one.
    pub refresh_at: BootTime,
    /// When it is not given to a caller any more.
    pub expires_at: BootTime,
}

impl<V> Fetched<V> {
    /// A value that is used for `lifetime` from `now` on, and not refreshed before.
    pub fn for_lifetime(value: V, lifetime: Duration, now: BootTime) -> Self {
        let expires_at = now + lifetime;
        Self {
            value,
            refresh_at: expires_at,
            expires_at,
        }
    }
}

/// The backoff after a failed fetch, from the number of failures in a row before it and its error.
pub type BackoffPolicy<E> = fn(u32, &E) -> Duration;

/// One value for many callers. A failure is shared with all callers that waited for the fetch: otherwise each of them would fetch in
/// turn. After that it is kept for as long as the backoff policy says.
pub struct SingleFlight<V, E> {
    state: Mutex<State<V, E>>,
    /// Locked by the caller that fetches.
    in_flight: tokio::sync::Mutex<()>,
    backoff: BackoffPolicy<E>,
    clock: Clock,
}

struct State<V, E> {
    value: Option<Fetched<Arc<V>>>,
    failure: Option<Failure<E>>,
    /// Failures since the last success.
    consecutive_failures: u32,
    /// Failures in all.
    failures: u64,
}

struct Failure<E> {
    error: E,
    /// Which one of all failures it is, counted from 1.
    number: u64,
    retry_at: BootTime,
}

/// What a caller finds.
enum Lookup<V, E> {
    /// A value to use.
    Fresh(Arc<V>),
    /// No value, or one that is to be replaced and can be used meanwhile.
    Stale(Option<Arc<V>>),
    /// A failure that still counts.
    Failed(E),
}

impl<V, E: Clone> SingleFlight<V, E> {
    /// Holds no value yet.
    #[must_use]
    pub fn new(backoff: BackoffPolicy<E>, clock: Clock) -> Self {
        Self {
            state: Mutex::new(State::new()),
            in_flight: tokio::sync::Mutex::default(),
            backoff,
            clock,
        }
    }

    /// The current value, or else what `fetch` gives. A value that is stale and has not expired is given to the others while one caller
    /// fetches, and to all after a fetch that failed.
    ///
    /// # Errors
    /// Those of `fetch`, whichever caller's it was.
    pub async fn get<F>(&self, fetch: impl FnOnce() -> F) -> Result<Arc<V>, E>
    where
        F: Future<Output = Result<Fetched<V>, E>>,
    {
        let (lookup, failures) = {
            let state = self.state();
            (state.lookup(self.clock.boot(), state.failures), state.failures)
        };
        let usable = match lookup {
            Lookup::Fresh(value) => return Ok(value),
            Lookup::Failed(error) => return Err(error),
            Lookup::Stale(value) => value,
        };
        let _in_flight = match (self.in_flight.try_lock(), usable) {
            (Ok(guard), _) => guard,
            (Err(_), Some(value)) => return Ok(value),
            (Err(_), None) => self.in_flight.lock().await,
        };
        // Another caller may have fetched meanwhile.
        match self.state().lookup(self.clock.boot(), failures) {
            Lookup::Fresh(value) => return Ok(value),
            Lookup::Failed(error) => return Err(error),
            Lookup::Stale(_) => {}
        }
        let fetched = self.fetch(fetch).await;
        fetched.or_else(|error| self.state().valid(self.clock.boot()).ok_or(error))
    }

    /// A value other than `rejected`, which the caller has and cannot use: what another caller has fetched meanwhile, or else what `fetch`
    /// gives. `rejected` stays for others until a fetch has succeeded.
    ///
    /// # Errors
    /// Those of `fetch`, whichever caller's it was.
    pub async fn get_other<F>(&self, rejected: &Arc<V>, fetch: impl FnOnce() -> F) -> Result<Arc<V>, E>
    where
        F: Future<Output = Result<Fetched<V>, E>>,
    {
        let failures = self.state().failures;
        let _in_flight = self.in_flight.lock().await;
        {
            let (state, now) = (self.state(), self.clock.boot());
            match (state.valid(now), state.failure(now, failures)) {
                (Some(value), _) if !Arc::ptr_eq(&value, rejected) => return Ok(value),
                (_, Some(failure)) => return Err(failure.error.clone()),
                _ => {}
            }
        }
        self.fetch(fetch).await
    }

    /// Fetches; the caller holds `in_flight`.
    async fn fetch<F>(&self, fetch: impl FnOnce() -> F) -> Result<Arc<V>, E>
    where
        F: Future<Output = Result<Fetched<V>, E>>,
    {
        let result = fetch().await;
        let mut state = self.state();
        match result {
            Ok(fetched) => Ok(state.succeed(fetched)),
            Err(error) => {
                state.fail(&error, self.backoff, self.clock.boot());
                Err(error)
            }
        }
    }

    /// Drops the value that `is_rejected`, whose user got `error` for it. The backoff policy applies as after a failed fetch, so that
    /// values that are rejected again and again are not fetched without a pause.
    pub fn invalidate(&self, is_rejected: impl FnOnce(&V) -> bool, error: &E) {
        let mut state = self.state();
        if state.value.take_if(|cached| is_rejected(&cached.value)).is_some() {
            state.fail(error, self.backoff, self.clock.boot());
        }
    }

    fn state(&self) -> MutexGuard<'_, State<V, E>> {
        lock(&self.state)
    }
}

impl<V, E: Clone> State<V, E> {
    fn new() -> Self {
        Self {
            value: None,
            failure: None,
            consecutive_failures: 0,
            failures: 0,
        }
    }

    /// The value, if it has not expired.
    fn valid(&self, now: BootTime) -> Option<Arc<V>> {
        let cached = self.value.as_ref().filter(|cached| now < cached.expires_at);
        cached.map(|cached| Arc::clone(&cached.value))
    }

    fn succeed(&mut self, fetched: Fetched<V>) -> Arc<V> {
        let value = Arc::new(fetched.value);
        self.value = Some(Fetched {
            value: Arc::clone(&value),
            refresh_at: fetched.refresh_at,
            expires_at: fetched.expires_at,
        });
        self.failure = None;
        self.consecutive_failures = 0;
        value
    }

    /// What a caller finds who had seen so many failures when it began to wait.
    fn lookup(&self, now: BootTime, seen: u64) -> Lookup<V, E> {
        let failure = self.failure(now, seen);
        let is_fresh = self.value.as_ref().is_some_and(|cached| now < cached.refresh_at);
        match (self.valid(now), failure) {
            (Some(value), failure) if is_fresh || failure.is_some() => Lookup::Fresh(value),
            (None, Some(failure)) => Lookup::Failed(failure.error.clone()),
            (valid, _) => Lookup::Stale(valid),
        }
    }

    /// The last failure, if it counts for a caller who had seen so many when it began to wait.
    fn failure(&self, now: BootTime, seen: u64) -> Option<&Failure<E>> {
        let counts = |failure: &&Failure<E>| now < failure.retry_at || failure.number > seen;
        self.failure.as_ref().filter(counts)
    }

    fn fail(&mut self, error: &E, backoff: BackoffPolicy<E>, now: BootTime) {
        self.failures += 1;
        self.failure = Some(Failure {
            error: error.clone(),
            number: self.failures,
            retry_at: now + backoff(self.consecutive_failures, error),
        });
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
    }
}

/// A bounded cache of values by key, each fetched by single flight, without a backoff: whoever comes after a failure fetches again.
pub struct SingleFlightCache<K, V, E> {
    slots: Mutex<HashMap<K, Arc<SingleFlight<V, E>>>>,
    capacity: usize,
    clock: Clock,
}

impl<K: Eq + Hash + Clone, V, E: Clone> SingleFlightCache<K, V, E> {
    /// A cache of at most `capacity` values, those that are being fetched not counted.
    #[must_use]
    pub fn new(capacity: usize, clock: Clock) -> Self {
        Self {
            slots: Mutex::default(),
            capacity,
            clock,
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<K, Arc<SingleFlight<V, E>>>> {
        lock(&self.slots)
    }

    /// The value of `key`: the cached one, or else what `fetch` gives.
    ///
    /// # Errors
    /// Those of `fetch`, whichever caller's it was.
    pub async fn get<F>(&self, key: &K, fetch: impl FnOnce() -> F) -> Result<Arc<V>, E>
    where
        F: Future<Output = Result<Fetched<V>, E>>,
    {
        let slot = self.slot(key);
        slot.get(fetch).await
    }

    fn slot(&self, key: &K) -> Arc<SingleFlight<V, E>> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(key) {
            return Arc::clone(slot);
        }
        if slots.len() >= self.capacity {
            retain_used(&mut slots, self.clock.boot());
        }
        if slots.len() >= self.capacity {
            let idle = slots.iter().filter(|(_, slot)| Arc::strong_count(slot) == 1);
            let first = idle
                .min_by_key(|(_, slot)| slot.state().value.as_ref().map(|cached| cached.expires_at))
                .map(|(key, _)| key.clone());
            first.map(|key| slots.remove(&key));
        }
        let slot = Arc::new(SingleFlight::new(|_, _| Duration::ZERO, self.clock.clone()));
        slots.insert(key.clone(), Arc::clone(&slot));
        slot
    }

    /// Drops the values whose key `is_dropped`. A caller that fetches such a value at the moment still gets it; it is not cached.
    pub fn remove(&self, is_dropped: impl Fn(&K) -> bool) {
        self.slots().retain(|key, _| !is_dropped(key));
    }

    /// Drops the value of `key` if it is this very one.
    pub fn invalidate(&self, key: &K, value: &Arc<V>) {
        let mut slots = self.slots();
        let holds_it = |slot: &Arc<SingleFlight<V, E>>| {
            let state = slot.state();
            state
                .value
                .as_ref()
                .is_some_and(|cached| Arc::ptr_eq(&cached.value, value))
        };
        if slots.get(key).is_some_and(holds_it) {
            slots.remove(key);
        }
    }

    /// Drops what has expired.
    pub fn evict_expired(&self) {
        retain_used(&mut self.slots(), self.clock.boot());
    }
}

fn retain_used<K, V, E: Clone>(slots: &mut HashMap<K, Arc<SingleFlight<V, E>>>, now: BootTime) {
    slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.state().valid(now).is_some());
}

impl<K, V, E> std::fmt::Debug for SingleFlightCache<K, V, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SingleFlightCache")
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "single_flight_tests.rs"]
mod tests;
