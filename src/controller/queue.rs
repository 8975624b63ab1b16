//! Pure: which request is worked on next. Each waits for its time, the earliest first, and is worked on once at a time.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::index::Key;

/// What waits and what is under way.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: BTreeSet<(Instant, Key)>,
    times: HashMap<Key, Instant>,
    running: HashMap<Key, Instant>,
}

impl Queue {
    /// Has `key` worked on at `at`, or when it is asked for already, if that is earlier.
    pub(super) fn push(&mut self, key: Key, at: Instant) {
        if let Some(before) = self.times.get_mut(&key) {
            if *before <= at {
                return;
            }
            self.order.remove(&(*before, key.clone()));
            *before = at;
        } else {
            self.times.insert(key.clone(), at);
        }
        self.order.insert((at, key));
    }

    /// Takes the one that is due longest, with the time since which it was; none where none is due. It is under way until
    /// [`Queue::done`].
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Key, Instant)> {
        let (at, key) = self.waiting().next().filter(|(at, _)| *at <= now)?.clone();
        self.order.remove(&(at, key.clone()));
        self.times.remove(&key);
        self.running.insert(key.clone(), now);
        Some((key, at))
    }

    /// `key` is under way no more.
    pub(super) fn done(&mut self, key: &Key) {
        self.running.remove(key);
    }

    /// When the next one is due, those under way aside.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting().next().map(|(at, _)| *at)
    }

    /// How many are under way.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Since when the one is under way that began first.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.running.values().min().copied()
    }

    /// How many are due and not under way.
    pub(super) fn due(&self, now: Instant) -> usize {
        self.waiting().take_while(|(at, _)| *at <= now).count()
    }

    fn waiting(&self) -> impl Iterator<Item = &(Instant, Key)> {
        self.order
            .iter()
            .filter(|(_, key)| !self.running.contains_key(key))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> Key {
        Key::new("shop", name)
    }

    #[test]
    fn the_earliest_time_wins_and_cannot_be_postponed() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut queue = Queue::default();
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
        let mut queue = Queue::default();
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
}
