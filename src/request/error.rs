//! Why a spec is rejected.

use thiserror::Error;

use crate::api::conditions::reason;
use crate::api::v1alpha1::MAX_SPEC_CHARACTERS;
use crate::classify::Classify;
use crate::request::template::TemplateError;

/// Why a spec is rejected.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ValidateError {
    /// A field has an invalid value.
    #[error("spec.{field}: {problem}")]
    Invalid {
        /// Path of the field below `spec`.
        field: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// A name, label or annotation by which other software trusts a Secret.
    #[error(
        "spec.{field}: {software} trusts Secrets by it, so it is reserved; choose another (docs/security.md has the list)"
    )]
    Trusted {
        /// Path of the field below `spec`.
        field: String,
        /// The software.
        software: &'static str,
    },
    /// A template cannot be parsed.
    #[error("spec.target.template.data[{key}]: {source}")]
    Template {
        /// Key of the Secret.
        key: String,
        /// What is wrong.
        source: TemplateError,
    },
    /// The object has fields or values that this version does not know.
    #[error(
        "this version of the operator cannot read the object, so it does nothing for it: {0}; upgrade the operator, or use what its own CRD \
         allows"
    )]
    Undecodable(String),
    /// The spec is larger than any spec may be.
    #[error(
        "the spec has {bytes} bytes of text, and the operator serves at most {MAX_SPEC_CHARACTERS}: shorten the labels, annotations and \
         data of spec.target.template"
    )]
    TooLarge {
        /// Bytes of all its texts.
        bytes: usize,
    },
    /// Older requests take the memory that the operator may use for requests.
    #[error(
        "the operator's cache is full: older requests {whose} take all of the {mib} MiB that --{flag} allows for requests. The Secret stays as \
         it is. Delete requests that are not needed, or raise --{flag} and the memory limit of the operator"
    )]
    CacheFull {
        /// Which requests count.
        whose: &'static str,
        /// The flag that sets the bound.
        flag: &'static str,
        /// The bound.
        mib: usize,
    },
    /// This operator does not offer the source.
    #[error("spec.source.{0} is not available: {1}")]
    SourceUnavailable(&'static str, &'static str),
}

impl ValidateError {
    /// The error for `spec.{field}`.
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

impl Classify for ValidateError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } | Self::Trusted { .. } | Self::Template { .. } | Self::Undecodable(_) => {
                reason::INVALID_SPEC
            }
            Self::TooLarge { .. } => reason::TOO_LARGE,
            Self::CacheFull { .. } => reason::CACHE_FULL,
            Self::SourceUnavailable(..) => reason::SOURCE_UNAVAILABLE,
        }
    }

    fn needs_user_action(&self) -> bool {
        true
    }
}
