//! Pure: which call to an endpoint starts next. Calls wait in flows, one for each namespace; the flows take turns, and within a flow the
//! call whose token expires first comes first. Whatever one flow does, be it many, slow or failing calls, costs the others at most one turn.
//! How many are in flight is found by an [`AdaptiveLimit`]; a flow leaves a fifth of that to others.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::adaptive_limit::{AdaptiveLimit, LimitMove, LimitMoves};
use super::circuit_breaker::{Circuit, CircuitBreaker, LastFailure};
use super::decision::{CallResult, Decision, Decisions, WaiterId};
use super::flow::{Flow, FlowId, decision, rejection};
use super::usage::Usage;
use crate::fair_share::may_take;
use crate::google::vocabulary::Reason;

/// How far calls may run ahead of the rate limit.
const BURST: Duration = Duration::from_secs(1);
/// How long after a call of one flow a call of another may fail for the same cause.
const SAME_CAUSE: Duration = Duration::from_secs(5);
/// How many calls wait for the next probe while the endpoint fails for all: one each of flows that have not failed. All others are
/// rejected at once, so that an outage holds few reconciles in flight.
const PROBERS: usize = 8;
/// An endpoint stands still if it has calls, and for this time none has started or ended.
const STANDSTILL: Duration = Duration::from_secs(2);
/// How many calls of a flow wait for their turn before further ones only take memory: enough for the next turns to have callers.
const CONGESTED_FLOW: usize = 8;
/// How many calls of all flows wait before a flow with one waiting call is congested.
const CONGESTED: usize = 32;
/// How long a call is deferred whose flow is full.
pub(crate) const FULL_RETRY: Duration = Duration::from_secs(4);

/// The limits.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Time between two calls at the highest rate; zero for no limit.
    pub interval: Duration,
    /// The most calls in flight at once, whatever the endpoint takes.
    pub in_flight: usize,
    /// Calls that wait in one flow.
    pub waiting: usize,
}

/// The queue of one endpoint.
#[derive(Debug)]
pub struct FairQueue {
    limits: QueueLimits,
    flows: HashMap<String, Flow>,
    /// Flows with waiting calls, the next one first.
    order: VecDeque<String>,
    waiting: usize,
    in_flight: usize,
    usage: Usage,
    limit: AdaptiveLimit,
    rate: Option<Instant>,
    breaker: CircuitBreaker,
    /// Flows whose last call failed, since the last answer to any flow.
    failing: HashSet<String>,
    /// The flow whose call failed last, and when.
    last_failed: Option<(FlowId, Instant)>,
    /// The flow whose call was answered last, and when; then the last one before it of another flow.
    last_answered: [Option<(FlowId, Instant)>; 2],
    next_id: u64,
    /// When a call started or ended last.
    moved: Option<Instant>,
    /// Whether a circuit opened since the last poll, so that waiting calls are to be rejected.
    has_opened: bool,
}

