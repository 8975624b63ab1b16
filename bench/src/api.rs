//! A bare HTTP client of the Kubernetes API: no caches, no retries, no types.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Certificate, Identity, Method, Response, StatusCode};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(60);
const REQUESTS: &str = "apis/idtoken.dev/v1alpha1";
/// The media type of a list with only the objects' metadata.
pub(crate) const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// The media type of a watch with only the objects' metadata.
const METADATA_OBJECT: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// A client with one user's certificate. Clones share its connections.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    http: reqwest::Client,
    url: String,
}

impl Api {
    /// A client with a kubeconfig of the test environment.
    pub(crate) fn new(kubeconfig: &Path) -> Result<Self> {
        let config: Value = serde_json::from_slice(&std::fs::read(kubeconfig)?)?;
        let cluster = &config["clusters"][0]["cluster"];
        let user = &config["users"][0]["user"];
        let decoded = |value: &Value| -> Result<Vec<u8>> {
            Ok(STANDARD.decode(value.as_str().context("the kubeconfig lacks a certificate")?)?)
        };
        let mut pem = decoded(&user["client-key-data"])?;
        pem.extend(decoded(&user["client-certificate-data"])?);
        let authority = Certificate::from_pem(&decoded(&cluster["certificate-authority-data"])?)?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([authority])
            .identity(Identity::from_pem(&pem)?)
            .build()?;
        let url = cluster["server"]
            .as_str()
            .context("the kubeconfig has no server")?;
        Ok(Self {
            http,
            url: url.to_owned(),
        })
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: &Value) -> Result<Value> {
        let request = self
            .http
            .request(method.clone(), format!("{}/{path}", self.url))
            .header(CONTENT_TYPE, content)
            .timeout(TIMEOUT);
        let request = match body {
            Value::Null => request,
            body => request.body(serde_json::to_vec(body)?),
        };
        let response = request.send().await?;
        let status = response.status();
        let text = response.bytes().await?;
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&text));
        }
        Ok(serde_json::from_slice(&text)?)
    }

    /// Creates `object` under `path`.
    pub(crate) async fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.send(Method::POST, path, "application/json", object).await
    }

    /// Replaces the object at `path`.
    pub(crate) async fn replace(&self, path: &str, object: &Value) -> Result<Value> {
        self.send(Method::PUT, path, "application/json", object).await
    }

    /// Applies `object` at `path` by server-side apply, and takes ownership of its fields.
    pub(crate) async fn apply(&self, path: &str, object: &Value) -> Result<Value> {
        let path = format!("{path}?fieldManager=bench-apply&force=true");
        // JSON is YAML.
        self.send(Method::PATCH, &path, "application/apply-patch+yaml", object)
            .await
    }

    /// Reads the text at `path`.
    pub(crate) async fn text(&self, path: &str) -> Result<String> {
        let request = self.http.get(format!("{}/{path}", self.url)).timeout(TIMEOUT);
        Ok(request.send().await?.error_for_status()?.text().await?)
    }

    /// The port of the API server.
    pub(crate) fn port(&self) -> Result<u16> {
        let port = self.url.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.context("the API server's URL has no port")
    }

    /// Merges `patch` into the object at `path`.
    pub(crate) async fn merge(&self, path: &str, patch: &Value) -> Result<Value> {
        self.send(Method::PATCH, path, "application/merge-patch+json", patch)
            .await
    }

    /// Reads the object at `path`.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.send(Method::GET, path, "application/json", &Value::Null)
            .await
    }

    /// Deletes the object at `path`.
    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        self.send(Method::DELETE, path, "application/json", &Value::Null)
            .await
            .map(drop)
    }

    /// Reads and decodes a list of `path` page by page, in the media type `accept`. Returns the number of objects.
    pub(crate) async fn list(&self, path: &str, accept: &str) -> Result<usize> {
        let (mut count, mut token) = (0, String::new());
        loop {
            let response = self
                .http
                .get(format!("{}/{path}", self.url))
                .query(&[("limit", "500"), ("continue", &token)])
                .header(ACCEPT, accept)
                .send()
                .await?
                .error_for_status()?;
            let page: Value = serde_json::from_slice(&response.bytes().await?)?;
            count += page["items"].as_array().map_or(0, Vec::len);
            token = page["metadata"]["continue"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            if token.is_empty() {
                return Ok(count);
            }
        }
    }

    /// Opens a watch of `path` from `version`, of the objects' metadata only if `metadata`.
    pub(crate) async fn watch(&self, path: &str, metadata: bool, version: &str) -> Result<Response> {
        let accept = if metadata {
            METADATA_OBJECT
        } else {
            "application/json"
        };
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!(
            "{}/{path}{separator}watch=true&timeoutSeconds=3600&resourceVersion={version}",
            self.url
        );
        // The API server returns 429 while it fills its cache of a new kind.
        let response = idtoken_testenv::until("the watch starts", TIMEOUT, async || {
            let response = self.http.get(&url).header(ACCEPT, accept).send().await?;
            let wait = response.status() == StatusCode::TOO_MANY_REQUESTS;
            Ok((!wait).then_some(response))
        })
        .await?;
        Ok(response.error_for_status()?)
    }
}

/// The path of the requests in `namespace`.
pub(crate) fn requests(namespace: &str) -> String {
    format!("{REQUESTS}/namespaces/{namespace}/idtokenrequests")
}

/// The path of the request `name`.
pub(crate) fn request(namespace: &str, name: &str) -> String {
    format!("{}/{name}", requests(namespace))
}

/// The path of all requests.
pub(crate) fn all_requests() -> String {
    format!("{REQUESTS}/idtokenrequests")
}

/// The path of the Secrets in `namespace`.
pub(crate) fn secrets(namespace: &str) -> String {
    format!("api/v1/namespaces/{namespace}/secrets")
}

/// The path of all Secrets with the operator's label.
pub(crate) fn labelled_secrets() -> String {
    "api/v1/secrets?labelSelector=app.kubernetes.io%2Fmanaged-by%3Didtoken-operator".to_owned()
}

/// The path of all grants.
pub(crate) fn grants() -> String {
    format!("{REQUESTS}/idtokengrants")
}
