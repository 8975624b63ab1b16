//! The chart: what it renders, that Kubernetes takes it, its life in a cluster, and the operator as it runs it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cluster;
mod conform;
mod group;
mod helm;
mod lifecycle;
mod metadata;
mod render;
mod run;
mod schemas;
mod upgrade;
