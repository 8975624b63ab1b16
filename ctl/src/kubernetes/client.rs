//! Calls of the Kubernetes API as the caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use idtoken_operator::api::v1alpha1::{GrantRef, IdTokenGrant, IdTokenRequest};
use idtoken_operator::google::shell::quote;
use idtoken_operator::grants::index::Grant;
use idtoken_operator::kubernetes::error::KubeFault;
use idtoken_operator::kubernetes::secret as observe;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};

use crate::args::ClusterArgs;
use crate::decisions::admission_policy;
use crate::decisions::secret_view::SecretView;
use crate::kubernetes::error::{ApiError, classify};

/// Objects of one page of a list.
const PAGE: u32 = 500;

/// The field manager of our writes, as `managedFields` shows it.
const FIELD_MANAGER: &str = "kubectl-idtoken";

/// The cluster, as the caller.
pub(crate) struct Cluster {
    client: Client,
    /// The namespace to work in.
    pub(crate) namespace: String,
}

impl Cluster {
    /// Sets up a client; nothing is called yet.
    ///
    /// # Errors
    /// No usable kubeconfig.
    pub(crate) async fn connect(args: &ClusterArgs) -> Result<Self> {
        let options = KubeConfigOptions {
            context: args.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match &args.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("the kubeconfig {} cannot be used", path.display()))?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .with_context(|| format!("the kubeconfig {} cannot be used", path.display()))?
            }
            None if args.context.is_some() => Config::from_kubeconfig(&options).await.context(
                "the kubeconfig cannot be used; name one by --kubeconfig or KUBECONFIG, and see its contexts by: kubectl config \
                 get-contexts",
            )?,
            None => Config::infer()
                .await
                .context("there is no usable kubeconfig; name one by --kubeconfig or KUBECONFIG")?,
        };
        config.connect_timeout = args.request_timeout.0;
        config.read_timeout = args.request_timeout.0;
        // A person waits: it is better to be told than to wait for fifteen attempts.
        config.default_retry = false;
        let namespace = args
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("the client of the Kubernetes API cannot be set up")?;
        Ok(Self { client, namespace })
    }

    /// Reads one request.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn request(&self, name: &str) -> Result<IdTokenRequest, ApiError> {
        self.requests_api()
            .get(name)
            .await
            .map_err(|error| self.request_error("get", name, &error))
    }

    /// Reads all requests of the namespace.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn requests(&self) -> Result<Vec<IdTokenRequest>, ApiError> {
        pages(&self.requests_api(), &ListParams::default())
            .await
            .map_err(|error| classify("list", "idtokenrequests", Some(&self.namespace), None, &error))
    }

    /// Reads all requests of the cluster.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn all_requests(&self) -> Result<Vec<IdTokenRequest>, ApiError> {
        let api: Api<IdTokenRequest> = Api::all(self.client.clone());
        let list = pages(&api, &ListParams::default()).await;
        list.map_err(|error| classify("list", "idtokenrequests", None, None, &error))
    }

    /// Reads the admission policies that are marked as those of federation's authors, and their bindings.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn admission(
        &self,
    ) -> Result<
        (
            Vec<ValidatingAdmissionPolicy>,
            Vec<ValidatingAdmissionPolicyBinding>,
        ),
        ApiError,
    > {
        let marked = ListParams::default().labels(admission_policy::LABEL);
        let policies = pages(&Api::all(self.client.clone()), &marked)
            .await
            .map_err(|error| classify("list", "validatingadmissionpolicies", None, None, &error))?;
        // A binding made by hand counts too.
        let bindings = pages(&Api::all(self.client.clone()), &ListParams::default())
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
        let patch = Patch::Merge(serde_json::json!({"metadata": {"annotations": {key: value}}}));
        let patched = self.requests_api().patch_metadata(name, &params, &patch).await;
        patched
            .map(drop)
            .map_err(|error| self.request_error("patch", name, &error))
    }

    /// Reads all grants.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn grants(&self) -> Result<Vec<Grant>, ApiError> {
        let api: Api<IdTokenGrant> = Api::all(self.client.clone());
        let grants = pages(&api, &ListParams::default())
            .await
            .map_err(|error| classify("list", "idtokengrants", None, None, &error))?;
        let grant = |grant: IdTokenGrant| Grant {
            id: GrantRef {
                name: grant.name_any(),
                uid: grant.metadata.uid,
            },
            spec: Arc::new(grant.spec),
        };
        Ok(grants.into_iter().map(grant).collect())
    }

    /// Reads the labels of the namespace.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn namespace_labels(&self) -> Result<BTreeMap<String, String>, ApiError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let name = &self.namespace;
        let found = api.get_metadata(name).await.map_err(|error| {
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

    /// Reads a Secret of the namespace, by the operator's own code.
    ///
    /// # Errors
    /// The API server did not answer. That the caller may not read it is none.
    pub(crate) async fn secret(&self, name: &str) -> Result<SecretView, KubeFault> {
        match observe::read_secret(&self.client, &self.namespace, name).await {
            Ok(Some(content)) => Ok(SecretView::Found(Box::new(content))),
            Ok(None) => Ok(SecretView::Missing),
            Err(KubeFault::Forbidden { message, .. }) => Ok(SecretView::Unreadable(message)),
            Err(fault) => Err(fault),
        }
    }

    fn requests_api(&self) -> Api<IdTokenRequest> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn request_error(&self, verb: &'static str, name: &str, error: &kube::Error) -> ApiError {
        let what = format!("IdTokenRequest {}", quote(name));
        classify(verb, "idtokenrequests", Some(&self.namespace), Some(&what), error)
    }
}

async fn pages<K>(api: &Api<K>, which: &ListParams) -> Result<Vec<K>, kube::Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut all = Vec::new();
    let mut params = which.clone().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}
