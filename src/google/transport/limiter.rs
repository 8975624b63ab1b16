//! What holds calls to one endpoint back: a rate, a cap of calls in flight, pauses that the server asked for, and failures.
//!
//! One [`Limiter`] is for one endpoint (with federation, for one provider's endpoint), so that a slow or exhausted one never delays
//! another. [`FairQueue`] decides; here are the clock and the waiting callers.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::adaptive_limit::LimitMoves;
use super::circuit_breaker::LastFailure;
use super::decision::{CallResult, Decision, WaiterId};
use super::fair_queue::{FairQueue, QueueLimits};
use crate::clock::Clock;
use crate::google::vocabulary::{CallPriority, Endpoint, Error, ErrorClass, Reason, Recoveries};
use crate::sync::lock;

/// Maximum queued calls of one flow. A caller that serves many flows must queue more than this, or one flow could fill its queue.
pub const MAX_WAITING: usize = 512;

/// How much an endpoint has to do at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointLoad {
    /// Which one; with federation each provider has its own.
    pub endpoint: Endpoint,
    /// Calls in flight.
    pub in_flight: usize,
    /// How many may be in flight, by how the last calls ended.
    pub limit: usize,
    /// How often that limit moved, by [`LimitMove::ALL`](super::adaptive_limit::LimitMove::ALL).
    pub limit_moves: LimitMoves,
    /// Calls that the rate limit and the in-flight cap hold back.
    pub waiting: usize,
    /// Whether the endpoint fails, so that all its calls but single probes are held back.
    pub is_open: bool,
    /// Flows that are held back on their own: their calls fail or were asked to pause.
    pub open_flows: usize,
}

/// The limits of one endpoint.
#[derive(Debug)]
pub(crate) struct Limiter {
    endpoint: Endpoint,
    max_wait: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    recoveries: Recoveries,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    queue: FairQueue,
    waiting: HashMap<WaiterId, oneshot::Sender<Decision>>,
    /// When the queue is polled next even if nothing happens.
    timer: Option<Instant>,
}

/// Permission to make one call. It counts as in flight until it is dropped.
#[derive(Debug)]
pub(crate) struct CallPermit {
    shared: Arc<Shared>,
    flow: String,
    enqueued: Instant,
    started: Instant,
    result: CallResult,
}

/// A call in the queue; leaves it when dropped.
struct QueuedCall<'a> {
    shared: &'a Arc<Shared>,
    flow: &'a str,
    id: WaiterId,
    decision: oneshot::Receiver<Decision>,
}

impl Limiter {
    pub(crate) fn new(
        endpoint: Endpoint,
        rate_per_second: Option<NonZeroU32>,
        max_in_flight: usize,
        max_wait: Duration,
        recoveries: Recoveries,
        clock: Clock,
    ) -> Self {
        let queue = FairQueue::new(QueueLimits {
            interval: rate_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.get()),
            in_flight: max_in_flight,
            waiting: MAX_WAITING,
        });
        Self {
            endpoint,
            max_wait,
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    queue,
                    waiting: HashMap::new(),
                    timer: None,
                }),
                recoveries,
                clock,
            }),
        }
    }

    /// Waits for permission. If none can come soon it fails at once: the controller has a queue of its own.
    pub(crate) async fn acquire(&self, priority: CallPriority<'_>) -> Result<CallPermit, Error> {
        let enqueued = self.shared.clock.monotonic();
        let mut queued = {
            let mut state = self.shared.lock();
            let id = state
                .queue
                .enqueue(enqueued, priority.flow, priority.remaining_lifetime);
            let id = id.map_err(|decision| self.rejected(decision))?;
            let (sender, decision) = oneshot::channel();
            state.waiting.insert(id, sender);
            self.shared.wake_admitted(&mut state);
            QueuedCall {
                shared: &self.shared,
                flow: priority.flow,
                id,
                decision,
            }
        };
        let max_wait = priority.time_limit(self.max_wait);
        match timeout_at(enqueued + max_wait, &mut queued.decision).await {
            Ok(Ok(Decision::Admit)) => Ok(CallPermit {
                shared: Arc::clone(&self.shared),
                flow: priority.flow.to_owned(),
                enqueued,
                started: self.shared.clock.monotonic(),
                result: CallResult::Cancelled,
            }),
            Ok(Ok(decision)) => Err(self.rejected(decision)),
            Ok(Err(_)) => Err(self.waited_too_long()),
            Err(_) => match self.shared.lock().queue.rejection(self.shared.clock.monotonic()) {
                Some(decision) => Err(self.rejected(decision)),
                None => Err(self.waited_too_long()),
            },
        }
    }

    /// How many callers are of use at the moment: [`FairQueue::useful_callers`].
    pub(crate) fn useful_callers(&self) -> usize {
        let now = self.shared.clock.monotonic();
        self.shared.lock().queue.useful_callers(now)
    }

    /// How many calls too many started at once: [`FairQueue::surge`].
    pub(crate) fn surge(&self) -> usize {
        let now = self.shared.clock.monotonic();
        self.shared.lock().queue.surge(now)
    }

    /// Calls in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.lock().queue.in_flight()
    }

    /// Whether another call would only wait: [`FairQueue::is_congested`].
    pub(crate) fn is_congested(&self, flow: &str) -> bool {
        let now = self.shared.clock.monotonic();
        self.shared.lock().queue.is_congested(now, flow)
    }

    /// How much the endpoint has to do.
    pub(crate) fn load(&self) -> EndpointLoad {
        let (state, now) = (self.shared.lock(), self.shared.clock.monotonic());
        EndpointLoad {
            endpoint: self.endpoint,
            in_flight: state.queue.in_flight(),
            limit: state.queue.limit(),
            limit_moves: state.queue.limit_moves(),
            waiting: state.queue.waiting(),
            is_open: state.queue.is_open(now),
            open_flows: state.queue.open_flows(now),
        }
    }

    fn rejected(&self, decision: Decision) -> Error {
        rejection_error(self.endpoint, decision).unwrap_or_else(|| self.waited_too_long())
    }

    fn waited_too_long(&self) -> Error {
        let message = "the operator's own rate limit and in-flight cap held this call back for as long as it may wait; raise them";
        Error::new(self.endpoint, Reason::LocallyLimited, message)
    }
}

