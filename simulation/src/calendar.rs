//! What is to be done at which time: many entries, most of them many seconds ahead.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Milliseconds since long before the start.
pub(crate) type Time = u64;

pub(crate) const SECOND: Time = 1000;
pub(crate) const MINUTE: Time = 60 * SECOND;
pub(crate) const HOUR: Time = 60 * MINUTE;
#[cfg(test)]
pub(crate) const DAY: Time = 24 * HOUR;

/// Seconds that can be looked ahead: more than a token lives or a try waits.
const AHEAD: usize = 1 << 13;

/// Entries by second; only those of the current one are in order. A heap of a million entries would take most of the time.
pub(crate) struct Calendar {
    slots: Vec<Vec<(Time, u32)>>,
    second: Time,
    /// Those of the current second, the earliest last.
    current: Vec<(Time, u32)>,
    /// Those that came when their second was in order already.
    late: BinaryHeap<Reverse<(Time, u32)>>,
    later: usize,
}

impl Calendar {
    pub(crate) fn new(start: Time) -> Self {
        Self {
            slots: vec![Vec::new(); AHEAD],
            // What begins at once is put in order at once.
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
        assert!(second - self.second < AHEAD as u64, "too far ahead");
        self.slots[second as usize % AHEAD].push((time, entry));
        self.later += 1;
    }

    /// The time of the next entry.
    pub(crate) fn next(&mut self) -> Option<Time> {
        while self.current.is_empty() && self.late.is_empty() && self.later > 0 {
            self.second += 1;
            // The allocation goes with it: each second's is used once.
            self.current = std::mem::take(&mut self.slots[self.second as usize % AHEAD]);
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
        let mut calendar = Calendar::new(10 * SECOND);
        for time in [70_500, 10_000, 3_610_000, 70_400, 10_001] {
            calendar.push(time, time as u32);
        }
        assert_eq!(calendar.pop(), Some((10_000, 10_000)));
        assert_eq!(calendar.pop(), Some((10_001, 10_001)));
        assert_eq!(calendar.next(), Some(70_400));
        // Earlier than the second that was looked at.
        calendar.push(20_000, 20_000);
        let rest: Vec<_> = std::iter::from_fn(|| calendar.pop())
            .map(|(time, _)| time)
            .collect();
        assert_eq!(rest, [20_000, 70_400, 70_500, 3_610_000]);
        assert_eq!(calendar.next(), None);
    }
}
