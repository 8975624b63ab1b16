//! Pure: which requests are served if memory does not suffice for all.
//!
//! Requests are admitted in the order of their creation, then of their UID, each if it fits the limit of its namespace and the total. After
//! the first of a namespace that does not fit, no other of that namespace is admitted; after the first that does not fit the total, no
//! other at all. So a newcomer never takes the place of an older request, and the same requests are admitted after a restart.
//!
//! Those that wait are known by a marker each. If there are too many of these too, the youngest are dropped.

use std::collections::{BTreeMap, HashMap};

use super::claims::Claimant;
use super::limits::{CacheLimits, Limit, MARKER};
use crate::api::{ObjectKey, is_in_scope};

/// The requests by their order, and what each counts for.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    limits: CacheLimits,
    namespaces: HashMap<Box<str>, Namespace>,
    /// What all that are admitted count for.
    used: usize,
    /// How many wait.
    waiting: usize,
    /// The oldest that waits for lack of memory in all.
    closed: Option<Claimant>,
    /// How often a request was dropped.
    dropped: u64,
}

#[derive(Debug, Default)]
struct Namespace {
    admitted: BTreeMap<Claimant, u32>,
    used: usize,
    waiting: BTreeMap<Claimant, u32>,
    /// Whether one was admitted whose spec is not known any more.
    has_readmitted: bool,
    /// Whether one was dropped since the last relist began.
    has_dropped: bool,
}

/// Whether the ledger admits a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is served.
    Admitted,
    /// A marker is kept of it.
    Waiting(Limit),
    /// Nothing is kept of it.
    Dropped,
}

/// What a change did to requests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// They were admitted, and wait now.
    pub(super) demoted: Vec<(ObjectKey, Limit)>,
    /// Nothing is kept of them any more.
    pub(super) dropped: Vec<ObjectKey>,
}

impl Ledger {
    /// Without requests.
    pub(super) fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Adds the request, or changes what it counts for.
    pub(super) fn put(&mut self, request: Claimant, cost: u32) -> Changes {
        let mut changes = Changes::default();
        let key = request.request.clone();
        let name = key.namespace();
        if !self.namespaces.contains_key(name) {
            self.namespaces.insert(name.into(), Namespace::default());
        }
        let Some(namespace) = self.namespaces.get_mut(name) else {
            return changes;
        };
        let bytes = to_usize(cost);
        let may_admit = if let Some(before) = namespace.admitted.get_mut(&request) {
            let before = to_usize(std::mem::replace(before, cost));
            namespace.used = namespace.used - before + bytes;
            self.used = self.used - before + bytes;
            bytes < before
        } else if let Some(before) = namespace.waiting.get_mut(&request) {
            // One that costs the same or more makes nothing admissible.
            cost < std::mem::replace(before, cost)
        } else {
            let is_closed = self.closed.as_ref().is_some_and(|closed| *closed < request);
            let first = namespace.waiting.keys().next();
            if is_closed || first.is_some_and(|first| *first < request) {
                namespace.waiting.insert(request, cost);
                self.waiting += 1;
                // Nothing was freed or taken of what is admitted.
                self.bound_markers(name, &mut changes);
                return changes;
            }
            namespace.used += bytes;
            self.used += bytes;
            namespace.admitted.insert(request, cost);
            false
        };
        self.settle(name, may_admit, &mut changes);
        changes
    }

    /// Removes the request.
    pub(super) fn remove(&mut self, request: &Claimant) -> Changes {
        let mut changes = Changes::default();
        let name = request.request.namespace();
        let Some(namespace) = self.namespaces.get_mut(name) else {
            return changes;
        };
        let may_admit = if let Some(cost) = namespace.admitted.remove(request) {
            namespace.used -= to_usize(cost);
            self.used -= to_usize(cost);
            true
        } else {
            let is_first = namespace.waiting.keys().next() == Some(request);
            if namespace.waiting.remove(request).is_some() {
                self.waiting -= 1;
            }
            is_first
        };
        self.settle(name, may_admit, &mut changes);
        let is_empty = |namespace: &Namespace| {
            namespace.admitted.is_empty() && namespace.waiting.is_empty() && !namespace.has_dropped
        };
        if self.namespaces.get(name).is_some_and(is_empty) {
            self.namespaces.remove(name);
        }
        changes
    }

