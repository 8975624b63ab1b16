use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

/// A permit of `namespace`, if it may have one.
fn start(permits: &Arc<Permits>, namespace: &str) -> Option<Permit> {
    let pop = |shares: &Shares<_>| {
        let is_open = shares.is_open_to(namespace);
        is_open.then(|| (ObjectKey::new(namespace, "a"), Instant::now()))
    };
    permits.start(pop).map(|(_, _, permit)| permit)
}

/// As `start`, and the spare permit will do.
fn start_beyond_share(permits: &Arc<Permits>, namespace: &str) -> Option<Permit> {
    let pop = |shares: &Shares<_>| {
        let may_start = shares.may_start(namespace);
        may_start.then(|| (ObjectKey::new(namespace, "a"), Instant::now()))
    };
    permits.start(pop).map(|(_, _, permit)| permit)
}

/// As many permits of `namespace` as it may have.
fn all(permits: &Arc<Permits>, namespace: &str) -> Vec<Permit> {
    std::iter::from_fn(|| start(permits, namespace)).collect()
}

/// `count` permits for the shares of namespaces, and the spare one.
fn permits(count: usize) -> Arc<Permits> {
    Permits::new(count + 1, Clock::system())
}

#[test]
fn a_namespace_whose_calls_hang_leaves_a_fifth_to_others() {
    let permits = permits(32);
    let hanging = all(&permits, "shop");
    assert_eq!(hanging.len(), 25);
    let more = all(&permits, "zoo");
    assert_eq!(more.len(), 5);
    assert!(
        start(&permits, "bank").is_some(),
        "a third one is not held up by two"
    );
    assert!(start(&permits, "shop").is_none());
    drop(hanging);
    drop(more);
    assert!(
        permits.lock().namespaces.is_empty(),
        "nothing is kept of who is done"
    );
}

#[tokio::test]
async fn tokens_that_wait_to_be_written_do_not_stop_the_starts() {
    let permits = permits(5);
    let mut held = all(&permits, "shop");
    let mut called = start_beyond_share(&permits, "shop").expect("the spare permit");
    assert!(start_beyond_share(&permits, "shop").is_none(), "there is one");
    // Its call to Google ends, and it waits to write.
    called.release();
    let mut write = Box::pin(called.acquire());
    assert!(futures::poll!(&mut write).is_pending());
    let next = start_beyond_share(&permits, "shop").expect("the spare permit is back");
    drop(held.pop());
    timeout(LIMIT, write)
        .await
        .expect("a permit of the share, not the spare one");
    assert!(start(&permits, "shop").is_none());
    // It does not go to another namespace either, which has what the share leaves.
    assert!(start(&permits, "bank").is_some());
    drop((held, next));
    assert!(permits.lock().has_spare);
}

#[test]
fn no_start_is_beyond_the_share_while_many_wait() {
    let permits = permits(5);
    let held = all(&permits, "shop");
    let waiting: Vec<_> = std::iter::repeat_with(|| {
        let (waiter, _) = oneshot::channel();
        permits.lock().wait("shop", waiter)
    })
    .take(MAX_WAITING)
    .collect();
    assert!(start_beyond_share(&permits, "shop").is_none());
    assert!(start_beyond_share(&permits, "bank").is_some(), "it has its share");
    assert!(permits.lock().cancel("shop", waiting[0]));
    assert!(start_beyond_share(&permits, "shop").is_some());
    drop(held);
}

#[tokio::test]
async fn a_permit_goes_to_the_namespace_with_the_fewest() {
    let permits = permits(5);
    let mut held = all(&permits, "shop");
    assert_eq!(held.len(), 4);
    let waiting = |namespace: &'static str| {
        let mut permit = Permit {
            permits: Arc::clone(&permits),
            namespace: namespace.into(),
            held: Held::None,
            stopwatch: Arc::new(Stopwatch::new(Clock::system())),
        };
        async move {
            permit.acquire().await;
            permit
        }
    };
    let mut first = Box::pin(waiting("shop"));
    assert!(futures::poll!(&mut first).is_pending());
    let bank = waiting("bank").await;
    let mut second = Box::pin(waiting("bank"));
    assert!(futures::poll!(&mut second).is_pending());
    // One of them stays free for whoever comes next.
    held.truncate(2);
    // Both namespaces wait, and this one holds fewer.
    let second = timeout(LIMIT, second).await.expect("a permit");
    assert!(futures::poll!(&mut first).is_pending());
    drop((bank, second));
    timeout(LIMIT, first).await.expect("a permit");
}

#[tokio::test]
async fn a_wait_that_is_given_up_keeps_no_permit() {
    let permits = permits(1);
    let mut permit = start(&permits, "shop").expect("a permit");
    permit.release();
    let other = start(&permits, "bank").expect("a permit");
    let mut wait = Box::pin(permit.acquire());
    assert!(futures::poll!(&mut wait).is_pending());
    // It is handed out, and nobody takes it.
    drop(other);
    drop(wait);
    assert!(start(&permits, "bank").is_some());
}

