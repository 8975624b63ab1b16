//! What is reconciled next: the order of requests ([`order`], pure), the loop that runs reconciles as tasks ([`worker`]), and the permits that
//! bound how many of them call the Kubernetes API at once ([`permit`]).
//!
//! May import the cache's keys and the metrics. Never knows what a reconcile does.

pub(crate) mod order;
pub(crate) mod permit;
pub(crate) mod worker;
