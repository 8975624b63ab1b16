//! Pure: which request is reconciled next. Requests wait for their due time, the earliest first, and a request is in flight at most once.
//! A namespace has a limit of requests in flight. Further ones wait here, where each costs the memory of its key, so that they take
//! neither the slots of other namespaces nor the memory of reconciles that wait for Google. Among the namespaces with a request that is due,
//! the one with the fewest in flight is next. Within a namespace, requests without a valid token come first, then those whose token expires
//! first: of a backlog, what can wait is last.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::ObjectKey;

/// The requests that wait, and those in flight.
#[derive(Debug)]
pub(crate) struct Queue {
    max_in_flight: usize,
    namespaces: HashMap<Box<str>, Namespace>,
    /// The first request of each namespace that has less than its limit in flight.
    ready: BTreeSet<(Instant, ObjectKey)>,
    turns: HashMap<ObjectKey, Turn>,
    in_flight: HashSet<ObjectKey>,
    /// The turns of the requests in flight that were pushed again.
    requeued: HashMap<ObjectKey, Turn>,
}

/// When a request is due, and its rank among those that are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    /// When it is due.
    pub(crate) at: Instant,
    /// When its token expires; none if it has no valid one, or that is not known.
    pub(crate) expires: Option<Instant>,
}

impl Turn {
    /// Due at `at`; nothing is known of its token.
    pub(crate) fn at(at: Instant) -> Self {
        Self { at, expires: None }
    }

    /// The earlier, the sooner among those that are due: an expiry lies after the time at which a request without a valid token is due.
    fn rank(self) -> Instant {
        self.expires.unwrap_or(self.at)
    }
}

#[derive(Debug, Default)]
struct Namespace {
    /// By the time at which they are due.
    order: BTreeSet<(Instant, ObjectKey)>,
    /// Those that are due by `ranked_until`, by [`Turn::rank`].
    ranked: BTreeSet<(Instant, ObjectKey)>,
    ranked_until: Option<Instant>,
    /// The entry of this namespace in [`Queue::ready`].
    ready: Option<(Instant, ObjectKey)>,
    in_flight: usize,
}

impl Queue {
    /// A queue with at most `max_in_flight` requests of each namespace in flight.
    pub(crate) fn new(max_in_flight: usize) -> Self {
        Self {
            max_in_flight,
            namespaces: HashMap::new(),
            ready: BTreeSet::new(),
            turns: HashMap::new(),
            in_flight: HashSet::new(),
            requeued: HashMap::new(),
        }
    }

    /// Sets how many requests of each namespace may be in flight.
    pub(crate) fn set_max_in_flight(&mut self, max_in_flight: usize) {
        if std::mem::replace(&mut self.max_in_flight, max_in_flight) == max_in_flight {
            return;
        }
        self.ready.clear();
        for namespace in self.namespaces.values_mut() {
            let has_room = namespace.in_flight < max_in_flight;
            namespace.ready = namespace.order.first().filter(|_| has_room).cloned();
            self.ready.extend(namespace.ready.clone());
        }
    }

    /// Adds `key`. If it waits already, the earlier turn counts.
    pub(crate) fn push(&mut self, key: ObjectKey, turn: Turn) {
        if self.in_flight.contains(&key) {
            let requeued = self.requeued.entry(key).or_insert(turn);
            *requeued = turn.min(*requeued);
            return;
        }
        let before = self.turns.get(&key).copied();
        if before.is_some_and(|before| before.at <= turn.at) {
            return;
        }
        self.turns.insert(key.clone(), turn);
        if !self.namespaces.contains_key(key.namespace()) {
            self.namespaces
                .insert(key.namespace().into(), Namespace::default());
        }
        self.change(&key.clone(), |namespace| {
            if let Some(before) = before {
                namespace.remove(&key, before);
            }
            if namespace.ranked_until.is_some_and(|until| turn.at <= until) {
                namespace.ranked.insert((turn.rank(), key.clone()));
            }
            namespace.order.insert((turn.at, key));
        });
    }

