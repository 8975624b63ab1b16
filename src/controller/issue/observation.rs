//! Pure: what is known of the target Secret, from the cache or from a read.

use jiff::Timestamp;

use super::mint;
use crate::kubernetes::secret::SecretContent;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::render::{RenderError, render};
use crate::request::{TokenSource, ValidRequest};
use crate::token::{Expected, IdToken};

/// What is known of the target Secret.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a reconcile that finds nothing to do makes no allocation for it"
)]
pub enum Observation {
    /// The Secret with our label as the cache has it; none if the cache has none.
    Cached(Option<SecretSummary>),
    /// The Secret as it was read; none if there is none.
    Read(Option<Box<ReadSecret>>),
}

/// A Secret that was read and compared with what the operator writes.
#[derive(Debug)]
pub struct ReadSecret {
    /// Its projection. Its times are those of the stored token, if that is the token that was written: an edited annotation is no reason
    /// for a new token.
    pub summary: SecretSummary,
    /// What the comparison showed.
    pub integrity: Integrity,
    /// The stored token, if the spec still asks for it.
    pub token: Option<IdToken>,
    /// All of it.
    pub content: SecretContent,
}

/// What a Secret's data showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// It holds no token, or another one than was written.
    Damaged,
    /// The token is as written, something else of ours is not.
    Drifted,
    /// All of ours is as written.
    Intact,
}

/// What the operator knows of a Secret besides what the Secret says of itself, which any client that may write it can change.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expectations<'a> {
    /// Whether this process wrote a token for this very spec.
    pub wrote_token: bool,
    /// The audience in the status.
    pub audience: Option<&'a str>,
    /// Digest of the token that was written last; none if no token is trusted.
    pub digest: Option<&'a str>,
}

/// What a write relies on.
#[derive(Debug)]
pub enum Precondition {
    /// The cache knows no Secret.
    Unknown,
    /// The Secret is as the operator left it.
    Untouched(Box<SecretSummary>),
    /// The Secret was read.
    Read(Box<SecretContent>),
}

impl Observation {
    /// The projection of the Secret.
    pub fn secret(&self) -> Option<&SecretSummary> {
        match self {
            Self::Cached(secret) => secret.as_ref(),
            Self::Read(read) => read.as_ref().map(|read| &read.summary),
        }
    }

    /// Whether the Secret was read, as opposed to known from the cache.
    pub fn is_read(&self) -> bool {
        matches!(self, Self::Read(_))
    }

    /// The Secret as it was read.
    pub fn read(&self) -> Option<&ReadSecret> {
        match self {
            Self::Cached(_) => None,
            Self::Read(read) => read.as_deref(),
        }
    }

    /// What reading the Secret showed.
    pub fn integrity(&self) -> Option<Integrity> {
        self.read().map(|read| read.integrity)
    }

    /// The Secret as it was read and the stored token in it, if it holds one.
    pub fn into_stored(self) -> Option<(SecretContent, IdToken)> {
        match self {
            Self::Read(Some(read)) => Some((read.content, read.token?)),
            Self::Read(None) | Self::Cached(_) => None,
        }
    }

    /// What a write relies on.
    pub fn into_precondition(self) -> Precondition {
        match self {
            Self::Cached(None) | Self::Read(None) => Precondition::Unknown,
            Self::Cached(Some(secret)) => Precondition::Untouched(Box::new(secret)),
            Self::Read(Some(read)) => Precondition::Read(Box::new(read.content)),
        }
    }
}

impl ReadSecret {
    /// Compares `content` with what the operator would write for `request`.
    ///
    /// # Errors
    /// The stored token cannot be rendered by the template.
    pub fn compare(
        content: SecretContent,
        request: &ValidRequest,
        expectations: &Expectations<'_>,
        now: Timestamp,
    ) -> Result<Self, RenderError> {
        let mut summary = content.summary.clone();
        let token = expectations
            .digest
            .and_then(|digest| find_token(&content, request, |token| token.digest() == digest))
            .filter(|token| matches_token_spec(request, token, &summary, expectations, now));
        if token.is_some() && expectations.wrote_token {
            // This process knows better than an annotation that another client changed: no new token for that alone.
            summary.token_hash = Some(request.token_hash.clone());
        }
        let integrity = match &token {
            None => Integrity::Damaged,
            // The token is replaced, so whether the new template suits the old one does not matter.
            Some(_) if summary.token_hash.as_ref() != Some(&request.token_hash) => Integrity::Drifted,
            Some(token) => {
                let drift = render(request, token)?.drift(&content);
                match drift.is_some() || content.type_ != request.target.type_ {
                    true => Integrity::Drifted,
                    false => Integrity::Intact,
                }
            }
        };
        if let Some(token) = &token {
            summary.issued_at = Some(token.claims().iat);
            summary.expires_at = Some(token.claims().exp);
        }
        Ok(Self {
            summary,
            integrity,
            token,
            content,
        })
    }
}

/// Whether a stored token says what the spec asks for, its age aside: the hashes and the fingerprint stand beside it, where any client that
/// may write the Secret can change them too.
fn matches_token_spec(
    request: &ValidRequest,
    token: &IdToken,
    secret: &SecretSummary,
    expectations: &Expectations<'_>,
    now: Timestamp,
) -> bool {
    let has_changed = secret.token_hash.as_ref() != Some(&request.token_hash) && !expectations.wrote_token;
    let alive = now.min(token.claims().iat);
    let expected = mint::expected(request, None);
    // No spec says for which OAuth client a developer's token is.
    let audience = match request.token.source {
        TokenSource::Developer => expectations.audience.unwrap_or(&token.claims().aud),
        _ => expected.audience,
    };
    has_changed || token.verify(&Expected { audience, ..expected }, alive).is_ok()
}

/// The first token that `is_wanted`, under its key or, if the key was changed, under another.
pub(super) fn find_token(
    content: &SecretContent,
    request: &ValidRequest,
    is_wanted: impl Fn(&IdToken) -> bool,
) -> Option<IdToken> {
    let key = &request.target.key;
    let others = content.data.keys().filter(|other| *other != key);
    std::iter::once(key)
        .chain(others)
        .filter_map(|key| content.token(key))
        .find(is_wanted)
}
