//! Runs reconciles as tasks of their own, in the order of the queue, so that a reconcile that waits blocks no other.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{Id, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::api::ObjectKey;
use crate::clock::Clock;
use crate::controller::queue::order::{Queue, Turn};
use crate::controller::queue::permit::{Permit, Permits, Shares};
use crate::controller::queue::stopwatch::Stopwatch;
use crate::controller::queue::{Requeue, Scope};
use crate::liveness::Liveness;
use crate::metrics::Metrics;

/// How often the loop sends a heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How often the loop asks for the limit of a namespace at most.
const LIMIT_INTERVAL: Duration = Duration::from_millis(50);
/// Delay after which a reconcile that panicked is repeated.
const PANIC_REQUEUE: Requeue = Requeue {
    after: Duration::from_secs(5),
    token_left: None,
};

/// How many reconciles run at once.
#[derive(Clone)]
pub(crate) struct Limits {
    /// Most reconciles in flight.
    pub(crate) in_flight: usize,
    /// Most reconciles in flight of one namespace. It follows how many calls Google takes at once: more would only wait for their turn.
    pub(crate) in_flight_per_namespace: Arc<dyn Fn() -> usize + Send + Sync>,
    /// Whether so many of a namespace's calls to Google wait for their turn that another reconcile of it would only wait as well.
    pub(crate) is_congested: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// Whether so many calls to Google have just started that the tokens of further ones would wait to be written.
    pub(crate) is_surging: Arc<dyn Fn() -> bool + Send + Sync>,
    /// As many permits as reconciles may use the Kubernetes API at once.
    pub(crate) permits: Arc<Permits>,
}

/// The loop that receives keys, queues them and runs their reconciles.
pub(crate) struct Worker {
    requests: UnboundedReceiver<ObjectKey>,
    scopes: UnboundedReceiver<Scope>,
    limits: Limits,
    liveness: Liveness,
    metrics: Arc<Metrics>,
    clock: Clock,
    tasks: JoinSet<Option<Requeue>>,
}

impl Worker {
    /// `requests` receives single requests, `scopes` many at once.
    pub(crate) fn new(
        requests: UnboundedReceiver<ObjectKey>,
        scopes: UnboundedReceiver<Scope>,
        limits: Limits,
        liveness: Liveness,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        Self {
            requests,
            scopes,
            limits,
            liveness,
            metrics,
            clock,
            tasks: JoinSet::new(),
        }
    }

    /// Receives and drops keys for as long as another replica leads: [`Worker::run`] starts with all requests. Never returns.
    pub(crate) async fn drain_while_standby(&mut self) {
        let mut ticks = interval(HEARTBEAT_INTERVAL);
        loop {
            self.liveness.heartbeat(self.clock.monotonic(), None);
            tokio::select! {
                // Any order does: each pass sends a heartbeat.
                biased;
                Some(_) = self.requests.recv() => {}
                Some(_) = self.scopes.recv() => {}
                _ = ticks.tick() => {}
            }
        }
    }

