//! Metadata-only responses: how to request them, and a decoder that skips unused fields.

use std::collections::BTreeMap;
use std::fmt;

use http::HeaderValue;
use http::header::ACCEPT;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::api::annotations::GCP_SERVICE_ACCOUNT;
use crate::api::{LABEL_MANAGED_BY, RESERVED_PREFIX};

/// Requests only the metadata of an object
/// (<https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches>).
const METADATA_ONLY: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Most bytes of a label or an annotation that the operator reads: no name of an object is longer. A longer one is as none, since the operator
/// writes none.
pub(crate) const MAX_VALUE: usize = 256;

/// Requests a response with only the metadata. The caller of a write knows what it wrote, and a token in the response would have to be wiped.
pub(crate) fn for_metadata(call: &mut http::Request<Vec<u8>>) {
    call.headers_mut().insert(ACCEPT, METADATA_ONLY);
}

/// The fields of an object's metadata that are used. The others are skipped: managedFields alone can be as large as etcd allows, and a client
/// can put a time there that cannot be decoded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    #[serde(deserialize_with = "read_by_us")]
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    generation: Option<i64>,
    #[serde(deserialize_with = "read_by_us")]
    labels: Option<BTreeMap<String, String>>,
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    uid: Option<String>,
}

impl From<Metadata> for ObjectMeta {
    fn from(read: Metadata) -> Self {
        Self {
            annotations: read.annotations,
            creation_timestamp: read.creation_timestamp,
            deletion_timestamp: read.deletion_timestamp,
            generation: read.generation,
            labels: read.labels,
            name: read.name,
            namespace: read.namespace,
            resource_version: read.resource_version,
            uid: read.uid,
            ..Self::default()
        }
    }
}

/// Those of an object's labels or annotations that the operator reads, each of at most [`MAX_VALUE`] bytes.
fn read_by_us<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    struct ReadByUs;

    impl<'de> Visitor<'de> for ReadByUs {
        type Value = Option<BTreeMap<String, String>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("labels or annotations")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut kept = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                let is_read = key.starts_with(RESERVED_PREFIX)
                    || [LABEL_MANAGED_BY, GCP_SERVICE_ACCOUNT].contains(&key.as_str());
                if !is_read {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                let value: String = map.next_value()?;
                if value.len() <= MAX_VALUE {
                    kept.insert(key, value);
                }
            }
            Ok((!kept.is_empty()).then_some(kept))
        }
    }

    deserializer.deserialize_any(ReadByUs)
}

/// Decodes the metadata of an object.
///
/// # Errors
/// The JSON is not an object of Kubernetes.
pub(crate) fn metadata(json: &str) -> Result<ObjectMeta, serde_json::Error> {
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    serde_json::from_str(json).map(|object: Object| object.metadata.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::annotations;

    #[test]
    fn what_the_operator_never_reads_is_neither_kept_nor_decoded() {
        let object = json!({"metadata": {
            "name": "a", "namespace": "shop", "uid": "u", "resourceVersion": "7",
            "managedFields": [{"time": "9999-12-31T23:59:59Z", "fieldsV1": 7}], "ownerReferences": "none",
            "labels": {(LABEL_MANAGED_BY): "idtoken-operator", "app": "x"},
            "annotations": {
                (annotations::REQUEST): "billing", (annotations::RENEW): "x".repeat(MAX_VALUE + 1),
                "kubectl.kubernetes.io/last-applied-configuration": "x".repeat(10_000),
            },
        }});
        let found = metadata(&object.to_string()).unwrap();
        let only = |key: &str, value: &str| Some([(key.to_owned(), value.to_owned())].into());
        assert_eq!(found.labels, only(LABEL_MANAGED_BY, "idtoken-operator"));
        assert_eq!(found.annotations, only(annotations::REQUEST, "billing"));
        assert_eq!(
            (found.uid.as_deref(), found.resource_version.as_deref()),
            (Some("u"), Some("7"))
        );
        assert!(
            metadata(r#"{"metadata": {"labels": null}}"#)
                .unwrap()
                .labels
                .is_none()
        );
        assert!(metadata(r#"{"metadata": {"labels": "hunter2"}}"#).is_err());
    }
}
