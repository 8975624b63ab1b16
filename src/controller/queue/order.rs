//! Pure: which request is worked on next. Each waits for its time, the earliest first, and is worked on once at a time. Of a namespace
//! that has many under way the others wait here, where one costs its key, so that they neither take the places of other namespaces nor the
//! memory of work that waits for Google.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use crate::api::ObjectKey;

/// What waits and what is under way.
#[derive(Debug)]
pub(crate) struct Queue {
    most: usize,
    namespaces: HashMap<Box<str>, Namespace>,
    /// The first of each namespace that has room.
    heads: BTreeSet<(Instant, ObjectKey)>,
    times: HashMap<ObjectKey, Instant>,
    running: HashMap<ObjectKey, Instant>,
    /// Those under way that are to be worked on once more.
    again: HashMap<ObjectKey, Instant>,
}

#[derive(Debug, Default)]
struct Namespace {
    order: BTreeSet<(Instant, ObjectKey)>,
    head: Option<(Instant, ObjectKey)>,
    running: usize,
}

impl Queue {
    /// One that has at most `most` under way of each namespace.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            namespaces: HashMap::new(),
            heads: BTreeSet::new(),
            times: HashMap::new(),
            running: HashMap::new(),
            again: HashMap::new(),
        }
    }

    /// Has `key` worked on at `at`, or when it is asked for already, if that is earlier.
    pub(crate) fn push(&mut self, key: ObjectKey, at: Instant) {
        if self.running.contains_key(&key) {
            let again = self.again.entry(key).or_insert(at);
            *again = at.min(*again);
            return;
        }
        let before = self.times.get(&key).copied();
        if before.is_some_and(|before| before <= at) {
            return;
        }
        self.times.insert(key.clone(), at);
        if !self.namespaces.contains_key(key.namespace()) {
            self.namespaces
                .insert(key.namespace().into(), Namespace::default());
        }
        self.change(&key.clone(), |namespace| {
            if let Some(before) = before {
                namespace.order.remove(&(before, key.clone()));
            }
            namespace.order.insert((at, key));
        });
    }

    /// Takes the one that is due longest, with the time since which it was; none where none is due. It is under way until
    /// [`Queue::done`].
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(ObjectKey, Instant)> {
        let (at, key) = self.heads.first().filter(|(at, _)| *at <= now)?.clone();
        self.times.remove(&key);
        self.running.insert(key.clone(), now);
        self.change(&key, |namespace| {
            namespace.order.pop_first();
            namespace.running += 1;
        });
        Some((key, at))
    }

    /// `key` is under way no more.
    pub(crate) fn done(&mut self, key: &ObjectKey) {
        if self.running.remove(key).is_some() {
            self.change(key, |namespace| namespace.running -= 1);
        }
        if let Some(at) = self.again.remove(key) {
            self.push(key.clone(), at);
        }
    }

    /// When the next one is due of those that there is room for.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heads.first().map(|(at, _)| *at)
    }

    /// How many are under way.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Since when the one is under way that began first.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.running.values().min().copied()
    }

    /// How many are due and not under way.
    pub(crate) fn due(&self, now: Instant) -> usize {
        let due = |namespace: &Namespace| namespace.order.iter().take_while(|(at, _)| *at <= now).count();
        self.namespaces.values().map(due).sum()
    }

    /// Does `change` to the namespace of `key`, and brings its place among the others up to date.
    fn change(&mut self, key: &ObjectKey, change: impl FnOnce(&mut Namespace)) {
        let Some(namespace) = self.namespaces.get_mut(key.namespace()) else {
            return;
        };
        change(namespace);
        let has_room = namespace.running < self.most;
        let head = namespace.order.first().filter(|_| has_room).cloned();
        let is_empty = namespace.order.is_empty() && namespace.running == 0;
        if namespace.head != head {
            if let Some(before) = std::mem::replace(&mut namespace.head, head.clone()) {
                self.heads.remove(&before);
            }
            self.heads.extend(head);
        }
        if is_empty {
            self.namespaces.remove(key.namespace());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    #[test]
    fn the_earliest_time_wins_and_cannot_be_postponed() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut queue = Queue::new(8);
        queue.push(key("a"), at(10));
        queue.push(key("a"), at(20));
        queue.push(key("b"), at(15));
        queue.push(key("b"), at(5));
        assert_eq!(queue.pop(now), None);
        assert_eq!((queue.next(), queue.due(at(7))), (Some(at(5)), 1));
        assert_eq!(queue.pop(at(12)), Some((key("b"), at(5))));
        assert_eq!(queue.pop(at(12)), Some((key("a"), at(10))));
        assert_eq!(queue.pop(at(100)), None);
    }

    #[test]
    fn one_that_is_under_way_waits_and_holds_up_no_other() {
        let now = Instant::now();
        let mut queue = Queue::new(8);
        queue.push(key("a"), now);
        assert!(queue.pop(now).is_some());
        queue.push(key("a"), now);
        queue.push(key("b"), now);
        assert_eq!((queue.due(now), queue.running()), (1, 1));
        assert_eq!(queue.pop(now), Some((key("b"), now)));
        assert_eq!((queue.pop(now), queue.next(), queue.due(now)), (None, None, 0));
        assert_eq!(queue.oldest(), Some(now));
        queue.done(&key("a"));
        assert_eq!(queue.pop(now), Some((key("a"), now)));
        queue.done(&key("a"));
        queue.done(&key("b"));
        assert_eq!((queue.oldest(), queue.running()), (None, 0));
    }

    #[test]
    fn a_namespace_with_many_under_way_leaves_the_room_to_others() {
        let now = Instant::now();
        let mut queue = Queue::new(2);
        for name in ["a", "b", "c", "d"] {
            queue.push(key(name), now);
        }
        let later = now + Duration::from_secs(1);
        queue.push(ObjectKey::new("bank", "e"), later);
        assert_eq!(queue.pop(now), Some((key("a"), now)));
        assert_eq!(queue.pop(now), Some((key("b"), now)));
        assert_eq!(
            (queue.pop(now), queue.next(), queue.due(now)),
            (None, Some(later), 2)
        );
        // What is asked for while there is no room has its turn with the others.
        queue.push(key("b"), now - Duration::from_secs(1));
        queue.push(key("d"), now - Duration::from_secs(2));
        assert_eq!(queue.pop(later), Some((ObjectKey::new("bank", "e"), later)));
        queue.done(&key("b"));
        assert_eq!(queue.pop(now), Some((key("d"), now - Duration::from_secs(2))));
        queue.done(&key("a"));
        assert_eq!(queue.pop(now), Some((key("b"), now - Duration::from_secs(1))));
        assert_eq!((queue.pop(now), queue.running()), (None, 3));
        for done in [key("b"), key("d"), ObjectKey::new("bank", "e")] {
            queue.done(&done);
        }
        assert_eq!(queue.pop(now), Some((key("c"), now)));
        queue.done(&key("c"));
        assert!(queue.namespaces.is_empty() && queue.heads.is_empty(), "{queue:?}");
    }
}
