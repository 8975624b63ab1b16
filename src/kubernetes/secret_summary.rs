//! What is known of a Secret without its data.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{LABEL_MANAGED_BY, MANAGED_BY, annotations};

/// What the operator needs to know of a Secret: never its data.
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
    /// Hash of the inputs of the token.
    pub token_hash: Option<String>,
    /// Hash of the inputs of the rendering.
    pub render_hash: Option<String>,
    /// Fingerprint of the token as written.
    pub token_fingerprint: Option<String>,
    /// The token's `iat`.
    pub issued_at: Option<Timestamp>,
    /// The token's `exp`.
    pub expires_at: Option<Timestamp>,
    /// Whether it has our label.
    pub managed: bool,
    /// Whether it was adopted: another client created it, so it stays when its request is deleted.
    pub adopted: bool,
    /// Hash of the renewal by annotation that its token handled.
    pub handled_renew: Option<String>,
}

impl From<&ObjectMeta> for SecretSummary {
    fn from(meta: &ObjectMeta) -> Self {
        let found = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key));
        let annotation = |key: &str| found(key).cloned();
        let time = |key: &str| found(key).and_then(|text| text.parse().ok());
        let label = meta.labels.as_ref().and_then(|all| all.get(LABEL_MANAGED_BY));
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            request: annotation(annotations::REQUEST),
            request_uid: annotation(annotations::REQUEST_UID),
            token_hash: annotation(annotations::TOKEN_HASH),
            render_hash: annotation(annotations::RENDER_HASH),
            token_fingerprint: annotation(annotations::DIGEST),
            issued_at: time(annotations::ISSUED),
            expires_at: time(annotations::EXPIRES),
            adopted: found(annotations::ADOPTED).is_some(),
            handled_renew: annotation(annotations::HANDLED_RENEW),
            managed: label.is_some_and(|value| value == MANAGED_BY),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures::at;

    #[test]
    fn a_summary_has_our_annotations() {
        let meta: ObjectMeta = serde_json::from_value(json!({
            "uid": "u", "resourceVersion": "5",
            "labels": {(LABEL_MANAGED_BY): MANAGED_BY},
            "annotations": {
                (annotations::REQUEST): "billing", (annotations::REQUEST_UID): "r", (annotations::TOKEN_HASH): "t",
                (annotations::RENDER_HASH): "h", (annotations::DIGEST): "d", (annotations::ADOPTED): "true",
                (annotations::ISSUED): "2027-01-15T08:00:00Z", (annotations::EXPIRES): "no time",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "o"}],
        }))
        .unwrap();
        let text = |text: &str| Some(text.to_owned());
        let expected = SecretSummary {
            handled_renew: None,
            uid: "u".into(),
            resource_version: "5".into(),
            request: text("billing"),
            request_uid: text("r"),
            token_hash: text("t"),
            render_hash: text("h"),
            token_fingerprint: text("d"),
            issued_at: Some(at(1_800_000_000)),
            expires_at: None,
            managed: true,
            adopted: true,
        };
        assert_eq!(SecretSummary::from(&meta), expected);
        let other_label: ObjectMeta =
            serde_json::from_value(json!({"labels": {(LABEL_MANAGED_BY): "Helm"}})).unwrap();
        assert_eq!(SecretSummary::from(&other_label), SecretSummary::default());
    }
}
