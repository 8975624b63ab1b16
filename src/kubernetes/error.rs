//! What a failed call of the Kubernetes API means.

use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;

use crate::api::GROUP;
use crate::api::conditions::reason;
use crate::classify::{Classify, ErrorClass};
use crate::text::{error_chain, redacted};

/// The text of every decoding error, since serde's own quotes a value of the response.
const UNDECODABLE: &str = "the response could not be decoded";

/// A failed call of the Kubernetes API. Never holds a body: a Secret's holds tokens.
#[derive(Clone, Debug, Error)]
pub enum KubeError {
    /// 403: a rule of RBAC is missing.
    #[error(
        "the API server rejected the call to {verb} {resource} in namespace {namespace}; the operator's Role needs the verb {verb} on {resource}: {message}"
    )]
    Forbidden {
        /// RBAC verb.
        verb: &'static str,
        /// Plural resource.
        resource: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// The API server's message.
        message: String,
    },
    /// Any other rejection.
    #[error(
        "the API server rejected the call to {verb} {resource} in namespace {namespace} ({code}): {message}"
    )]
    Rejected {
        /// RBAC verb.
        verb: &'static str,
        /// Plural resource.
        resource: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// HTTP status.
        code: u16,
        /// The API server's message.
        message: String,
    },
    /// A transient failure, or a response that cannot be decoded.
    #[error("could not {verb} {resource} in namespace {namespace}: {problem}")]
    Unavailable {
        /// RBAC verb.
        verb: &'static str,
        /// Plural resource.
        resource: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// What happened.
        problem: String,
    },
    /// No response: the API server is away, or took longer than the time limit of the call.
    #[error("could not {verb} {resource} in namespace {namespace}: {problem}")]
    NoAnswer {
        /// RBAC verb.
        verb: &'static str,
        /// Plural resource.
        resource: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// What happened.
        problem: String,
    },
    /// The reconcile took too long, most likely for Google: calls of the Kubernetes API have time limits of their own.
    #[error(
        "the reconcile did not finish within {seconds}s, including Google's response; the operator retries it. If this persists, raise \
         --reconcile-timeout"
    )]
    TimedOut {
        /// The limit, in seconds.
        seconds: u64,
    },
    /// A bug.
    #[error(
        "an internal error of the operator aborted the reconcile of this request; the operator's log shows where: please report it"
    )]
    Panicked,
    /// The API server stored something else than was written.
    #[error(
        "the API server did not store Secret {name} as the operator wrote it: a mutating admission webhook changes the operator's annotations \
         {GROUP}/*; make it leave them alone",
        GROUP = GROUP
    )]
    MutatedByWebhook {
        /// Name of the Secret.
        name: String,
    },
    /// The Secret belongs to another client.
    #[error("Secret {name} {why}")]
    SecretConflict {
        /// Name of the Secret.
        name: String,
        /// Whose it is, and how to hand it over.
        why: String,
    },
    /// The Secret is immutable.
    #[error(
        "Secret {name} is immutable, so its token cannot be renewed: delete it, and the operator recreates it"
    )]
    SecretImmutable {
        /// Name of the Secret.
        name: String,
    },
    /// Another client keeps changing what the operator writes.
    #[error(
        "{manager} keeps changing {field} of Secret {name}: {count} repairs in 10 minutes; make it leave the field alone"
    )]
    FieldConflict {
        /// Name of the Secret.
        name: String,
        /// The changed field.
        field: String,
        /// The field manager that changed it last.
        manager: String,
        /// How often the operator repaired it.
        count: usize,
    },
}

