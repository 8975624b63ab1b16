//! Errors of the Kubernetes API, in the caller's terms: each says what the caller can do.

use idtoken_operator::shell::quote;
use idtoken_operator::text::error_chain;
use thiserror::Error;

/// A failed call of the Kubernetes API.
#[derive(Debug, Error)]
pub(crate) enum ApiError {
    /// The object does not exist.
    #[error("{what} not found{in_namespace}; to list the existing ones: kubectl get {resource}{flag}")]
    NotFound {
        /// Kind and name.
        what: String,
        /// ` in namespace NAME`, or empty.
        in_namespace: String,
        /// Resource, in the plural.
        resource: &'static str,
        /// ` -n NAME`, or empty.
        flag: String,
    },
    /// The API server does not serve the kind.
    #[error(
        "the cluster has no {resource}: its CustomResourceDefinitions are not installed, or this is not the cluster \
         that you meant (see: kubectl config current-context)"
    )]
    NoSuchKind {
        /// Resource, in the plural.
        resource: &'static str,
    },
    /// RBAC denies it.
    #[error(
        "you may not {verb} {resource}{in_namespace}: {message}; ask a cluster administrator for the verb {verb} on \
         {resource}, or use another --context"
    )]
    Forbidden {
        /// RBAC verb.
        verb: &'static str,
        /// Resource, in the plural.
        resource: &'static str,
        /// ` in namespace NAME`, or empty.
        in_namespace: String,
        /// Message of the API server.
        message: String,
    },
    /// The API server does not authenticate the caller; with its message.
    #[error("the API server rejected your credentials: {0}; log in again, or use another --context")]
    Unauthorized(String),
    /// Another status of the API server.
    #[error("cannot {verb} {resource}{in_namespace}: the API server returned {code}: {message}")]
    Rejected {
        /// RBAC verb.
        verb: &'static str,
        /// Resource, in the plural.
        resource: &'static str,
        /// ` in namespace NAME`, or empty.
        in_namespace: String,
        /// HTTP status.
        code: u16,
        /// Message of the API server.
        message: String,
    },
    /// No response, or not one of an API server.
    #[error(
        "cannot {verb} {resource}{in_namespace}: {problem}; check that the API server is reachable: kubectl get --raw /version"
    )]
    Unreachable {
        /// RBAC verb.
        verb: &'static str,
        /// Resource, in the plural.
        resource: &'static str,
        /// ` in namespace NAME`, or empty.
        in_namespace: String,
        /// The error and its causes.
        problem: String,
    },
    /// The object does not have the fields that this version expects.
    #[error(
        "cannot decode the {resource}{in_namespace}: the cluster's CustomResourceDefinitions and this plugin have different versions; \
         install the plugin of the operator's version"
    )]
    Undecodable {
        /// Resource, in the plural.
        resource: &'static str,
        /// ` in namespace NAME`, or empty.
        in_namespace: String,
    },
}

/// Reads an error of kube. `namespace` is absent for cluster-wide calls, and `what`, kind and name, for lists.
pub(crate) fn classify(
    verb: &'static str,
    resource: &'static str,
    namespace: Option<&str>,
    what: Option<&str>,
    error: &kube::Error,
) -> ApiError {
    let in_namespace = namespace
        .map(|name| format!(" in namespace {}", quote(name)))
        .unwrap_or_default();
    match error {
        kube::Error::Api(status) => {
            let message = status.message.clone();
            match (status.code, what) {
                // Without details, the path does not exist, rather than the object.
                (404, Some(what)) if status.details.is_some() => ApiError::NotFound {
                    what: what.to_owned(),
                    in_namespace,
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
                    in_namespace,
                    message,
                },
                (code, _) => ApiError::Rejected {
                    verb,
                    resource,
                    in_namespace,
                    code,
                    message,
                },
            }
        }
        // The parser's message can quote the response.
        kube::Error::SerdeError(_) => ApiError::Undecodable {
            resource,
            in_namespace,
        },
        kube::Error::Service(error) => {
            let problem = error_chain(error.as_ref());
            ApiError::Unreachable {
                verb,
                resource,
                in_namespace,
                problem,
            }
        }
        other => ApiError::Unreachable {
            verb,
            resource,
            in_namespace,
            problem: error_chain(other),
        },
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use kube::core::response::StatusDetails;

    use super::*;

    fn error(code: u16, details: bool) -> String {
        let details =
            details.then(|| serde_json::from_str::<StatusDetails>(r#"{"name":"billing"}"#).unwrap());
        let status = Status {
            code,
            message: "message".into(),
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
    fn errors_say_what_to_do() {
        assert_eq!(
            error(404, true),
            "IdTokenRequest billing not found in namespace shop; to list the existing ones: kubectl get idtokenrequests -n shop"
        );
        assert!(error(404, false).contains("CustomResourceDefinitions are not installed"));
        assert!(error(401, false).contains("log in again"));
        let forbidden = error(403, true);
        assert!(
            forbidden.starts_with("you may not get idtokenrequests in namespace shop: message"),
            "{forbidden}"
        );
        assert!(error(500, false).contains("returned 500: message"));
    }
}
