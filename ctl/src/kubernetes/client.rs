//! The calls of the Kubernetes API, as the caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use http_body_util::BodyExt;
use idtoken_operator::api::v1alpha1::{GrantRef, IdTokenGrant, IdTokenGrantSpec, IdTokenRequest};
use idtoken_operator::grants::index::Grant;
use idtoken_operator::kubernetes::error::KubeError;
use idtoken_operator::kubernetes::secret::read_secret;
use idtoken_operator::shell::quote;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{GetParams, ListParams, Patch, PatchParams};
use kube::client::Body;
use kube::core::request::Error as BuildError;
use kube::core::{ObjectList, PartialObjectMeta, Request};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::args::ClusterArgs;
use crate::decisions::grant_sets::{self, GrantSet, ReleaseGrants};
use crate::decisions::secret_view::SecretView;
use crate::kubernetes::error::{ApiError, classify};
use crate::kubernetes::{connection, kubeconfig};
use crate::output;

/// Objects in one page of a list.
const PAGE: u32 = 500;

/// Most ConfigMaps with grants that are read. They can have 1 MiB each.
const MAX_RELEASES: u32 = 20;

/// The manager of the fields that the plugin writes, in `managedFields`.
const FIELD_MANAGER: &str = "kubectl-idtoken";

/// A client of the Kubernetes API with the caller's kubeconfig.
pub(crate) struct KubeClient {
    client: Client,
    /// The namespace of the flag `--namespace` or of the context.
    pub(crate) namespace: String,
}

/// All grants of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    /// Those that this version can decode.
    pub(crate) decoded: Vec<Grant>,
    /// The names of the others, and why.
    pub(crate) undecodable: Vec<(String, String)>,
}

impl Grants {
    /// Those that this version can decode, with a notice for each of the others.
    pub(crate) fn with_notices(self) -> Vec<Grant> {
        for (name, _) in &self.undecodable {
            output::notice(format!(
                "IdTokenGrant {} is left out: this version of kubectl idtoken cannot decode it; kubectl idtoken audit shows why",
                output::redacted(name)
            ));
        }
        self.decoded
    }
}

/// The grants of releases that can be used, with a notice for what cannot.
pub(crate) fn with_notices(found: Result<ReleaseGrants, ApiError>) -> Vec<GrantSet> {
    match found {
        Ok(found) => {
            found.problems.iter().for_each(output::notice);
            found.sets
        }
        Err(error) => {
            let error = output::redacted(&error.to_string());
            output::notice(format_args!(
                "grants of the chart's values are not checked: {error}"
            ));
            Vec::new()
        }
    }
}

impl KubeClient {
    /// Builds a client; no call is made yet. Starts the exec credential plugin of the kubeconfig.
    ///
    /// # Errors
    /// There is no usable kubeconfig, or its credentials cannot be used.
    pub(crate) fn connect(args: &ClusterArgs) -> Result<Self> {
        let (config, proxy) = kubeconfig::config(args)?;
        let namespace = config.default_namespace.clone();
        let client = connection::client(config, proxy.as_ref(), args.request_timeout.0)?;
        Ok(Self { client, namespace })
    }

