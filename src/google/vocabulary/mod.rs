//! The types that all of `google` uses: settings, errors, identities and tokens.
//!
//! Imports nothing of `google`. Makes no call and reads no clock, file or environment variable.

mod access_token;
mod call_priority;
mod config;
mod error;
mod identity_provider;
mod principal;
mod quota_project;
mod reason;
mod recoveries;
mod transport;
mod workload;

pub(crate) use self::access_token::{AccessToken, SCOPE};
pub use self::call_priority::CallPriority;
pub use self::config::{
    CallGate, ConfigError, DEFAULT_MAX_IN_FLIGHT, DEFAULT_RATE, DEFAULT_UNIVERSE, GoogleConfig,
    check_endpoint,
};
pub(crate) use self::config::{is_link_local, is_loopback};
pub(crate) use self::error::MAX_MESSAGE_CHARS;
pub use self::error::{Endpoint, Error, MAX_RETRY_AFTER};
pub use self::identity_provider::{IdentityProvider, MAX_SUBJECT_BYTES, ParseProviderError, is_gke_pool};
pub(crate) use self::principal::Principal;
pub(crate) use self::quota_project::QuotaProject;
pub use self::reason::Reason;
pub use self::recoveries::Recoveries;
pub use self::transport::Transport;
pub use self::workload::{SubjectToken, Workload};
pub use crate::classify::ErrorClass;
