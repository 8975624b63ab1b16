use super::*;

fn limiter(rate: Option<u32>, in_flight: usize, max_wait: Duration) -> Limiter {
    Limiter::new(
        Endpoint::IamCredentials,
        rate.and_then(NonZeroU32::new),
        in_flight,
        max_wait,
        Recoveries::default(),
        Clock::system(),
    )
}

fn priority(flow: &str) -> CallPriority<'_> {
    CallPriority {
        flow,
        remaining_lifetime: None,
    }
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
async fn the_cap_holds_back_until_a_slot_is_free() {
    let limiter = Arc::new(limiter(None, 1, LONG));
    let first = limiter.acquire(priority("a")).await.expect("free");
    let second = tokio::spawn({
        let limiter = Arc::clone(&limiter);
        async move { limiter.acquire(priority("a")).await }
    });
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    drop(first);
    assert!(second.await.expect("joins").is_ok());
}

#[tokio::test]
async fn waiting_is_limited() {
    let limiter = limiter(None, 1, Duration::from_millis(20));
    let _first = limiter.acquire(priority("a")).await.expect("free");
    let error = limiter.acquire(priority("a")).await.expect_err("full");
    assert_eq!(
        (error.reason().as_str(), error.class(), error.deferred_for()),
        ("LocallyLimited", ErrorClass::Transient, None)
    );
}

#[tokio::test]
async fn a_cancelled_call_frees_its_slot() {
    let limiter = Arc::new(limiter(None, 1, LONG));
    let first = limiter.acquire(priority("a")).await.expect("free");
    let second = tokio::spawn({
        let limiter = Arc::clone(&limiter);
        async move { limiter.acquire(priority("a")).await }
    });
    let third = tokio::spawn({
        let limiter = Arc::clone(&limiter);
        async move { limiter.acquire(priority("a")).await }
    });
    tokio::task::yield_now().await;
    // It is admitted, and cancelled before it learns that.
    drop(first);
    second.abort();
    assert!(second.await.is_err());
    assert!(third.await.expect("joins").is_ok());
}

#[tokio::test]
async fn the_rate_holds_back() {
    let limiter = limiter(Some(20), 100, LONG);
    let start = Instant::now();
    let mut waited = Duration::ZERO;
    for _ in 0..26 {
        let permit = limiter.acquire(priority("a")).await.expect("in time");
        waited += permit.waited();
        permit.finish(None);
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
async fn retry_after_holds_back_only_its_own_flow() {
    let limiter = limiter(None, 1, LONG);
    let call = async |flow, status, after| {
        let permit = limiter.acquire(priority(flow)).await?;
        permit.finish(Some(&fault(status, after)));
        Ok::<_, Error>(())
    };
    // Only 429 and 503 may ask for a pause.
    call("a", 500, Some(100)).await.expect("open");
    call("a", 429, Some(100)).await.expect("open");
    let error = call("a", 429, None).await.expect_err("closed");
    assert_eq!(
        (error.reason().as_str(), error.status()),
        ("QuotaExceeded", Some(429))
    );
    assert!(
        error
            .retry_after()
            .is_some_and(|after| after > Duration::from_secs(90))
    );
    call("b", 429, Some(0)).await.expect("another flow's pause");
    call("b", 429, None)
        .await
        .expect("no longer than the server asked");
}

#[tokio::test]
async fn one_probe_while_all_fails_and_the_same_words_each_time() {
    let limiter = limiter(None, 32, LONG);
    let mut calls = 0;
    let mut words = std::collections::HashSet::new();
    for _ in 0..10 {
        for flow in ["a", "b", "c"] {
            for _ in 0..10 {
                match limiter.acquire(priority(flow)).await {
                    Ok(permit) => {
                        calls += 1;
                        permit.finish(Some(&fault(502, None)));
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
    // The calls that fail before the circuit opens, and at most a probe a second if this takes so long.
    assert!((5..10).contains(&calls), "{calls} calls");
    assert_eq!(words.len(), 1, "{words:?}");
}
