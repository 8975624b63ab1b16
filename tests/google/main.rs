//! The client of Google's endpoints against the emulator: its tokens, its failures, and its error messages.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod attached;
mod aws;
mod credentials;
mod hardening;
mod identity;
mod impersonation;
mod limits;
mod proxy;
mod quota;
mod support;
mod types;