/// The error of a call that does not start; none if it starts.
pub fn rejection_error(endpoint: Endpoint, decision: Decision) -> Option<Error> {
    Some(match decision {
        Decision::Admit => return None,
        Decision::Reject {
            last_failure,
            retry_after: Some(after),
        } => {
            let message = format!(
                "Google asked to wait; no call is made for another {} s",
                after.as_secs_f64().ceil()
            );
            last_failure.error(endpoint, &message).with_retry_after(after)
        }
        // The same words each time, because a status is written when they change.
        Decision::Reject {
            last_failure,
            retry_after: None,
        } => {
            let message = format!(
                "{} fails at the moment; single calls of the operator find out when it is back",
                endpoint.title()
            );
            last_failure.error(endpoint, &message)
        }
        Decision::Defer { by } => {
            let message = "calls that are not urgent are deferred for a moment, because there are many";
            Error::new(endpoint, Reason::LocallyLimited, message).with_deferral(by)
        }
    })
}

impl LastFailure {
    fn error(self, endpoint: Endpoint, message: &str) -> Error {
        let error = Error::new(endpoint, self.reason, message);
        match self.status {
            Some(status) => error.with_status(status),
            None => error,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Sends the decisions to the waiting callers, and sets the timer for the next poll.
    fn wake_admitted(self: &Arc<Self>, state: &mut State) {
        let (decisions, wake) = state.queue.poll(self.clock.monotonic());
        for (id, decision) in decisions {
            // A caller that is gone has removed its id, in one step with its end of the channel.
            if let Some(sender) = state.waiting.remove(&id) {
                let _ = sender.send(decision);
            }
        }
        let Some(wake) = wake.filter(|wake| state.timer.is_none_or(|timer| *wake < timer)) else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        state.timer = Some(wake);
        let shared = Arc::downgrade(self);
        runtime.spawn(async move {
            tokio::time::sleep_until(wake).await;
            if let Some(shared) = shared.upgrade() {
                let mut state = shared.lock();
                state.timer.take_if(|timer| *timer == wake);
                shared.wake_admitted(&mut state);
            }
        });
    }

    fn complete(self: &Arc<Self>, flow: &str, started: Instant, result: CallResult) {
        let mut state = self.lock();
        let now = self.clock.monotonic();
        let recovered = state.queue.complete(now, flow, started, result);
        self.wake_admitted(&mut state);
        drop(state);
        self.recoveries.add(recovered);
    }
}

impl Drop for QueuedCall<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.waiting.remove(&self.id).is_some() {
            state.queue.cancel(self.flow, self.id);
        } else if let Ok(Decision::Admit) = self.decision.try_recv() {
            // It was admitted, and the caller is gone.
            drop(state);
            self.shared
                .complete(self.flow, self.shared.clock.monotonic(), CallResult::Cancelled);
        }
    }
}

impl CallPermit {
    /// How long the limiter held the call back.
    pub(crate) fn waited(&self) -> Duration {
        self.started.saturating_duration_since(self.enqueued)
    }

    /// The call was answered, or failed with `error`.
    pub(crate) fn finish(mut self, error: Option<&Error>) {
        self.result = classify_result(error);
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.shared.complete(&self.flow, self.started, self.result);
    }
}

/// What a call that was answered, or failed with `error`, says of the endpoint. A rejection is an answer: a missing permission is not the
/// endpoint's fault.
pub fn classify_result(error: Option<&Error>) -> CallResult {
    match error.filter(|error| error.class() == ErrorClass::Transient) {
        None => CallResult::Answered,
        Some(error) => CallResult::Failed {
            failure: LastFailure {
                reason: error.reason(),
                status: error.status(),
            },
            retry_after: error
                .retry_after()
                .filter(|_| matches!(error.status(), Some(429 | 503))),
        },
    }
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
