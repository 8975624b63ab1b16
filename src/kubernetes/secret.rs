//! Reads of Secrets. A body can hold a token, so it is wiped, and no error quotes it. Any client may have written the Secret: what is not
//! read is not decoded.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::GetParams;
use kube::core::Request;
use kube::{Client, Resource};
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::{Zeroize, Zeroizing};

use crate::api::FIELD_MANAGER;
use crate::kubernetes::answer::text;
use crate::kubernetes::error::{KubeError, status_code};
use crate::kubernetes::partial_metadata::metadata;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::token::IdToken;

/// Most bytes of the JSON of a Secret's owners: that of some 300.
const MAX_OWNERS: usize = 64 << 10;
/// Longest time for a read: no admission webhook is asked.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// A Secret with its data.
pub struct SecretContent {
    /// What the cache holds of it.
    pub summary: SecretSummary,
    /// Of its metadata: labels, annotations, owners, UID and resourceVersion.
    pub meta: ObjectMeta,
    /// Whether it has more owners than are read. None is in `meta` then.
    pub has_too_many_owners: bool,
    /// The field manager other than ours that changed it last, if its managedFields can be decoded.
    pub last_field_manager: Option<String>,
    /// Its type.
    pub type_: String,
    /// Whether its data is immutable.
    pub immutable: bool,
    /// Its data.
    pub data: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

impl std::fmt::Debug for SecretContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretContent")
            .field("summary", &self.summary)
            .field("type", &self.type_)
            .finish_non_exhaustive()
    }
}

/// The parts of a Secret that are decoded.
#[derive(Deserialize)]
struct WireSecret<'a> {
    #[serde(borrow)]
    metadata: WireMetadata<'a>,
    #[serde(default)]
    data: Option<BTreeMap<String, ByteString>>,
    #[serde(default, rename = "type")]
    type_: Option<String>,
    #[serde(default)]
    immutable: Option<bool>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct WireMetadata<'a> {
    annotations: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(borrow)]
    managed_fields: Option<&'a RawValue>,
    #[serde(borrow)]
    owner_references: Option<&'a RawValue>,
    resource_version: Option<String>,
    uid: Option<String>,
}

/// The field manager other than ours that changed the object last. A client can write here what it likes: what cannot be decoded is as none.
fn last_field_manager(managed_fields: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Entry<'a> {
        #[serde(borrow, default)]
        manager: Cow<'a, str>,
        /// RFC 3339 in UTC, so that the order of the text is that of the time.
        #[serde(borrow, default)]
        time: Cow<'a, str>,
    }
    let entries: Vec<Entry<'_>> = serde_json::from_str(managed_fields.get()).ok()?;
    let others = entries.into_iter().filter(|entry| entry.manager != FIELD_MANAGER);
    others
        .max_by(|a, b| a.time.cmp(&b.time))
        .map(|entry| entry.manager.into_owned())
}

impl SecretContent {
    /// Decodes a Secret from the JSON of a response.
    ///
    /// # Errors
    /// The JSON is not a Secret. The error names `verb` and quotes nothing of the JSON.
    pub fn decode(namespace: &str, verb: &'static str, json: &str) -> Result<Self, KubeError> {
        let secret: WireSecret<'_> =
            serde_json::from_str(json).map_err(|_| KubeError::undecodable(verb, "secrets", namespace))?;
        let mut data = BTreeMap::new();
        let entries = secret.data.into_iter().flatten();
        data.extend(entries.map(|(key, value)| (key, Zeroizing::new(value.0))));
        let read = secret.metadata;
        let owners = read
            .owner_references
            .filter(|owners| owners.get().len() <= MAX_OWNERS);
        let owners = owners.map(|owners| serde_json::from_str(owners.get()));
        let owners = owners.transpose();
        let owners = owners.map_err(|_| KubeError::undecodable(verb, "secrets", namespace))?;
        let meta = ObjectMeta {
            annotations: read.annotations,
            labels: read.labels,
            owner_references: owners,
            resource_version: read.resource_version,
            uid: read.uid,
            ..ObjectMeta::default()
        };
        Ok(Self {
            summary: SecretSummary::from(&meta),
            has_too_many_owners: read.owner_references.is_some() && meta.owner_references.is_none(),
            meta,
            last_field_manager: read.managed_fields.and_then(last_field_manager),
            type_: secret.type_.unwrap_or_default(),
            immutable: secret.immutable.unwrap_or(false),
            data,
        })
    }

    /// Decodes the summary of a Secret from the JSON of a response.
    ///
    /// # Errors
    /// The JSON is not an object of Kubernetes. The error names `verb` and quotes nothing of the JSON.
    pub(crate) fn decode_summary(
        namespace: &str,
        verb: &'static str,
        json: &str,
    ) -> Result<SecretSummary, KubeError> {
        let meta = metadata(json).map_err(|_| KubeError::undecodable(verb, "secrets", namespace))?;
        Ok(SecretSummary::from(&meta))
    }

    /// The token under `key`, if it is one.
    pub fn token(&self, key: &str) -> Option<IdToken> {
        let mut bytes = self.data.get(key)?.to_vec();
        match String::from_utf8(std::mem::take(&mut bytes)) {
            Ok(text) => IdToken::parse(text).ok(),
            Err(error) => {
                error.into_bytes().zeroize();
                None
            }
        }
    }

    /// Value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.meta.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// Reads a Secret; none if it does not exist.
///
/// # Errors
/// The API server rejected the call or did not respond.
pub async fn read_secret(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<SecretContent>, KubeError> {
    let kube_error = |error: &kube::Error| KubeError::new("get", "secrets", namespace, error);
    let request = Request::new(Secret::url_path(&(), Some(namespace)))
        .get(name, &GetParams::default())
        .map_err(|error| kube_error(&kube::Error::BuildRequest(error)))?;
    let call = text(client, request);
    match KubeError::within(READ_TIMEOUT, "get", "secrets", namespace, call).await? {
        Ok(json) => SecretContent::decode(namespace, "get", &json).map(Some),
        Err(error) if status_code(&error) == Some(404) => Ok(None),
        Err(error) => Err(kube_error(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_debug_nor_an_error_shows_data() {
        let json = r#"{"metadata": {"uid": "u"}, "data": {"token": "aHVudGVyMg=="}}"#;
        let content = SecretContent::decode("shop", "get", json).unwrap();
        assert_eq!((content.summary.uid.as_str(), content.immutable), ("u", false));
        assert_eq!(content.data["token"].as_slice(), b"hunter2");
        assert!(content.token("token").is_none(), "it is not a JWT");
        // serde's own error would quote the text.
        let broken = r#"{"metadata": {}, "data": "aHVudGVyMg=="}"#;
        let error = SecretContent::decode("shop", "get", broken).unwrap_err();
        for shown in [format!("{content:?}"), format!("{error} {error:?}")] {
            let leaks = shown.contains("hunter2") || shown.contains("aHVudGVyMg");
            assert!(!leaks, "{shown}");
        }
    }
}
