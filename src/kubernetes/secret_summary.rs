//! What is known of a Secret without its data, and its compact form for the cache.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{LABEL_MANAGED_BY, MANAGED_BY, annotations};

/// What is kept of a Secret: never its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretSummary {
    /// UID.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// The IdTokenRequest that its annotation names.
    pub request: Option<String>,
    /// UID of that request.
    pub request_uid: Option<String>,
    /// Hash of what decided the token.
    pub token_hash: Option<String>,
    /// Hash of what decided the rendering.
    pub render_hash: Option<String>,
    /// Fingerprint of the token as written.
    pub digest: Option<String>,
    /// The token's `iat`.
    pub issued: Option<Timestamp>,
    /// The token's `exp`.
    pub expires: Option<Timestamp>,
    /// Whether it carries our label.
    pub managed: bool,
    /// Whether it was somebody else's before: it then stays when its request goes.
    pub adopted: bool,
    /// Hash of the renewal by annotation that its token honoured.
    pub handled_renew: Option<String>,
}

impl From<&ObjectMeta> for SecretSummary {
    fn from(meta: &ObjectMeta) -> Self {
        let note = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key)).cloned();
        let time = |key: &str| note(key).and_then(|text| text.parse().ok());
        let label = meta.labels.as_ref().and_then(|all| all.get(LABEL_MANAGED_BY));
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            request: note(annotations::REQUEST),
            request_uid: note(annotations::REQUEST_UID),
            token_hash: note(annotations::TOKEN_HASH),
            render_hash: note(annotations::RENDER_HASH),
            digest: note(annotations::DIGEST),
            issued: time(annotations::ISSUED),
            expires: time(annotations::EXPIRES),
            adopted: note(annotations::ADOPTED).is_some(),
            handled_renew: note(annotations::HANDLED_RENEW),
            managed: label.is_some_and(|value| value == MANAGED_BY),
        }
    }
}

/// A [`SecretSummary`] as one text, since every Secret of ours is cached: its resourceVersion, a line feed, and the rest as JSON, which has
/// none.
#[derive(Debug)]
pub(crate) struct CompactSummary(Box<str>);

/// All but the resourceVersion.
type Rest = (String, [Option<String>; 6], [Option<Timestamp>; 2], [bool; 2]);

impl CompactSummary {
    pub(crate) fn new(meta: &SecretSummary) -> Self {
        let rest = (
            &meta.uid,
            [
                &meta.request,
                &meta.request_uid,
                &meta.token_hash,
                &meta.render_hash,
                &meta.digest,
                &meta.handled_renew,
            ],
            [meta.issued, meta.expires],
            [meta.managed, meta.adopted],
        );
        // Texts, times and booleans can always be written.
        let rest = serde_json::to_string(&rest).unwrap_or_default();
        Self(format!("{}\n{rest}", meta.resource_version).into())
    }

    fn split(&self) -> (&str, &str) {
        self.0.rsplit_once('\n').unwrap_or_default()
    }

    /// `metadata.resourceVersion`.
    pub(crate) fn resource_version(&self) -> &str {
        self.split().0
    }

    /// What was packed.
    pub(crate) fn unpack(&self) -> Option<SecretSummary> {
        let (version, rest) = self.split();
        let (uid, texts, times, flags): Rest = serde_json::from_str(rest).ok()?;
        let [
            request,
            request_uid,
            token_hash,
            render_hash,
            digest,
            handled_renew,
        ] = texts;
        let ([issued, expires], [managed, adopted]) = (times, flags);
        Some(SecretSummary {
            uid,
            resource_version: version.to_owned(),
            request,
            request_uid,
            token_hash,
            render_hash,
            digest,
            issued,
            expires,
            managed,
            adopted,
            handled_renew,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        let full = SecretSummary {
            uid: "u".to_owned(),
            resource_version: "odd\n7".to_owned(),
            request: Some("a".to_owned()),
            request_uid: Some("\"\n\u{0}".to_owned()),
            token_hash: Some("t".to_owned()),
            render_hash: Some("r".to_owned()),
            digest: Some("d".to_owned()),
            issued: "2026-01-01T00:00:00.123456789Z".parse().ok(),
            expires: "2026-01-01T01:00:00Z".parse().ok(),
            managed: true,
            adopted: true,
            handled_renew: Some("h".to_owned()),
        };
        for meta in [full, SecretSummary::default()] {
            let packed = CompactSummary::new(&meta);
            assert_eq!(packed.resource_version(), meta.resource_version);
            assert_eq!(packed.unpack(), Some(meta));
        }
    }
}
