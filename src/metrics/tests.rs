use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::*;
use crate::api::conditions::{READY, RENEWAL_FAILING};
use crate::api::v1alpha1::{IdTokenRequestStatus, TokenStatus};
use crate::google::Endpoint;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

/// A request whose token expires at `expires` and is renewed at `renews`; none if the token does not match the spec.
fn status(ready: &str, reason: &str, expires: Option<i64>, renews: Option<i64>) -> IdTokenRequestStatus {
    IdTokenRequestStatus {
        conditions: vec![condition(READY, ready, reason, 0)],
        token: expires.map(|expires| TokenStatus {
            expiration_time: Some(Time(at(expires))),
            ..TokenStatus::default()
        }),
        renewal_time: renews.map(|renews| Time(at(renews))),
        ..IdTokenRequestStatus::default()
    }
}

fn condition(type_: &str, status: &str, reason: &str, since: i64) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(at(since)),
    }
}

fn issued(expires: i64, renews: i64) -> Option<RequestState> {
    RequestState::new(&status("True", "Issued", Some(expires), Some(renews)), false)
}

/// The value of a series; none where there is no such line.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

fn scrape(metrics: &Metrics, now: i64) -> String {
    metrics.encode(Format::OpenMetrics, at(now)).unwrap()
}

#[test]
fn states_are_counted_by_namespace_and_forgotten() {
    let metrics = Metrics::default();
    metrics.set_request(&key("a"), issued(2000, 1500), at(100));
    metrics.set_request(&key("b"), issued(1000, 500), at(100));
    let denied = RequestState::new(&status("False", "NotGranted", None, None), false);
    metrics.set_request(&key("c"), denied, at(100));
    let text = scrape(&metrics, 100);
    let ready = r#"idtoken_requests{namespace="shop",ready="True",reason="Issued"}"#;
    let earliest = r#"idtoken_earliest_expiration_timestamp_seconds{namespace="shop"}"#;
    assert_eq!(
        (value(&text, ready), value(&text, earliest)),
        (Some(2.0), Some(1000.0))
    );
    metrics.remove_request(&key("b"), at(100));
    let text = scrape(&metrics, 100);
    assert_eq!(
        (value(&text, ready), value(&text, earliest)),
        (Some(1.0), Some(2000.0))
    );
    // No series of a namespace is left when its requests are.
    metrics.retain_requests("shop", &HashSet::new(), at(100));
    let text = scrape(&metrics, 100);
    assert!(!text.contains("shop"), "{text}");
}

#[test]
fn conditions_are_counted_and_the_longest_failure_is_exported() {
    let metrics = Metrics::default();
    for (name, since) in [("a", 70), ("b", 50), ("c", 90)] {
        let mut failing = status("True", "Issued", Some(2000), Some(1500));
        let upstream = condition(RENEWAL_FAILING, "True", "QuotaExceeded", since);
        failing.conditions.push(upstream);
        failing
            .conditions
            .push(condition("Stalled", "False", "Reconciled", 0));
        metrics.set_request(&key(name), RequestState::new(&failing, false), at(100));
    }
    let failing =
        r#"idtoken_request_conditions{namespace="shop",type="RenewalFailing",reason="QuotaExceeded"}"#;
    let since = r#"idtoken_earliest_renewal_failure_timestamp_seconds{namespace="shop"}"#;
    let text = scrape(&metrics, 100);
    assert_eq!(
        (value(&text, failing), value(&text, since)),
        (Some(3.0), Some(50.0))
    );
    assert!(!text.contains("Stalled"), "{text}");
    for name in ["a", "b", "c"] {
        metrics.set_request(&key(name), issued(2000, 1500), at(100));
    }
    let text = scrape(&metrics, 100);
    assert_eq!((value(&text, failing), value(&text, since)), (None, None));
}

