//! A failed call of the Kubernetes API, in the caller's terms.

use idtoken_operator::google::shell::quote;
use idtoken_operator::text::error_chain;
use thiserror::Error;

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

pub(crate) fn classify(
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
            let problem = error_chain(error.as_ref());
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
            problem: error_chain(other),
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
