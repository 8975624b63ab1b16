//! IdTokenRequests that are not served whatever the grants say: this version cannot decode them, such as one with an enum value of a newer
//! version's CRD, or they are too large, or there is no memory for them. Their spec is not kept; the error is reported.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::compressed_request::{CompressedRequest, trim_metadata, trim_status};
use super::limits::MAX_MARKER;
use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::request::ValidateError;
use crate::text::redacted;

/// Most characters of an error: it may quote the object.
const MAX_ERROR: usize = 400;

/// What is known of an IdTokenRequest that is not served.
#[derive(Clone, Debug, PartialEq)]
pub struct Unserved {
    /// The metadata that a reconcile reads.
    pub metadata: ObjectMeta,
    /// The status; none if it is absent or cannot be decoded.
    pub status: Option<IdTokenRequestStatus>,
    /// Why it is not served.
    pub error: ValidateError,
}

impl Unserved {
    /// An object that cannot be decoded. Of `error` only that is kept which may be published.
    pub fn undecodable(metadata: ObjectMeta, status: Option<IdTokenRequestStatus>, error: &str) -> Self {
        Self {
            metadata: trim_metadata(metadata),
            status,
            error: ValidateError::Undecodable(redacted(error, MAX_ERROR)),
        }
    }

    /// A cached request that is not served because of `error`.
    pub(super) fn without_spec(request: &CompressedRequest, error: ValidateError) -> Option<Self> {
        // The spec is skipped.
        let Parts { metadata, status } = serde_json::from_str(&request.decompress()?).ok()?;
        Some(Self {
            metadata,
            status,
            error,
        })
    }
}

/// An [`Unserved`] in little memory.
#[derive(Debug)]
pub(super) struct Marker {
    pub(super) parts: CompressedRequest,
    pub(super) error: ValidateError,
}

/// What is kept of the object.
#[derive(Serialize, Deserialize)]
struct Parts {
    metadata: ObjectMeta,
    status: Option<IdTokenRequestStatus>,
}

impl Marker {
    /// Of `request`, whose status is dropped if it is no usual one.
    pub(super) fn new(request: Unserved) -> Self {
        let Unserved {
            metadata,
            status,
            error,
        } = request;
        let mut kept = Parts {
            metadata,
            status: status.map(trim_status),
        };
        let mut parts = CompressedRequest::new(&kept);
        if parts.len() > MAX_MARKER {
            kept.status = None;
            parts = CompressedRequest::new(&kept);
        }
        Self { parts, error }
    }

    /// What is known of the request.
    pub(super) fn unserved(&self) -> Option<Unserved> {
        Unserved::without_spec(&self.parts, self.error.clone())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use serde_json::json;

    use super::*;
    use crate::request::fingerprint::versioned;

    #[test]
    fn little_is_kept_of_an_object_and_no_credential() {
        let metadata = ObjectMeta {
            uid: Some("u".to_owned()),
            annotations: Some([("large".to_owned(), "x".repeat(10_000))].into()),
            ..ObjectMeta::default()
        };
        let error = format!("unknown value `Bearer abcdefghijklmnop`{}", "x".repeat(10_000));
        let object = Unserved::undecodable(metadata, None, &error);
        assert_eq!(object.metadata.annotations, None);
        let error = object.error.to_string();
        assert!(error.chars().count() <= MAX_ERROR + 200, "{error}");
        assert!(!error.contains("abcdefghijklmnop"), "{error}");
    }

    #[test]
    fn a_marker_has_a_bound_and_gives_back_what_it_has() {
        let status = |message: &str| {
            let condition: Condition = serde_json::from_value(json!({
                "type": "Ready", "status": "False", "reason": "NotGranted", "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }))
            .unwrap();
            IdTokenRequestStatus {
                observed_generation: Some(3),
                conditions: vec![condition],
                ..IdTokenRequestStatus::default()
            }
        };
        let metadata = ObjectMeta {
            uid: Some("u".to_owned()),
            ..ObjectMeta::default()
        };
        let kept = |status| {
            let marker = Marker::new(Unserved::undecodable(metadata.clone(), Some(status), "no spec"));
            assert!(marker.parts.len() <= MAX_MARKER, "{}", marker.parts.len());
            marker.unserved().unwrap()
        };
        let usual = status("No grant allows it");
        let expected = Unserved::undecodable(metadata.clone(), Some(usual.clone()), "no spec");
        assert_eq!(kept(usual), expected);
        // Text that does not compress.
        let noise: String = (0..200).map(|n| versioned("v1", &[n.to_string()])).collect();
        assert_eq!(kept(status(&noise)).status, None);
    }
}
