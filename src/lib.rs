//! Keeps Google-signed OIDC ID tokens in Kubernetes Secrets, always fresh.
//!
//! The map, from top to bottom: a module imports from its own line and from the lines below. `ARCHITECTURE.md` has the drawings, the invariants
//! with their tests, and which file to open for which change; `xtask/layers.txt` has the order of imports.
//!
//! - [`cli`], [`app`], [`admin`], [`probe`], [`telemetry`]: the process. [`app`] wires the parts, and starts and stops them.
//! - [`controller`]: the loop. Watches fill a cache and a queue, and each request is reconciled: load → validate → authorize → observe → plan →
//!   act → publish. Phases that decide are pure and take the time as an argument; phases with effects are at the edges.
//! - [`leader`]: which replica reconciles; [`liveness`]: whether its loop is alive; [`metrics`]: counters and gauges.
//! - [`grants`]: who may have which token; [`request`]: what a request asks for; [`shard`]: which requests are this operator's.
//! - [`kubernetes`]: calls of the Kubernetes API and their errors (its recorder of events is one layer higher, on the line of [`leader`]);
//!   [`schedule`]: when to renew and when to try again.
//! - [`google`]: Google's token endpoints and the operator's own credentials. It knows nothing of Kubernetes.
//! - [`api`]: the kinds, conditions and annotations; [`token`]: the ID token and its checks; [`classify`]: what an error means for the next attempt.
//! - [`text`], [`shell`]: make outside text safe to show and to run; [`single_flight`]: one fetch for many callers.
//! - `fair_share`: how much of what all share one may use; [`clock`], [`random`]: the sources of time and randomness, which the process makes once.

// app.rs makes the clocks and the source of randomness, and passes them down.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

// The process, the loop and what only the operator needs run on Unix. What is below them is also linked into kubectl idtoken.
#[cfg(unix)]
pub mod admin;
pub mod api;
#[cfg(unix)]
pub mod app;
pub mod classify;
#[cfg(unix)]
pub mod cli;
pub mod clock;
#[cfg(unix)]
pub mod controller;
mod fair_share;
pub mod google;
pub mod grants;
pub mod kubernetes;
#[cfg(unix)]
pub mod leader;
#[cfg(unix)]
pub mod liveness;
#[cfg(unix)]
pub mod metrics;
#[cfg(unix)]
pub mod probe;
pub mod random;
pub mod render;
pub mod request;
pub mod schedule;
pub mod shard;
pub mod shell;
pub mod single_flight;
mod sync;
#[cfg(unix)]
pub mod telemetry;
pub mod text;
pub mod token;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod fuzz_tests;
