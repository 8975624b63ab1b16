//! Permits: how many reconciles call the Kubernetes API at once, and how many of them may be of one namespace. What waits for Google, for a
//! permit or for the next attempt holds none: slow or many calls of one tenant must not hold up the reconciles of the others.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::api::ObjectKey;
use crate::clock::Clock;
use crate::controller::queue::stopwatch::Stopwatch;
use crate::fair_share::may_take;
use crate::sync::lock;

/// The spare permit starts nothing while as many reconciles wait for a permit: each of them holds a token in memory.
const MAX_WAITING: usize = 32;

/// Pure: who holds permits, and who waits for one. A permit goes to the namespace that holds the fewest, then to the one that has waited
/// longest for its turn.
#[derive(Debug)]
pub(crate) struct Shares<W> {
    free: usize,
    /// The namespaces that hold a permit or wait for one.
    namespaces: HashMap<Box<str>, Share<W>>,
    waiting: usize,
    /// Numbers what waits and what is served.
    next: u64,
    /// Whether the one permit is free that only starts take, beyond their namespace's share. Without it a namespace would start nothing while
    /// its tokens wait to be written, and its calls and writes would take turns.
    has_spare: bool,
}

#[derive(Debug)]
struct Share<W> {
    held: usize,
    /// When it got a permit last.
    served: u64,
    /// In the order of arrival.
    waiting: VecDeque<(u64, W)>,
}

impl<W> Shares<W> {
    fn new(permits: usize) -> Self {
        let has_spare = permits > 1;
        Self {
            free: permits - usize::from(has_spare),
            namespaces: HashMap::new(),
            waiting: 0,
            next: 1,
            has_spare,
        }
    }

    /// Whether a reconcile of `namespace` may start.
    pub(crate) fn may_start(&self, namespace: &str) -> bool {
        self.is_spare_open() || self.is_open_to(namespace)
    }

    fn is_spare_open(&self) -> bool {
        self.has_spare && self.waiting < MAX_WAITING
    }

    /// Takes a permit for a start of `namespace`, which may be the spare one.
    fn start(&mut self, namespace: &str) -> Held {
        if self.take(namespace) {
            Held::OfShare
        } else if self.is_spare_open() {
            self.has_spare = false;
            Held::Spare
        } else {
            Held::None
        }
    }

    /// Whether `namespace` may take one more permit.
    fn is_open_to(&self, namespace: &str) -> bool {
        let held = self.namespaces.get(namespace).map_or(0, |share| share.held);
        may_take(held, self.free)
    }

    fn share(&mut self, namespace: &str) -> &mut Share<W> {
        let absent = || Share {
            held: 0,
            served: 0,
            waiting: VecDeque::new(),
        };
        self.namespaces.entry(namespace.into()).or_insert_with(absent)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes a permit for `namespace`. Returns whether there is one for it.
    fn take(&mut self, namespace: &str) -> bool {
        if !self.is_open_to(namespace) {
            return false;
        }
        let number = self.number();
        self.free -= 1;
        let share = self.share(namespace);
        (share.held, share.served) = (share.held + 1, number);
        true
    }

    /// Has `waiter` wait for a permit.
    fn wait(&mut self, namespace: &str, waiter: W) -> u64 {
        let ticket = self.number();
        self.waiting += 1;
        self.share(namespace).waiting.push_back((ticket, waiter));
        ticket
    }

    /// Ends a wait. Returns false if the permit was handed out already.
    fn cancel(&mut self, namespace: &str, ticket: u64) -> bool {
        let share = self.share(namespace);
        let before = share.waiting.len();
        share.waiting.retain(|(waiting, _)| *waiting != ticket);
        let cancelled = share.waiting.len() < before;
        self.waiting -= usize::from(cancelled);
        self.forget_idle(namespace);
        cancelled
    }

    /// Puts a permit of `namespace` back. Returns those who get one now.
    fn put_back(&mut self, namespace: &str) -> Vec<W> {
        self.free += 1;
        self.share(namespace).held -= 1;
        self.forget_idle(namespace);
        let mut served = Vec::new();
        while self.waiting > 0 && self.free > 0 {
            let number = self.number();
            let open = self.namespaces.iter_mut().filter_map(|(_, share)| {
                let (ticket, _) = share.waiting.front()?;
                may_take(share.held, self.free).then_some(((share.held, share.served, *ticket), share))
            });
            let Some((_, share)) = open.min_by_key(|(rank, _)| *rank) else {
                break;
            };
            served.extend(share.waiting.pop_front().map(|(_, waiter)| waiter));
            (share.held, share.served) = (share.held + 1, number);
            self.free -= 1;
            self.waiting -= 1;
        }
        served
    }

    fn forget_idle(&mut self, namespace: &str) {
        let is_idle = |share: &Share<W>| share.held == 0 && share.waiting.is_empty();
        if self.namespaces.get(namespace).is_some_and(is_idle) {
            self.namespaces.remove(namespace);
        }
    }
}

/// What a reconcile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    None,
    OfShare,
    Spare,
}