#[test]
fn a_late_renewal_differs_from_a_token_that_expires_soon() {
    let metrics = Metrics::default();
    let overdue = r#"idtoken_earliest_overdue_expiration_timestamp_seconds{namespace="shop"}"#;
    let earliest = r#"idtoken_earliest_expiration_timestamp_seconds{namespace="shop"}"#;
    metrics.set_request(&key("a"), issued(1000, 500), at(100));
    metrics.set_request(&key("later"), issued(4000, 3000), at(100));
    let seen = |now| {
        let text = scrape(&metrics, now);
        (value(&text, earliest), value(&text, overdue))
    };
    assert_eq!(seen(560), (Some(1000.0), None));
    assert_eq!(seen(561), (Some(1000.0), Some(1000.0)));
    // No renewal of a suspended request is due.
    let suspended = RequestState::new(&status("True", "Suspended", Some(1000), Some(500)), true);
    metrics.set_request(&key("a"), suspended, at(561));
    assert_eq!(seen(562), (Some(4000.0), None));
    // The token does not match the spec, and no renewal is planned.
    let outdated = RequestState::new(&status("False", "InvalidSpec", Some(1000), None), false);
    metrics.set_request(&key("a"), outdated, at(562));
    assert_eq!(seen(563), (Some(1000.0), Some(1000.0)));
}

#[test]
fn seconds_with_an_expired_token_are_counted_once() {
    let metrics = Metrics::default();
    let counted = |now| value(&scrape(&metrics, now), "idtoken_served_expired_seconds_total").unwrap();
    metrics.set_request(&key("a"), issued(1000, 500), at(100));
    metrics.set_request(&key("b"), issued(1010, 500), at(100));
    assert_eq!((counted(900), counted(1000)), (0.0, 0.0));
    assert_eq!((counted(1005), counted(1005)), (5.0, 5.0));
    // 15 s of a and 5 s of b.
    assert_eq!(counted(1015), 20.0);
    metrics.set_request(&key("a"), issued(5000, 4000), at(1020));
    metrics.remove_request(&key("b"), at(1020));
    assert_eq!((counted(1020), counted(2000)), (30.0, 30.0));
    // Not before this process knew of it, nor while it is suspended.
    metrics.set_request(&key("old"), issued(1, 0), at(2000));
    assert_eq!(counted(2003), 33.0);
    let suspended = RequestState::new(&status("False", "Suspended", Some(1), None), true);
    metrics.set_request(&key("old"), suspended, at(2004));
    assert_eq!(counted(3000), 34.0);
    metrics.set_request(&key("old"), issued(1, 0), at(3000));
    metrics.set_leader(false, at(3002));
    assert_eq!(counted(4000), 36.0);
}

