//! A cached request: the compressed JSON of what a reconcile reads. Decoding one for a reconcile takes microseconds; kube's types would take
//! ten times the memory all the time.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use serde::Serialize;

use crate::api::conditions::{READY, RECONCILING, RENEWAL_FAILING, STALLED};
use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::api::{LABEL_SHARD, annotations};
use crate::kubernetes::partial_metadata::MAX_VALUE;

/// Most bytes of a message that the operator writes to a status: 4096 characters.
const MAX_MESSAGE: usize = 4 * 4096;
/// Most bytes of any other text that the operator writes to a status.
const MAX_TEXT: usize = 2048;

/// What most requests have in common, so that each stores only how it differs: LZ4's dictionary, whose end is cheapest to refer to
/// (<https://github.com/lz4/lz4/blob/v1.10.0/doc/lz4_Block_format.md>).
const DICTIONARY: &[u8] = include_bytes!("lz4-dictionary.json");

/// A request as compressed JSON.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct CompressedRequest(Box<[u8]>);

impl CompressedRequest {
    /// Compresses a request, or a part of one, whose metadata and status are trimmed.
    pub(super) fn new(parts: &impl Serialize) -> Self {
        // What was decoded from JSON can be serialized. If it could not, [`Self::decompress`] would give none: better than an old version.
        let json = serde_json::to_vec(parts).unwrap_or_else(|error| {
            tracing::error!("a request cannot be cached: {error}");
            Vec::new()
        });
        Self(compress_prepend_size_with_dict(&json, DICTIONARY).into())
    }

    /// Bytes that it takes.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The JSON.
    pub(super) fn decompress(&self) -> Option<String> {
        let json = decompress_size_prepended_with_dict(&self.0, DICTIONARY).ok()?;
        String::from_utf8(json).ok()
    }
}

/// Leaves the metadata that a reconcile or an event reads.
pub(super) fn trim_metadata(metadata: ObjectMeta) -> ObjectMeta {
    let only = |all: Option<BTreeMap<String, String>>, keys: &[&str]| {
        let mut all = all?;
        // A longer one is none that the operator reads: several copies of it are kept.
        all.retain(|key, value| keys.contains(&key.as_str()) && value.len() <= MAX_VALUE);
        (!all.is_empty()).then_some(all)
    };
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        generation: metadata.generation,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        annotations: only(
            metadata.annotations,
            &[annotations::RENEW, annotations::ACCEPT_SUBJECT],
        ),
        labels: only(metadata.labels, &[LABEL_SHARD]),
        ..ObjectMeta::default()
    }
}

/// Leaves what the operator may have written. A longer text is of another client, and is replaced by the next status.
pub(super) fn trim_status(mut status: IdTokenRequestStatus) -> IdTokenRequestStatus {
    let is_short = |text: &String| text.len() <= MAX_TEXT;
    let trim = |text: &mut Option<String>| *text = text.take().filter(is_short);
    status.conditions.retain(|condition| {
        let is_known = [READY, RENEWAL_FAILING, RECONCILING, STALLED].contains(&condition.type_.as_str());
        let texts = [&condition.reason, &condition.status];
        is_known && condition.message.len() <= MAX_MESSAGE && texts.into_iter().all(is_short)
    });
    // A list of a map type has each type once.
    status.conditions.truncate(4);
    status.secret = status.secret.filter(|secret| is_short(&secret.name));
    status.grant = status.grant.filter(|grant| is_short(&grant.name));
    trim(&mut status.source);
    trim(&mut status.last_handled_renew_request);
    if let Some(secret) = &mut status.secret {
        trim(&mut secret.uid);
        trim(&mut secret.resource_version);
    }
    if let Some(grant) = &mut status.grant {
        trim(&mut grant.uid);
    }
    if let Some(token) = &mut status.token {
        let texts = [
            &mut token.audience,
            &mut token.email,
            &mut token.subject,
            &mut token.accepted_subject,
            &mut token.digest,
        ];
        texts.into_iter().for_each(trim);
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::v1alpha1::IdTokenRequest;

    fn object() -> IdTokenRequest {
        serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {
                "name": "a", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 3,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app": "billing"},
                "annotations": {(annotations::RENEW): "1", "other": "2"},
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {"audience": "https://a.run.app", "target": {"template": {"data": {"header": "$(token)"}}}},
            "status": {"observedGeneration": 3, "renewalTime": "2026-01-01T00:30:00Z"},
        }))
        .unwrap()
    }

    #[test]
    fn what_a_reconcile_reads_comes_back_and_the_rest_does_not() {
        let mut expected = object();
        expected.metadata.managed_fields = None;
        expected.metadata.labels = None;
        expected.metadata.annotations.as_mut().unwrap().remove("other");
        let trimmed = IdTokenRequest {
            metadata: trim_metadata(object().metadata),
            ..object()
        };
        let json = CompressedRequest::new(&trimmed).decompress().unwrap();
        let found: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(found, serde_json::to_value(&expected).unwrap());
    }

    #[test]
    fn a_text_that_the_operator_never_wrote_is_not_kept() {
        let long = "x".repeat(MAX_MESSAGE + 1);
        let condition = |type_: &str, message: &str| json!({"type": type_, "status": "True", "reason": "R", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = |long: &str| -> IdTokenRequestStatus {
            serde_json::from_value(json!({
                "observedGeneration": 3, "source": long, "renewalTime": "2026-01-01T00:30:00Z", "lastHandledRenewRequest": long,
                "conditions": [condition("Ready", long), condition("Stalled", "short"), condition(long, "short")],
                "secret": {"name": "billing", "resourceVersion": long}, "grant": {"name": long},
                "token": {"audience": long, "email": long, "subject": long, "expirationTime": "2026-01-01T01:00:00Z"},
            }))
            .unwrap()
        };
        let short = serde_json::to_value(trim_status(status("Ready"))).unwrap();
        assert_eq!(short, serde_json::to_value(status("Ready")).unwrap());
        let kept = serde_json::to_value(trim_status(status(&long))).unwrap();
        assert!(kept.to_string().len() < 1000, "{kept}");
        assert_eq!(kept["conditions"][0]["type"], "Stalled");
        assert_eq!(kept["secret"], json!({"name": "billing"}));
        let request = |value: &str| ObjectMeta {
            annotations: Some([(annotations::RENEW.to_owned(), value.to_owned())].into()),
            ..ObjectMeta::default()
        };
        assert!(trim_metadata(request(&long)).annotations.is_none());
        assert!(trim_metadata(request("now")).annotations.is_some());
    }

    #[test]
    fn what_most_requests_have_in_common_is_stored_once() {
        let whole = serde_json::to_vec(&object()).unwrap().len();
        let stored = CompressedRequest::new(&object()).0.len();
        assert!(stored * 2 < whole, "{stored} of {whole} bytes");
    }
}
