//! What holds calls to one endpoint back: a rate, a cap of calls under way, pauses that were asked for, and faults.
//!
//! One [`Limits`] is for one endpoint (or, with federation, one provider), so that a slow or exhausted one never holds up
//! another. All decisions are in [`Turns`]; here are the clock and those who wait.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::circuit_breaker::Told;
use super::fair_queue::{Bounds, End, Ticket, Turns, Verdict};
use crate::google::vocabulary::{Caller, Endpoint, Error, ErrorClass, Reason};

/// Calls that wait in one lane. Who makes calls for many lanes lets more than this wait, so that one lane cannot take all its places.
pub const MAX_WAITING: usize = 512;

/// How much goes on at an endpoint at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamLoad {
    /// Which one; with federation each provider has its own.
    pub endpoint: Endpoint,
    /// Calls under way.
    pub in_flight: usize,
    /// Calls that the rate limit and the in-flight cap hold back.
    pub waiting: usize,
    /// Whether all its calls are held back but for single probes, since it fails.
    pub is_open: bool,
    /// How many lanes are held back by themselves, since their calls fail or were asked to pause.
    pub open_lanes: usize,
}

/// The limits of one endpoint.
#[derive(Debug)]
pub(crate) struct Limits {
    endpoint: Endpoint,
    max_wait: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    turns: Turns,
    waiting: HashMap<Ticket, oneshot::Sender<Verdict>>,
    /// When the queue is looked at again by itself.
    timer: Option<Instant>,
}

/// The right to make one call; holds its place in the cap until it ends.
#[derive(Debug)]
pub(crate) struct Admission {
    shared: Arc<Shared>,
    lane: String,
    asked: Instant,
    started: Instant,
    end: End,
}

/// A place in the queue, given up when dropped.
struct Waiting<'a> {
    shared: &'a Arc<Shared>,
    lane: &'a str,
    ticket: Ticket,
    verdict: oneshot::Receiver<Verdict>,
}

impl Limits {
    pub(crate) fn new(
        endpoint: Endpoint,
        rate_per_second: Option<NonZeroU32>,
        max_in_flight: usize,
        max_wait: Duration,
    ) -> Self {
        let turns = Turns::new(Bounds {
            interval: rate_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.get()),
            in_flight: max_in_flight,
            waiting: MAX_WAITING,
        });
        Self {
            endpoint,
            max_wait,
            shared: Arc::new(Shared(Mutex::new(State {
                turns,
                waiting: HashMap::new(),
                timer: None,
            }))),
        }
    }

    /// Waits for a turn. Where none can come soon it does not wait but says so: the controller has a queue of its own.
    pub(crate) async fn acquire(&self, caller: Caller<'_>) -> Result<Admission, Error> {
        let asked = Instant::now();
        let mut waiting = {
            let mut state = self.shared.lock();
            let entered = state.turns.enter(asked, caller.lane, caller.left);
            let ticket = entered.map_err(|verdict| self.refused(verdict))?;
            let (sender, verdict) = oneshot::channel();
            state.waiting.insert(ticket, sender);
            self.shared.drive(&mut state);
            Waiting {
                shared: &self.shared,
                lane: caller.lane,
                ticket,
                verdict,
            }
        };
        match timeout_at(asked + self.max_wait, &mut waiting.verdict).await {
            Ok(Ok(Verdict::Start)) => Ok(Admission {
                shared: Arc::clone(&self.shared),
                lane: caller.lane.to_owned(),
                asked,
                started: Instant::now(),
                end: End::Unknown,
            }),
            Ok(Ok(verdict)) => Err(self.refused(verdict)),
            Ok(Err(_)) => Err(self.waited_too_long()),
            Err(_) => match self.shared.lock().turns.why_waiting(Instant::now()) {
                Some(verdict) => Err(self.refused(verdict)),
                None => Err(self.waited_too_long()),
            },
        }
    }

    /// How much goes on.
    pub(crate) fn load(&self) -> UpstreamLoad {
        let (state, now) = (self.shared.lock(), Instant::now());
        UpstreamLoad {
            endpoint: self.endpoint,
            in_flight: state.turns.in_flight(),
            waiting: state.turns.waiting(),
            is_open: state.turns.is_open(now),
            open_lanes: state.turns.open_lanes(now),
        }
    }

    fn refused(&self, verdict: Verdict) -> Error {
        refused(self.endpoint, verdict).unwrap_or_else(|| self.waited_too_long())
    }

    fn waited_too_long(&self) -> Error {
        let message = format!(
            "the operator's own rate limit and in-flight cap held this call back for {} s; raise them",
            self.max_wait.as_secs_f64()
        );
        Error::new(self.endpoint, Reason::LocallyLimited, &message)
    }
}

/// What is said of a call that does not start; none where it does.
pub fn refused(endpoint: Endpoint, verdict: Verdict) -> Option<Error> {
    Some(match verdict {
        Verdict::Shut {
            told,
            asked: Some(left),
        } => {
            let message = format!(
                "Google asked to wait; no call is made for another {} s",
                left.as_secs_f64().ceil()
            );
            told.error(endpoint, &message).with_retry_after(left)
        }
        // The same words each time: a status is written when they change.
        Verdict::Shut { told, asked: None } => {
            let message = format!(
                "{} fails at the moment; single calls of the operator find out when it is back",
                endpoint.title()
            );
            told.error(endpoint, &message)
        }
        Verdict::Postponed { by } => {
            let message = "calls that are not urgent are put off for a moment, since there are many";
            Error::new(endpoint, Reason::LocallyLimited, message).with_postponed(by)
        }
        Verdict::Start => return None,
    })
}

impl Told {
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait what was decided, and has somebody look again when it is time.
    fn drive(self: &Arc<Self>, state: &mut State) {
        let (verdicts, wake) = state.turns.due(Instant::now());
        for (ticket, verdict) in verdicts {
            // The other end is there as long as the ticket is: both go in one step.
            if let Some(sender) = state.waiting.remove(&ticket) {
                let _ = sender.send(verdict);
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
                shared.drive(&mut state);
            }
        });
    }

    fn ended(self: &Arc<Self>, lane: &str, started: Instant, end: End) {
        let mut state = self.lock();
        state.turns.ended(Instant::now(), lane, started, end);
        self.drive(&mut state);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.waiting.remove(&self.ticket).is_some() {
            state.turns.give_up(self.lane, self.ticket);
        } else if let Ok(Verdict::Start) = self.verdict.try_recv() {
            // It was given a place that nobody took.
            drop(state);
            self.shared.ended(self.lane, Instant::now(), End::Unknown);
        }
    }
}

impl Admission {
    /// How long the limits held the call back.
    pub(crate) fn waited(&self) -> Duration {
        self.started.saturating_duration_since(self.asked)
    }

    /// The call was answered, or failed with `error`.
    pub(crate) fn finish(mut self, error: Option<&Error>) {
        self.end = end(error);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.shared.ended(&self.lane, self.started, self.end);
    }
}

/// What an answer says of the endpoint. Refusals are answers: somebody's missing right is no fault of the endpoint's.
pub fn end(error: Option<&Error>) -> End {
    match error.filter(|error| error.class() == ErrorClass::Transient) {
        None => End::Answered,
        Some(error) => End::Failed {
            told: Told {
                reason: error.kind(),
                status: error.status(),
            },
            after: error
                .retry_after()
                .filter(|_| matches!(error.status(), Some(429 | 503))),
        },
    }
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
