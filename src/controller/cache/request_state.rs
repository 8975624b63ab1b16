//! What is remembered of a request between reconciles.

use std::sync::Arc;

use jiff::Timestamp;

use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::schedule::backoff::{Backoff, BackoffKey};

/// What we remember of a request, by its UID.
#[derive(Clone, Debug, Default)]
pub struct RequestState {
    /// The resourceVersion of the status that we wrote last, and that status until the watch has shown it.
    pub status: Option<(String, Option<Box<IdTokenRequestStatus>>)>,
    /// Whether it was written since the last list of requests began.
    pub expected: bool,
    /// Failures in a row.
    pub retry: Option<Box<Backoff>>,
    /// When a field of ours was put back, the latest last.
    pub repairs: Vec<Timestamp>,
    /// What we last wrote: what the Secret says of itself can be edited.
    pub written: Option<WrittenHashes>,
    /// The renewal by annotation that was honoured, until the status says so.
    pub handled_renew: Option<String>,
    /// The end of a token that came again unchanged, and when another may come.
    pub unchanged: Option<(Timestamp, Timestamp)>,
    /// When a token was issued last, by this machine's clock.
    pub issued_at: Option<Timestamp>,
    /// How often in a row the status could not be written.
    pub unpublished: u32,
    /// Names of the IdTokenGrants that allow it, once it was looked at.
    pub allowed_by: Option<Arc<[String]>>,
}

impl RequestState {
    /// The failures in a row, where waiting after them still makes sense.
    pub fn active_backoff(&self, key: &BackoffKey, now: Timestamp) -> Option<Backoff> {
        let backoff = self.retry.as_deref();
        backoff.filter(|backoff| backoff.is_valid_for(key, now)).cloned()
    }
}

/// The hashes of token and rendering as they were written to the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenHashes(Box<str>);

impl WrittenHashes {
    /// `token_hash` and `render_hash` have no space, as hex digits have none.
    pub fn new(token_hash: &str, render_hash: &str) -> Self {
        Self(format!("{token_hash} {render_hash}").into())
    }

    /// Hash of what decided the token.
    pub fn token_hash(&self) -> &str {
        self.0.split_once(' ').unwrap_or_default().0
    }

    /// Hash of what decided the rendering.
    pub fn render_hash(&self) -> &str {
        self.0.split_once(' ').unwrap_or_default().1
    }
}
