//! The state of a request between reconciles.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::compressed_request::CompressedRequest;
use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::schedule::backoff::{Backoff, BackoffKey};
use crate::schedule::renewal::next_renewal;

/// The state of a request with one UID.
#[derive(Clone, Debug, Default)]
pub struct RequestState {
    /// Our last write of its status.
    pub status: Option<WrittenStatus>,
    /// Failures in a row.
    pub backoff: Option<Box<Backoff>>,
    /// When a field of ours was repaired, the latest last.
    pub repairs: Vec<Timestamp>,
    /// What we last wrote to the Secret, whose own annotations can be edited.
    pub written: Option<WrittenHashes>,
    /// Digest of the token that we last wrote, until the status shows it.
    pub unrecorded_digest: Option<Box<str>>,
    /// The renewal by annotation that was handled, until the status shows it.
    pub handled_renew: Option<String>,
    /// The token that the source returned again unchanged.
    pub unchanged: Option<Box<UnchangedToken>>,
    /// When a token was last issued, by this machine's clock.
    pub issued_at: Option<Timestamp>,
    /// How many tokens in a row were issued and could not be written.
    pub lost_tokens: u32,
    /// The renewal by annotation that was honoured last, whatever came of it.
    pub honoured_renew: Option<Box<HonouredRenewal>>,
    /// Since when no grant allows it.
    pub denied: Option<Box<DeniedSince>>,
    /// How often in a row the status could not be written.
    pub failed_publishes: u32,
    /// Names of the IdTokenGrants that allow it; none before its first reconcile.
    pub allowing_grants: Option<Arc<[String]>>,
}

impl RequestState {
    /// The failures in a row, if the delay after them still makes sense.
    pub fn active_backoff(
        &self,
        key: &BackoffKey,
        renew_interval: SignedDuration,
        now: Timestamp,
    ) -> Option<Backoff> {
        let backoff = self.backoff.as_deref();
        let honoured = self.honoured_renew.as_ref().map(|renewal| renewal.at);
        backoff?.at(key, next_renewal(honoured, renew_interval, now), now)
    }
}

/// Since when no grant allows a generation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeniedSince {
    /// `metadata.generation`.
    pub generation: i64,
    /// When the first reconcile was that found none.
    pub at: Timestamp,
}

/// A renewal by annotation for which a token was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HonouredRenewal {
    /// Value of the annotation.
    pub value: Box<str>,
    /// When the last attempt was.
    pub at: Timestamp,
}

/// A write of the status.
#[derive(Clone, Debug, PartialEq)]
pub struct WrittenStatus {
    /// The resourceVersion of the request after the write.
    pub resource_version: Box<str>,
    /// The status, until the watch shows it. Compressed, since watches lag behind at a cold start: thousands of statuses are unseen.
    pub(super) unseen: Option<Box<CompressedRequest>>,
    /// Whether it was written since the last relist of requests began, which may then show an older one.
    pub(super) since_relist: bool,
}

impl WrittenStatus {
    /// The write of `status` just now, which gave the request this resourceVersion.
    pub fn new(resource_version: String, status: &IdTokenRequestStatus) -> Self {
        Self {
            resource_version: resource_version.into(),
            unseen: Some(Box::new(CompressedRequest::new(status))),
            since_relist: true,
        }
    }

    /// The status, if the watch does not show it yet.
    pub fn unseen(&self) -> Option<IdTokenRequestStatus> {
        serde_json::from_str(&self.unseen.as_ref()?.decompress()?).ok()
    }
}

/// A token that the source returned again unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnchangedToken {
    /// When it expires.
    pub expires: Timestamp,
    /// When the source may return another one.
    pub retry_at: Timestamp,
}

/// The hashes that were written to the Secret, of the inputs of the token and of its rendering. As numbers, since there are two for each
/// request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenHashes {
    token: [u8; 16],
    rendering: [u8; 16],
}

impl WrittenHashes {
    /// The two hashes, as the annotations of the Secret hold them; none if one is no such hash.
    pub fn new(token_hash: &str, render_hash: &str) -> Option<Self> {
        Some(Self {
            token: number(token_hash)?,
            rendering: number(render_hash)?,
        })
    }

    /// Whether the token was written of inputs with this hash.
    pub fn is_token(&self, hash: &str) -> bool {
        number(hash) == Some(self.token)
    }

    /// Whether the Secret was rendered of inputs with this hash.
    pub fn is_rendering(&self, hash: &str) -> bool {
        number(hash) == Some(self.rendering)
    }
}

/// The digits of a versioned hash. One process writes one version.
fn number(hash: &str) -> Option<[u8; 16]> {
    let (_, digits) = hash.split_once('-')?;
    u128::from_str_radix(digits, 16).map(u128::to_be_bytes).ok()
}
