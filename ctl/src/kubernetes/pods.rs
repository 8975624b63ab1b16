//! Short-lived pods.

use idtoken_operator::shell::quote;
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use kube::api::{DeleteParams, GetParams, PostParams};
use kube::core::Request;
use serde_json::Value;

use crate::kubernetes::client::{KubeClient, decode};
use crate::kubernetes::error::{ApiError, classify};

impl KubeClient {
    /// Creates a pod in the namespace, and returns its name.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn create_pod(&self, pod: &Value) -> Result<String, ApiError> {
        let call = self
            .calls_of_pods()
            .create(&PostParams::default(), pod.to_string().into_bytes());
        let created: Result<Pod, _> = self.send(call).await.and_then(decode);
        let created = created.map_err(|error| self.pod_error("create", None, &error))?;
        Ok(created.metadata.name.unwrap_or_default())
    }

    /// Gets a pod of the namespace.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn pod(&self, name: &str) -> Result<Pod, ApiError> {
        let call = self.calls_of_pods().get(name, &GetParams::default());
        let found = self.send(call).await.and_then(decode);
        found.map_err(|error| self.pod_error("get", Some(name), &error))
    }

    /// Deletes a pod of the namespace at once. It is no error if it is gone.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn delete_pod(&self, name: &str) -> Result<(), ApiError> {
        let call = self
            .calls_of_pods()
            .delete(name, &DeleteParams::default().grace_period(0));
        match self.send(call).await {
            Ok(_) => Ok(()),
            Err(error) => match self.pod_error("delete", Some(name), &error) {
                ApiError::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    fn calls_of_pods(&self) -> Request {
        Request::new(Pod::url_path(&(), Some(&self.namespace)))
    }

    fn pod_error(&self, verb: &'static str, name: Option<&str>, error: &kube::Error) -> ApiError {
        let what = name.map(|name| format!("Pod {}", quote(name)));
        classify(verb, "pods", Some(&self.namespace), what.as_deref(), error)
    }
}
