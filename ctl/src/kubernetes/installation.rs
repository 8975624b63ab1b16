//! Reads of an installation of the operator. Each failure is reported by itself, so that the rest can be shown.

use std::collections::BTreeSet;

use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::text::redacted;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{GetParams, ListParams};
use kube::core::Request;
use kube::{Resource, ResourceExt};
use serde_json::Value;

use crate::decisions::checkup::Seen;
use crate::decisions::doctor_cluster::{Namespaces, POLICY_LABEL};
use crate::decisions::doctor_pods::{is_ready, runs};
use crate::decisions::doctor_release::{Release, flags, is_operator, pod_selector, port};
use crate::kubernetes::client::{KubeClient, decode};
use crate::kubernetes::error::{ApiError, classify};
use crate::output;

/// Label of the chart's objects, unless its name is overridden.
const CHART: &str = "app.kubernetes.io/name=idtoken-operator";

/// Most releases, and most pods of one, that are checked. Anyone may create a Deployment with the chart's labels.
const MAX_RELEASES: usize = 10;
const MAX_PODS: usize = 5;

/// Longest text of the API server in a reason, in characters.
pub(super) const MAX_REASON: usize = 300;

/// Why something cannot be seen, in one line.
pub(super) fn why(error: &ApiError) -> String {
    redacted(&error.to_string(), MAX_REASON)
}

impl KubeClient {
    /// The version of the API server.
    pub(crate) async fn server_version(&self) -> Seen<String> {
        let version = self.get_json("/version").await;
        let version = version.map_err(|error| why(&classify("get", "version", None, None, &error)))?;
        Ok(version["gitVersion"].as_str().unwrap_or("unknown").to_owned())
    }

