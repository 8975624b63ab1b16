//! Leader election by a Lease, so that of several replicas one works.
//!
//! [`decide`] is pure and never trusts another's clock. [`Elector`] reads and writes the Lease; every write carries the resourceVersion
//! that was read, so that of two that take it at once one is refused. [`Fence`] is asked right before each call that mints and each write:
//! it closes `renew_deadline` after the last renewal was *sent*, by a clock that counts sleep, so that what began in time has the rest of
//! the Lease to end.
//!
//! A process that loses the Lease steps down instead of ending, as client-go's does: it ends what is under way, waits until that has
//! ended, forgets all it remembers of requests, and stands by again with its caches filled. An outage of the API server would otherwise
//! restart every replica at once, and each would read everything again when it comes back.
//!
//! A replica that stands by keeps its caches, which costs it the memory of the leader and makes a takeover immediate. They may lack the
//! last writes of the leader before it; so each Secret that was there already is read once before the first mint for it.

mod clock;
mod elector;
mod fence;
mod lease;

pub use clock::Instant;
pub use elector::Elector;
pub use fence::{Fence, FenceClosed};
pub use lease::{Decision, ElectionSettings, InvalidTimings, LeaseRecord, ObservedLease, decide};
