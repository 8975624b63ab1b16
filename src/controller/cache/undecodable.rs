//! IdTokenRequests that this version cannot decode, such as one with an enum value of a newer version's CRD.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::text::redacted;

/// Most characters of an error: it may quote the object.
const MAX_ERROR: usize = 400;

/// What is known of an IdTokenRequest that cannot be decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Undecodable {
    /// Names, UID, resourceVersion, generation and deletion time.
    pub metadata: ObjectMeta,
    /// The status; none if it is absent or cannot be decoded.
    pub status: Option<IdTokenRequestStatus>,
    /// Why the object cannot be decoded, redacted and bounded.
    pub error: String,
}

impl Undecodable {
    /// Keeps of `metadata` what is read of it, and of `error` what may be published.
    pub fn new(metadata: ObjectMeta, status: Option<IdTokenRequestStatus>, error: &str) -> Self {
        Self {
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                uid: metadata.uid,
                resource_version: metadata.resource_version,
                generation: metadata.generation,
                deletion_timestamp: metadata.deletion_timestamp,
                ..ObjectMeta::default()
            },
            status,
            error: redacted(error, MAX_ERROR),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_kept_of_an_object_and_no_credential() {
        let metadata = ObjectMeta {
            uid: Some("u".to_owned()),
            annotations: Some([("large".to_owned(), "x".repeat(10_000))].into()),
            ..ObjectMeta::default()
        };
        let error = format!("unknown value `Bearer abcdefghijklmnop`{}", "x".repeat(10_000));
        let object = Undecodable::new(metadata, None, &error);
        assert_eq!(object.metadata.annotations, None);
        assert!(object.error.chars().count() <= MAX_ERROR + 1, "{}", object.error);
        assert!(!object.error.contains("abcdefghijklmnop"), "{}", object.error);
    }
}