    /// Reconciles all that `keys` lists, then what is received, until `stop` resolves and the reconciles in flight have finished.
    ///
    /// `start` returns the reconcile of a request, which returns when it is requeued; none if the request is gone. It is
    /// called with a permit, so that a request that waits costs the memory of its key only.
    pub(crate) async fn run<F>(
        &mut self,
        keys: impl Fn(Scope) -> Vec<ObjectKey>,
        start: impl Fn(&ObjectKey, Permit) -> Option<F>,
        stop: impl Future<Output = ()>,
    ) where
        F: Future<Output = Option<Requeue>> + Send + 'static,
    {
        let mut queue = Queue::new((self.limits.in_flight_per_namespace)());
        let mut in_flight: HashMap<Id, (ObjectKey, Arc<Stopwatch>)> = HashMap::new();
        let mut stop = pin!(stop);
        let mut stopping = false;
        let mut ticks = interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let started = self.clock.monotonic();
        let (mut next_heartbeat, mut next_limit) = (started, started);
        // What was received before is listed: a request that is in flight when it is received would be reconciled twice.
        while self.requests.try_recv().is_ok() {}
        while self.scopes.try_recv().is_ok() {}
        for key in keys(Scope::All) {
            queue.push(key, Turn::at(started));
        }
        loop {
            let now = self.clock.monotonic();
            if now >= next_limit {
                next_limit = now + LIMIT_INTERVAL;
                queue.set_max_in_flight((self.limits.in_flight_per_namespace)());
            }
            while !stopping
                && queue.in_flight() < self.limits.in_flight
                && queue.next().is_some_and(|due| due <= now)
                && !(self.limits.is_surging)()
            {
                let pop = |shares: &Shares<_>| {
                    queue.pop(now, |namespace| {
                        shares.may_start(namespace) && !(self.limits.is_congested)(namespace)
                    })
                };
                let Some((key, due, permit)) = self.limits.permits.start(pop) else {
                    break;
                };
                let stopwatch = permit.stopwatch();
                match start(&key, permit) {
                    Some(reconcile) => {
                        self.metrics.observe_queue_wait(now.duration_since(due));
                        in_flight.insert(self.tasks.spawn(reconcile).id(), (key, stopwatch));
                    }
                    // Deleted while it waited.
                    None => queue.complete(&key),
                }
            }
            if stopping && in_flight.is_empty() {
                self.liveness.heartbeat(now, None);
                return;
            }
            // Not on each pass: it reads the stopwatch of each reconcile in flight.
            if now >= next_heartbeat {
                next_heartbeat = now + HEARTBEAT_INTERVAL;
                let oldest = in_flight.values().map(|(_, stopwatch)| stopwatch.start()).min();
                self.liveness.heartbeat(now, oldest);
            }
            let is_due = !stopping && queue.next().is_some_and(|at| at <= now);
            // Neither the end of a standstill nor that of a congestion is signalled.
            let later = match queue.next_after(now) {
                _ if stopping => None,
                later if is_due => Some(later.map_or(next_limit, |later| later.min(next_limit))),
                later => later,
            };
            tokio::select! {
                // A stop prevents further starts, and a finished reconcile frees its slot, before more is queued. Metrics can wait.
                biased;
                () = &mut stop, if !stopping => stopping = true,
                Some(finished) = self.tasks.join_next_with_id() => {
                    let (id, requeue) = match finished {
                        Ok(finished) => finished,
                        Err(error) => (error.id(), Some(PANIC_REQUEUE)),
                    };
                    if let Some((key, _)) = in_flight.remove(&id) {
                        queue.complete(&key);
                        let now = self.clock.monotonic();
                        // A time that the clock cannot represent is never reached.
                        let at = |requeue: Requeue| Some((now.checked_add(requeue.after)?, requeue.token_left));
                        if let Some((at, left)) = requeue.and_then(at) {
                            let expires = left.and_then(|left| now.checked_add(left));
                            queue.push(key, Turn { at, expires });
                        }
                    }
                }
                Some(key) = self.requests.recv() => queue.push(key, Turn::at(self.clock.monotonic())),
                Some(scope) = self.scopes.recv() => {
                    let now = self.clock.monotonic();
                    for key in keys(scope) {
                        queue.push(key, Turn::at(now));
                    }
                }
                () = async { sleep_until(later.unwrap_or(now)).await }, if later.is_some() => {}
                // A request is due, and its namespace may have waited for a permit.
                () = self.limits.permits.freed(), if is_due => {}
                _ = ticks.tick() => {
                    self.metrics.set_queue_depth(queue.due_count(self.clock.monotonic()), queue.in_flight());
                }
            }
        }
    }

    /// Cancels the reconciles in flight, and returns when none is left.
    pub(crate) async fn cancel_all(&mut self) {
        self.tasks.shutdown().await;
        self.metrics.set_queue_depth(0, 0);
        self.liveness.heartbeat(self.clock.monotonic(), None);
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
