//! The operator as users run it, against a real API server and Google's endpoints emulated.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod asked;
mod attacks;
mod authorize;
mod cluster;
mod conflicts;
mod developer;
mod drift;
mod failures;
mod federation;
mod forged;
mod fresh;
mod full;
mod hostile;
mod issue;
mod kstatus;
mod leader;
mod leak;
mod limits;
mod load;
mod metadata;
mod outage;
mod ownership;
mod policies;
mod rights;
mod roles;
mod schedule;
mod schema;
mod shards;
mod shares;
