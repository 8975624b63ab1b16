//! Does the work that the queue holds: each reconcile is a task of its own, so that one that waits blocks no other.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::api::ObjectKey;
use crate::controller::queue::order::Queue;
use crate::controller::queue::permit::Permit;
use crate::controller::watch::Scope;
use crate::liveness::Liveness;
use crate::metrics::Metrics;

/// How often the loop gives a sign of life when nothing happens.
const BEAT: Duration = Duration::from_secs(1);
/// When a reconcile that panicked is done again.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// Takes in what is to be done, and does it.
pub(crate) struct Worker {
    pub(crate) one: UnboundedReceiver<ObjectKey>,
    pub(crate) all: UnboundedReceiver<Scope>,
    pub(crate) limit: usize,
    pub(crate) of_a_namespace: usize,
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) pulse: Liveness,
    pub(crate) metrics: Arc<Metrics>,
    tasks: JoinSet<Option<Duration>>,
}

impl Worker {
    pub(crate) fn new(
        one: UnboundedReceiver<ObjectKey>,
        all: UnboundedReceiver<Scope>,
        limit: usize,
        of_a_namespace: usize,
        turns: Arc<Semaphore>,
        pulse: Liveness,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            one,
            all,
            limit,
            of_a_namespace,
            turns,
            pulse,
            metrics,
            tasks: JoinSet::new(),
        }
    }

    /// Takes in and forgets, for as long as another replica does the work. Never ends.
    pub(crate) async fn idle(&mut self) {
        let mut ticks = interval(BEAT);
        loop {
            self.pulse.heartbeat(Instant::now(), None);
            tokio::select! {
                Some(_) = self.one.recv() => {}
                Some(_) = self.all.recv() => {}
                _ = ticks.tick() => {}
            }
        }
    }

    /// Works on all that `keys` lists and on what comes in, until `stop` resolves and what was under way is finished. `start` gives the
    /// work on a request, which says after which time it is to be done again; none where the request is gone. It is begun with its turn:
    /// what waits costs the memory of its key only.
    pub(crate) async fn work<F>(
        &mut self,
        keys: impl Fn(&Scope) -> Vec<ObjectKey>,
        start: impl Fn(&ObjectKey, Permit) -> Option<F>,
        stop: impl Future<Output = ()>,
    ) where
        F: Future<Output = Option<Duration>> + Send + 'static,
    {
        let mut queue = Queue::new(self.of_a_namespace);
        let mut doing: HashMap<Id, ObjectKey> = HashMap::new();
        let mut stop = pin!(stop);
        let mut stopping = false;
        let mut ticks = interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for key in keys(&Scope::Everything) {
            queue.push(key, Instant::now());
        }
        loop {
            let now = Instant::now();
            while !stopping && queue.running() < self.limit && queue.next().is_some_and(|due| due <= now) {
                let Some(turn) = Permit::try_acquire(&self.turns) else {
                    break;
                };
                let Some((key, due)) = queue.pop(now) else { break };
                match start(&key, turn) {
                    Some(work) => {
                        self.metrics.observe_queue_wait(now.duration_since(due));
                        doing.insert(self.tasks.spawn(work).id(), key);
                    }
                    // Gone by its turn.
                    None => queue.done(&key),
                }
            }
            if stopping && doing.is_empty() {
                self.pulse.heartbeat(now, None);
                return;
            }
            self.pulse.heartbeat(now, queue.oldest());
            let has_room = !stopping && queue.running() < self.limit;
            let next = queue.next().filter(|_| has_room);
            let (due, later) = (next.is_some_and(|at| at <= now), next.filter(|at| *at > now));
            tokio::select! {
                biased;
                () = &mut stop, if !stopping => stopping = true,
                Some(ended) = self.tasks.join_next_with_id() => {
                    let (id, again) = match ended {
                        Ok(ended) => ended,
                        Err(error) => (error.id(), Some(AFTER_PANIC)),
                    };
                    if let Some(key) = doing.remove(&id) {
                        queue.done(&key);
                        // A time too far to be told is never.
                        if let Some(at) = again.and_then(|after| Instant::now().checked_add(after)) {
                            queue.push(key, at);
                        }
                    }
                }
                Some(key) = self.one.recv() => queue.push(key, Instant::now()),
                Some(scope) = self.all.recv() => {
                    let now = Instant::now();
                    for key in keys(&scope) {
                        queue.push(key, now);
                    }
                }
                () = async { sleep_until(later.unwrap_or(now)).await }, if later.is_some() => {}
                // One is due and waits for a turn.
                _ = self.turns.acquire(), if due => {}
                _ = ticks.tick() => self.metrics.set_queue_depth(queue.due(Instant::now()), queue.running()),
            }
        }
    }

    /// Ends what is under way, and returns when nothing is any more.
    pub(crate) async fn abandon(&mut self) {
        self.tasks.shutdown().await;
        self.metrics.set_queue_depth(0, 0);
        self.pulse.heartbeat(Instant::now(), None);
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