    /// Pops a request that is due, with its due time; none if no request is due whose namespace may start one. It is of the namespace with
    /// the fewest requests in flight, of those the one that has waited longest, and in that the first by its token. It counts as in flight
    /// until [`Queue::complete`].
    ///
    /// `may_start` says whether a namespace may start one.
    pub(crate) fn pop(
        &mut self,
        now: Instant,
        may_start: impl Fn(&str) -> bool,
    ) -> Option<(ObjectKey, Instant)> {
        let mut fewest = None;
        for entry in self.ready.iter().take_while(|(at, _)| *at <= now) {
            let namespace = entry.1.namespace();
            let in_flight = self
                .namespaces
                .get(namespace)
                .map_or(0, |namespace| namespace.in_flight);
            if fewest.is_some_and(|(least, _)| in_flight >= least) || !may_start(namespace) {
                continue;
            }
            fewest = Some((in_flight, entry));
            // The loop is short: there are at most as many other namespaces as requests in flight.
            if in_flight == 0 {
                break;
            }
        }
        let (_, (_, longest)) = fewest?;
        let namespace = self.namespaces.get_mut(longest.namespace())?;
        let key = namespace.first(now, &self.turns)?;
        let turn = self.turns.remove(&key)?;
        self.in_flight.insert(key.clone());
        self.change(&key, |namespace| {
            namespace.remove(&key, turn);
            namespace.in_flight += 1;
        });
        Some((key, turn.at))
    }

    /// `key` is no longer in flight.
    pub(crate) fn complete(&mut self, key: &ObjectKey) {
        if self.in_flight.remove(key) {
            self.change(key, |namespace| namespace.in_flight -= 1);
        }
        if let Some(turn) = self.requeued.remove(key) {
            self.push(key.clone(), turn);
        }
    }

    /// When the next request is due whose namespace is below its limit.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.ready.first().map(|(at, _)| *at)
    }

    /// When the next request is due after `now` whose namespace is below its limit.
    pub(crate) fn next_after(&self, now: Instant) -> Option<Instant> {
        self.ready.range(after(now)..).next().map(|(at, _)| *at)
    }

    /// How many requests are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// How many requests are due and not in flight.
    pub(crate) fn due_count(&self, now: Instant) -> usize {
        let due = |namespace: &Namespace| namespace.order.iter().take_while(|(at, _)| *at <= now).count();
        self.namespaces.values().map(due).sum()
    }

    /// Applies `change` to the namespace of `key`, then updates its entry in [`Queue::ready`].
    fn change(&mut self, key: &ObjectKey, change: impl FnOnce(&mut Namespace)) {
        let Some(namespace) = self.namespaces.get_mut(key.namespace()) else {
            return;
        };
        change(namespace);
        let has_room = namespace.in_flight < self.max_in_flight;
        let ready = namespace.order.first().filter(|_| has_room).cloned();
        let is_empty = namespace.order.is_empty() && namespace.in_flight == 0;
        if namespace.ready != ready {
            if let Some(before) = std::mem::replace(&mut namespace.ready, ready.clone()) {
                self.ready.remove(&before);
            }
            self.ready.extend(ready);
        }
        if is_empty {
            self.namespaces.remove(key.namespace());
        }
    }
}

impl Namespace {
    /// The first by its token of the requests that are due, which is one at least.
    fn first(&mut self, now: Instant, turns: &HashMap<ObjectKey, Turn>) -> Option<ObjectKey> {
        let new = match self.ranked_until.replace(now) {
            Some(until) => self.order.range(after(until)..),
            None => self.order.range(..),
        };
        let new = new.take_while(|(at, _)| *at <= now);
        let ranks = new.filter_map(|(_, key)| Some((turns.get(key)?.rank(), key.clone())));
        self.ranked.extend(ranks);
        self.ranked.first().map(|(_, key)| key.clone())
    }

