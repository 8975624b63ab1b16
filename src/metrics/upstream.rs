//! Metrics of the calls to Google's endpoints.

use std::collections::HashMap;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::histogram::seconds;
use crate::google::{EndpointLoad, LimitMove};

type Seconds<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    endpoint: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CircuitLabels {
    endpoint: &'static str,
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MoveLabels {
    endpoint: &'static str,
    cause: &'static str,
}

#[derive(Debug)]
pub(super) struct Upstreams {
    seconds: Seconds<CallLabels>,
    wait_seconds: Seconds<EndpointLabels>,
    in_flight: Family<EndpointLabels, Gauge>,
    limit: Family<EndpointLabels, Gauge>,
    limit_moves: Family<MoveLabels, Counter>,
    waiting: Family<EndpointLabels, Gauge>,
    circuits_open: Family<CircuitLabels, Gauge>,
}

impl Upstreams {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let all = Self {
            seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            wait_seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            in_flight: Family::default(),
            limit: Family::default(),
            limit_moves: Family::default(),
            waiting: Family::default(),
            circuits_open: Family::default(),
        };
        let help = "Duration of a call to Google's endpoints, by endpoint and by HTTP status or reason of the failure";
        let name = "upstream_request_duration";
        registry.register_with_unit(name, help, Unit::Seconds, all.seconds.clone());
        let help = "Time that a call to Google's endpoints waited for the rate limit and the in-flight cap";
        registry.register_with_unit("upstream_wait", help, Unit::Seconds, all.wait_seconds.clone());
        let help = "Calls to Google's endpoints in flight";
        registry.register("upstream_in_flight", help, all.in_flight.clone());
        let help = "How many calls to Google's endpoints may be in flight, by how the last ones ended";
        registry.register("upstream_limit", help, all.limit.clone());
        let help = "How often that limit moved, by what moved it";
        registry.register("upstream_limit_moves", help, all.limit_moves.clone());
        let help = "Calls to Google's endpoints that wait for the rate limit or the in-flight cap";
        registry.register("upstream_waiting", help, all.waiting.clone());
        let help = "Open circuit breakers, which let only single probes through; scope is endpoint for all calls of an endpoint, \
                    namespace for those of one namespace";
        registry.register("upstream_circuits_open", help, all.circuits_open.clone());
        all
    }

    pub(super) fn observe_call(
        &self,
        endpoint: &'static str,
        code: &'static str,
        took: Duration,
        waited: Duration,
    ) {
        self.wait_seconds
            .get_or_create(&EndpointLabels { endpoint })
            .observe(waited.as_secs_f64());
        self.seconds
            .get_or_create(&CallLabels { endpoint, code })
            .observe(took.as_secs_f64());
    }

    /// Sets the gauges. If `loads` has an endpoint several times, its loads are summed.
    pub(super) fn collect(&self, loads: &[EndpointLoad]) {
        self.in_flight.clear();
        self.limit.clear();
        self.waiting.clear();
        self.circuits_open.clear();
        let add = |gauge: &Gauge, count: usize| {
            gauge.inc_by(i64::try_from(count).unwrap_or(i64::MAX));
        };
        let mut all_moves: HashMap<MoveLabels, u64> = HashMap::new();
        for load in loads {
            let endpoint = load.endpoint.as_str();
            let labels = EndpointLabels { endpoint };
            add(&self.in_flight.get_or_create(&labels), load.in_flight);
            add(&self.limit.get_or_create(&labels), load.limit);
            add(&self.waiting.get_or_create(&labels), load.waiting);
            for (cause, moves) in LimitMove::ALL.iter().zip(load.limit_moves) {
                let cause = cause.as_str();
                *all_moves.entry(MoveLabels { endpoint, cause }).or_default() += moves;
            }
            for (scope, open) in [
                ("endpoint", usize::from(load.is_open)),
                ("namespace", load.open_flows),
            ] {
                let labels = CircuitLabels { endpoint, scope };
                add(&self.circuits_open.get_or_create(&labels), open);
            }
        }
        for (labels, moves) in all_moves {
            // A provider of federation that is not used any more takes its moves with it. A counter never goes down.
            let counter = self.limit_moves.get_or_create_owned(&labels);
            counter.inc_by(moves.saturating_sub(counter.get()));
        }
    }
}
