//! Fairness between namespaces: floods, outages and the recovery from them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use idtoken_emulator::{Endpoint, Fault};
use idtoken_operator::google::{CallPriority, Impersonation};

use crate::support::*;

fn asking_for(flow: &str) -> Impersonation<'_> {
    Impersonation {
        priority: CallPriority {
            flow,
            remaining_lifetime: None,
        },
        ..asking(CALLER)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_costs_few_calls_and_the_recovery_is_paced() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|_| {}).await;
    let served = Arc::new(Mutex::new(Vec::<Instant>::new()));
    let seen = Arc::clone(&served);
    let minter = Arc::new(minter.with_observer(Arc::new(move |call| {
        if (call.endpoint, call.code) == ("iamcredentials", "200") {
            seen.lock().unwrap().push(Instant::now());
        }
    })));
    google
        .fault(Fault::status(503).on(Endpoint::GenerateIdToken))
        .expect("a fault");
    let tries = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for request in 0..500_u64 {
        let (minter, tries) = (Arc::clone(&minter), Arc::clone(&tries));
        tasks.spawn(async move {
            let flow = format!("namespace-{}", request % 50);
            while minter.impersonate(&asking_for(&flow)).await.is_err() {
                tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100 + request)).await;
            }
        });
    }
    // Each request has tried several times.
    let tried = async {
        while tries.load(std::sync::atomic::Ordering::Relaxed) < 3000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, tried).await.expect("they try");
    let outage = google.count(Endpoint::GenerateIdToken);
    // The calls in flight when the circuit opened, and then at most a probe a second.
    assert!((5..=32 + 60).contains(&outage), "{outage} calls in the outage");
    google.clear_faults();
    let all = async { while tasks.join_next().await.is_some() {} };
    tokio::time::timeout(LIMIT, all).await.expect("all are served");

    let served = served.lock().unwrap();
    assert_eq!(served.len(), 500);
    let first = served.iter().min().expect("some");
    let within = |seconds| {
        let until = *first + Duration::from_secs(seconds);
        served.iter().filter(|at| **at <= until).count()
    };
    assert!(within(1) <= 110, "{} in the first second", within(1));
    assert!(within(2) <= 310, "{} in two seconds", within(2));
    eprintln!(
        "{outage} calls in the outage; served {} in 1 s, {} in 2 s, {} in 3 s",
        within(1),
        within(2),
        within(3)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_namespace_costs_another_a_few_turns() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|config| config.max_in_flight = 8).await;
    let done = Arc::new(Mutex::new(0_usize));
    let seen = Arc::clone(&done);
    let minter = Arc::new(minter.with_observer(Arc::new(move |_| *seen.lock().unwrap() += 1)));
    google
        .fault(Fault::delay(Duration::from_millis(20)).on(Endpoint::GenerateIdToken))
        .expect("a fault");
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let minter = Arc::clone(&minter);
        flood.spawn(async move { minter.impersonate(&asking_for("flood")).await.map(|_| ()) });
    }
    for round in 0..10 {
        let wanted = round * 20 + 20;
        let in_flight = async {
            while *done.lock().unwrap() < wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, in_flight)
            .await
            .expect("the flood runs");
        let before = *done.lock().unwrap();
        minter.impersonate(&asking_for("small")).await.expect("a token");
        let passed = *done.lock().unwrap() - before;
        // The calls in flight beside it, and those that end before this line is reached.
        assert!(passed <= 24, "{passed} calls went before a single one");
        assert!(*done.lock().unwrap() < 500, "the flood was over");
    }
    while let Some(result) = flood.join_next().await {
        result.expect("joins").expect("a token");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_hangs_or_has_no_quota_costs_another_nothing() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|config| config.max_in_flight = 4).await;
    let minter = Arc::new(minter);
    google
        .fault(Fault::hang().on(Endpoint::GenerateIdToken).for_account(STRANGER))
        .expect("a fault");
    let mut hung = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let minter = Arc::clone(&minter);
        hung.spawn(async move {
            let request = Impersonation {
                priority: CallPriority {
                    flow: "hung",
                    remaining_lifetime: None,
                },
                ..asking(STRANGER)
            };
            minter.impersonate(&request).await.map(|_| ())
        });
    }
    let in_flight = async {
        while google.count(Endpoint::GenerateIdToken) < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, in_flight).await.expect("calls hang");
    for _ in 0..20 {
        minter.impersonate(&asking_for("other")).await.expect("a token");
    }
    assert_eq!(google.count(Endpoint::GenerateIdToken), 23);
    // Each call that ends lets the next one start.
    hung.abort_all();
    while hung.join_next().await.is_some() {}

    let fault = Fault::status_retry_after(429, idtoken_emulator::RetryAfter::DateIn(100));
    let fault = fault.on(Endpoint::GenerateIdToken).for_account(STRANGER);
    google.clear_faults();
    google.fault(fault).expect("a fault");
    let request = Impersonation {
        priority: CallPriority {
            flow: "poor",
            remaining_lifetime: None,
        },
        ..asking(STRANGER)
    };
    assert_eq!(rejected(&minter, &request).await.status(), Some(429));
    let before = google.count(Endpoint::GenerateIdToken);
    assert!(rejected(&minter, &request).await.retry_after() > Some(Duration::from_secs(40)));
    assert_eq!(google.count(Endpoint::GenerateIdToken), before);
    minter.impersonate(&asking_for("other")).await.expect("a token");
}
