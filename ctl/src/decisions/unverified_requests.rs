//! Pure: requests and what the admission policy covers → those whose author it has not checked.

use idtoken_operator::api::v1alpha1::IdTokenRequest;
use jiff::Timestamp;
use serde::Serialize;

use crate::decisions::admission_policy::{Guard, SETTLED};

/// A request whose author is not known to have been checked.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unchecked {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service_account: String,
    pub(crate) created: Option<Timestamp>,
}

/// Those of `requests` with source.federation that were created before the policy was at work. The creation time is the API server's
/// own, which no author can set; the managers and times of fields can be set by authors, so they tell nothing.
pub(crate) fn unchecked(requests: &[IdTokenRequest], guard: &Guard) -> Vec<Unchecked> {
    let mut found: Vec<Unchecked> = requests
        .iter()
        .filter_map(|request| {
            let federation = request.spec.source.as_ref()?.federation.as_ref()?;
            let meta = &request.metadata;
            let created = meta.creation_timestamp.as_ref().map(|time| time.0);
            let checked = match guard {
                Guard::Since { since, .. } => created.is_some_and(|created| created > *since + SETTLED),
                Guard::Missing(_) => false,
            };
            (!checked).then(|| Unchecked {
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
    fn what_is_not_provably_newer_than_the_policy_is_listed() {
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
        let names = |guard: &Guard| -> Vec<String> {
            unchecked(&requests, guard)
                .into_iter()
                .map(|one| one.name)
                .collect()
        };
        let since = Guard::Since {
            policy: "p".into(),
            since: "2026-01-01T01:00:00Z".parse().unwrap(),
        };
        assert_eq!(names(&since), ["before", "soon"]);
        let missing = Guard::Missing("none".into());
        assert_eq!(names(&missing), ["after", "before", "soon"]);
    }
}
