//! The calls of the Kubernetes API, as the caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use idtoken_operator::api::v1alpha1::{GrantRef, IdTokenGrant, IdTokenRequest};
use idtoken_operator::grants::index::Grant;
use idtoken_operator::kubernetes::error::KubeError;
use idtoken_operator::kubernetes::secret::read_secret;
use idtoken_operator::shell::quote;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DeserializeGuard;
use kube::{Api, Client, Config, ResourceExt};

use crate::args::ClusterArgs;
use crate::decisions::admission_policy;
use crate::decisions::secret_view::SecretView;
use crate::kubernetes::error::{ApiError, classify};
use crate::output;

/// Objects in one page of a list.
const PAGE: u32 = 500;

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

impl KubeClient {
    /// Builds a client; no call is made yet.
    ///
    /// # Errors
    /// There is no usable kubeconfig.
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
                "the kubeconfig cannot be used; set --kubeconfig or KUBECONFIG, and list its contexts with: kubectl config \
                 get-contexts",
            )?,
            None => Config::infer()
                .await
                .context("there is no usable kubeconfig; set --kubeconfig or KUBECONFIG")?,
        };
        config.connect_timeout = args.request_timeout.0;
        config.read_timeout = args.request_timeout.0;
        // A user waits: report the first error instead of retrying fifteen times.
        config.default_retry = false;
        let namespace = args
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("cannot build a client of the Kubernetes API")?;
        Ok(Self { client, namespace })
    }

    /// Gets one request.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn request(&self, name: &str) -> Result<IdTokenRequest, ApiError> {
        self.requests_api()
            .get(name)
            .await
            .map_err(|error| self.request_error("get", name, &error))
    }

    /// Lists the requests of the namespace.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn requests(&self) -> Result<Vec<IdTokenRequest>, ApiError> {
        list_all(&self.requests_api(), &ListParams::default())
            .await
            .map_err(|error| classify("list", "idtokenrequests", Some(&self.namespace), None, &error))
    }

    /// Lists the requests of all namespaces.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn all_requests(&self) -> Result<Vec<IdTokenRequest>, ApiError> {
        let api: Api<IdTokenRequest> = Api::all(self.client.clone());
        let list = list_all(&api, &ListParams::default()).await;
        list.map_err(|error| classify("list", "idtokenrequests", None, None, &error))
    }

    /// Lists the admission policies with the label of the bundled one, and all bindings.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn admission_policies(
        &self,
    ) -> Result<
        (
            Vec<ValidatingAdmissionPolicy>,
            Vec<ValidatingAdmissionPolicyBinding>,
        ),
        ApiError,
    > {
        let labelled = ListParams::default().labels(admission_policy::LABEL);
        let policies = list_all(&Api::all(self.client.clone()), &labelled)
            .await
            .map_err(|error| classify("list", "validatingadmissionpolicies", None, None, &error))?;
        // A binding without the label counts too.
        let bindings = list_all(&Api::all(self.client.clone()), &ListParams::default())
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

    /// Lists all grants.
    ///
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn grants(&self) -> Result<Grants, ApiError> {
        let api: Api<DeserializeGuard<IdTokenGrant>> = Api::all(self.client.clone());
        let list = list_all(&api, &ListParams::default())
            .await
            .map_err(|error| classify("list", "idtokengrants", None, None, &error))?;
        let mut all = Grants::default();
        for grant in list {
            let name = grant.name_any();
            match grant.0 {
                Ok(grant) => all.decoded.push(Grant {
                    id: GrantRef {
                        name,
                        uid: grant.metadata.uid,
                    },
                    spec: Arc::new(grant.spec),
                }),
                Err(error) => all.undecodable.push((name, error.error)),
            }
        }
        Ok(all)
    }

    /// Gets the labels of the namespace.
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

    fn requests_api(&self) -> Api<IdTokenRequest> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn request_error(&self, verb: &'static str, name: &str, error: &kube::Error) -> ApiError {
        let what = format!("IdTokenRequest {}", quote(name));
        classify(verb, "idtokenrequests", Some(&self.namespace), Some(&what), error)
    }
}

async fn list_all<K>(api: &Api<K>, params: &ListParams) -> Result<Vec<K>, kube::Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut all = Vec::new();
    let mut params = params.clone().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}
