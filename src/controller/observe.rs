//! Reads: the target Secret, and only where the caches do not suffice. Bodies are taken as text and decoded here, since kube's client
//! logs a body that it cannot decode.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::Resource;
use kube::api::GetParams;
use kube::core::Request;
use zeroize::{Zeroize, Zeroizing};

use super::fault::{KubeFault, code};
use super::index::SecretMeta;
use crate::token::IdToken;

/// A Secret with its data.
pub struct Content {
    /// The projection that the cache holds.
    pub summary: SecretMeta,
    /// All of its metadata.
    pub meta: ObjectMeta,
    /// Its type.
    pub type_: String,
    /// Whether it can be changed no more.
    pub immutable: bool,
    /// Its data.
    pub data: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content")
            .field("summary", &self.summary)
            .field("type", &self.type_)
            .finish_non_exhaustive()
    }
}

impl Content {
    /// Decodes a Secret from the JSON of an answer, which is wiped.
    pub fn decode(namespace: &str, verb: &'static str, json: String) -> Result<Self, KubeFault> {
        let json = Zeroizing::new(json);
        let secret: Secret = serde_json::from_str(&json).map_err(|_| KubeFault::Unavailable {
            verb,
            resource: "secrets",
            namespace: namespace.to_owned(),
            problem: "the answer could not be decoded".into(),
        })?;
        let data = secret.data.unwrap_or_default();
        Ok(Self {
            summary: SecretMeta::from(&secret.metadata),
            meta: secret.metadata,
            type_: secret.type_.unwrap_or_default(),
            immutable: secret.immutable.unwrap_or(false),
            data: data
                .into_iter()
                .map(|(key, value)| (key, Zeroizing::new(value.0)))
                .collect(),
        })
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

/// Reads the Secret; none where there is none.
///
/// # Errors
/// The API server refused, or did not answer.
pub async fn read_secret(client: &Client, namespace: &str, name: &str) -> Result<Option<Content>, KubeFault> {
    let fault = |error: &kube::Error| KubeFault::new("get", "secrets", namespace, error);
    let request = Request::new(Secret::url_path(&(), Some(namespace)))
        .get(name, &GetParams::default())
        .map_err(|error| fault(&kube::Error::BuildRequest(error)))?;
    match client.request_text(request).await {
        Ok(json) => Content::decode(namespace, "get", json).map(Some),
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(fault(&error)),
    }
}
