//! Why a token did not get into its Secret: errors that state their consequence.

use std::time::Duration;

use thiserror::Error;

use crate::api::annotations::GCP_SERVICE_ACCOUNT;
use crate::api::conditions::reason;
use crate::classify::{Classify, ErrorClass};
use crate::google;
use crate::grants::policy::Denied;
use crate::kubernetes::error::KubeError;
use crate::render::RenderError;
use crate::request::{ValidRequest, ValidateError};
use crate::token::TokenError;

/// Why a Secret was not read or written as the spec asks for.
#[derive(Debug, Error)]
pub enum IssueError {
    /// A call of the Kubernetes API failed, or its answer allows no write.
    #[error(transparent)]
    Kubernetes(#[from] KubeError),
    /// There is no token.
    #[error(transparent)]
    Mint(MintError),
    /// The Secret cannot be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// No grant allows the token.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Another request has the Secret.
    #[error(
        "Secret {secret} is the target of IdTokenRequest {owner} already; choose another spec.target.name"
    )]
    TargetConflict {
        /// Name of the Secret.
        secret: String,
        /// Name of the request that has it.
        owner: String,
    },
    /// The request was deleted or recreated meanwhile, or its namespace is terminating.
    #[error("the request was deleted")]
    Gone,
    /// The spec was changed meanwhile.
    #[error("the spec was changed")]
    Outdated,
}

impl From<MintError> for IssueError {
    fn from(error: MintError) -> Self {
        match error {
            MintError::Denied(denied) => Self::Denied(denied),
            error => Self::Mint(error),
        }
    }
}

impl IssueError {
    /// The request named `owner` has the Secret.
    pub fn target_conflict(request: &ValidRequest, owner: &str) -> Self {
        Self::TargetConflict {
            secret: request.target.name.clone(),
            owner: owner.to_owned(),
        }
    }

    /// How long the attempt is deferred. No attempt was made then, and nothing is wrong.
    pub fn deferred_for(&self) -> Option<Duration> {
        match self {
            Self::Mint(error) => error.deferred_for(),
            _ => None,
        }
    }

    /// Whether the Secret is another's, so that no token in it is this request's.
    pub fn loses_secret(&self) -> bool {
        matches!(
            self,
            Self::TargetConflict { .. } | Self::Kubernetes(KubeError::SecretConflict { .. })
        )
    }

    /// Whether the API server rejected or did not answer a call.
    pub fn is_failed_call(&self) -> bool {
        matches!(self, Self::Kubernetes(error) if error.is_failed_call())
    }

    /// Whether Google refused or did not answer a call, or the operator made none because Google fails.
    pub fn is_from_google(&self) -> bool {
        matches!(self, Self::Mint(MintError::Google(_)))
    }

    /// Whether the same attempt is repeated after a delay. Otherwise only a change of the request, the grants or the Secret helps, and each
    /// of these enqueues the request.
    pub fn is_retried(&self) -> bool {
        matches!(self, Self::Kubernetes(_) | Self::Mint(_))
    }
}

impl Classify for IssueError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Kubernetes(error) => error.reason(),
            Self::Mint(error) => error.reason(),
            Self::Render(error) => error.reason(),
            Self::Denied(denied) => denied.reason(),
            Self::TargetConflict { .. } => reason::TARGET_CONFLICT,
            Self::Gone | Self::Outdated => reason::RECONCILED,
        }
    }

    fn class(&self) -> ErrorClass {
        match self {
            Self::Kubernetes(error) => error.class(),
            Self::Mint(error) => error.class(),
            _ => ErrorClass::Rejected,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Mint(error) => error.retry_after(),
            _ => None,
        }
    }

    fn needs_user_action(&self) -> bool {
        match self {
            Self::Kubernetes(error) => error.needs_user_action(),
            Self::Render(_) | Self::TargetConflict { .. } => true,
            Self::Mint(_) | Self::Denied(_) | Self::Gone | Self::Outdated => false,
        }
    }
}

