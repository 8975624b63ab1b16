//! Leader election by a Lease, so that one of several replicas reconciles.
//!
//! [`decide`] is pure and trusts no clock of another machine. [`Elector`] reads and writes the Lease. Each write carries the
//! resourceVersion that was read, so of two replicas that take the Lease at once the API server rejects one. [`Fence`] is checked right
//! before each write and each call that mints. It closes `renew_deadline` after the last renewal was *sent*, by a clock that counts sleep,
//! so that calls which went out in time have the rest of the Lease to finish.
//!
//! A process that loses the Lease stands by again instead of exiting, as programs with client-go do: it cancels the reconciles in flight,
//! waits until they have stopped, and forgets its state of the requests, but keeps its caches. Otherwise an outage of the API server would
//! restart every replica at once, and each would list everything again.
//!
//! A rollout may change the name of the Lease, so that replicas with two names run side by side. A candidate therefore also waits for each
//! Lease that another pod of its Deployment holds, takes it together with its own, and deletes it when no such pod can be left.
//!
//! A standby keeps its caches synced. It needs as much memory as the leader, and takes over at once. Its caches may lack the last writes of
//! the previous leader, so it reads each Secret that existed before once before the first mint for it.
//!
//! Each release writes what it reconciles on its Lease, so that the leader can report another release that serves some of the same requests.
//!
//! May import the clock, the metrics, the shard, and the answers and errors of [`crate::kubernetes`]. Knows nothing of requests.

mod claim;
mod elector;
mod fence;
mod lease;
mod overlaps;
mod thread;

pub use elector::Elector;
pub use fence::{Fence, FenceClosed};
pub use lease::{Decision, ElectionSettings, InvalidTimings, LeaseRecord, ObservedLease, decide};
pub use overlaps::{Overlap, Overlaps, follow_overlaps};
pub use thread::ElectorThread;
