//! Calls of the Kubernetes API: how they are sent, what they return, and their errors.
//!
//! May import [`crate::api`], [`crate::text`], [`crate::token`], and at most the vocabulary of [`crate::google`] and of the schedule. Never
//! holds a rule of ours: what to write, who may have a token and when to retry are decided by the callers.

mod client;
pub mod error;
pub mod events;
pub mod partial_metadata;
pub mod resource_version;
pub mod secret;
pub mod secret_summary;
pub mod status;

pub use client::{client, config};