#[test]
fn what_is_left_of_tokens_is_a_gauge_histogram() {
    let metrics = Metrics::default();
    for (name, expires) in [("a", 90), ("b", 400), ("c", 1000), ("d", 3700)] {
        metrics.set_request(&key(name), issued(expires, expires), at(0));
    }
    let text = scrape(&metrics, 100);
    let bucket = |le: &str| {
        value(
            &text,
            &format!("idtoken_token_remaining_seconds_bucket{{le=\"{le}\"}}"),
        )
    };
    assert_eq!(
        ["0.0", "300.0", "900.0", "3600.0", "+Inf"].map(bucket),
        [1.0, 2.0, 3.0, 4.0, 4.0].map(Some)
    );
    assert_eq!(value(&text, "idtoken_token_remaining_seconds_gsum"), Some(4800.0));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn names_are_exported_on_demand_only() {
    let series = r#"idtoken_request_expiration_timestamp_seconds{namespace="shop",name="a"}"#;
    let metrics = Metrics::default();
    metrics.set_request(&key("a"), issued(1000, 500), at(100));
    assert!(!scrape(&metrics, 100).contains("name="));
    let metrics = Metrics::new(Options { per_request: true });
    metrics.set_request(&key("a"), issued(1000, 500), at(100));
    let text = scrape(&metrics, 100);
    assert_eq!(value(&text, series), Some(1000.0));
    let ready = r#"idtoken_request_ready{namespace="shop",name="a"}"#;
    assert_eq!(value(&text, ready), Some(1.0));
    metrics.remove_request(&key("a"), at(100));
    assert!(!scrape(&metrics, 100).contains("name="));
}

#[test]
fn loads_of_an_endpoint_are_added_up() {
    let metrics = Metrics::default();
    let is_used = Arc::new(AtomicBool::new(true));
    let is_provider_used = Arc::clone(&is_used);
    metrics.register_load_collector(move || {
        let load = |endpoint, in_flight, is_open, open_flows| EndpointLoad {
            endpoint,
            in_flight,
            limit: 32,
            limit_moves: [4, 1, 0, 0, 0],
            waiting: 1,
            is_open,
            open_flows,
        };
        let mut loads = vec![
            load(Endpoint::IamCredentials, 2, true, 3),
            load(Endpoint::Sts, 0, false, 0),
        ];
        if is_provider_used.load(Ordering::SeqCst) {
            loads.push(load(Endpoint::IamCredentials, 5, false, 1));
        }
        loads
    });
    for _ in 0..2 {
        let text = scrape(&metrics, 0);
        let iam = |series: &str| value(&text, &format!("idtoken_upstream_{series}"));
        assert_eq!(iam(r#"in_flight{endpoint="iamcredentials"}"#), Some(7.0));
        assert_eq!(iam(r#"waiting{endpoint="iamcredentials"}"#), Some(2.0));
        assert_eq!(iam(r#"limit{endpoint="iamcredentials"}"#), Some(64.0));
        let moves = |cause| {
            iam(&format!(
                r#"limit_moves_total{{endpoint="iamcredentials",cause="{cause}"}}"#
            ))
        };
        assert_eq!((moves("grown"), moves("throttled")), (Some(8.0), Some(2.0)));
        assert_eq!(
            iam(r#"circuits_open{endpoint="iamcredentials",scope="endpoint"}"#),
            Some(1.0)
        );
        assert_eq!(
            iam(r#"circuits_open{endpoint="iamcredentials",scope="namespace"}"#),
            Some(4.0)
        );
        assert_eq!(
            iam(r#"circuits_open{endpoint="sts",scope="endpoint"}"#),
            Some(0.0)
        );
    }
    // A counter never goes down.
    is_used.store(false, Ordering::SeqCst);
    let text = scrape(&metrics, 0);
    let moves = r#"idtoken_upstream_limit_moves_total{endpoint="iamcredentials",cause="grown"}"#;
    assert_eq!(value(&text, moves), Some(8.0));
    assert_eq!(
        value(&text, r#"idtoken_upstream_limit{endpoint="iamcredentials"}"#),
        Some(32.0)
    );
}

#[test]
fn a_watch_is_failing_from_a_try_that_failed_to_the_next_sign_of_life() {
    let metrics = Metrics::default();
    let failing = |metrics: &Metrics| {
        let text = scrape(metrics, 0);
        value(&text, r#"idtoken_watches_failing{resource="secrets"}"#)
    };
    let (mut one, mut other) = (metrics.watch("secrets"), metrics.watch("secrets"));
    one.failed(false);
    assert_eq!(failing(&metrics), Some(0.0));
    one.failed(true);
    one.failed(true);
    other.failed(true);
    assert_eq!(failing(&metrics), Some(2.0));
    one.alive(at(7));
    one.alive(at(8));
    assert_eq!(failing(&metrics), Some(1.0));
    drop(other);
    assert_eq!(failing(&metrics), Some(0.0));
    let text = scrape(&metrics, 0);
    let restarts = r#"idtoken_watch_restarts_total{resource="secrets"}"#;
    assert_eq!(value(&text, restarts), Some(4.0));
    let last = r#"idtoken_watch_last_event_timestamp_seconds{resource="secrets"}"#;
    assert_eq!(value(&text, last), Some(8.0));
}

#[test]
fn a_scrape_holds_no_lock_that_a_reconcile_wants() {
    let metrics = std::sync::Arc::new(Metrics::default());
    metrics.set_request(&key("a"), issued(2000, 1500), at(100));
    let of_scrape = std::sync::Arc::downgrade(&metrics);
    let done = std::sync::Arc::new(Mutex::new(false));
    let seen = done.clone();
    // Called in the midst of a scrape.
    metrics.register_load_collector(move || {
        let metrics = of_scrape.upgrade().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            metrics.set_request(&key("b"), issued(3000, 1500), at(100));
            metrics.remove_request(&key("a"), at(100));
            let _ = sender.send(());
        });
        *lock(&done) = receiver.recv_timeout(Duration::from_secs(60)).is_ok();
        Vec::new()
    });
    let text = scrape(&metrics, 100);
    assert!(*lock(&seen), "a reconcile waits for a scrape");
    // The scrape shows one moment.
    assert_eq!(value(&text, "idtoken_token_remaining_seconds_gcount"), Some(1.0));
    assert_eq!(
        value(
            &text,
            "idtoken_earliest_expiration_timestamp_seconds{namespace=\"shop\"}"
        ),
        Some(2000.0)
    );
    let text = scrape(&metrics, 100);
    assert_eq!(
        value(
            &text,
            "idtoken_earliest_expiration_timestamp_seconds{namespace=\"shop\"}"
        ),
        Some(3000.0)
    );
}
