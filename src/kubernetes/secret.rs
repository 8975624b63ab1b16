//! Reads of Secrets. A body can hold a token, so it is read as text, decoded here and wiped: kube's client logs a body that it cannot
//! decode.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::GetParams;
use kube::core::Request;
use kube::{Client, Resource};
use zeroize::{Zeroize, Zeroizing};

use crate::kubernetes::error::{KubeError, status_code};
use crate::kubernetes::partial_metadata::metadata;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::token::IdToken;

/// Longest time for a read: no admission webhook is asked.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// A Secret with its data.
pub struct SecretContent {
    /// What the cache holds of it.
    pub summary: SecretSummary,
    /// All of its metadata.
    pub meta: ObjectMeta,
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

impl SecretContent {
    /// Decodes a Secret from the JSON of a response, which is wiped.
    ///
    /// # Errors
    /// The JSON is not a Secret. The error names `verb` and quotes nothing of the JSON.
    pub fn decode(namespace: &str, verb: &'static str, json: String) -> Result<Self, KubeError> {
        let json = Zeroizing::new(json);
        let secret: Secret =
            serde_json::from_str(&json).map_err(|_| KubeError::undecodable(verb, "secrets", namespace))?;
        let data = secret.data.unwrap_or_default();
        Ok(Self {
            summary: SecretSummary::from(&secret.metadata),
            meta: secret.metadata,
            type_: secret.type_.unwrap_or_default(),
            immutable: secret.immutable.unwrap_or(false),
            data: data
                .into_iter()
                .map(|(key, value)| (key, Zeroizing::new(value.0)))
                .collect(),
        })
    }

    /// Decodes the summary of a Secret from the JSON of a response, which is wiped.
    ///
    /// # Errors
    /// The JSON is not an object of Kubernetes. The error names `verb` and quotes nothing of the JSON.
    pub(crate) fn decode_summary(
        namespace: &str,
        verb: &'static str,
        json: String,
    ) -> Result<SecretSummary, KubeError> {
        let json = Zeroizing::new(json);
        let meta = metadata(&json).map_err(|_| KubeError::undecodable(verb, "secrets", namespace))?;
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
    let call = client.request_text(request);
    match KubeError::within(READ_TIMEOUT, "get", "secrets", namespace, call).await? {
        Ok(json) => SecretContent::decode(namespace, "get", json).map(Some),
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
        let content = SecretContent::decode("shop", "get", json.to_owned()).unwrap();
        assert_eq!((content.summary.uid.as_str(), content.immutable), ("u", false));
        assert_eq!(content.data["token"].as_slice(), b"hunter2");
        assert!(content.token("token").is_none(), "it is not a JWT");
        // serde's own error would quote the text.
        let broken = r#"{"metadata": {}, "data": "aHVudGVyMg=="}"#;
        let error = SecretContent::decode("shop", "get", broken.to_owned()).unwrap_err();
        for shown in [format!("{content:?}"), format!("{error} {error:?}")] {
            let leaks = shown.contains("hunter2") || shown.contains("aHVudGVyMg");
            assert!(!leaks, "{shown}");
        }
    }
}