    /// Gets one request.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn request(&self, name: &str) -> Result<IdTokenRequest, ApiError> {
        let call = self.calls_of_requests().get(name, &GetParams::default());
        let found = self.send(call).await.and_then(decode);
        found.map_err(|error| self.request_error("get", name, &error))
    }

    /// Lists the requests of the namespace.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn requests(&self) -> Result<Vec<IdTokenRequest>, ApiError> {
        let namespace = Some(self.namespace.as_str());
        let list = self.list_decoded(namespace, ListParams::default()).await;
        list.map_err(|error| classify("list", "idtokenrequests", namespace, None, &error))
    }

    /// Lists the requests of all namespaces.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn all_requests(&self) -> Result<Vec<IdTokenRequest>, ApiError> {
        let list = self.list_decoded(None, ListParams::default()).await;
        list.map_err(|error| classify("list", "idtokenrequests", None, None, &error))
    }

    /// Lists the names of at most [`PAGE`] requests of the namespace.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn request_names(&self) -> Result<Vec<String>, ApiError> {
        self.names::<IdTokenRequest>(Some(&self.namespace), "idtokenrequests")
            .await
    }

    /// Lists the names of at most [`PAGE`] namespaces.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn namespace_names(&self) -> Result<Vec<String>, ApiError> {
        self.names::<Namespace>(None, "namespaces").await
    }

    /// Lists the admission policies with a label, and all bindings.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn admission_policies(
        &self,
        label: &str,
    ) -> Result<
        (
            Vec<ValidatingAdmissionPolicy>,
            Vec<ValidatingAdmissionPolicyBinding>,
        ),
        ApiError,
    > {
        let labelled = ListParams::default().labels(label);
        let policies = self
            .list_decoded(None, labelled)
            .await
            .map_err(|error| classify("list", "validatingadmissionpolicies", None, None, &error))?;
        // A binding without the label counts too.
        let bindings = self
            .list_decoded(None, ListParams::default())
            .await
            .map_err(|error| classify("list", "validatingadmissionpolicybindings", None, None, &error))?;
        Ok((policies, bindings))
    }

    /// Sets an annotation of a request.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn annotate(&self, name: &str, key: &str, value: &str) -> Result<(), ApiError> {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(json!({"metadata": {"annotations": {key: value}}}));
        let call = self.calls_of_requests().patch_metadata(name, &params, &patch);
        let patched = self.send(call).await.map(drop);
        patched.map_err(|error| self.request_error("patch", name, &error))
    }

    /// Lists all grants.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn grants(&self) -> Result<Grants, ApiError> {
        let list = self.list::<IdTokenGrant>(None, ListParams::default()).await;
        let list = list.map_err(|error| classify("list", "idtokengrants", None, None, &error))?;
        let mut all = Grants::default();
        for mut grant in list {
            let text = |field: &str| grant["metadata"][field].as_str().map(str::to_owned);
            let (name, uid) = (text("name").unwrap_or_default(), text("uid"));
            match serde_json::from_value::<IdTokenGrantSpec>(grant["spec"].take()) {
                Ok(spec) => all.decoded.push(Grant {
                    id: GrantRef { name, uid },
                    spec: Arc::new(spec),
                }),
                Err(error) => all.undecodable.push((name, error.to_string())),
            }
        }
        Ok(all)
    }

    /// Lists the ConfigMaps with the grants of releases: of one namespace, or of all.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn release_grants(&self, namespace: Option<&str>) -> Result<ReleaseGrants, ApiError> {
        let params = ListParams::default()
            .labels(grant_sets::LABEL)
            .limit(MAX_RELEASES);
        // One page: whoever may create ConfigMaps can label many of them.
        let call = Request::new(ConfigMap::url_path(&(), namespace)).list(&params);
        let failed = |error| classify("list", "configmaps", namespace, None, &error);
        let page = self.send(call).await.map_err(failed)?;
        let page: ObjectList<Value> = serde_json::from_value(page)
            .map_err(kube::Error::SerdeError)
            .map_err(failed)?;
        if page.metadata.continue_.is_some_and(|token| !token.is_empty()) {
            output::notice(format_args!(
                "only {MAX_RELEASES} ConfigMaps with the label {} are read; name the operator's with --operator-namespace",
                grant_sets::LABEL
            ));
        }
        let maps: Result<Vec<ConfigMap>, kube::Error> = page.items.into_iter().map(decode).collect();
        Ok(grant_sets::of_config_maps(maps.map_err(failed)?))
    }

    /// Gets the labels of the namespace.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn namespace_labels(&self) -> Result<BTreeMap<String, String>, ApiError> {
        let name = &self.namespace;
        let call = Request::new(Namespace::url_path(&(), None)).get_metadata(name, &GetParams::default());
        let found = self.send(call).await.and_then(decode);
        let found: PartialObjectMeta<Namespace> = found.map_err(|error| {
            classify(
                "get",
                "namespaces",
                None,
                Some(&format!("Namespace {}", quote(name))),
                &error,
            )
        })?;
        Ok(found.metadata.labels.unwrap_or_default())
    }

    /// Gets a Secret of the namespace with the operator's own code. It is no error if the caller may not read it.
    ///
    /// # Errors
    /// Any other failure of the call.
    pub(crate) async fn secret(&self, name: &str) -> Result<SecretView, KubeError> {
        match read_secret(&self.client, &self.namespace, name).await {
            Ok(Some(content)) => Ok(SecretView::Found(Box::new(content))),
            Ok(None) => Ok(SecretView::Missing),
            Err(KubeError::Forbidden { message, .. }) => Ok(SecretView::Unreadable(message)),
            Err(fault) => Err(fault),
        }
    }

    fn calls_of_requests(&self) -> Request {
        Request::new(IdTokenRequest::url_path(&(), Some(&self.namespace)))
    }

    pub(super) async fn send(
        &self,
        call: Result<http::Request<Vec<u8>>, BuildError>,
    ) -> Result<Value, kube::Error> {
        self.client
            .request(call.map_err(kube::Error::BuildRequest)?)
            .await
    }

    /// Status and text of an answer, whatever the status is. Of the text, at most `limit` bytes are read. No redirect is followed.
    pub(super) async fn answer(
        &self,
        request: http::Request<Vec<u8>>,
        limit: usize,
    ) -> Result<(u16, String), kube::Error> {
        let answer = self.client.send(request.map(Body::from)).await?;
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        let mut text = Vec::new();
        while text.len() < limit
            && let Some(frame) = body.frame().await
        {
            if let Ok(data) = frame?.into_data() {
                text.extend_from_slice(&data);
            }
        }
        text.truncate(limit);
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    }

    async fn names<K: Resource<DynamicType = ()>>(
        &self,
        namespace: Option<&str>,
        resource: &'static str,
    ) -> Result<Vec<String>, ApiError> {
        let params = ListParams::default().limit(PAGE);
        let call = Request::new(K::url_path(&(), namespace)).list_metadata(&params);
        let page: Result<ObjectList<Value>, _> = self
            .send(call)
            .await
            .and_then(|page| serde_json::from_value(page).map_err(kube::Error::SerdeError));
        let page = page.map_err(|error| classify("list", resource, namespace, None, &error))?;
        let name = |object: Value| object["metadata"]["name"].as_str().map(str::to_owned);
        Ok(page.items.into_iter().filter_map(name).collect())
    }

    /// Lists all objects of the kind `K`, each to be decoded by itself.
    pub(super) async fn list<K: Resource<DynamicType = ()>>(
        &self,
        namespace: Option<&str>,
        mut params: ListParams,
    ) -> Result<Vec<Value>, kube::Error> {
        let calls = Request::new(K::url_path(&(), namespace));
        let mut all = Vec::new();
        params.limit = Some(PAGE);
        loop {
            let page = self.send(calls.list(&params)).await?;
            let page: ObjectList<Value> = serde_json::from_value(page).map_err(kube::Error::SerdeError)?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(all),
            }
        }
    }

    /// As [`Self::list`], where what cannot be decoded must not be left out.
    pub(super) async fn list_decoded<K: Resource<DynamicType = ()> + DeserializeOwned>(
        &self,
        namespace: Option<&str>,
        params: ListParams,
    ) -> Result<Vec<K>, kube::Error> {
        let all = self.list::<K>(namespace, params).await?;
        all.into_iter().map(decode).collect()
    }

    fn request_error(&self, verb: &'static str, name: &str, error: &kube::Error) -> ApiError {
        let what = format!("IdTokenRequest {}", quote(name));
        classify(verb, "idtokenrequests", Some(&self.namespace), Some(&what), error)
    }
}

/// Decodes an object without its `managedFields`: nothing of them is used, and any client can put a time there that cannot be decoded.
pub(super) fn decode<K: DeserializeOwned>(mut object: Value) -> Result<K, kube::Error> {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    serde_json::from_value(object).map_err(kube::Error::SerdeError)
}
