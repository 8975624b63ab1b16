use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::join_all;

use super::*;
use crate::clock::VirtualClock;

type Numbers = SingleFlightCache<&'static str, u32, &'static str>;

const MINUTE: Duration = Duration::from_secs(60);

async fn get(cache: &Numbers, key: &'static str, value: u32) -> u32 {
    let value = cache.get(&key, || async move {
        Ok(Fetched::for_lifetime(value, MINUTE, Clock::system().boot()))
    });
    *value.await.expect("a value")
}

#[tokio::test]
async fn many_callers_cost_one_fetch() {
    let (cache, calls) = (Numbers::new(10, Clock::system()), AtomicU32::new(0));
    let fetch = || async {
        tokio::task::yield_now().await;
        Ok(Fetched::for_lifetime(
            calls.fetch_add(1, Ordering::Relaxed),
            MINUTE,
            Clock::system().boot(),
        ))
    };
    let all = join_all((0..200).map(|_| cache.get(&"a", fetch))).await;
    assert!(
        all.iter()
            .all(|value| value.as_ref().is_ok_and(|value| **value == 0))
    );
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_failure_is_shared_with_all_that_wait_and_not_kept() {
    let (cache, calls) = (Numbers::new(10, Clock::system()), AtomicU32::new(0));
    let fail = || async {
        tokio::task::yield_now().await;
        calls.fetch_add(1, Ordering::Relaxed);
        Err("no")
    };
    let all = join_all((0..200).map(|_| cache.get(&"a", fail))).await;
    assert!(all.iter().all(|value| *value == Err("no")));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert_eq!(get(&cache, "a", 7).await, 7, "the next one tries again");
}

#[tokio::test]
async fn a_cancelled_fetch_is_left_to_the_next_caller() {
    let cache = Numbers::new(10, Clock::system());
    let hung = cache.get(&"a", || async {
        std::future::pending::<()>().await;
        Ok(Fetched::for_lifetime(0, MINUTE, Clock::system().boot()))
    });
    let (cancelled, next) = tokio::join!(
        tokio::time::timeout(Duration::from_millis(20), hung),
        get(&cache, "a", 7)
    );
    assert!(cancelled.is_err());
    assert_eq!(next, 7);
}

#[tokio::test]
async fn one_key_does_not_wait_for_another() {
    let cache = Numbers::new(10, Clock::system());
    let hung = cache.get(&"a", || async {
        std::future::pending::<()>().await;
        Ok(Fetched::for_lifetime(0, MINUTE, Clock::system().boot()))
    });
    tokio::select! {
        biased;
        _ = hung => panic!("it hangs"),
        value = get(&cache, "b", 7) => assert_eq!(value, 7),
    }
}

#[tokio::test]
async fn it_is_bounded_and_drops_what_expires_first() {
    let cache = Numbers::new(2, Clock::system());
    for (key, seconds) in [("long", 50), ("short", 10), ("new", 30)] {
        let lifetime = Duration::from_secs(seconds);
        let value = cache
            .get(&key, || async move {
                Ok(Fetched::for_lifetime(1, lifetime, Clock::system().boot()))
            })
            .await;
        assert!(value.is_ok());
    }
    assert_eq!(cache.slots().len(), 2);
    assert_eq!(get(&cache, "long", 2).await, 1, "still the first");
    assert_eq!(get(&cache, "short", 2).await, 2, "fetched again");
}

#[tokio::test]
async fn values_are_removed_invalidated_and_evicted() {
    let cache = Numbers::new(10, Clock::system());
    assert_eq!(get(&cache, "a", 1).await, 1);
    assert_eq!(get(&cache, "b", 1).await, 1);
    cache.remove(|key| *key == "a");
    assert_eq!(get(&cache, "a", 2).await, 2);
    let old = cache.get(&"b", || async { Err("cached") }).await.expect("cached");
    cache.invalidate(&"b", &old);
    assert_eq!(get(&cache, "b", 2).await, 2);
    cache.invalidate(&"b", &old);
    assert_eq!(get(&cache, "b", 3).await, 2, "not the one that is invalidated");
    let weak = Arc::downgrade(&old);
    drop(old);
    assert!(weak.upgrade().is_none());
    cache.evict_expired();
    assert_eq!(cache.slots().len(), 2);
    let brief = || async { Ok(Fetched::for_lifetime(1, Duration::ZERO, Clock::system().boot())) };
    assert_eq!(cache.get(&"c", brief).await.map(|value| *value), Ok(1));
    assert_eq!(get(&cache, "c", 2).await, 2, "the first has expired");
    cache.remove(|_| true);
    assert_eq!(cache.get(&"c", brief).await.map(|value| *value), Ok(1));
    cache.evict_expired();
    assert!(cache.slots().is_empty());
}

type Single = SingleFlight<&'static str, u64>;

/// Doubles from a second on; an error is how many seconds the server asked to wait.
fn backoff(failures: u32, error: &u64) -> Duration {
    Duration::from_secs((1 << failures).max(*error))
}

fn at(start: BootTime, millis: u64) -> BootTime {
    start + Duration::from_millis(millis)
}

fn state(value: &'static str, start: BootTime) -> State<&'static str, u64> {
    let mut state = State::new();
    state.succeed(Fetched {
        value,
        refresh_at: at(start, 3_375_000),
        expires_at: at(start, 3_600_000),
    });
    state
}

/// What a caller gets without a fetch, and whether it would fetch.
fn lookup(state: &State<&'static str, u64>, now: BootTime) -> (bool, bool) {
    match state.lookup(now, state.failures) {
        Lookup::Fresh(_) => (true, false),
        Lookup::Stale(value) => (value.is_some(), true),
        Lookup::Failed(_) => (false, false),
    }
}

#[test]
fn a_stale_value_is_used_until_it_expires() {
    let start = Clock::system().boot();
    let state = state("a", start);
    assert_eq!(lookup(&state, at(start, 3_374_000)), (true, false));
    assert_eq!(lookup(&state, at(start, 3_376_000)), (true, true));
    assert_eq!(lookup(&state, at(start, 3_601_000)), (false, true));
}

#[test]
fn failures_are_spaced_by_the_policy() {
    let start = Clock::system().boot();
    let mut none = State::new();
    assert_eq!(lookup(&none, start), (false, true));
    none.fail(&0, backoff, start);
    assert_eq!(lookup(&none, at(start, 900)), (false, false));
    assert_eq!(lookup(&none, at(start, 1100)), (false, true));
    none.fail(&0, backoff, at(start, 1100));
    assert_eq!(lookup(&none, at(start, 3000)), (false, false));
    assert_eq!(lookup(&none, at(start, 3200)), (false, true));
    // A success begins a new row of failures.
    none.succeed(Fetched {
        value: "a",
        refresh_at: at(start, 4000),
        expires_at: at(start, 4000),
    });
    none.fail(&0, backoff, at(start, 4000));
    assert_eq!(lookup(&none, at(start, 5100)), (false, true));
    // The server's word is obeyed, and a value that has not expired is used meanwhile.
    let mut state = state("a", start);
    state.fail(&30, backoff, at(start, 3_500_000));
    assert_eq!(lookup(&state, at(start, 3_529_000)), (true, false));
    assert_eq!(lookup(&state, at(start, 3_531_000)), (true, true));
}

#[tokio::test]
async fn only_the_rejected_value_is_dropped() {
    let fetch =
        |value| move || async move { Ok(Fetched::for_lifetime(value, MINUTE, Clock::system().boot())) };
    let spaced: BackoffPolicy<u64> = |_, _| MINUTE;
    let at_once: BackoffPolicy<u64> = |_, _| Duration::ZERO;
    for (backoff, next) in [(spaced, Err(0)), (at_once, Ok("b"))] {
        let single = Single::new(backoff, Clock::system());
        assert_eq!(single.get(fetch("a")).await.as_deref(), Ok(&"a"));
        single.invalidate(|value| *value == "b", &7);
        assert_eq!(single.get(fetch("b")).await.as_deref(), Ok(&"a"));
        single.invalidate(|value| *value == "a", &0);
        assert_eq!(single.get(fetch("b")).await.map(|value| *value), next);
    }
}

#[tokio::test]
async fn a_stale_value_stands_in_for_a_fetch_that_runs_or_fails() {
    let single = Single::new(backoff, Clock::system());
    let now = Clock::system().boot();
    let first = single.get(|| async move {
        Ok(Fetched {
            value: "a",
            refresh_at: now,
            expires_at: now + MINUTE,
        })
    });
    assert_eq!(first.await.as_deref(), Ok(&"a"));
    let slow = single.get(|| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(0)
    });
    let other = single.get(|| async { panic!("a fetch is in flight") });
    let (slow, other) = tokio::join!(slow, other);
    assert_eq!((slow.as_deref(), other.as_deref()), (Ok(&"a"), Ok(&"a")));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_threads_cost_one_fetch() {
    let (single, fetches) = (
        Arc::new(Single::new(backoff, Clock::system())),
        Arc::new(AtomicU32::new(0)),
    );
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let (single, fetches) = (single.clone(), fetches.clone());
            tokio::spawn(async move {
                let fetch = || async {
                    fetches.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok(Fetched::for_lifetime("a", MINUTE, Clock::system().boot()))
                };
                single.get(fetch).await.is_ok()
            })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.expect("no panic"));
    }
    assert_eq!(fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn another_value_is_fetched_once_and_the_rejected_one_stays_until_then() {
    let single = Single::new(|_, _| MINUTE, Clock::system());
    let give =
        |value| move || async move { Ok(Fetched::for_lifetime(value, MINUTE, Clock::system().boot())) };
    let first = single.get(give("a")).await.expect("a value");
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(Fetched::for_lifetime("b", MINUTE, Clock::system().boot()))
    };
    let (other, meanwhile, waiting) = tokio::join!(
        single.get_other(&first, slow),
        single.get(|| async { panic!("the value is fresh") }),
        single.get_other(&first, || async { panic!("a fetch is in flight") }),
    );
    assert_eq!(
        [other, meanwhile, waiting].map(|value| value.map(|value| *value)),
        [Ok("b"), Ok("a"), Ok("b")]
    );
    let second = single
        .get(|| async { panic!("the value is fresh") })
        .await
        .expect("a value");
    let failed = single.get_other(&second, || async { Err(7) }).await;
    assert_eq!(failed, Err(7));
    let spaced = single
        .get_other(&second, || async { panic!("failures are spaced") })
        .await;
    assert_eq!(spaced, Err(7));
    assert_eq!(
        single
            .get(|| async { panic!("the value is fresh") })
            .await
            .as_deref(),
        Ok(&"b")
    );
}

#[tokio::test]
async fn a_value_expires_while_the_machine_sleeps() {
    let time = VirtualClock::new(jiff::Timestamp::UNIX_EPOCH);
    let cache = Numbers::new(10, time.clock());
    let fetch = |value| {
        let now = time.clock().boot();
        move || async move { Ok(Fetched::for_lifetime(value, MINUTE, now)) }
    };
    assert_eq!(cache.get(&"a", fetch(1)).await.map(|value| *value), Ok(1));
    time.sleep_machine(MINUTE / 2);
    assert_eq!(cache.get(&"a", fetch(2)).await.map(|value| *value), Ok(1));
    time.sleep_machine(MINUTE);
    assert_eq!(cache.get(&"a", fetch(3)).await.map(|value| *value), Ok(3));
    time.sleep_machine(2 * MINUTE);
    cache.evict_expired();
    assert!(cache.slots().is_empty());
}
