//! What is remembered of a request between reconciles.

use std::sync::Arc;

use jiff::Timestamp;

use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::schedule::renewal::ErrorClass;

/// Failures in a row of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    /// Stable reason of the last one.
    pub reason: &'static str,
    /// What the last one said.
    pub message: String,
    /// ErrorClass of the last one.
    pub class: ErrorClass,
    /// How many.
    pub attempts: u32,
    /// When the first was.
    pub since: Timestamp,
    /// When the last was.
    pub at: Timestamp,
    /// When the next attempt is due.
    pub next: Timestamp,
    /// Whether somebody has to act, and the Secret is read before the next mint.
    pub act: bool,
    /// What they depend on; another value makes them void.
    pub basis: BackoffKey,
}

impl Backoff {
    /// Whether the wait still makes sense: what it depends on is the same, and the clock was not set back behind the last attempt.
    pub fn holds(&self, basis: &BackoffKey, now: Timestamp) -> bool {
        self.basis == *basis && self.at <= now
    }
}

/// What an attempt depends on: a change of any makes waiting pointless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackoffKey {
    /// `metadata.generation`.
    pub generation: i64,
    /// The annotation that asks for a renewal.
    pub renew: Option<String>,
    /// Name of the allowing grant.
    pub grant: Option<String>,
}

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
    pub fn retry_on(&self, basis: &BackoffKey, now: Timestamp) -> Option<Backoff> {
        let retry = self.retry.as_deref();
        retry.filter(|retry| retry.holds(basis, now)).cloned()
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
