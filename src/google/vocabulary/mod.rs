//! The types that all of `google` speaks in: settings, errors, identities and tokens.
//!
//! Imports nothing of `google`. Makes no call and reads no clock, file or environment variable.

pub(crate) mod config;
pub(crate) mod error;
pub(crate) mod identity_provider;
pub(crate) mod principal;
