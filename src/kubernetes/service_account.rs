//! Reads of Kubernetes ServiceAccounts, and tokens for them with their audience and lifetime.

use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{GetParams, PostParams};
use kube::core::Request;
use kube::{Client, Resource};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::api::annotations::GCP_SERVICE_ACCOUNT;
use crate::kubernetes::answer::text;
use crate::kubernetes::error::{KubeError, status_code};
use crate::kubernetes::partial_metadata::metadata;

/// Longest time for a call about a ServiceAccount or its token.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The metadata of a Kubernetes ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesServiceAccount {
    /// Its UID. A recreated ServiceAccount of the same name is another one.
    pub uid: String,
    /// The annotation `iam.gke.io/gcp-service-account`.
    pub gcp_service_account: Option<String>,
}

/// Reads the metadata of a ServiceAccount; none if it does not exist.
///
/// # Errors
/// The API server rejected the call or did not respond.
pub async fn read_service_account(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<KubernetesServiceAccount>, KubeError> {
    let kube_error = |error: &kube::Error| KubeError::new("get", "serviceaccounts", namespace, error);
    let request = Request::new(ServiceAccount::url_path(&(), Some(namespace)))
        .get_metadata(name, &GetParams::default())
        .map_err(|error| kube_error(&kube::Error::BuildRequest(error)))?;
    let call = text(client, request);
    match KubeError::within(CALL_TIMEOUT, "get", "serviceaccounts", namespace, call).await? {
        Ok(json) => {
            let metadata =
                metadata(&json).map_err(|_| KubeError::undecodable("get", "serviceaccounts", namespace))?;
            let mut annotations = metadata.annotations.unwrap_or_default();
            Ok(Some(KubernetesServiceAccount {
                uid: metadata.uid.unwrap_or_default(),
                gcp_service_account: annotations.remove(GCP_SERVICE_ACCOUNT),
            }))
        }
        Err(error) if status_code(&error) == Some(404) => Ok(None),
        Err(error) => Err(kube_error(&error)),
    }
}

/// Lifetime of a Kubernetes token, in seconds: the shortest that the API server allows.
const TOKEN_SECONDS: u32 = 600;

#[derive(Deserialize)]
struct TokenRequest {
    status: TokenRequestStatus,
}

#[derive(Deserialize)]
struct TokenRequestStatus {
    token: String,
}

/// Requests a token for the ServiceAccount with this UID and one audience, bound to no other object; none if the ServiceAccount does not
/// exist. The response is wiped.
///
/// # Errors
/// The API server rejected the call or did not respond. A recreated ServiceAccount is a 409, which is transient.
pub async fn create_token(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: &str,
    audience: &str,
) -> Result<Option<Zeroizing<String>>, KubeError> {
    let (verb, resource) = ("create", "serviceaccounts/token");
    let kube_error = |error: &kube::Error| KubeError::new(verb, resource, namespace, error);
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
        .map_err(|error| kube_error(&kube::Error::BuildRequest(error)))?;
    let call = text(client, request);
    match KubeError::within(CALL_TIMEOUT, verb, resource, namespace, call).await? {
        Ok(json) => {
            let issued: TokenRequest =
                serde_json::from_str(&json).map_err(|_| KubeError::undecodable(verb, resource, namespace))?;
            Ok(Some(Zeroizing::new(issued.status.token)))
        }
        Err(error) if status_code(&error) == Some(404) => Ok(None),
        Err(error) => Err(kube_error(&error)),
    }
}
