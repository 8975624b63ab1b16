//! Reads: the target Secret, where the caches do not suffice, and the Kubernetes ServiceAccount of a federation with a token of it.
//! Bodies that hold a token are taken as text and decoded here, since kube's client logs a body that it cannot decode.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::Resource;
use kube::api::{GetParams, PartialObjectMeta, PostParams};
use kube::core::Request;
use serde::Deserialize;
use serde_json::json;
use zeroize::{Zeroize, Zeroizing};

use crate::kubernetes::error::{KubeError, code};
use crate::kubernetes::partial_metadata::metadata;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::token::IdToken;

/// GKE's annotation of the Google service account that a Kubernetes ServiceAccount acts as
/// (<https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity>).
pub const GCP_SERVICE_ACCOUNT: &str = "iam.gke.io/gcp-service-account";

/// A Secret with its data.
pub struct SecretContent {
    /// The projection that the cache holds.
    pub summary: SecretSummary,
    /// All of its metadata.
    pub meta: ObjectMeta,
    /// Its type.
    pub type_: String,
    /// Whether it can be changed no more.
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
    /// Decodes a Secret from the JSON of an answer, which is wiped.
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

    /// Decodes what the cache holds of a Secret from the JSON of an answer, which is wiped.
    pub(crate) fn summary(
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

/// Reads the Secret; none where there is none.
///
/// # Errors
/// The API server refused, or did not answer.
pub async fn read_secret(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<SecretContent>, KubeError> {
    let fault = |error: &kube::Error| KubeError::new("get", "secrets", namespace, error);
    let request = Request::new(Secret::url_path(&(), Some(namespace)))
        .get(name, &GetParams::default())
        .map_err(|error| fault(&kube::Error::BuildRequest(error)))?;
    match client.request_text(request).await {
        Ok(json) => SecretContent::decode(namespace, "get", json).map(Some),
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(fault(&error)),
    }
}

/// What is read of a Kubernetes ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesServiceAccount {
    /// Its UID: another one of the same name is another account.
    pub uid: String,
    /// The annotation `iam.gke.io/gcp-service-account`.
    pub gcp_service_account: Option<String>,
}

/// Reads the metadata of a ServiceAccount; none where there is none.
///
/// # Errors
/// The API server refused, or did not answer.
pub async fn read_service_account(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<KubernetesServiceAccount>, KubeError> {
    let fault = |error: &kube::Error| KubeError::new("get", "serviceaccounts", namespace, error);
    let request = Request::new(ServiceAccount::url_path(&(), Some(namespace)))
        .get_metadata(name, &GetParams::default())
        .map_err(|error| fault(&kube::Error::BuildRequest(error)))?;
    match client.request::<PartialObjectMeta<ServiceAccount>>(request).await {
        Ok(object) => Ok(Some(KubernetesServiceAccount {
            uid: object.metadata.uid.unwrap_or_default(),
            gcp_service_account: object
                .metadata
                .annotations
                .and_then(|mut all| all.remove(GCP_SERVICE_ACCOUNT)),
        })),
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(fault(&error)),
    }
}

/// How long a Kubernetes token lives, in seconds: the least that the API server allows.
const TOKEN_SECONDS: u32 = 600;

#[derive(Deserialize)]
struct TokenAnswer {
    status: TokenAnswerStatus,
}

#[derive(Deserialize)]
struct TokenAnswerStatus {
    token: String,
}

/// Has the API server make a token of the ServiceAccount with this UID, for one audience and bound to nothing else; none where there is
/// no such account.
///
/// # Errors
/// The API server refused, or did not answer; a 409 where the account was made anew, which passes.
pub async fn create_token(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: &str,
    audience: &str,
) -> Result<Option<Zeroizing<String>>, KubeError> {
    let (verb, resource) = ("create", "serviceaccounts/token");
    let fault = |error: &kube::Error| KubeError::new(verb, resource, namespace, error);
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
        "spec": {"audiences": [audience], "expirationSeconds": TOKEN_SECONDS},
    });
    let request = Request::new(ServiceAccount::url_path(&(), Some(namespace)))
        .create_subresource(
            "token",
            name,
            &PostParams::default(),
            body.to_string().into_bytes(),
        )
        .map_err(|error| fault(&kube::Error::BuildRequest(error)))?;
    match client.request_text(request).await {
        Ok(json) => {
            let json = Zeroizing::new(json);
            let answer: TokenAnswer =
                serde_json::from_str(&json).map_err(|_| KubeError::undecodable(verb, resource, namespace))?;
            Ok(Some(Zeroizing::new(answer.status.token)))
        }
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(fault(&error)),
    }
}