impl FairQueue {
    /// An empty queue.
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            flows: HashMap::new(),
            order: VecDeque::new(),
            waiting: 0,
            in_flight: 0,
            usage: Usage::default(),
            limit: AdaptiveLimit::new(limits.in_flight),
            rate: None,
            breaker: CircuitBreaker::default(),
            failing: HashSet::new(),
            last_failed: None,
            last_answered: [None; 2],
            next_id: 0,
            moved: None,
            has_opened: false,
        }
    }

    /// Adds a call that replaces a token which is valid for `remaining`, or none. [`FairQueue::poll`] decides on it.
    ///
    /// # Errors
    /// The decision, if the call is not to wait at all.
    pub fn enqueue(
        &mut self,
        now: Instant,
        flow: &str,
        remaining: Option<Duration>,
    ) -> Result<WaiterId, Decision> {
        if !self.flows.contains_key(flow) {
            // In an outage no flow is forgotten: when it ends, each that it held back is returned.
            if !self.breaker.is_open(now) {
                self.flows.retain(|_, flow| !flow.is_forgotten(now));
            }
            self.next_id += 1;
            let id = self.next_id;
            self.flows.insert(
                flow.to_owned(),
                Flow {
                    id,
                    ..Flow::default()
                },
            );
        }
        let is_failing = self.failing.contains(flow);
        let Some(state) = self.flows.get_mut(flow) else {
            return Err(Decision::Defer { by: FULL_RETRY });
        };
        if let Some(remaining) = remaining {
            state.breaker.expedite_probe(remaining);
            self.breaker.expedite_probe(remaining);
        }
        match decision(state.breaker.circuit(now, remaining), now) {
            None | Some(Ok(_)) => {}
            Some(Err(rejected)) => return Err(state.record_rejection(rejected)),
        }
        match decision(self.breaker.circuit(now, remaining), now) {
            None | Some(Ok(_)) => {}
            // The endpoint may work for a flow that has not failed, even if it fails for all others: its first call is the next probe.
            Some(Err(Decision::Reject { .. }))
                if !is_failing && state.is_idle() && self.order.len() < PROBERS => {}
            Some(Err(rejected)) => return Err(state.record_rejection(rejected)),
        }
        if state.waiting.len() >= self.limits.waiting {
            return Err(Decision::Defer { by: FULL_RETRY });
        }
        let id = self.next_id;
        self.next_id += 1;
        if state.waiting.is_empty() {
            self.order.push_back(flow.to_owned());
        }
        // Those without a valid token come first, in the order in which they came.
        let deadline = now + remaining.unwrap_or_default();
        state.waiting.insert((deadline, id));
        self.waiting += 1;
        Ok(id)
    }

    /// Removes a waiting call.
    pub fn cancel(&mut self, flow: &str, id: WaiterId) {
        let Some(state) = self.flows.get_mut(flow) else {
            return;
        };
        let before = state.waiting.len();
        state.waiting.retain(|(_, other)| *other != id);
        self.waiting -= before - state.waiting.len();
        if state.waiting.is_empty() {
            self.order.retain(|other| other != flow);
        }
    }

    /// Why no call may start, if it is not for the limits.
    pub fn rejection(&self, now: Instant) -> Option<Decision> {
        rejection(self.breaker.circuit(now, None), now)
    }

    /// A call that started at `started` has ended. Returns the flows that failures held back, and whose calls may start again.
    pub fn complete(
        &mut self,
        now: Instant,
        flow: &str,
        started: Instant,
        result: CallResult,
    ) -> Vec<String> {
        let mut recovered = Vec::new();
        let in_flight = self.in_flight;
        self.moved = Some(now);
        self.usage.add(now, in_flight);
        self.in_flight = self.in_flight.saturating_sub(1);
        let state = self.flows.entry(flow.to_owned()).or_default();
        state.in_flight = state.in_flight.saturating_sub(1);
        let id = state.id;
        match result {
            CallResult::Answered => {
                let closed = state.breaker.answered(now, started);
                if closed.is_some() && std::mem::take(&mut state.is_held_back) {
                    recovered.push(flow.to_owned());
                }
                // What failed for all was no flow's own fault.
                if let Some(since) = self.breaker.answered(now, started) {
                    self.limit.recovered();
                    for (name, flow) in &mut self.flows {
                        flow.breaker
                            .close_if_after(since.checked_sub(SAME_CAUSE).unwrap_or(since));
                        if !flow.breaker.is_open(now) && std::mem::take(&mut flow.is_held_back) {
                            recovered.push(name.clone());
                        }
                    }
                }
                self.failing.clear();
                self.limit.answered(now, started, in_flight);
                let [last, before] = self.last_answered;
                let is_same = last.is_some_and(|(last, _)| last == id);
                self.last_answered = [Some((id, now)), if is_same { before } else { last }];
            }
            CallResult::Failed { failure, retry_after } => {
                state.breaker.failed(now, failure, retry_after, true);
                state.is_held_back = true;
                self.failing.insert(flow.to_owned());
                // A failure of one flow alone may be its own fault, and a pause that the server asked it for is its own.
                self.breaker.failed(now, failure, None, self.failing.len() > 1);
                self.has_opened |= state.breaker.is_open(now) || self.breaker.is_open(now);
                if self.may_concern_all(id, now, started) {
                    self.limit.failed(now, started, in_flight, failure.moves());
                }
                self.last_failed = Some((id, now));
            }
            CallResult::Cancelled => {}
        }
        recovered
    }

    /// Whether the failure of a call that started at `started` may be the endpoint's rather than of its flow alone: another flow's call
    /// failed just before, or none was answered since.
    fn may_concern_all(&self, flow: FlowId, now: Instant, started: Instant) -> bool {
        let another_failed = self
            .last_failed
            .is_some_and(|(last, at)| last != flow && now < at + SAME_CAUSE);
        let mut answered = self.last_answered.iter().flatten();
        another_failed || !answered.any(|(other, at)| *other != flow && *at >= started)
    }

    /// Decides on the waiting calls.
    pub fn poll(&mut self, now: Instant) -> Decisions {
        let mut decisions = match std::mem::take(&mut self.has_opened) {
            true => self.reject_waiting(now),
            false => Vec::new(),
        };
        let mut wake: Option<Instant> = None;
        let mut soon = |at: Instant| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        // Flows in a row of which nothing was decided.
        let mut passed = 0;
        let limit = self.limit.get();
        while passed < self.order.len() && self.in_flight < limit {
            if let Some(rate) = self.rate.filter(|rate| *rate > now + BURST) {
                soon(rate - BURST);
                break;
            }
            let Some(name) = self.order.pop_front() else { break };
            let Some(state) = self.flows.get_mut(&name) else {
                continue;
            };
            let Some((deadline, id)) = state.waiting.first().copied() else {
                continue;
            };
            let remaining = deadline.checked_duration_since(now);
            let own = decision(state.breaker.circuit(now, remaining), now);
            let shared = decision(self.breaker.circuit(now, remaining), now);
            // A flow leaves a fifth to others, so that another flow can always start.
            let full = !may_take(state.in_flight, limit - self.in_flight);
            let mut start = false;
            match (own, shared) {
                _ if full => {}
                (None, None) => start = true,
                (Some(Err(rejected)), _) => decisions.push((id, state.record_rejection(rejected))),
                (_, Some(Err(Decision::Reject { .. }))) if !self.failing.contains(&name) => {
                    if let Circuit::Open { until, .. } = self.breaker.circuit(now, remaining) {
                        soon(until);
                    }
                }
                (_, Some(Err(rejected))) => decisions.push((id, state.record_rejection(rejected))),
                (Some(Ok(at)), _) | (_, Some(Ok(at))) => soon(at),
            }
            if start {
                state.breaker.started(now);
                self.breaker.started(now);
                state.in_flight += 1;
                self.usage.add(now, self.in_flight);
                self.in_flight += 1;
                self.moved = Some(now);
                if !self.limits.interval.is_zero() {
                    self.rate = Some(self.rate.map_or(now, |rate| rate.max(now)) + self.limits.interval);
                }
                decisions.push((id, Decision::Admit));
            }
            let decided = decisions.last().is_some_and(|(last, _)| *last == id);
            passed = if decided { 0 } else { passed + 1 };
            if decided {
                state.waiting.remove(&(deadline, id));
                self.waiting -= 1;
            }
            if !state.waiting.is_empty() {
                self.order.push_back(name);
            }
        }
        (decisions, wake)
    }

    /// Rejects the waiting calls that circuits hold back, but for the next probes, whether or not there is room for further calls.
    fn reject_waiting(&mut self, now: Instant) -> Vec<(WaiterId, Decision)> {
        let mut decisions = Vec::new();
        let mut probers = 0;
        let shared = rejection(self.breaker.circuit(now, None), now);
        for name in &self.order {
            let Some(state) = self.flows.get_mut(name) else {
                continue;
            };
            let own = rejection(state.breaker.circuit(now, None), now);
            let Some(rejected) = own.or(shared) else { continue };
            let may_probe = own.is_none() && !self.failing.contains(name) && probers < PROBERS;
            probers += usize::from(may_probe);
            let rest = state.waiting.iter().nth(usize::from(may_probe)).copied();
            let rejects = rest.map_or_else(BTreeSet::new, |rest| state.waiting.split_off(&rest));
            state.is_held_back |= !rejects.is_empty();
            self.waiting -= rejects.len();
            decisions.extend(rejects.into_iter().map(|(_, id)| (id, rejected)));
        }
        let flows = &self.flows;
        self.order
            .retain(|name| flows.get(name).is_some_and(|flow| !flow.waiting.is_empty()));
        decisions
    }

    /// Calls in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many calls may be in flight at the moment.
    pub fn limit(&self) -> usize {
        self.limit.get()
    }

    /// How many callers are of use: as many as calls may be in flight, but at most twice as many as there were on average. What comes in a
    /// burst waits elsewhere, such as for the API server.
    pub(crate) fn useful_callers(&self, now: Instant) -> usize {
        self.limit.get().min(2 * self.usage.average(now, self.in_flight))
    }

    /// How many more calls are in flight than on average. They started at once, so their tokens would wait to be written.
    pub(crate) fn surge(&self, now: Instant) -> usize {
        self.in_flight
            .saturating_sub(self.usage.average(now, self.in_flight))
    }

    /// How often that moved, and why.
    pub(crate) fn limit_moves(&self) -> LimitMoves {
        self.limit.moves()
    }

    /// Calls that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether so many calls of the flow wait for their turn that another one would only wait as well. A flow without a waiting call is
    /// never congested, however many of others wait: what it starts next may be no call. Nor is any while the endpoint stands still.
    pub(crate) fn is_congested(&self, now: Instant, flow: &str) -> bool {
        let stands_still = self.moved.is_some_and(|moved| moved + STANDSTILL <= now);
        let waiting = self.flows.get(flow).map_or(0, |flow| flow.waiting.len());
        let most = if self.waiting >= CONGESTED {
            1
        } else {
            CONGESTED_FLOW
        };
        waiting >= most && !stands_still
    }

    /// Whether the endpoint fails, so that calls of all flows are held back.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        self.breaker.is_open(now)
    }

    /// Flows whose own calls fail or were asked to pause, so that they are held back.
    pub(crate) fn open_flows(&self, now: Instant) -> usize {
        let all = self.flows.values();
        all.filter(|flow| flow.breaker.is_open(now)).count()
    }
}

impl LastFailure {
    fn moves(self) -> LimitMove {
        match (self.status, self.reason) {
            (Some(429), _) => LimitMove::Throttled,
            (_, Reason::UpstreamTimeout) => LimitMove::TimedOut,
            _ => LimitMove::Failed,
        }
    }
}

#[cfg(test)]
#[path = "fair_queue_tests.rs"]
mod tests;