impl KubeError {
    /// Classifies the `error` of a call with this RBAC `verb` on `resource`.
    pub fn new(verb: &'static str, resource: &'static str, namespace: &str, error: &kube::Error) -> Self {
        let namespace = namespace.to_owned();
        match error {
            kube::Error::Api(status) if status.code == 403 && is_rbac(&status.message) => Self::Forbidden {
                verb,
                resource,
                namespace,
                message: safe_message(&status.message),
            },
            kube::Error::Api(status)
                if (400..500).contains(&status.code) && !matches!(status.code, 408 | 409 | 429) =>
            {
                Self::Rejected {
                    verb,
                    resource,
                    namespace,
                    code: status.code,
                    message: safe_message(&status.message),
                }
            }
            answered @ (kube::Error::Api(_) | kube::Error::SerdeError(_) | kube::Error::FromUtf8(_)) => {
                Self::Unavailable {
                    verb,
                    resource,
                    namespace,
                    problem: problem(answered),
                }
            }
            other => Self::NoAnswer {
                verb,
                resource,
                namespace,
                problem: problem(other),
            },
        }
    }

    /// Whether the API server rejected or did not answer a call, as opposed to an answer that allows no write.
    pub fn is_failed_call(&self) -> bool {
        matches!(
            self,
            Self::Forbidden { .. } | Self::Rejected { .. } | Self::Unavailable { .. } | Self::NoAnswer { .. }
        )
    }

    /// The answer to a call with this RBAC `verb` on `resource` that waited for at most `limit`.
    ///
    /// # Errors
    /// There was no answer in time.
    pub async fn within<T>(
        limit: Duration,
        verb: &'static str,
        resource: &'static str,
        namespace: &str,
        call: impl Future<Output = T>,
    ) -> Result<T, Self> {
        timeout(limit, call).await.map_err(|_| Self::NoAnswer {
            verb,
            resource,
            namespace: namespace.to_owned(),
            problem: format!(
                "the API server did not answer within {} s; an admission webhook or its priority and fairness may hold it up",
                limit.as_secs()
            ),
        })
    }

    /// The error for a response that cannot be decoded, to a call with this RBAC `verb` on `resource`.
    pub fn undecodable(verb: &'static str, resource: &'static str, namespace: &str) -> Self {
        Self::Unavailable {
            verb,
            resource,
            namespace: namespace.to_owned(),
            problem: UNDECODABLE.to_owned(),
        }
    }
}

impl Classify for KubeError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Forbidden { .. } | Self::Rejected { .. } => reason::KUBERNETES_REFUSED,
            Self::Unavailable { .. } | Self::NoAnswer { .. } => reason::KUBERNETES_UNAVAILABLE,
            Self::TimedOut { .. } => reason::TIMED_OUT,
            Self::Panicked => reason::INTERNAL_ERROR,
            Self::SecretConflict { .. } => reason::SECRET_CONFLICT,
            Self::SecretImmutable { .. } => reason::SECRET_IMMUTABLE,
            Self::FieldConflict { .. } | Self::MutatedByWebhook { .. } => reason::CONTESTED,
        }
    }

    fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable { .. } | Self::NoAnswer { .. } | Self::TimedOut { .. } => ErrorClass::Transient,
            _ => ErrorClass::Rejected,
        }
    }

    fn needs_user_action(&self) -> bool {
        matches!(
            self,
            Self::SecretConflict { .. } | Self::SecretImmutable { .. } | Self::FieldConflict { .. }
        )
    }
}

/// What went wrong with a call, for a log line or a condition. Quotes nothing of a body but the redacted message of a rejection.
pub fn problem(error: &kube::Error) -> String {
    match error {
        // The API server sets a code in each Status: this object was none.
        kube::Error::Api(status) if status.code == 0 => UNDECODABLE.to_owned(),
        kube::Error::Api(status) => format!("{} {}", status.code, safe_message(&status.message)),
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => UNDECODABLE.to_owned(),
        other => safe_message(&error_chain(other)),
    }
}

/// The HTTP status, if the API server responded.
pub fn status_code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Whether a 403 comes from RBAC rather than from a quota, an admission webhook or a terminating namespace
/// (<https://github.com/kubernetes/kubernetes/blob/v1.37.2/staging/src/k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go>).
fn is_rbac(message: &str) -> bool {
    message.contains("\" cannot ")
}

/// A message of the API server, redacted and shortened: an admission webhook's rejection can quote the Secret.
fn safe_message(text: &str) -> String {
    match text.trim() {
        "" => "no message".to_owned(),
        text => redacted(text, 400),
    }
}