/// Why there is no token.
#[derive(Clone, Debug, Error)]
pub enum MintError {
    /// Google rejected the call or did not respond.
    #[error(transparent)]
    Google(#[from] google::Error),
    /// What came back is not the token that was asked for. Nothing is written.
    #[error("Google's response was rejected and not written: {0}")]
    Token(#[from] TokenError),
    /// The e-mail belongs to another account than before, which the author of the request may accept.
    #[error("Google's response was rejected and not written: {error}; if that is intended: {command}")]
    SubjectChanged {
        /// Which account.
        error: TokenError,
        /// How to accept it.
        command: String,
    },
    /// The account that only the source knew is not granted.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The API server refused, or did not answer.
    #[error(transparent)]
    Kubernetes(#[from] KubeError),
    /// The Kubernetes ServiceAccount cannot be federated.
    #[error(transparent)]
    Federate(#[from] FederationError),
    /// The operator's flags do not permit the spec; validation refuses it before.
    #[error(transparent)]
    Spec(ValidateError),
    /// A source that this operator does not have; validation refuses it before.
    #[error("source {0} is not available in this version of the operator")]
    Unavailable(&'static str),
}

impl MintError {
    /// How long the attempt is deferred. No attempt was made then, and nothing is wrong.
    pub fn deferred_for(&self) -> Option<Duration> {
        match self {
            Self::Google(error) => error.deferred_for(),
            _ => None,
        }
    }
}

impl Classify for MintError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Google(error) => error.reason().as_str(),
            Self::Token(error) | Self::SubjectChanged { error, .. } => error.reason(),
            Self::Denied(denied) => denied.reason(),
            Self::Kubernetes(error) => error.reason(),
            Self::Federate(error) => error.reason(),
            Self::Spec(error) => error.reason(),
            Self::Unavailable(_) => reason::SOURCE_UNAVAILABLE,
        }
    }

    fn class(&self) -> ErrorClass {
        match self {
            Self::Google(error) => error.class(),
            Self::Kubernetes(error) => error.class(),
            _ => ErrorClass::Rejected,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Google(error) => error.retry_after(),
            _ => None,
        }
    }
}

/// Why a ServiceAccount gets no token, beside what the API server and Google say.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FederationError {
    /// There is no such ServiceAccount.
    #[error(
        "there is no Kubernetes ServiceAccount {name} in namespace {namespace}, which spec.source.federation names: kubectl create \
         serviceaccount {name} -n {namespace}"
    )]
    Missing {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Neither the request nor the ServiceAccount names a Google service account.
    #[error(
        "spec.serviceAccount is absent, and the annotation {GCP_SERVICE_ACCOUNT} of Kubernetes ServiceAccount {name} {problem}: kubectl \
         annotate serviceaccount {name} -n {namespace} {GCP_SERVICE_ACCOUNT}=ACCOUNT@PROJECT.iam.gserviceaccount.com --overwrite"
    )]
    NotAnnotated {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What is wrong with the annotation.
        problem: &'static str,
    },
    /// The ServiceAccount is the operator's own.
    #[error(
        "Kubernetes ServiceAccount {name} of namespace {namespace} is the operator's own, which nobody may federate: name another"
    )]
    IsOperator {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// RBAC does not let the operator make tokens of this ServiceAccount.
    #[error(
        "the operator may not create serviceaccounts/token of {name} in namespace {namespace}: {message}. Whoever administers the \
         namespace can allow it for this account: kubectl create role idtoken-{name} -n {namespace} --verb=create \
         --resource=serviceaccounts/token --resource-name={name} && kubectl create rolebinding idtoken-{name} -n {namespace} \
         --role=idtoken-{name} {subject}"
    )]
    TokenForbidden {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The API server's own words.
        message: String,
        /// The operator, as an option of kubectl.
        subject: String,
    },
}

impl FederationError {
    /// Reason of the condition, the event and the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => reason::KUBERNETES_SERVICE_ACCOUNT_NOT_FOUND,
            Self::NotAnnotated { .. } => reason::SERVICE_ACCOUNT_NOT_ANNOTATED,
            Self::IsOperator { .. } => google::Reason::SelfImpersonation.as_str(),
            Self::TokenForbidden { .. } => reason::TOKEN_REQUEST_FORBIDDEN,
        }
    }
}