    /// What is known of the request.
    pub(super) fn admission(&self, request: &Claimant) -> Admission {
        if self.waiting == 0 {
            return Admission::Admitted;
        }
        match self.namespaces.get(request.request.namespace()) {
            Some(namespace) if namespace.admitted.contains_key(request) => Admission::Admitted,
            Some(namespace) if namespace.waiting.contains_key(request) => {
                Admission::Waiting(self.exceeded(namespace))
            }
            _ => Admission::Dropped,
        }
    }

    /// Starts a relist of `scope`, which shows the specs of all.
    pub(super) fn begin_relist(&mut self, scope: &str) {
        self.namespaces.retain(|name, namespace| {
            if is_in_scope(name, scope) {
                namespace.has_readmitted = false;
                namespace.has_dropped = false;
            }
            !namespace.admitted.is_empty() || !namespace.waiting.is_empty() || namespace.has_dropped
        });
    }

    /// Whether a relist of `scope` would serve or report more requests.
    pub(super) fn needs_relist(&self, scope: &str) -> bool {
        let limits = self.limits.of_markers();
        let has_room = self.waiting < limits.total / MARKER;
        let mut namespaces = self.namespaces.iter();
        namespaces.any(|(name, namespace)| {
            let may_have_more =
                namespace.has_dropped && has_room && namespace.waiting.len() < limits.namespace / MARKER;
            is_in_scope(name, scope) && (namespace.has_readmitted || may_have_more)
        })
    }

    /// What the admitted requests count for, how many wait, and how often one was dropped.
    pub(super) fn usage(&self) -> (usize, usize, u64) {
        (self.used, self.waiting, self.dropped)
    }

    /// What the requests of each namespace count for, if none waits or is to be listed again, and an eighth of each limit is free.
    pub(super) fn sums_with_room(&self) -> Option<HashMap<Box<str>, usize>> {
        let limits = self.limits.of_requests();
        if self.waiting > 0 || self.used > limits.total / 8 * 7 {
            return None;
        }
        let sums = self.namespaces.iter().map(|(name, namespace)| {
            let is_settled = !namespace.has_readmitted && !namespace.has_dropped;
            (is_settled && namespace.used <= limits.namespace / 8 * 7).then(|| (name.clone(), namespace.used))
        });
        sums.collect()
    }

    /// The limit that the first exceeds that waits in `namespace`.
    fn exceeded(&self, namespace: &Namespace) -> Limit {
        let first = namespace.waiting.values().next().copied().unwrap_or_default();
        match namespace.used + to_usize(first) > self.limits.of_requests().namespace {
            true => Limit::Namespace,
            false => Limit::Total,
        }
    }

    /// Restores the order after a change in the namespace `name`. Unless it `may_admit` one that waits, it only took memory.
    fn settle(&mut self, name: &str, may_admit: bool, changes: &mut Changes) {
        let limits = self.limits.of_requests();
        while self
            .namespaces
            .get(name)
            .is_some_and(|namespace| namespace.used > limits.namespace)
        {
            self.demote_youngest(name, Limit::Namespace, changes);
        }
        while self.used > limits.total {
            let Some(youngest) = self.youngest() else { break };
            let name = youngest.request.namespace().to_owned();
            self.demote_youngest(&name, Limit::Total, changes);
        }
        if !may_admit && changes.demoted.is_empty() && self.is_closed_outside(name) {
            // What did not fit before does not fit now: other namespaces need no check.
            return;
        }
        self.closed = None;
        if self.waiting == 0 {
            return;
        }
        while let Some((next, cost)) = self.next() {
            if self.used + to_usize(cost) <= limits.total {
                self.admit(&next, cost);
                // The same change demoted it, so that nothing changes for it.
                changes.demoted.retain(|(key, _)| *key != next.request);
                continue;
            }
            match self.youngest().filter(|youngest| *youngest > next) {
                Some(youngest) => {
                    let name = youngest.request.namespace().to_owned();
                    self.demote_youngest(&name, Limit::Total, changes);
                }
                None => {
                    self.closed = Some(next);
                    break;
                }
            }
        }
        self.bound_markers(name, changes);
    }

