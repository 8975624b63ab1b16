//! Keeps Google-signed OIDC ID tokens in Kubernetes Secrets, always fresh.
//!
//! A request passes from a watch to a Secret through the phases of [`controller`]. Phases that decide are pure and take the time as an
//! argument; phases with effects are at the edges.
//!
//! - [`api`]: the kinds, conditions and annotations.
//! - [`controller`]: watches, caches and the phases.
//! - [`google`]: Google's token endpoints; knows nothing of Kubernetes.
//! - [`token`]: the ID token, its claims and its checks; [`text`], [`shell`]: make outside text safe to show and to run.
//! - [`leader`]: which of several replicas reconciles; [`liveness`]: whether its loop is alive; [`kubernetes`]: calls of the Kubernetes API.
//! - [`clock`], [`random`]: the sources of time and randomness, which the process makes once; [`single_flight`]: one fetch for many callers.
//! - [`cli`], [`app`], [`telemetry`], [`metrics`], [`admin`], [`probe`]: the process around them.

pub mod admin;
pub mod api;
pub mod app;
pub mod classify;
pub mod cli;
pub mod clock;
pub mod controller;
pub mod google;
pub mod grants;
pub mod kubernetes;
pub mod leader;
pub mod liveness;
pub mod metrics;
pub mod probe;
pub mod random;
pub mod render;
pub mod request;
pub mod schedule;
pub mod shard;
pub mod shell;
pub mod single_flight;
mod sync;
pub mod telemetry;
pub mod text;
pub mod token;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod fuzz_tests;
