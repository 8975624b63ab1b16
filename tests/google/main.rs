//! The client of Google's endpoints against the emulator: its tokens, its failures, and its error messages.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod attached;
mod aws;
mod certificate;
mod credentials;
mod hardening;
mod identity;
mod impersonation;
mod limits;
#[path = "../common/pki.rs"]
mod pki;
mod proxy;
mod quota;
mod support;
mod types;
