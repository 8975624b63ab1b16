//! Pure: requests and since when the admission policy covers them → those whose author it has not checked.

use idtoken_operator::api::v1alpha1::IdTokenRequest;
use jiff::Timestamp;
use serde::Serialize;

use crate::decisions::admission_policy::{PROPAGATION, PolicyCoverage};

/// A request with source.federation whose author no admission policy is known to have checked.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnverifiedRequest {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service_account: String,
    pub(crate) created: Option<Timestamp>,
}

/// The requests with source.federation that were created before the policy was in effect. Only the API server sets the creation
/// time. Authors can set the managers and times of fields, so those prove nothing.
pub(crate) fn unverified(requests: &[IdTokenRequest], coverage: &PolicyCoverage) -> Vec<UnverifiedRequest> {
    let mut found: Vec<UnverifiedRequest> = requests
        .iter()
        .filter_map(|request| {
            let federation = request.spec.source.as_ref()?.federation.as_ref()?;
            let meta = &request.metadata;
            let created = meta.creation_timestamp.as_ref().map(|time| time.0);
            let checked = match coverage {
                PolicyCoverage::Since { since, .. } => {
                    created.is_some_and(|created| created > *since + PROPAGATION)
                }
                PolicyCoverage::Missing(_) => false,
            };
            (!checked).then(|| UnverifiedRequest {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
                service_account: federation.service_account_ref.name.clone(),
                created,
            })
        })
        .collect();
    found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, created: &str, source: serde_json::Value) -> IdTokenRequest {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
            "spec": {"audience": "a", "source": source},
        }))
        .unwrap()
    }

    #[test]
    fn requests_that_are_not_newer_than_the_policy_are_listed() {
        let federation = serde_json::json!({"federation": {"serviceAccountRef": {"name": "billing"}}});
        let requests = [
            request("before", "2026-01-01T00:00:00Z", federation.clone()),
            request("soon", "2026-01-01T01:00:59Z", federation.clone()),
            request("after", "2026-01-01T01:01:01Z", federation),
            request(
                "other",
                "2026-01-01T00:00:00Z",
                serde_json::json!({"impersonation": {}}),
            ),
        ];
        let names = |coverage: &PolicyCoverage| -> Vec<String> {
            unverified(&requests, coverage)
                .into_iter()
                .map(|one| one.name)
                .collect()
        };
        let since = PolicyCoverage::Since {
            policy: "p".into(),
            since: "2026-01-01T01:00:00Z".parse().unwrap(),
        };
        assert_eq!(names(&since), ["before", "soon"]);
        let missing = PolicyCoverage::Missing("none".into());
        assert_eq!(names(&missing), ["after", "before", "soon"]);
    }
}
