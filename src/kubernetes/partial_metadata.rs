//! Metadata-only responses: how to request them, and a decoder that skips unused fields.

use std::collections::BTreeMap;

use http::HeaderValue;
use http::header::ACCEPT;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;

/// Requests only the metadata of an object
/// (<https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches>).
const METADATA_ONLY: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Requests a response with only the metadata. The caller of a write knows what it wrote, and a token in the response would have to be wiped.
pub(crate) fn for_metadata(call: &mut http::Request<Vec<u8>>) {
    call.headers_mut().insert(ACCEPT, METADATA_ONLY);
}

/// The fields of an object's metadata that are used. The others are skipped: managedFields alone are as large as the object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    generation: Option<i64>,
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
