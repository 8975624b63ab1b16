//! The client of Google's endpoints against the emulator: what comes back, what goes wrong, and what is said about it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod attached;
mod credentials;
mod hardening;
mod impersonation;
mod limits;
mod proxy;
mod support;
mod types;
