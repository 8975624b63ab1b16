//! Pure: the calls of one flow, and what its circuit or the endpoint's decides on them.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::circuit_breaker::{Circuit, CircuitBreaker};
use super::decision::{Decision, WaiterId};

/// How long an idle flow is remembered.
const FLOW_TTL: Duration = Duration::from_secs(3600);
/// How long a call is deferred at least by the spreading after an outage; the caller adds its jitter.
pub(crate) const SPREAD_DEFERRAL: Duration = Duration::from_secs(60);

/// Names a flow for as long as it is remembered.
pub(super) type FlowId = u64;

/// The calls of one flow.
#[derive(Debug, Default)]
pub(super) struct Flow {
    pub(super) id: FlowId,
    /// By the time at which their token expires.
    pub(super) waiting: BTreeSet<(Instant, WaiterId)>,
    pub(super) in_flight: usize,
    pub(super) breaker: CircuitBreaker,
    /// Whether a call of it failed or was rejected since its circuit, or the endpoint's, closed last.
    pub(super) is_held_back: bool,
}

impl Flow {
    /// `decision`. If it rejects, the flow is held back.
    pub(super) fn record_rejection(&mut self, decision: Decision) -> Decision {
        self.is_held_back |= matches!(decision, Decision::Reject { .. });
        decision
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight == 0
    }

    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        let old = self.breaker.last().is_none_or(|last| last + FLOW_TTL < now);
        self.is_idle() && (old || (self.breaker.is_pristine(now) && self.breaker.last().is_none()))
    }
}

/// None: the call may start. Ok: it waits until then. Err: it does not wait.
pub(super) fn decision(circuit: Circuit, now: Instant) -> Option<Result<Instant, Decision>> {
    match circuit {
        Circuit::Closed => None,
        Circuit::Ramping(at) => Some(Ok(at)),
        Circuit::Spreading => Some(Err(Decision::Defer { by: SPREAD_DEFERRAL })),
        Circuit::Open {
            until,
            last_failure,
            server_requested,
        } => Some(Err(Decision::Reject {
            last_failure,
            retry_after: server_requested.then(|| until.saturating_duration_since(now)),
        })),
    }
}

/// The decision about a call that may not start until a probe is answered.
pub(super) fn rejection(circuit: Circuit, now: Instant) -> Option<Decision> {
    match decision(circuit, now) {
        Some(Err(rejected @ Decision::Reject { .. })) => Some(rejected),
        _ => None,
    }
}