#[tokio::test]
async fn the_time_limit_of_a_reconcile_leaves_out_the_wait_for_a_permit() {
    let permits = permits(1);
    let mut permit = start(&permits, "shop").expect("a permit");
    let stopwatch = permit.stopwatch();
    let limit = Duration::from_millis(50);
    let mut other = None;
    let work = permit.released_while(async { other = start(&permits, "bank") });
    let mut attempt = Box::pin(stopwatch.limit(limit, work));
    // The length is what is tested.
    let waits = timeout(4 * limit, &mut attempt).await;
    assert!(waits.is_err(), "it waited, and did not run");
    let start = stopwatch.start();
    assert!(
        stopwatch.start() > start,
        "nor is it stuck: the stopwatch stands still"
    );
    let served = permits.lock().put_back("bank");
    for waiter in served {
        waiter.send(()).expect("it waits");
    }
    assert!(timeout(LIMIT, attempt).await.expect("it ends").is_ok());
    if let Some(other) = &mut other {
        other.held = Held::None;
    }
    let hang = stopwatch.limit(limit, permit.holding(std::future::pending::<()>()));
    assert!(timeout(LIMIT, hang).await.expect("it ends").is_err());
}

#[derive(Clone, Debug)]
enum Act {
    /// A request of this namespace starts, if it may.
    Start(usize),
    /// A reconcile of this namespace that has its answer of Google waits for a permit.
    Wait(usize),
    /// A reconcile of this namespace ends.
    End(usize),
    /// The last wait of this namespace is given up.
    GiveUp(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..6_usize).prop_map(Act::Start),
        4 => (0..6_usize).prop_map(Act::Wait),
        3 => (0..6_usize).prop_map(Act::End),
        1 => (0..6_usize).prop_map(Act::GiveUp),
    ]
}

/// The shares, and what they should hold.
struct Model {
    shares: Shares<String>,
    held: HashMap<String, usize>,
    waiting: HashMap<String, Vec<u64>>,
}

impl Model {
    fn new(count: usize) -> Self {
        Self {
            shares: Shares::new(count + 1),
            held: HashMap::new(),
            waiting: HashMap::new(),
        }
    }

    fn start(&mut self, namespace: &str) -> bool {
        let starts = self.shares.take(namespace);
        *self.held.entry(namespace.to_owned()).or_default() += usize::from(starts);
        starts
    }

    fn wait(&mut self, namespace: &str) {
        if self.start(namespace) {
            return;
        }
        let ticket = self.shares.wait(namespace, namespace.to_owned());
        self.waiting.entry(namespace.to_owned()).or_default().push(ticket);
    }

    fn end(&mut self, namespace: &str) {
        let Some(held) = self.held.get_mut(namespace).filter(|held| **held > 0) else {
            return;
        };
        *held -= 1;
        for served in self.shares.put_back(namespace) {
            // In the order of arrival.
            self.waiting.get_mut(&served).expect("somebody waits").remove(0);
            *self.held.entry(served).or_default() += 1;
        }
    }

    fn give_up(&mut self, namespace: &str) {
        if let Some(ticket) = self.waiting.get_mut(namespace).and_then(Vec::pop) {
            assert!(self.shares.cancel(namespace, ticket));
            assert!(!self.shares.cancel(namespace, ticket));
        }
    }
}

proptest! {
    /// Whatever namespaces start, wait for, keep and release: no permit is lost or handed out twice, and none stays free that somebody
    /// waits for and may have.
    #[test]
    fn no_permit_is_lost_or_left_unused(count in 1_usize..40, acts in prop::collection::vec(act(), 0..300)) {
        let mut model = Model::new(count);
        for act in acts {
            match act {
                Act::Start(namespace) => drop(model.start(&namespace.to_string())),
                Act::Wait(namespace) => model.wait(&namespace.to_string()),
                Act::End(namespace) => model.end(&namespace.to_string()),
                Act::GiveUp(namespace) => model.give_up(&namespace.to_string()),
            }
            prop_assert_eq!(model.held.values().sum::<usize>() + model.shares.free, count);
            for (namespace, tickets) in &model.waiting {
                let unused = !tickets.is_empty() && model.shares.is_open_to(namespace);
                prop_assert!(!unused, "{} waits for what is free", namespace);
            }
        }
    }

    /// However many namespaces are stuck with however many reconciles: another one starts at once where two are, and else with the first
    /// permit that is put back.
    #[test]
    fn with_any_number_of_stuck_namespaces_another_one_starts(
        count in 1_usize..40,
        stuck in prop::collection::vec(1_usize..100, 1..60),
        first in any::<prop::sample::Index>(),
    ) {
        let mut model = Model::new(count);
        for (namespace, reconciles) in stuck.iter().enumerate() {
            for _ in 0..*reconciles {
                model.start(&namespace.to_string());
            }
        }
        if stuck.len() <= 2 && count >= 8 {
            prop_assert!(model.shares.is_open_to("neighbour"), "{:?} of {}", model.held, count);
        }
        // The reconciles of the others that could not start wait for Google's answer, then for a permit.
        for (namespace, reconciles) in stuck.iter().enumerate() {
            let namespace = namespace.to_string();
            let held = model.held.get(&namespace).copied().unwrap_or_default();
            for _ in 0..if held > 0 { *reconciles } else { 0 } {
                model.wait(&namespace);
            }
        }
        model.wait("neighbour");
        if model.held["neighbour"] == 0 {
            let holders: Vec<String> =
                model.held.iter().filter(|(_, held)| **held > 0).map(|(name, _)| name.clone()).collect();
            model.end(first.get::<String>(&holders));
        }
        prop_assert_eq!(model.held["neighbour"], 1, "{:?} of {}", model.held, count);
    }
}