    /// A CustomResourceDefinition; none if it does not exist.
    pub(crate) async fn definition(&self, name: &str) -> Seen<Option<Value>> {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        match self.get_json(&path).await {
            Ok(found) => Ok(Some(found)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(why(&classify(
                "get",
                "customresourcedefinitions",
                None,
                None,
                &error,
            ))),
        }
    }

    /// The admission policies with the chart's label, and all bindings.
    pub(crate) async fn chart_policies(
        &self,
    ) -> Seen<(
        Vec<ValidatingAdmissionPolicy>,
        Vec<ValidatingAdmissionPolicyBinding>,
    )> {
        let found = self.admission_policies(POLICY_LABEL).await;
        found.map_err(|error| why(&error))
    }

    /// The labels of all namespaces.
    pub(crate) async fn namespaces(&self) -> Seen<Namespaces> {
        let all: Vec<Namespace> = self.seen(None, ListParams::default(), "namespaces").await?;
        let labels = |namespace: Namespace| {
            let name = namespace.name_any();
            (name, namespace.metadata.labels.unwrap_or_default())
        };
        Ok(all.into_iter().map(labels).collect())
    }

    /// All requests, and how many cannot be decoded.
    pub(crate) async fn requests_and_undecodable(&self) -> Seen<(Vec<IdTokenRequest>, usize)> {
        let listed = self.list::<IdTokenRequest>(None, ListParams::default()).await;
        let listed = listed.map_err(|error| why(&classify("list", "idtokenrequests", None, None, &error)))?;
        let count = listed.len();
        let decoded: Vec<IdTokenRequest> = listed.into_iter().filter_map(|one| decode(one).ok()).collect();
        let undecodable = count - decoded.len();
        Ok((decoded, undecodable))
    }

    /// The releases of the operator: those of `namespace`, or those with the chart's labels in all namespaces.
    pub(crate) async fn releases(&self, namespace: Option<&str>) -> Seen<Vec<Release>> {
        let params = match namespace {
            Some(_) => ListParams::default(),
            None => ListParams::default().labels(CHART),
        };
        let all: Vec<Deployment> = self.seen(namespace, params, "deployments").await?;
        let all: Vec<_> = all.into_iter().filter(is_operator).collect();
        if all.len() > MAX_RELEASES {
            output::notice(format_args!(
                "only {MAX_RELEASES} of {} Deployments with the operator's labels are read: name its namespace with --operator-namespace",
                all.len()
            ));
        }
        let mut releases = Vec::new();
        for deployment in all.into_iter().take(MAX_RELEASES) {
            releases.push(self.release(deployment).await);
        }
        Ok(releases)
    }

    async fn release(&self, deployment: Deployment) -> Release {
        let namespace = deployment.namespace().unwrap_or_default();
        let flags = flags(&deployment);
        let labels = ListParams::default().labels(&pod_selector(&deployment));
        let pods: Seen<Vec<Pod>> = self.seen(Some(&namespace), labels, "pods").await;
        let lease = match &flags.lease {
            Some((namespace, name)) => self.lease(namespace, name).await,
            None => Ok(None),
        };
        let (mut metrics, mut health) = (Vec::new(), Vec::new());
        for pod in pods.iter().flatten().filter(|pod| runs(pod)).take(MAX_PODS) {
            let name = pod.name_any();
            let port = port(&deployment);
            health.push((name.clone(), self.health(&namespace, &name, port).await));
            if is_ready(pod) {
                let samples = self.metrics(&namespace, &name, port).await;
                metrics.push((name, samples));
            }
        }
        let identity = self
            .identity(&namespace, &deployment, flags.credentials_file)
            .await;
        let selected = match &flags.selector {
            Some(selector) => Some(self.selected(selector).await),
            None => None,
        };
        Release {
            deployment,
            pods,
            lease,
            metrics,
            health,
            identity,
            selected,
        }
    }

    async fn lease(&self, namespace: &str, name: &str) -> Seen<Option<Lease>> {
        let call = Request::new(Lease::url_path(&(), Some(namespace))).get(name, &GetParams::default());
        match self.send(call).await.and_then(decode) {
            Ok(lease) => Ok(Some(lease)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(why(&classify("get", "leases", Some(namespace), None, &error))),
        }
    }

    /// Namespace and name of the requests that a selector selects.
    async fn selected(&self, selector: &str) -> Seen<BTreeSet<(String, String)>> {
        let params = ListParams::default().labels(selector);
        let all = self.list::<IdTokenRequest>(None, params).await;
        let all = all.map_err(|error| why(&classify("list", "idtokenrequests", None, None, &error)))?;
        let text =
            |object: &Value, field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        Ok(all
            .iter()
            .map(|object| (text(object, "namespace"), text(object, "name")))
            .collect())
    }

    /// The Prometheus operator's objects with the chart's labels, by kind; none if the cluster has no such kind.
    pub(crate) async fn monitors(&self) -> Seen<Option<Vec<String>>> {
        let (mut found, mut is_installed) = (Vec::new(), false);
        for resource in ["servicemonitors", "podmonitors", "prometheusrules"] {
            let path = format!("/apis/monitoring.coreos.com/v1/{resource}?labelSelector={CHART}&limit=20");
            match self.get_json(&path).await {
                Ok(list) => {
                    is_installed = true;
                    let items = list["items"].as_array();
                    found.extend(items.into_iter().flatten().map(|item| {
                        let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default();
                        format!("{resource} {}/{}", text("namespace"), text("name"))
                    }));
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(why(&classify("list", resource, None, None, &error))),
            }
        }
        Ok(is_installed.then_some(found))
    }

    async fn seen<K: Resource<DynamicType = ()> + serde::de::DeserializeOwned>(
        &self,
        namespace: Option<&str>,
        params: ListParams,
        resource: &'static str,
    ) -> Seen<Vec<K>> {
        let all = self.list_decoded::<K>(namespace, params).await;
        all.map_err(|error| why(&classify("list", resource, namespace, None, &error)))
    }

    async fn get_json(&self, path: &str) -> Result<Value, kube::Error> {
        let call = http::Request::get(path)
            .body(Vec::new())
            .map_err(kube::core::request::Error::BuildRequest);
        self.send(call).await
    }
}