/// The permits of all reconciles.
#[derive(Debug)]
pub struct Permits {
    shares: Mutex<Shares<oneshot::Sender<()>>>,
    /// Whether a permit was put back that nobody waited for.
    freed: Notify,
    clock: Clock,
}

impl Permits {
    /// As many permits as reconciles may call the Kubernetes API at once.
    pub fn new(count: usize, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            shares: Mutex::new(Shares::new(count)),
            freed: Notify::new(),
            clock,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shares<oneshot::Sender<()>>> {
        lock(&self.shares)
    }

    /// The permit for the request that `pop` gives, if it gives one. `pop` may only give one whose namespace may start one.
    pub(in crate::controller) fn start(
        self: &Arc<Self>,
        pop: impl FnOnce(&Shares<oneshot::Sender<()>>) -> Option<(ObjectKey, Instant)>,
    ) -> Option<(ObjectKey, Instant, Permit)> {
        let mut shares = self.lock();
        // Spares the search: no namespace may have one.
        if shares.free == 0 && !shares.is_spare_open() {
            return None;
        }
        let (key, due) = pop(&shares)?;
        let held = shares.start(key.namespace());
        drop(shares);
        let permit = Permit {
            permits: Arc::clone(self),
            namespace: key.namespace().into(),
            held,
            stopwatch: Arc::new(Stopwatch::new(self.clock.clone())),
        };
        Some((key, due, permit))
    }

    /// Waits until a permit was put back that nobody waited for.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    fn put_back_spare(&self) {
        self.lock().has_spare = true;
        self.freed.notify_one();
    }

    fn put_back(&self, namespace: &str) {
        let mut shares = self.lock();
        let served = shares.put_back(namespace);
        let is_left = shares.free > 0;
        drop(shares);
        // A waiter that is gone puts its permit back when it is dropped.
        for waiter in served {
            let _ = waiter.send(());
        }
        if is_left {
            self.freed.notify_one();
        }
    }
}

/// The right of a reconcile to call the Kubernetes API. The reconcile releases it while it waits.
pub(crate) struct Permit {
    permits: Arc<Permits>,
    namespace: Box<str>,
    held: Held,
    stopwatch: Arc<Stopwatch>,
}

impl Permit {
    /// How long the reconcile has run.
    pub(crate) fn stopwatch(&self) -> Arc<Stopwatch> {
        Arc::clone(&self.stopwatch)
    }

    /// Waits for a permit, unless this one is held. The stopwatch stands still for as long.
    pub(crate) async fn acquire(&mut self) {
        if self.held != Held::None {
            return;
        }
        let handed_out = {
            let mut shares = self.permits.lock();
            if shares.take(&self.namespace) {
                self.held = Held::OfShare;
                return;
            }
            let (waiter, handed_out) = oneshot::channel();
            let ticket = shares.wait(&self.namespace, waiter);
            drop(shares);
            Waiting {
                permits: &self.permits,
                namespace: &self.namespace,
                ticket: Some(ticket),
                handed_out,
            }
        };
        let _paused = self.stopwatch.pause();
        handed_out.permit().await;
        self.held = Held::OfShare;
    }

    /// Gives the permit back until it is acquired again.
    pub(crate) fn release(&mut self) {
        match std::mem::replace(&mut self.held, Held::None) {
            Held::None => {}
            Held::OfShare => self.permits.put_back(&self.namespace),
            Held::Spare => self.permits.put_back_spare(),
        }
    }

    /// Does `work` while it holds the permit. It is acquired first if an attempt timed out while it was released.
    pub(crate) async fn holding<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.acquire().await;
        work.await
    }

    /// Releases the permit for `work`, and acquires it again after it.
    pub(crate) async fn released_while<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.release();
        let result = work.await;
        self.acquire().await;
        result
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release();
    }
}

/// A wait for a permit, which is put back if nobody takes it.
struct Waiting<'p> {
    permits: &'p Permits,
    namespace: &'p str,
    ticket: Option<u64>,
    handed_out: oneshot::Receiver<()>,
}

impl Waiting<'_> {
    async fn permit(mut self) {
        // The sender is kept until the permit is handed out, so there is no error.
        let _ = (&mut self.handed_out).await;
        self.ticket = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        if !self.permits.lock().cancel(self.namespace, ticket) {
            self.permits.put_back(self.namespace);
        }
    }
}

#[cfg(test)]
#[path = "permit_tests.rs"]
mod tests;
