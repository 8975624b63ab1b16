//! What to do about an error, with the command that fixes it.
//!
//! Pure: text from an [`Error`](super::Error) and what the caller knows. May import `vocabulary` only. Makes no call, and never changes
//! what an error is, only what it says.
//!
//! Accounts come from users, and messages from outside: each such word is quoted for the shell and made printable, so that a command that
//! is copied from a message does only what it shows.

pub(crate) mod command;
pub(crate) mod federation;
pub(crate) mod impersonation;
pub(crate) mod metadata_server;
pub(crate) mod quota_project;
