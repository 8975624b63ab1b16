//! Pure: a request and the grants of the chart's values → what `kubectl get idtokengrants` does not show about it.

use idtoken_operator::api::conditions::{READY, reason};
use idtoken_operator::api::v1alpha1::IdTokenRequest;

use crate::decisions::grant_sets::{self, Decision, GrantSet, Origin};
use crate::decisions::near_misses::Labels;
use crate::decisions::requested_token::token_spec;

/// How the operator names grants of its file.
const FILE: &str = "file:";

/// Whether grants of releases matter to the request: one allows it, or none does.
pub(crate) fn matter(request: &IdTokenRequest) -> bool {
    file_grant(request).is_some() || is_not_granted(request)
}

/// The ConfigMap with the grant that the status names, if exactly one has it.
pub(crate) fn origin(request: &IdTokenRequest, sets: &[GrantSet]) -> Origin {
    let Some(name) = file_grant(request) else {
        return Origin::default();
    };
    let has = |set: &&GrantSet| set.grants.iter().any(|grant| grant.id.name == name);
    match sets.iter().filter(has).collect::<Vec<_>>().as_slice() {
        [one] => one.origin.clone(),
        _ => Origin::default(),
    }
}

/// What to do if a grant of a release allows what the operator denied.
pub(crate) fn step(request: &IdTokenRequest, sets: &[GrantSet], labels: &Labels) -> Option<String> {
    let namespace = request.metadata.namespace.as_deref()?;
    let token = token_spec(request).ok().filter(|_| is_not_granted(request))?;
    match grant_sets::decide(sets, namespace, labels, &token) {
        Decision::Allowed(grant, origin) => Some(format!(
            "Grant {}{origin} allows the request. The operator reads a changed grant about a minute later. If the condition stays, \
             another release serves the request.",
            grant.name
        )),
        Decision::Denied(_) | Decision::Unknown(_) => None,
    }
}

/// That grants of releases exist beside the cluster's, where they could not be read.
pub(crate) fn unread(request: &IdTokenRequest, problem: &str) -> Option<String> {
    is_not_granted(request).then(|| {
        format!(
            "kubectl get idtokengrants lists objects only. The chart's value grants has further grants, which are not shown: {problem}. Name \
             the operator's namespace with --operator-namespace."
        )
    })
}

fn file_grant(request: &IdTokenRequest) -> Option<&str> {
    let grant = request.status.as_ref()?.grant.as_ref()?;
    grant.name.starts_with(FILE).then_some(grant.name.as_str())
}

fn is_not_granted(request: &IdTokenRequest) -> bool {
    let ready = request.status.as_ref().and_then(|status| status.condition(READY));
    ready.is_some_and(|ready| ready.status != "True" && ready.reason == reason::NOT_GRANTED)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    fn request(status: Value) -> IdTokenRequest {
        serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "billing", "namespace": "shop"},
            "spec": {"audience": "a", "serviceAccount": "1"}, "status": status,
        }))
        .unwrap()
    }

    fn denied() -> Value {
        json!({"conditions": [{"type": "Ready", "status": "False", "reason": "NotGranted", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
    }

    fn sets(namespaces: &[&str]) -> Vec<GrantSet> {
        let map = |namespace: &&str| {
            serde_json::from_value(json!({
                "metadata": {"name": "grants", "namespace": namespace},
                "data": {"grants.yaml": "[{name: shop, from: [{namespace: shop}], to: [{serviceAccounts: ['1'], audiences: [a]}]}]"},
            }))
            .unwrap()
        };
        grant_sets::of_config_maps(namespaces.iter().map(map).collect()).sets
    }

    #[test]
    fn the_status_and_the_config_maps_say_where_the_grant_is() {
        let by = |name: &str| request(json!({"grant": {"name": name}}));
        assert!(matter(&by("file:shop")) && matter(&request(denied())));
        assert!(!matter(&by("shop")) && !matter(&request(json!({}))));
        let found = |name: &str, namespaces: &[&str]| origin(&by(name), &sets(namespaces)).to_string();
        assert_eq!(found("file:shop", &["ops"]), " of ConfigMap ops/grants");
        // Which of two it is cannot be told.
        assert_eq!(found("file:shop", &["ops", "evil"]), "");
        assert_eq!(found("file:other", &["ops"]), "");
    }

    #[test]
    fn a_grant_that_the_operator_has_not_read_yet_is_told() {
        let labels = Some(BTreeMap::new());
        let told = step(&request(denied()), &sets(&["ops"]), &labels).unwrap();
        assert!(
            told.starts_with("Grant file:shop of ConfigMap ops/grants allows"),
            "{told}"
        );
        assert_eq!(step(&request(denied()), &[], &labels), None);
        assert_eq!(step(&request(json!({})), &sets(&["ops"]), &labels), None);
        assert!(unread(&request(denied()), "why").unwrap().contains("why"));
        assert_eq!(unread(&request(json!({})), "why"), None);
    }
}
