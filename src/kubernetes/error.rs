//! What a failed call of the Kubernetes API means, and what to do about it.

use kube::runtime::watcher;
use thiserror::Error;

use crate::api::conditions::reason;
use crate::classify::{Classify, ErrorClass};
use crate::text::{error_chain, redacted};

/// Stands for a decoding error, whose text quotes a value of the answer.
const UNDECODABLE: &str = "the answer could not be decoded";

/// A failed call of the Kubernetes API. Holds no body: those of Secrets are tokens.
#[derive(Clone, Debug, Error)]
pub enum KubeError {
    /// 403: a rule is missing.
    #[error(
        "the API server refused to {verb} {resource} in namespace {namespace}; the operator's Role needs the verb {verb} on {resource}: {message}"
    )]
    Forbidden {
        /// RBAC verb.
        verb: &'static str,
        /// Plural resource.
        resource: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// The API server's own words.
        message: String,
    },
    /// Any other answer that will not change by itself.
    #[error("the API server refused to {verb} {resource} in namespace {namespace} ({code}): {message}")]
    Refused {
        /// RBAC verb.
        verb: &'static str,
        /// Plural resource.
        resource: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// HTTP status.
        code: u16,
        /// The API server's own words.
        message: String,
    },
    /// No answer, a passing fault, or an answer that cannot be read.
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
    /// Google, the API server or the wait for a turn took too long.
    #[error(
        "the work did not finish within {seconds}s, Google's answer included; it is begun again, or raise --reconcile-timeout"
    )]
    TimedOut {
        /// The limit.
        seconds: u64,
    },
    /// A bug.
    #[error(
        "an internal error of the operator ended the work on this request; its log says where: please report it"
    )]
    Panicked,
    /// What was written was changed on the way.
    #[error(
        "what was written to Secret {name} is not what the API server stored: a mutating admission webhook changes the operator's annotations idtoken.dev/*; make it leave them alone"
    )]
    Altered {
        /// Name of the Secret.
        name: String,
    },
    /// The Secret belongs to somebody else.
    #[error("Secret {name} {why}")]
    SecretConflict {
        /// Name of the Secret.
        name: String,
        /// Whose it is, and how to hand it over.
        why: String,
    },
    /// The Secret is immutable.
    #[error(
        "Secret {name} is immutable, so its token cannot be renewed: delete it, and the operator makes a new one"
    )]
    SecretImmutable {
        /// Name of the Secret.
        name: String,
    },
    /// Others keep changing what we write.
    #[error(
        "{manager} keeps changing {field} of Secret {name}: {count} repairs in 10 minutes; make it leave the field alone"
    )]
    Contested {
        /// Name of the Secret.
        name: String,
        /// What is changed.
        field: String,
        /// The field manager that changed it last.
        manager: String,
        /// How often it was put back.
        count: usize,
    },
}

impl KubeError {
    /// Classes `error`, which a call that would `verb` a `resource` gave.
    pub fn new(verb: &'static str, resource: &'static str, namespace: &str, error: &kube::Error) -> Self {
        let namespace = namespace.to_owned();
        match error {
            kube::Error::Api(status) if status.code == 403 && is_rbac(&status.message) => Self::Forbidden {
                verb,
                resource,
                namespace,
                message: bounded(&status.message),
            },
            kube::Error::Api(status)
                if (400..500).contains(&status.code) && !matches!(status.code, 408 | 409 | 429) =>
            {
                Self::Refused {
                    verb,
                    resource,
                    namespace,
                    code: status.code,
                    message: bounded(&status.message),
                }
            }
            other => Self::Unavailable {
                verb,
                resource,
                namespace,
                problem: problem(other),
            },
        }
    }

    /// The answer to a call that would `verb` a `resource` cannot be decoded.
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
            Self::Forbidden { .. } | Self::Refused { .. } => reason::KUBERNETES_REFUSED,
            Self::Unavailable { .. } => reason::KUBERNETES_UNAVAILABLE,
            Self::TimedOut { .. } => reason::TIMED_OUT,
            Self::Panicked => reason::INTERNAL_ERROR,
            Self::SecretConflict { .. } => reason::SECRET_CONFLICT,
            Self::SecretImmutable { .. } => reason::SECRET_IMMUTABLE,
            Self::Contested { .. } | Self::Altered { .. } => reason::CONTESTED,
        }
    }

    fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable { .. } | Self::TimedOut { .. } => ErrorClass::Transient,
            _ => ErrorClass::Rejected,
        }
    }

    fn needs_user_action(&self) -> bool {
        matches!(
            self,
            Self::SecretConflict { .. } | Self::SecretImmutable { .. } | Self::Contested { .. }
        )
    }
}

/// What went wrong with a call, for a log line or a condition: nothing of a body, and of a refusal its bounded message.
pub fn problem(error: &kube::Error) -> String {
    match error {
        // kube takes a watch event that it cannot decode for a Status without a field.
        kube::Error::Api(status) if status.code == 0 => UNDECODABLE.to_owned(),
        kube::Error::Api(status) => format!("{} {}", status.code, bounded(&status.message)),
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => UNDECODABLE.to_owned(),
        other => bounded(&error_chain(other)),
    }
}

/// What went wrong with a watch, likewise.
pub fn watch_problem(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error) => format!("the list failed: {}", problem(error)),
        watcher::Error::WatchStartFailed(error) => format!("the watch cannot be started: {}", problem(error)),
        watcher::Error::WatchFailed(error) => problem(error),
        watcher::Error::WatchError(status) => format!("{} {}", status.code, bounded(&status.message)),
        watcher::Error::NoResourceVersion => "the list has no resourceVersion".to_owned(),
    }
}

/// HTTP status of an API server's answer.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Whether a 403 comes from RBAC rather than from a quota, an admission webhook or a namespace that goes
/// (<https://github.com/kubernetes/kubernetes/blob/v1.37.2/staging/src/k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go>).
fn is_rbac(message: &str) -> bool {
    message.contains("\" cannot ")
}

/// An admission webhook's refusal can quote the Secret.
fn bounded(text: &str) -> String {
    match text.trim() {
        "" => "no message".to_owned(),
        text => redacted(text, 400),
    }
}
