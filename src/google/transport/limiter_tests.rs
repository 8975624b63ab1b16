use super::*;

fn limits(rate: Option<u32>, in_flight: usize, max_wait: Duration) -> Limits {
    Limits::new(
        Endpoint::IamCredentials,
        rate.and_then(NonZeroU32::new),
        in_flight,
        max_wait,
    )
}

fn caller(lane: &str) -> Caller<'_> {
    Caller { lane, left: None }
}

fn fault(status: u16, after: Option<u64>) -> Error {
    let error = Error::new(Endpoint::IamCredentials, Reason::QuotaExceeded, "no").with_status(status);
    match after {
        Some(after) => error.with_retry_after(Duration::from_secs(after)),
        None => error,
    }
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn cap_holds_back_until_a_place_is_free() {
    let limits = Arc::new(limits(None, 1, LONG));
    let first = limits.acquire(caller("a")).await.expect("free");
    let second = tokio::spawn({
        let limits = Arc::clone(&limits);
        async move { limits.acquire(caller("a")).await }
    });
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    drop(first);
    assert!(second.await.expect("joins").is_ok());
}

#[tokio::test]
async fn waiting_ends() {
    let limits = limits(None, 1, Duration::from_millis(20));
    let _first = limits.acquire(caller("a")).await.expect("free");
    let error = limits.acquire(caller("a")).await.expect_err("full");
    assert_eq!(
        (error.reason(), error.class(), error.postponed()),
        ("LocallyLimited", ErrorClass::Transient, None)
    );
}

#[tokio::test]
async fn who_goes_away_gives_up_the_place() {
    let limits = Arc::new(limits(None, 1, LONG));
    let first = limits.acquire(caller("a")).await.expect("free");
    let second = tokio::spawn({
        let limits = Arc::clone(&limits);
        async move { limits.acquire(caller("a")).await }
    });
    let third = tokio::spawn({
        let limits = Arc::clone(&limits);
        async move { limits.acquire(caller("a")).await }
    });
    tokio::task::yield_now().await;
    // It is told that it may start, and is gone before it hears so.
    drop(first);
    second.abort();
    assert!(second.await.is_err());
    assert!(third.await.expect("joins").is_ok());
}

#[tokio::test]
async fn rate_holds_back() {
    let limits = limits(Some(20), 100, LONG);
    let start = Instant::now();
    let mut waited = Duration::ZERO;
    for _ in 0..26 {
        let admission = limits.acquire(caller("a")).await.expect("in time");
        waited += admission.waited();
        admission.finish(None);
    }
    // The first 20 are the burst of a second, and one more is due at once; five more take 5/20 s.
    assert!(
        start.elapsed() >= Duration::from_millis(240),
        "{:?}",
        start.elapsed()
    );
    assert!(waited >= Duration::from_millis(240), "{waited:?}");
}

#[tokio::test]
async fn retry_after_holds_back_its_own_lane_alone() {
    let limits = limits(None, 1, LONG);
    let call = async |lane, status, after| {
        let admission = limits.acquire(caller(lane)).await?;
        admission.finish(Some(&fault(status, after)));
        Ok::<_, Error>(())
    };
    // Only 429 and 503 may ask for a pause.
    call("a", 500, Some(100)).await.expect("open");
    call("a", 429, Some(100)).await.expect("open");
    let error = call("a", 429, None).await.expect_err("closed");
    assert_eq!((error.reason(), error.status()), ("QuotaExceeded", Some(429)));
    assert!(
        error
            .retry_after()
            .is_some_and(|after| after > Duration::from_secs(90))
    );
    call("b", 429, Some(0)).await.expect("another's pause");
    call("b", 429, None).await.expect("no longer than asked for");
}

#[tokio::test]
async fn one_probe_while_all_fails_and_the_same_words_each_time() {
    let limits = limits(None, 32, LONG);
    let mut calls = 0;
    let mut words = std::collections::HashSet::new();
    for _ in 0..10 {
        for lane in ["a", "b", "c"] {
            for _ in 0..10 {
                match limits.acquire(caller(lane)).await {
                    Ok(admission) => {
                        calls += 1;
                        admission.finish(Some(&fault(502, None)));
                    }
                    Err(error) => {
                        assert_eq!(
                            (error.class(), error.retry_after()),
                            (ErrorClass::Transient, None)
                        );
                        words.insert(error.to_string());
                    }
                }
            }
        }
    }
    // Those that fail before it is known, and a probe a second at most where this takes so long.
    assert!((5..10).contains(&calls), "{calls} calls");
    assert_eq!(words.len(), 1, "{words:?}");
}
