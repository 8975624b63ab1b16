//! Calls of the Kubernetes API as the caller, and what their failures mean for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use idtoken_operator::api::v1alpha1::{GrantRef, IdTokenGrant, IdTokenRequest};
use idtoken_operator::controller::fault::KubeFault;
use idtoken_operator::controller::grant_index::Grant;
use idtoken_operator::controller::observe::{self, Content};
use idtoken_operator::google::shell::quote;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use thiserror::Error;

use crate::args::ClusterArgs;
use crate::decisions::admission_policy;
use crate::output::chain;

/// Objects of one page of a list.
const PAGE: u32 = 500;

/// The field manager of our writes, as `managedFields` shows it.
const FIELD_MANAGER: &str = "kubectl-idtoken";

/// A failed call, in the caller's terms.
#[derive(Debug, Error)]
pub(crate) enum ApiError {
    /// There is no such object.
    #[error("{what} not found{place}; to see those that exist: kubectl get {resource}{flag}")]
    NotFound {
        /// Kind and name.
        what: String,
        /// Where, with a leading space.
        place: String,
        /// Plural resource.
        resource: &'static str,
        /// The namespace's flag, with a leading space.
        flag: String,
    },
    /// The API server does not know the kind.
    #[error(
        "the cluster has no {resource}: its CustomResourceDefinitions are not installed, or this is another cluster than you \
         meant (see: kubectl config current-context)"
    )]
    NoSuchKind {
        /// Plural resource.
        resource: &'static str,
    },
    /// RBAC.
    #[error(
        "you may not {verb} {resource}{place}: {message}; ask an administrator of the cluster for the verb {verb} on {resource}, \
         or use another --context"
    )]
    Forbidden {
        /// RBAC verb.
        verb: &'static str,
        /// Plural resource.
        resource: &'static str,
        /// Where, with a leading space.
        place: String,
        /// The API server's own words.
        message: String,
    },
    /// Authentication.
    #[error("the API server does not accept your credentials: {0}; log in again, or use another --context")]
    Unauthorized(String),
    /// Another answer.
    #[error("the API server refused to {verb} {resource}{place} ({code}): {message}")]
    Refused {
        /// RBAC verb.
        verb: &'static str,
        /// Plural resource.
        resource: &'static str,
        /// Where, with a leading space.
        place: String,
        /// HTTP status.
        code: u16,
        /// The API server's own words.
        message: String,
    },
    /// No answer that makes sense.
    #[error(
        "cannot {verb} {resource}{place}: {problem}; check that the API server can be reached: kubectl get --raw /version"
    )]
    Unreachable {
        /// RBAC verb.
        verb: &'static str,
        /// Plural resource.
        resource: &'static str,
        /// Where, with a leading space.
        place: String,
        /// What happened.
        problem: String,
    },
    /// The object is of a version that this program does not know.
    #[error(
        "the {resource}{place} cannot be read: the CustomResourceDefinitions of the cluster and this program are of different \
         versions; install the kubectl plugin of the operator's version"
    )]
    Undecodable {
        /// Plural resource.
        resource: &'static str,
        /// Where, with a leading space.
        place: String,
    },
}

/// What a Secret turned out to be.
#[derive(Debug)]
pub(crate) enum SecretView {
    /// The caller may not read it; what the API server said.
    Unreadable(String),
    /// There is none.
    Missing,
    /// Its data and metadata.
    Found(Box<Content>),
}

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
        config.connect_timeout = Some(args.request_timeout);
        config.read_timeout = Some(args.request_timeout);
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

fn classify(
    verb: &'static str,
    resource: &'static str,
    namespace: Option<&str>,
    what: Option<&str>,
    error: &kube::Error,
) -> ApiError {
    let place = namespace
        .map(|name| format!(" in namespace {}", quote(name)))
        .unwrap_or_default();
    match error {
        kube::Error::Api(status) => {
            let message = status.message.clone();
            match (status.code, what) {
                // Without details it is the path that is unknown, not the object.
                (404, Some(what)) if status.details.is_some() => ApiError::NotFound {
                    what: what.to_owned(),
                    place,
                    resource,
                    flag: namespace
                        .map(|name| format!(" -n {}", quote(name)))
                        .unwrap_or_default(),
                },
                (404, _) => ApiError::NoSuchKind { resource },
                (401, _) => ApiError::Unauthorized(message),
                (403, _) => ApiError::Forbidden {
                    verb,
                    resource,
                    place,
                    message,
                },
                (code, _) => ApiError::Refused {
                    verb,
                    resource,
                    place,
                    code,
                    message,
                },
            }
        }
        // The parser's own words can quote what was received.
        kube::Error::SerdeError(_) => ApiError::Undecodable { resource, place },
        kube::Error::Service(error) => {
            let problem = chain(error.as_ref());
            ApiError::Unreachable {
                verb,
                resource,
                place,
                problem,
            }
        }
        other => ApiError::Unreachable {
            verb,
            resource,
            place,
            problem: chain(other),
        },
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use kube::core::response::StatusDetails;

    use super::*;

    fn said(code: u16, details: bool) -> String {
        let details =
            details.then(|| serde_json::from_str::<StatusDetails>(r#"{"name":"billing"}"#).unwrap());
        let status = Status {
            code,
            message: "said so".into(),
            details,
            ..Status::default()
        };
        classify(
            "get",
            "idtokenrequests",
            Some("shop"),
            Some("IdTokenRequest billing"),
            &kube::Error::Api(Box::new(status)),
        )
        .to_string()
    }

    #[test]
    fn failures_say_what_to_do() {
        assert_eq!(
            said(404, true),
            "IdTokenRequest billing not found in namespace shop; to see those that exist: kubectl get idtokenrequests -n shop"
        );
        assert!(said(404, false).contains("CustomResourceDefinitions are not installed"));
        assert!(said(401, false).contains("log in again"));
        let forbidden = said(403, true);
        assert!(
            forbidden.starts_with("you may not get idtokenrequests in namespace shop: said so"),
            "{forbidden}"
        );
        assert!(said(500, false).contains("(500): said so"));
    }
}
