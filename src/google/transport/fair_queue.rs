//! Pure: whose call to an endpoint is next. Calls wait in lanes, one a namespace; the lanes take turns, and within a lane those whose
//! token ends first come first. What one lane does, be it many calls, slow ones or failing ones, costs the others no more than a turn.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::circuit_breaker::{Breaker, Standing, Told};

/// What a call without a valid token is taken for: it comes behind tokens that are about to end, and before all others.
const NO_TOKEN: Duration = Duration::from_secs(60);
/// Calls whose token ends sooner, or that have none, are not spread after an outage.
const URGENT: Duration = Duration::from_secs(5 * 60);
/// What the rate limit may save up.
const BURST: Duration = Duration::from_secs(1);
/// How long what a lane did is remembered.
const MEMORY: Duration = Duration::from_secs(3600);

/// The limits.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Time between two calls at the highest rate; zero for no limit.
    pub interval: Duration,
    /// Calls under way at once.
    pub in_flight: usize,
    /// Calls that wait in one lane.
    pub waiting: usize,
}

/// Names a waiting call.
pub type Ticket = u64;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It starts now.
    Start,
    /// It cannot start: what it goes to does not answer, or asked for a pause.
    Shut {
        /// What failed.
        told: Told,
        /// How long the server asked to wait, where it did.
        asked: Option<Duration>,
    },
    /// It is to come back later, without anything being wrong.
    Postponed {
        /// How long it may stay away at least.
        by: Duration,
    },
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With an answer, if only a refusal.
    Answered,
    /// With a fault that passes.
    Failed {
        /// What failed.
        told: Told,
        /// How long the server asked to wait, where it did.
        after: Option<Duration>,
    },
    /// Nobody waited for its end.
    Unknown,
}

/// The verdicts that are due, and when to ask again though nothing happens.
pub type Due = (Vec<(Ticket, Verdict)>, Option<Instant>);

#[derive(Debug, Default)]
struct Lane {
    /// By the end of their token.
    waiting: BTreeSet<(Instant, Ticket)>,
    in_flight: usize,
    breaker: Breaker,
}

/// The queue before one endpoint.
#[derive(Debug)]
pub struct Turns {
    bounds: Bounds,
    lanes: HashMap<String, Lane>,
    /// Lanes with waiting calls, the next one first.
    order: VecDeque<String>,
    in_flight: usize,
    rate: Option<Instant>,
    breaker: Breaker,
    /// Lanes whose last call failed, since the last answer.
    failing: HashSet<String>,
    next: Ticket,
}

/// Spread at least so long after an outage; the caller adds its jitter.
pub(crate) const SPREAD_BY: Duration = Duration::from_secs(60);
/// A full lane is tried again after this.
pub(crate) const FULL_BY: Duration = Duration::from_secs(4);

