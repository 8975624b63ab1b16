//! Why a token did not get into its Secret.

use std::time::Duration;

use thiserror::Error;

use super::mint::MintError;
use super::render::RenderError;
use crate::api::conditions::reason;
use crate::classify::{Classify, ErrorClass};
use crate::grants::policy::Denied;
use crate::kubernetes::error::KubeError;
use crate::request::ValidRequest;

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
        "Secret {secret} is the target of IdTokenRequest {owner} already, which is older; choose another spec.target.name"
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
            Self::Gone => reason::RECONCILED,
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
            Self::Mint(_) | Self::Denied(_) | Self::Gone => false,
        }
    }
}
