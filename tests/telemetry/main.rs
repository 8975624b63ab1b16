//! Health, logs and metrics of the operator, and the shipped alerts, dashboard and configuration of kube-state-metrics; with a real
//! Prometheus and kube-state-metrics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
// The operator's own tests use the rest.
#[allow(dead_code, unused_imports)]
mod common;

mod alerts;
mod dashboard;
mod health;
mod logs;
mod page;
mod programs;
mod recorded;
mod run;
mod startup;
