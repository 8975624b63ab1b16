//! A cached request: the compressed JSON of what a reconcile reads. Decoding one for a reconcile takes microseconds; kube's types would take
//! ten times the memory all the time.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};

use crate::api::v1alpha1::IdTokenRequest;
use crate::api::{LABEL_SHARD, annotations};

/// What most requests have in common, so that each stores only how it differs: LZ4's dictionary, whose end is cheapest to refer to
/// (<https://github.com/lz4/lz4/blob/v1.10.0/doc/lz4_Block_format.md>).
const DICTIONARY: &[u8] = include_bytes!("lz4-dictionary.json");

/// A request as compressed JSON.
#[derive(Debug)]
pub(super) struct CompressedRequest(Box<[u8]>);

impl CompressedRequest {
    /// Compresses `object`, whose metadata [`trim_metadata`] has trimmed.
    pub(super) fn new(object: &IdTokenRequest) -> Self {
        // What was decoded from JSON can be serialized. If it could not, [`Self::decompress`] would give none: better than an old version.
        let json = serde_json::to_vec(object).unwrap_or_else(|error| {
            let meta = &object.metadata;
            let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
            tracing::error!(namespace, name, "the request cannot be cached: {error}");
            Vec::new()
        });
        Self(compress_prepend_size_with_dict(&json, DICTIONARY).into())
    }

    /// The JSON.
    pub(super) fn decompress(&self) -> Option<Vec<u8>> {
        decompress_size_prepended_with_dict(&self.0, DICTIONARY).ok()
    }
}

/// Leaves the metadata that a reconcile or an event reads.
pub(super) fn trim_metadata(metadata: ObjectMeta) -> ObjectMeta {
    let only = |all: Option<BTreeMap<String, String>>, key: &str| {
        let value = all?.remove(key)?;
        Some([(key.to_owned(), value)].into())
    };
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        generation: metadata.generation,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        annotations: only(metadata.annotations, annotations::RENEW),
        labels: only(metadata.labels, LABEL_SHARD),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
        let found: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(found, serde_json::to_value(&expected).unwrap());
    }

    #[test]
    fn what_most_requests_have_in_common_is_stored_once() {
        let whole = serde_json::to_vec(&object()).unwrap().len();
        let stored = CompressedRequest::new(&object()).0.len();
        assert!(stored * 2 < whole, "{stored} of {whole} bytes");
    }
}
