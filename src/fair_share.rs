//! Pure: how much of what all share one of them may use, such as permits, calls and events.
//!
//! Imports nothing. Keeps no counts: its callers do.

/// A user may hold at most this many times what is free: alone, all but a fifth.
const HELD_PER_FREE: usize = 4;

/// Whether a user that holds `held` of what all share may take one more, while `free` are left. A single user gets four fifths, two users get
/// four ninths each, and so on: the more is taken, the less each may take, so that something is left for the next user. The first one is
/// always allowed.
///
/// It is the threshold that switches use for their buffers (Choudhury and Hahne, <https://doi.org/10.1109/90.664262>).
#[must_use]
pub(crate) fn may_take(held: usize, free: usize) -> bool {
    free > 0 && (held == 0 || held < HELD_PER_FREE * (free - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What each of `users` holds once none may take more, if they take in turn.
    fn taken(users: usize, total: usize) -> Vec<usize> {
        let mut held = vec![0; users];
        let mut free = total;
        loop {
            let before = free;
            for held in &mut held {
                if may_take(*held, free) {
                    *held += 1;
                    free -= 1;
                }
            }
            if free == before {
                return held;
            }
        }
    }

    #[test]
    fn one_takes_all_but_a_fifth() {
        assert_eq!(taken(1, 32), [25]);
        assert_eq!(taken(1, 100), [80]);
        assert_eq!(taken(2, 32), [14, 14]);
        assert_eq!(
            (taken(1, 1), taken(1, 2), taken(1, 5)),
            (vec![1], vec![1], vec![4])
        );
    }

    proptest! {
        #[test]
        fn whoever_comes_next_gets_one(users in 1_usize..12, total in 16_usize..200) {
            let held = taken(users, total);
            let free = total - held.iter().sum::<usize>();
            prop_assert!(may_take(0, free), "{held:?} of {total}");
        }
    }
}
