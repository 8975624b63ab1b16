use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::*;
use crate::admin::tests as admin;

const LIMIT: Duration = Duration::from_secs(60);

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn worker(limit: usize) -> (Worker, UnboundedSender<ObjectKey>, UnboundedSender<Scope>) {
    let (requests, requests_receiver) = unbounded_channel();
    let (scopes, scopes_receiver) = unbounded_channel();
    let clock = Clock::system();
    let worker = Worker::new(
        requests_receiver,
        scopes_receiver,
        Limits {
            in_flight: limit,
            in_flight_per_namespace: Arc::new(move || limit),
            is_congested: Arc::new(|_| false),
            is_surging: Arc::new(|| false),
            permits: Permits::new(limit, clock.clone()),
        },
        Liveness::new(Duration::from_millis(50), clock.monotonic()),
        Arc::new(Metrics::default()),
        clock,
    );
    (worker, requests, scopes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconcile_that_blocks_its_thread_blocks_no_other_and_is_reported_as_stuck() {
    let (mut worker, requests, _scopes) = worker(2);
    let liveness = worker.liveness.clone();
    let (free, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(Some(blocked)));
    let (done, mut finished) = watch::channel(0);
    let start = |key: &ObjectKey, _: Permit| {
        let blocked = (key.name() == "blocks")
            .then(|| blocked.lock().unwrap().take())
            .flatten();
        let done = done.clone();
        Some(async move {
            if let Some(blocked) = blocked {
                // As a deadlock would: no await point, so that no timeout reaches it.
                let _ = blocked.recv();
            }
            done.send_modify(|count| *count += 1);
            None
        })
    };
    let stop = Notify::new();
    let running = worker.run(|_| vec![key("blocks")], start, stop.notified());
    let watching = async {
        for name in ["a", "b", "c"] {
            requests.send(key(name)).unwrap();
        }
        timeout(LIMIT, finished.wait_for(|count| *count == 3))
            .await
            .expect("the others are done")
            .unwrap();
        while liveness.check(Instant::now()).is_ok() {
            tokio::task::yield_now().await;
        }
        let stuck = liveness.check(Instant::now());
        assert!(
            matches!(stuck, Err(crate::liveness::Stuck::Overdue { .. })),
            "{stuck:?}"
        );
        let (status, body) = admin::get("/livez", true, &liveness).await;
        assert_eq!(status, 500, "{body}");
        assert!(body.contains("past its own time limit"), "{body}");
        free.send(()).unwrap();
        timeout(LIMIT, finished.wait_for(|count| *count == 4))
            .await
            .expect("all are done")
            .unwrap();
        stop.notify_one();
    };
    tokio::join!(running, watching);
    assert_eq!(liveness.check(Instant::now()), Ok(()));
    assert_eq!(admin::get("/livez", true, &liveness).await.0, 200);
}

#[tokio::test]
async fn what_was_enqueued_before_the_first_reconcile_is_reconciled_once() {
    let (mut worker, requests, scopes) = worker(8);
    for name in ["a", "b"] {
        requests.send(key(name)).unwrap();
    }
    scopes.send(Scope::All).unwrap();
    let (started, finished) = (Mutex::new(Vec::new()), Arc::new(AtomicUsize::new(0)));
    let stop = Arc::new(Notify::new());
    let start = |key: &ObjectKey, _: Permit| {
        started.lock().unwrap().push(key.name().to_owned());
        let (finished, stop, requests) = (finished.clone(), stop.clone(), requests.clone());
        Some(async move {
            match finished.fetch_add(1, Ordering::SeqCst) {
                // It is received after all that was sent before.
                1 => drop(requests.send(ObjectKey::new("shop", "last"))),
                2 => stop.notify_one(),
                _ => {}
            }
            None
        })
    };
    worker
        .run(|_| vec![key("a"), key("b")], start, stop.notified())
        .await;
    assert_eq!(*started.lock().unwrap(), ["a", "b", "last"]);
}

#[tokio::test]
async fn a_panic_is_retried_and_a_stop_waits_for_reconciles_in_flight() {
    let (mut worker, _requests, _scopes) = worker(8);
    let tries = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(Notify::new());
    let start = |_: &ObjectKey, _: Permit| {
        let (tries, stop) = (tries.clone(), stop.clone());
        Some(async move {
            if tries.fetch_add(1, Ordering::SeqCst) == 0 {
                panic!("a bug");
            }
            stop.notify_one();
            tokio::time::sleep(Duration::from_millis(200)).await;
            tries.fetch_add(1, Ordering::SeqCst);
            Some(Requeue {
                after: Duration::from_secs(1),
                token_left: None,
            })
        })
    };
    worker.run(|_| vec![key("a")], start, stop.notified()).await;
    // Started twice, finished once, and not started again after the stop.
    assert_eq!(tries.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn cancelled_reconciles_are_gone_before_the_return() {
    struct InFlight(Arc<AtomicUsize>);
    impl Drop for InFlight {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let (mut worker, _requests, _scopes) = worker(8);
    let in_flight = Arc::new(AtomicUsize::new(0));
    let start = |_: &ObjectKey, _: Permit| {
        let in_flight = in_flight.clone();
        Some(async move {
            in_flight.fetch_add(1, Ordering::SeqCst);
            let _guard = InFlight(in_flight);
            std::future::pending::<()>().await;
            None
        })
    };
    let keys = |_: Scope| (0..20).map(|n| key(&n.to_string())).collect();
    let run = worker.run(keys, start, std::future::pending());
    assert!(timeout(Duration::from_secs(1), run).await.is_err());
    assert_eq!(in_flight.load(Ordering::SeqCst), 8);
    worker.cancel_all().await;
    assert_eq!(in_flight.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_standby_drops_what_it_receives() {
    let (mut worker, requests, scopes) = worker(8);
    requests.send(key("a")).unwrap();
    scopes.send(Scope::All).unwrap();
    let drained = timeout(Duration::from_millis(100), worker.drain_while_standby());
    assert!(drained.await.is_err());
    assert!(worker.requests.is_empty() && worker.scopes.is_empty());
}

#[tokio::test]
async fn what_would_only_wait_for_google_waits_in_the_queue() {
    let (mut worker, _requests, _scopes) = worker(8);
    let is_over = Arc::new(AtomicBool::new(false));
    worker.limits.is_congested = Arc::new({
        let is_over = is_over.clone();
        move |namespace| namespace == "shop" && !is_over.load(Ordering::SeqCst)
    });
    let (started, mut seen) = unbounded_channel();
    let start = |key: &ObjectKey, _: Permit| {
        started.send(key.clone()).unwrap();
        Some(async { None })
    };
    let keys = |_: Scope| vec![key("a"), ObjectKey::new("bank", "b"), key("c")];
    let running = worker.run(keys, start, std::future::pending());
    let watching = async {
        assert_eq!(seen.recv().await, Some(ObjectKey::new("bank", "b")));
        // Nothing but the time says that it is over.
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(seen.recv().await, Some(key("a")));
        assert_eq!(seen.recv().await, Some(key("c")));
    };
    let first = async {
        tokio::select! {
            () = running => panic!("it was not stopped"),
            () = watching => {}
        }
    };
    timeout(LIMIT, first).await.expect("all are reconciled");
    worker.cancel_all().await;
}

#[tokio::test]
async fn reconciles_that_hang_hold_up_no_other_namespace() {
    let (mut worker, requests, _scopes) = worker(8);
    let done = Arc::new(Notify::new());
    let start = |key: &ObjectKey, permit: Permit| {
        let (done, hangs) = (done.clone(), key.namespace() != "bank");
        Some(async move {
            let _permit = permit;
            if hangs {
                std::future::pending::<()>().await;
            }
            done.notify_one();
            None
        })
    };
    // Two namespaces have many that are due for longer.
    let keys = |_: Scope| {
        let key = |n: u32| ObjectKey::new(if n.is_multiple_of(2) { "shop" } else { "zoo" }, &n.to_string());
        requests.send(ObjectKey::new("bank", "a")).unwrap();
        (0..100).map(key).collect()
    };
    let run = worker.run(keys, start, std::future::pending());
    let first = async {
        tokio::select! {
            () = run => panic!("it was not stopped"),
            () = done.notified() => {}
        }
    };
    timeout(LIMIT, first)
        .await
        .expect("the neighbour's request is reconciled");
    worker.cancel_all().await;
}