    /// Whether [`Self::closed`] is still valid after a change in the namespace `name` that freed no memory: it is unset, or waits in another
    /// namespace.
    fn is_closed_outside(&self, name: &str) -> bool {
        self.closed.as_ref().is_none_or(|closed| {
            let namespace = closed.request.namespace();
            let all = self.namespaces.get(namespace);
            namespace != name && all.is_some_and(|all| all.waiting.contains_key(closed))
        })
    }

    /// The oldest that waits and fits the limit of its namespace.
    fn next(&self) -> Option<(Claimant, u32)> {
        let limit = self.limits.of_requests().namespace;
        let first = |namespace: &'_ Namespace| {
            let (request, cost) = namespace.waiting.first_key_value()?;
            (namespace.used + to_usize(*cost) <= limit).then(|| (request.clone(), *cost))
        };
        self.namespaces.values().filter_map(first).min()
    }

    /// The youngest that is admitted.
    fn youngest(&self) -> Option<Claimant> {
        let last = |namespace: &'_ Namespace| Some(namespace.admitted.last_key_value()?.0.clone());
        self.namespaces.values().filter_map(last).max()
    }

    fn admit(&mut self, request: &Claimant, cost: u32) {
        let Some(namespace) = self.namespaces.get_mut(request.request.namespace()) else {
            return;
        };
        namespace.waiting.remove(request);
        namespace.admitted.insert(request.clone(), cost);
        namespace.has_readmitted = true;
        namespace.used += to_usize(cost);
        self.used += to_usize(cost);
        self.waiting -= 1;
    }

    fn demote_youngest(&mut self, name: &str, limit: Limit, changes: &mut Changes) {
        let Some(namespace) = self.namespaces.get_mut(name) else {
            return;
        };
        let Some((request, cost)) = namespace.admitted.pop_last() else {
            return;
        };
        namespace.used -= to_usize(cost);
        self.used -= to_usize(cost);
        changes.demoted.push((request.request.clone(), limit));
        namespace.waiting.insert(request, cost);
        self.waiting += 1;
    }

    /// Leaves out the youngest that wait until the others fit the limits of markers: in the namespace `name` or one of those demoted, if it
    /// has too many, or else in the one that has most.
    fn bound_markers(&mut self, name: &str, changes: &mut Changes) {
        let limits = self.limits.of_markers();
        let mut touched: Vec<ObjectKey> = changes.demoted.iter().map(|(key, _)| key.clone()).collect();
        touched.dedup_by(|a, b| a.namespace() == b.namespace());
        let touched = touched.iter().map(ObjectKey::namespace).chain([name]);
        for name in touched {
            let Some(namespace) = self.namespaces.get_mut(name) else {
                continue;
            };
            while namespace.waiting.len() > limits.namespace / MARKER {
                leave_out(namespace, changes);
                self.waiting -= 1;
                self.dropped += 1;
            }
        }
        while self.waiting > limits.total / MARKER {
            let most = self
                .namespaces
                .values_mut()
                .max_by_key(|namespace| namespace.waiting.len());
            let Some(namespace) = most else { return };
            leave_out(namespace, changes);
            self.waiting -= 1;
            self.dropped += 1;
        }
    }
}

fn leave_out(namespace: &mut Namespace, changes: &mut Changes) {
    if let Some((request, _)) = namespace.waiting.pop_last() {
        changes.demoted.retain(|(key, _)| *key != request.request);
        changes.dropped.push(request.request);
        namespace.has_dropped = true;
    }
}

/// A cost, to be added up.
pub(super) fn to_usize(cost: u32) -> usize {
    usize::try_from(cost).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
