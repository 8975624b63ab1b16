//! Pure: whether memory suffices for all requests.
//!
//! As long as it does, sums are enough. The order of the [`Ledger`], which decides who is served where it does not, takes a hundred bytes a
//! request. So it is made when a limit is first exceeded, and dropped when there is room again.

use std::collections::HashMap;

use super::claims::Claimant;
use super::ledger::{Admission, Changes, Ledger, to_usize};
use super::limits::CacheLimits;

/// What requests take of the memory for them.
#[derive(Debug)]
pub(super) struct Budget {
    limits: CacheLimits,
    kept: Kept,
    /// How often a request was dropped, without those of a ledger that is in use.
    dropped: u64,
}

#[derive(Debug)]
enum Kept {
    /// All requests are served: what those of each namespace count for, and all together.
    Sums(HashMap<Box<str>, usize>, usize),
    /// A limit was exceeded.
    Ordered(Ledger),
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(CacheLimits::default())
    }
}

impl Budget {
    /// Without requests.
    pub(super) fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            kept: Kept::Sums(HashMap::new(), 0),
            dropped: 0,
        }
    }

    /// The limits of what requests may take.
    pub(super) fn limits(&self) -> CacheLimits {
        self.limits.of_requests()
    }

    /// Adds the request, or changes what it counts for, which was `before`. `others` are all that were added besides.
    pub(super) fn put(
        &mut self,
        request: Claimant,
        before: Option<u32>,
        cost: u32,
        others: impl Iterator<Item = (Claimant, u32)>,
    ) -> Changes {
        let (sums, total) = match &mut self.kept {
            Kept::Ordered(ledger) => return ledger.put(request, cost),
            Kept::Sums(sums, total) => (sums, total),
        };
        let change = |sum: usize| sum - to_usize(before.unwrap_or_default()) + to_usize(cost);
        *total = change(*total);
        let used = match sums.get_mut(request.request.namespace()) {
            Some(sum) => {
                *sum = change(*sum);
                *sum
            }
            None => {
                sums.insert(request.request.namespace().into(), to_usize(cost));
                to_usize(cost)
            }
        };
        let limits = self.limits.of_requests();
        if used <= limits.namespace && *total <= limits.total {
            return Changes::default();
        }
        let mut ledger = Ledger::new(self.limits);
        for (other, cost) in others {
            ledger.put(other, cost);
        }
        let changes = ledger.put(request, cost);
        self.kept = Kept::Ordered(ledger);
        changes
    }

    /// Removes the request, which counted for `cost`.
    pub(super) fn remove(&mut self, request: &Claimant, cost: u32) -> Changes {
        match &mut self.kept {
            Kept::Ordered(ledger) => {
                let changes = ledger.remove(request);
                self.drop_order();
                changes
            }
            Kept::Sums(sums, total) => {
                let namespace = request.request.namespace();
                if let Some(sum) = sums.get_mut(namespace) {
                    *sum -= to_usize(cost);
                    *total -= to_usize(cost);
                    if *sum == 0 {
                        sums.remove(namespace);
                    }
                }
                Changes::default()
            }
        }
    }

    /// Whether the request is admitted.
    pub(super) fn admission(&self, request: &Claimant) -> Admission {
        match &self.kept {
            Kept::Ordered(ledger) => ledger.admission(request),
            Kept::Sums(..) => Admission::Admitted,
        }
    }

    /// Starts a relist of `scope`, which shows the specs of all.
    pub(super) fn begin_relist(&mut self, scope: &str) {
        if let Kept::Ordered(ledger) = &mut self.kept {
            ledger.begin_relist(scope);
            self.drop_order();
        }
    }

    /// Whether a relist of `scope` would serve or report more requests.
    pub(super) fn needs_relist(&self, scope: &str) -> bool {
        match &self.kept {
            Kept::Ordered(ledger) => ledger.needs_relist(scope),
            Kept::Sums(..) => false,
        }
    }

    /// What the admitted requests count for, how many wait, and how often one was dropped.
    pub(super) fn usage(&self) -> (usize, usize, u64) {
        match &self.kept {
            Kept::Ordered(ledger) => {
                let (used, waiting, dropped) = ledger.usage();
                (used, waiting, self.dropped + dropped)
            }
            Kept::Sums(_, total) => (*total, 0, self.dropped),
        }
    }

    /// Keeps sums alone if there is room again: so much that a client who adds and removes one request does not have the order made each time.
    fn drop_order(&mut self) {
        if let Kept::Ordered(ledger) = &self.kept
            && let Some(sums) = ledger.sums_with_room()
        {
            let (used, _, dropped) = ledger.usage();
            self.dropped += dropped;
            self.kept = Kept::Sums(sums, used);
        }
    }
}
