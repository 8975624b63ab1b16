//! Metrics of the watches of the Kubernetes API.

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: &'static str,
}

#[derive(Debug)]
pub(super) struct Watches {
    restarts: Family<ResourceLabels, Counter>,
    failing: Family<ResourceLabels, Gauge>,
    last_event: Family<ResourceLabels, Gauge>,
    undecodable: Family<ResourceLabels, Counter>,
    namespace_failing_since: Family<NamespaceLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NamespaceLabels {
    namespace: String,
}

impl Watches {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let all = Self {
            restarts: Family::default(),
            failing: Family::default(),
            last_event: Family::default(),
            undecodable: Family::default(),
            namespace_failing_since: Family::default(),
        };
        let help = "How often a watch of the Kubernetes API failed and was restarted";
        registry.register("watch_restarts", help, all.restarts.clone());
        let help = "Watches of the Kubernetes API whose last start failed; there is one for each served namespace, or one for all, and one for a \
                    Secret of another client that blocks a request";
        registry.register("watches_failing", help, all.failing.clone());
        let help =
            "Unix time of the last event or bookmark of a watch, of which there is one about every minute";
        registry.register("watch_last_event_timestamp_seconds", help, all.last_event.clone());
        let help = "How often a list or watch showed an object that cannot be decoded";
        registry.register("undecodable_objects", help, all.undecodable.clone());
        let help = "Unix time since when one of several namespaces cannot be listed or watched, so that it is not served; absent if it can";
        registry.register(
            "namespace_failing_since_timestamp_seconds",
            help,
            all.namespace_failing_since.clone(),
        );
        all
    }

    pub(super) fn set_namespace_failing_since(&self, namespace: &str, since: Option<Timestamp>) {
        let labels = NamespaceLabels {
            namespace: namespace.to_owned(),
        };
        match since {
            Some(since) => drop(
                self.namespace_failing_since
                    .get_or_create(&labels)
                    .set(since.as_second()),
            ),
            None => drop(self.namespace_failing_since.remove(&labels)),
        }
    }

    pub(super) fn of(&self, resource: &'static str) -> WatchMetrics {
        let labels = ResourceLabels { resource };
        WatchMetrics {
            restarts: self.restarts.get_or_create_owned(&labels),
            failing: self.failing.get_or_create_owned(&labels),
            last_event: self.last_event.get_or_create_owned(&labels),
            undecodable: self.undecodable.get_or_create_owned(&labels),
            resource,
            fails: false,
        }
    }
}

/// The metrics of one watch.
#[derive(Debug)]
pub struct WatchMetrics {
    restarts: Counter,
    failing: Gauge,
    last_event: Gauge,
    undecodable: Counter,
    resource: &'static str,
    fails: bool,
}

impl WatchMetrics {
    /// The plural resource.
    pub fn resource(&self) -> &'static str {
        self.resource
    }

    /// Counts an object that cannot be decoded.
    pub fn count_undecodable(&self) {
        self.undecodable.inc();
    }

    /// Records an event, which shows that the watch works.
    pub fn alive(&mut self, now: Timestamp) {
        self.last_event.set(now.as_second());
        if std::mem::take(&mut self.fails) {
            self.failing.dec();
        }
    }

    /// Records that the watch broke off; `is_down` if it could not even be started.
    pub fn failed(&mut self, is_down: bool) {
        self.restarts.inc();
        if is_down && !std::mem::replace(&mut self.fails, true) {
            self.failing.inc();
        }
    }
}

impl Drop for WatchMetrics {
    fn drop(&mut self) {
        if self.fails {
            self.failing.dec();
        }
    }
}