    fn remove(&mut self, key: &ObjectKey, turn: Turn) {
        self.order.remove(&(turn.at, key.clone()));
        self.ranked.remove(&(turn.rank(), key.clone()));
    }
}

/// The least entry of an order that is later than `at`.
fn after(at: Instant) -> (Instant, ObjectKey) {
    (at + Duration::from_nanos(1), ObjectKey::new("", ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    /// Every namespace may start one.
    fn free(_: &str) -> bool {
        true
    }

    #[test]
    fn the_earliest_time_wins() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut queue = Queue::new(8);
        queue.push(key("a"), Turn::at(at(10)));
        queue.push(key("a"), Turn::at(at(20)));
        queue.push(key("b"), Turn::at(at(15)));
        queue.push(key("b"), Turn::at(at(5)));
        assert_eq!(queue.pop(now, free), None);
        assert_eq!((queue.next(), queue.due_count(at(7))), (Some(at(5)), 1));
        assert_eq!(queue.pop(at(12), free), Some((key("b"), at(5))));
        assert_eq!(queue.pop(at(12), free), Some((key("a"), at(10))));
        assert_eq!(queue.pop(at(100), free), None);
    }

    #[test]
    fn a_request_in_flight_waits_and_blocks_no_other() {
        let now = Instant::now();
        let mut queue = Queue::new(8);
        queue.push(key("a"), Turn::at(now));
        assert!(queue.pop(now, free).is_some());
        queue.push(key("a"), Turn::at(now));
        queue.push(key("b"), Turn::at(now));
        assert_eq!((queue.due_count(now), queue.in_flight()), (1, 1));
        assert_eq!(queue.pop(now, free), Some((key("b"), now)));
        assert_eq!(
            (queue.pop(now, free), queue.next(), queue.due_count(now)),
            (None, None, 0)
        );
        queue.complete(&key("a"));
        assert_eq!(queue.pop(now, free), Some((key("a"), now)));
        queue.complete(&key("a"));
        queue.complete(&key("b"));
        assert_eq!(queue.in_flight(), 0);
    }

    #[test]
    fn a_namespace_at_its_limit_leaves_the_slots_to_others() {
        let now = Instant::now();
        let mut queue = Queue::new(2);
        for name in ["a", "b", "c", "d"] {
            queue.push(key(name), Turn::at(now));
        }
        let later = now + Duration::from_secs(1);
        queue.push(ObjectKey::new("bank", "e"), Turn::at(later));
        assert_eq!(queue.pop(now, free), Some((key("a"), now)));
        assert_eq!(queue.pop(now, free), Some((key("b"), now)));
        assert_eq!(
            (queue.pop(now, free), queue.next(), queue.due_count(now)),
            (None, Some(later), 2)
        );
        // What is pushed while the namespace is at its limit waits in the order of due times as well.
        queue.push(key("b"), Turn::at(now - Duration::from_secs(1)));
        queue.push(key("d"), Turn::at(now - Duration::from_secs(2)));
        assert_eq!(queue.pop(later, free), Some((ObjectKey::new("bank", "e"), later)));
        queue.complete(&key("b"));
        assert_eq!(
            queue.pop(now, free),
            Some((key("d"), now - Duration::from_secs(2)))
        );
        queue.complete(&key("a"));
        assert_eq!(
            queue.pop(now, free),
            Some((key("b"), now - Duration::from_secs(1)))
        );
        assert_eq!((queue.pop(now, free), queue.in_flight()), (None, 3));
        for completed in [key("b"), key("d"), ObjectKey::new("bank", "e")] {
            queue.complete(&completed);
        }
        assert_eq!(queue.pop(now, free), Some((key("c"), now)));
        queue.complete(&key("c"));
        assert!(queue.namespaces.is_empty() && queue.ready.is_empty(), "{queue:?}");
    }

    #[test]
    fn within_a_namespace_the_token_decides_and_between_them_the_wait() {
        let start = Instant::now();
        let seconds = |seconds| start + Duration::from_secs(seconds);
        let mut queue = Queue::new(99);
        let push = |queue: &mut Queue, key: ObjectKey, at, expires: Option<u64>| {
            let expires = expires.map(seconds);
            queue.push(
                key,
                Turn {
                    at: seconds(at),
                    expires,
                },
            );
        };
        push(&mut queue, key("far"), 1, Some(1800));
        push(&mut queue, key("near"), 2, Some(100));
        push(&mut queue, key("new"), 3, None);
        push(&mut queue, key("later"), 50, None);
        let name = |queue: &mut Queue, now| {
            let popped = queue.pop(seconds(now), free);
            popped.map(|(key, _)| key.name().to_owned())
        };
        assert_eq!(name(&mut queue, 10).as_deref(), Some("new"));
        // What is pushed since, what is due since, and what is due earlier than before.
        push(&mut queue, key("late"), 9, Some(50));
        push(&mut queue, key("later"), 10, None);
        push(&mut queue, key("due"), 12, None);
        let order: Vec<_> = std::iter::from_fn(|| name(&mut queue, 12)).collect();
        assert_eq!(order, ["later", "due", "late", "near", "far"]);
        // New requests of one namespace do not keep the renewals of another waiting.
        push(&mut queue, ObjectKey::new("bank", "renewal"), 20, Some(1800));
        (0..5).for_each(|n| push(&mut queue, key(&format!("new-{n}")), 21 + n, None));
        assert_eq!(name(&mut queue, 30).as_deref(), Some("renewal"));
    }

    #[test]
    fn a_limit_that_moves_applies_to_what_waits() {
        let now = Instant::now();
        let mut queue = Queue::new(1);
        for name in ["a", "b", "c", "d"] {
            queue.push(key(name), Turn::at(now));
        }
        let names = |queue: &mut Queue| {
            let popped = std::iter::from_fn(|| queue.pop(now, free));
            popped.map(|(key, _)| key.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&mut queue), ["a"]);
        queue.set_max_in_flight(3);
        assert_eq!(names(&mut queue), ["b", "c"]);
        queue.set_max_in_flight(2);
        queue.complete(&key("a"));
        assert_eq!((names(&mut queue), queue.next()), (vec![], None));
        queue.complete(&key("b"));
        assert_eq!(names(&mut queue), ["d"]);
    }

    #[test]
    fn the_namespace_with_the_fewest_in_flight_is_next() {
        let now = Instant::now();
        let earlier = |seconds| now - Duration::from_secs(seconds);
        let mut queue = Queue::new(8);
        let push = |queue: &mut Queue, namespace: &str, name: &str, at| {
            queue.push(ObjectKey::new(namespace, name), Turn::at(at));
        };
        // What waits longest has a backlog, which is no reason to keep others waiting.
        for name in ["a", "b", "c", "d"] {
            push(&mut queue, "backlog", name, earlier(9));
        }
        for (namespace, seconds) in [("full", 8), ("early", 7), ("late", 6)] {
            push(&mut queue, namespace, "a", earlier(seconds));
            push(&mut queue, namespace, "b", earlier(seconds));
        }
        push(&mut queue, "later", "a", now + Duration::from_secs(1));
        let mut popped = Vec::new();
        while let Some((key, _)) = queue.pop(now, |namespace| namespace != "full") {
            popped.push(format!("{}/{}", key.namespace(), key.name()));
        }
        let expected = "backlog/a early/a late/a backlog/b early/b late/b backlog/c backlog/d";
        assert_eq!(popped.join(" "), expected);
        assert_eq!(queue.next_after(now), Some(now + Duration::from_secs(1)));
        assert_eq!(queue.next(), Some(earlier(8)));
    }
}
