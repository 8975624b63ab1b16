//! Calls of the Kubernetes API: how they are sent, what they return, and their errors.
//!
//! May import [`crate::schedule`] and the ground; the recorder of events also imports [`crate::metrics`]. Never decides what to write, who may
//! have a token or when to retry: the callers do.

pub(crate) mod answer;
mod client;
mod connections;
pub mod error;
#[cfg(unix)]
pub mod events;
mod json_items;
pub(crate) mod list_watch;
pub mod partial_metadata;
mod proxy;
pub mod resource_version;
pub mod secret;
pub mod secret_summary;
pub mod service_account;
pub mod status;

pub use client::{Clients, ConfigError, config};
pub use connections::Connections;
pub use proxy::proxy_url;