impl Turns {
    /// An empty queue.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            lanes: HashMap::new(),
            order: VecDeque::new(),
            in_flight: 0,
            rate: None,
            breaker: Breaker::default(),
            failing: HashSet::new(),
            next: 0,
        }
    }

    /// A call wants to start; `left` is what is left of the valid token that it is to replace. Ask [`Turns::due`] what becomes of it.
    ///
    /// # Errors
    /// The verdict, where it is clear at once that it does not wait.
    pub fn enter(&mut self, now: Instant, lane: &str, left: Option<Duration>) -> Result<Ticket, Verdict> {
        if !self.lanes.contains_key(lane) {
            self.lanes.retain(|_, lane| !lane.is_forgotten(now));
            self.lanes.insert(lane.to_owned(), Lane::default());
        }
        let urgent = left.is_none_or(|left| left < URGENT);
        let is_failing = self.failing.contains(lane);
        let Some(state) = self.lanes.get_mut(lane) else {
            return Err(Verdict::Postponed { by: FULL_BY });
        };
        if let Some(left) = left {
            state.breaker.hurry(left);
            self.breaker.hurry(left);
        }
        match verdict(state.breaker.standing(now, urgent), now) {
            None | Some(Ok(_)) => {}
            Some(Err(refused)) => return Err(refused),
        }
        match verdict(self.breaker.standing(now, urgent), now) {
            None | Some(Ok(_)) => {}
            // A lane that has not failed may be the only one for which it works: its first call is the next probe.
            Some(Err(Verdict::Shut { .. })) if !is_failing && state.is_idle() => {}
            Some(Err(refused)) => return Err(refused),
        }
        if state.waiting.len() >= self.bounds.waiting {
            return Err(Verdict::Postponed { by: FULL_BY });
        }
        let ticket = self.next;
        self.next += 1;
        if state.waiting.is_empty() {
            self.order.push_back(lane.to_owned());
        }
        state.waiting.insert((now + left.unwrap_or(NO_TOKEN), ticket));
        Ok(ticket)
    }

    /// A waiting call gives up.
    pub fn give_up(&mut self, lane: &str, ticket: Ticket) {
        let Some(state) = self.lanes.get_mut(lane) else {
            return;
        };
        state.waiting.retain(|(_, other)| *other != ticket);
        if state.waiting.is_empty() {
            self.order.retain(|other| other != lane);
        }
    }

    /// What holds all calls back, where something but the limits does.
    pub fn why_waiting(&self, now: Instant) -> Option<Verdict> {
        verdict(self.breaker.standing(now, true), now)?.err()
    }

    /// A call that started at `started` has ended.
    pub fn ended(&mut self, now: Instant, lane: &str, started: Instant, end: End) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let state = self.lanes.entry(lane.to_owned()).or_default();
        state.in_flight = state.in_flight.saturating_sub(1);
        match end {
            End::Answered => {
                state.breaker.answered(now, started);
                self.breaker.answered(now, started);
                self.failing.clear();
            }
            End::Failed { told, after } => {
                state.breaker.failed(now, told, after, true);
                self.failing.insert(lane.to_owned());
                // What one lane alone meets may be its own doing, and a pause that it was asked for is its own.
                self.breaker.failed(now, told, None, self.failing.len() > 1);
            }
            End::Unknown => {}
        }
    }

    /// What becomes of the waiting calls.
    pub fn due(&mut self, now: Instant) -> Due {
        let mut verdicts = Vec::new();
        let mut wake: Option<Instant> = None;
        let mut soon = |at: Instant| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        // How many lanes in a row had nothing to start.
        let mut passed = 0;
        while passed < self.order.len() && self.in_flight < self.bounds.in_flight {
            if let Some(rate) = self.rate.filter(|rate| *rate > now + BURST) {
                soon(rate - BURST);
                break;
            }
            let Some(name) = self.order.pop_front() else { break };
            let Some(state) = self.lanes.get_mut(&name) else {
                continue;
            };
            let Some((end, ticket)) = state.waiting.first().copied() else {
                continue;
            };
            let urgent = end < now + URGENT;
            let own = verdict(state.breaker.standing(now, urgent), now);
            let shared = verdict(self.breaker.standing(now, urgent), now);
            // A lane takes as many places as it leaves free at most, so that there is always one for another.
            let full = state.in_flight > self.bounds.in_flight - self.in_flight - 1;
            let mut start = false;
            match (own, shared) {
                _ if full => {}
                (None, None) => start = true,
                (Some(Err(refused)), _) => verdicts.push((ticket, refused)),
                (_, Some(Err(Verdict::Shut { .. }))) if !self.failing.contains(&name) => {
                    if let Standing::Shut { until, .. } = self.breaker.standing(now, urgent) {
                        soon(until);
                    }
                }
                (_, Some(Err(refused))) => verdicts.push((ticket, refused)),
                (Some(Ok(at)), _) | (_, Some(Ok(at))) => soon(at),
            }
            if start {
                state.breaker.started(now);
                self.breaker.started(now);
                state.in_flight += 1;
                self.in_flight += 1;
                if !self.bounds.interval.is_zero() {
                    self.rate = Some(self.rate.map_or(now, |rate| rate.max(now)) + self.bounds.interval);
                }
                verdicts.push((ticket, Verdict::Start));
            }
            let answered = verdicts.last().is_some_and(|(last, _)| *last == ticket);
            passed = if answered { 0 } else { passed + 1 };
            if answered {
                state.waiting.remove(&(end, ticket));
            }
            if !state.waiting.is_empty() {
                self.order.push_back(name);
            }
        }
        (verdicts, wake)
    }

    /// Calls under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Calls that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lanes.values().map(|lane| lane.waiting.len()).sum()
    }

    /// Whether calls are held back since the endpoint fails.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        self.breaker.holds_back(now)
    }

    /// Lanes whose own calls fail, so that they are held back.
    pub(crate) fn open_lanes(&self, now: Instant) -> usize {
        let all = self.lanes.values();
        all.filter(|lane| lane.breaker.holds_back(now)).count()
    }
}

impl Lane {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight == 0
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        let old = self.breaker.last().is_none_or(|last| last + MEMORY < now);
        self.is_idle() && (old || (self.breaker.is_pristine(now) && self.breaker.last().is_none()))
    }
}

/// None: it may start. Ok: it waits until then. Err: it does not wait.
fn verdict(standing: Standing, now: Instant) -> Option<Result<Instant, Verdict>> {
    match standing {
        Standing::Go => None,
        Standing::Soon(at) => Some(Ok(at)),
        Standing::Spread => Some(Err(Verdict::Postponed { by: SPREAD_BY })),
        Standing::Shut { until, told, asked } => Some(Err(Verdict::Shut {
            told,
            asked: asked.then(|| until.saturating_duration_since(now)),
        })),
    }
}

#[cfg(test)]
#[path = "fair_queue_tests.rs"]
mod tests;
