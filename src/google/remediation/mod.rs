//! What to do about an error of Google's, with the command that does it.
//!
//! Pure: text from an [`Error`](super::Error) and what the caller knows. May import `vocabulary` only. Makes no call, and never
//! changes what an error is, only what it says.

pub(crate) mod federation;
pub(crate) mod impersonation;
pub(crate) mod metadata_server;
