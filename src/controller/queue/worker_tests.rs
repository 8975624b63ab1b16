use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::*;
use crate::admin::tests as admin;

const LIMIT: Duration = Duration::from_secs(60);

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn desk(limit: usize) -> (Worker, UnboundedSender<ObjectKey>, UnboundedSender<Scope>) {
    let (one, ones) = unbounded_channel();
    let (all, alls) = unbounded_channel();
    let pulse = Liveness::new(Duration::from_millis(50), Instant::now());
    (
        Worker::new(
            ones,
            alls,
            limit,
            limit,
            Arc::new(Semaphore::new(limit)),
            pulse,
            Arc::new(Metrics::default()),
        ),
        one,
        all,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconcile_that_blocks_its_thread_holds_up_no_other_and_is_told_as_stuck() {
    let (mut desk, one, _all) = desk(2);
    let pulse = desk.pulse.clone();
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
    let working = desk.work(|_| vec![key("blocks")], start, stop.notified());
    let watching = async {
        for name in ["a", "b", "c"] {
            one.send(key(name)).unwrap();
        }
        timeout(LIMIT, finished.wait_for(|count| *count == 3))
            .await
            .expect("the others are done")
            .unwrap();
        while pulse.check(Instant::now()).is_ok() {
            tokio::task::yield_now().await;
        }
        let stuck = pulse.check(Instant::now());
        assert!(
            matches!(stuck, Err(crate::liveness::Stuck::Overdue { .. })),
            "{stuck:?}"
        );
        let (status, told) = admin::get("/livez", true, &pulse).await;
        assert_eq!(status, 500, "{told}");
        assert!(told.contains("past its own time limit"), "{told}");
        free.send(()).unwrap();
        timeout(LIMIT, finished.wait_for(|count| *count == 4))
            .await
            .expect("all are done")
            .unwrap();
        stop.notify_one();
    };
    tokio::join!(working, watching);
    assert_eq!(pulse.check(Instant::now()), Ok(()));
    assert_eq!(admin::get("/livez", true, &pulse).await.0, 200);
}

#[tokio::test]
async fn a_panic_is_done_again_and_a_stop_waits_for_what_is_under_way() {
    let (mut desk, _one, _all) = desk(8);
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
            Some(Duration::from_secs(1))
        })
    };
    desk.work(|_| vec![key("a")], start, stop.notified()).await;
    // Tried twice, finished once, and not begun again after the stop.
    assert_eq!(tries.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn what_is_abandoned_ends_before_the_return() {
    struct Under(Arc<AtomicUsize>);
    impl Drop for Under {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let (mut desk, _one, _all) = desk(8);
    let under_way = Arc::new(AtomicUsize::new(0));
    let start = |_: &ObjectKey, _: Permit| {
        let under_way = under_way.clone();
        Some(async move {
            under_way.fetch_add(1, Ordering::SeqCst);
            let _guard = Under(under_way);
            std::future::pending::<()>().await;
            None
        })
    };
    let keys = |_: &Scope| (0..20).map(|n| key(&n.to_string())).collect();
    let work = desk.work(keys, start, std::future::pending());
    assert!(timeout(Duration::from_secs(1), work).await.is_err());
    assert_eq!(under_way.load(Ordering::SeqCst), 8);
    desk.abandon().await;
    assert_eq!(under_way.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_idle_desk_forgets_what_comes_in() {
    let (mut desk, one, all) = desk(8);
    one.send(key("a")).unwrap();
    all.send(Scope::Everything).unwrap();
    let idle = timeout(Duration::from_millis(100), desk.idle());
    assert!(idle.await.is_err());
    assert!(desk.one.is_empty() && desk.all.is_empty());
}
