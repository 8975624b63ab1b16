//! The metadata of objects alone: asked for, and decoded without what nobody reads.

use std::collections::BTreeMap;

use http::HeaderValue;
use http::header::ACCEPT;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;

/// Asks for no more of an object than its metadata
/// (<https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches>).
const METADATA_ONLY: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Has the API server answer a write with the metadata alone: what was written is known, and a token in an answer would have to be wiped.
pub(crate) fn for_metadata(call: &mut http::Request<Vec<u8>>) {
    call.headers_mut().insert(ACCEPT, METADATA_ONLY);
}

/// What is read of an object's metadata. The rest is skipped: managedFields alone are a tree as large as the object.
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
/// It is no object of Kubernetes.
pub(crate) fn metadata(json: &str) -> Result<ObjectMeta, serde_json::Error> {
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    serde_json::from_str(json).map(|object: Object| object.metadata.into())
}
