//! The suite against the emulator, and a whole run on a Google that is emulated.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod complete;
mod discovery;
mod emulator;
mod front;
mod google;
mod interrupt;
mod operator;
mod scripted;
mod source;
