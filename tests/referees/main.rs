//! Google's own client libraries as referees: they get tokens from the endpoints that our client is tested against, and
//! they judge the tokens that the operator writes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, unused_imports)]
#[path = "../common/mod.rs"]
mod common;

mod fetch;
mod referee;
mod types;
mod verify;
