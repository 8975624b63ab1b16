//! What pods of the operator answer, through the API server, and who they are at Google.

use std::time::Duration;

use idtoken_operator::text::redacted;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::GetParams;
use kube::core::{PartialObjectMeta, Request, Status};
use kube::{Resource, ResourceExt};
use tokio::time::timeout;

use crate::decisions::checkup::Seen;
use crate::decisions::doctor_health::{self, HealthLine};
use crate::decisions::doctor_identity::{GOOGLE_ACCOUNT, IdentityFacts, configuration_map, service_account};
use crate::decisions::doctor_metrics::{self, Sample};
use crate::decisions::doctor_release::pod_spec;
use crate::kubernetes::client::{KubeClient, decode};
use crate::kubernetes::error::classify;
use crate::kubernetes::installation::{MAX_REASON, why};

/// Longest time that a pod may take for an answer: one whose node is gone does not answer at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes that are read of an answer.
const MAX_METRICS: usize = 16 << 20;
const MAX_HEALTH: usize = 64 << 10;

impl KubeClient {
    /// The metrics of a pod.
    pub(super) async fn metrics(&self, namespace: &str, pod: &str, port: i32) -> Seen<Vec<Sample>> {
        match self.of_pod(namespace, pod, port, "metrics", MAX_METRICS).await? {
            // The last line may have been cut off.
            (200, text) => Ok(doctor_metrics::parse(
                text.rsplit_once('\n').map_or("", |(whole, _)| whole),
            )),
            (status, _) => Err(format!("it answers {status} to /metrics")),
        }
    }

    /// The checks of itself that a pod answers, whether it is ready or not.
    pub(super) async fn health(&self, namespace: &str, pod: &str, port: i32) -> Seen<Vec<HealthLine>> {
        match self
            .of_pod(namespace, pod, port, "readyz?verbose", MAX_HEALTH)
            .await?
        {
            (200 | 503, text) => Ok(doctor_health::parse(&text)),
            (status, _) => Err(format!("it answers {status} to /readyz?verbose")),
        }
    }

    /// Status and text of what a pod answers. An answer of the API server itself is an error.
    async fn of_pod(
        &self,
        namespace: &str,
        pod: &str,
        port: i32,
        path: &str,
        limit: usize,
    ) -> Seen<(u16, String)> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/{path}");
        let call = http::Request::get(path)
            .body(Vec::new())
            .map_err(|error| redacted(&error.to_string(), MAX_REASON))?;
        let failed = |error: &kube::Error| why(&classify("get", "pods/proxy", Some(namespace), None, error));
        let answer = timeout(PATIENCE, self.answer(call, limit)).await;
        let Ok(answer) = answer else {
            return Err(format!("no answer within {} s", PATIENCE.as_secs()));
        };
        let (status, text) = answer.map_err(|error| failed(&error))?;
        match serde_json::from_str::<Status>(&text) {
            Ok(answer) if status != 200 => Err(failed(&kube::Error::Api(Box::new(answer)))),
            _ => Ok((status, text)),
        }
    }

    /// What the cluster knows of a release's identity. Secrets are not read.
    pub(super) async fn identity(
        &self,
        namespace: &str,
        deployment: &Deployment,
        has_credentials_file: bool,
    ) -> IdentityFacts {
        let spec = pod_spec(deployment);
        let mut facts = IdentityFacts::default();
        if !has_credentials_file {
            facts.annotation = Some(self.google_account(namespace, &service_account(spec)).await);
        } else if let Some(map) = configuration_map(spec) {
            facts.configuration = Some(self.configuration(namespace, map).await);
        }
        facts
    }

    async fn google_account(&self, namespace: &str, name: &str) -> Seen<Option<String>> {
        let calls = Request::new(ServiceAccount::url_path(&(), Some(namespace)));
        let found = self.send(calls.get_metadata(name, &GetParams::default())).await;
        match found.and_then(decode::<PartialObjectMeta<ServiceAccount>>) {
            Ok(account) => Ok(account.annotations().get(GOOGLE_ACCOUNT).cloned()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(why(&classify(
                "get",
                "serviceaccounts",
                Some(namespace),
                None,
                &error,
            ))),
        }
    }

    async fn configuration(&self, namespace: &str, name: &str) -> Seen<Option<serde_json::Value>> {
        let calls = Request::new(ConfigMap::url_path(&(), Some(namespace)));
        let found = self.send(calls.get(name, &GetParams::default())).await;
        match found.and_then(decode::<ConfigMap>) {
            Ok(map) => Ok(map
                .data
                .and_then(|data| serde_json::from_str(data.get("credentials.json")?).ok())),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(why(&classify("get", "configmaps", Some(namespace), None, &error))),
        }
    }
}
