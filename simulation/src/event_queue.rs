//! A queue of what happens at which time: many entries, most of them many seconds ahead.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::time::{SECOND, Time};

/// How many seconds ahead an entry can be: more than the lifetime of a token or the longest backoff.
const HORIZON: usize = 1 << 13;

/// Entries in one slot for each second. Only the current second's are sorted: a heap of a million entries would take most of the
/// run time.
pub(crate) struct EventQueue {
    slots: Vec<Vec<(Time, u32)>>,
    second: Time,
    /// The entries of the current second, the earliest last.
    current: Vec<(Time, u32)>,
    /// Entries that were added after their second was sorted.
    late: BinaryHeap<Reverse<(Time, u32)>>,
    /// How many entries the slots have.
    later: usize,
}

impl EventQueue {
    pub(crate) fn new(start: Time) -> Self {
        Self {
            slots: vec![Vec::new(); HORIZON],
            // One second early, so that the entries of the first second are sorted too.
            second: start / SECOND - 1,
            current: Vec::new(),
            late: BinaryHeap::new(),
            later: 0,
        }
    }

    pub(crate) fn push(&mut self, time: Time, entry: u32) {
        let second = time / SECOND;
        if second <= self.second {
            self.late.push(Reverse((time, entry)));
            return;
        }
        assert!(second - self.second < HORIZON as u64, "too far ahead");
        self.slots[second as usize % HORIZON].push((time, entry));
        self.later += 1;
    }

    /// The time of the next entry.
    pub(crate) fn next(&mut self) -> Option<Time> {
        while self.current.is_empty() && self.late.is_empty() && self.later > 0 {
            self.second += 1;
            // Takes the allocation too, because a slot is rarely used again.
            self.current = std::mem::take(&mut self.slots[self.second as usize % HORIZON]);
            self.later -= self.current.len();
            self.current.sort_unstable_by(|a, b| b.cmp(a));
        }
        let late = self.late.peek().map(|Reverse((time, _))| *time);
        let current = self.current.last().map(|(time, _)| *time);
        late.into_iter().chain(current).min()
    }

    pub(crate) fn pop(&mut self) -> Option<(Time, u32)> {
        let next = self.next()?;
        let current = self.current.pop_if(|(time, _)| *time == next);
        current.or_else(|| self.late.pop().map(|Reverse(entry)| entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_the_order_of_their_times() {
        let mut queue = EventQueue::new(10 * SECOND);
        for time in [70_500, 10_000, 3_610_000, 70_400, 10_001] {
            queue.push(time, time as u32);
        }
        assert_eq!(queue.pop(), Some((10_000, 10_000)));
        assert_eq!(queue.pop(), Some((10_001, 10_001)));
        assert_eq!(queue.next(), Some(70_400));
        // Earlier than the second that is sorted already.
        queue.push(20_000, 20_000);
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(time, _)| time).collect();
        assert_eq!(rest, [20_000, 70_400, 70_500, 3_610_000]);
        assert_eq!(queue.next(), None);
    }
}
