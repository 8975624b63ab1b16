//! Google's own client libraries as referees: they get tokens from the endpoints that our client is tested against, and
//! they judge the tokens that the operator writes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, unused_imports)]
#[path = "../common/mod.rs"]
mod common;

mod fetch;
#[allow(dead_code)]
#[path = "../common/pki.rs"]
mod pki;
mod referee;
mod types;
mod verify;
