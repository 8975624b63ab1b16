//! Pure: a request and the value that was set on its renew annotation → progress of the renewal.

use idtoken_operator::api::annotations;
use idtoken_operator::api::conditions::{READY, RENEWAL_FAILING, reason};
use idtoken_operator::api::v1alpha1::IdTokenRequest;

/// Progress of a renewal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The Secret holds a token that was minted after the annotation was set.
    Done,
    /// Not finished, and why as far as the status says.
    Pending(String),
    /// A user has to act first.
    Failed(String),
}

/// How far the renewal is that was requested by setting the annotation to `request_id`.
pub(crate) fn progress(object: &IdTokenRequest, request_id: &str) -> Progress {
    let requested = object
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(annotations::RENEW));
    if requested.map(String::as_str) != Some(request_id) {
        return Progress::Failed(format!(
            "another client has changed the annotation {} meanwhile",
            annotations::RENEW
        ));
    }
    if object.spec.suspend.unwrap_or(false) {
        return Progress::Failed("it is suspended (spec.suspend)".to_owned());
    }
    let Some(status) = &object.status else {
        return Progress::Pending("the operator has not reconciled it yet".to_owned());
    };
    let condition = |type_| status.condition(type_);
    let handled = status.last_handled_renew_request.as_deref() == Some(request_id);
    let ready = condition(READY);
    match (handled, ready) {
        (true, Some(ready)) if ready.status == "True" => return Progress::Done,
        // The operator renews nothing while it rejects the spec.
        (_, Some(ready))
            if [reason::INVALID_SPEC, reason::SOURCE_UNAVAILABLE].contains(&ready.reason.as_str())
                && status.observed_generation == object.metadata.generation =>
        {
            return Progress::Failed(format!("{}: {}", ready.reason, ready.message));
        }
        _ => {}
    }
    let failing = condition(RENEWAL_FAILING).filter(|failing| failing.status == "True");
    let why = failing.or_else(|| ready.filter(|ready| ready.status != "True"));
    Progress::Pending(why.map_or_else(
        || "the operator has not renewed it yet".to_owned(),
        |condition| format!("{}: {}", condition.reason, condition.message),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const REQUEST_ID: &str = "2026-01-01T00:00:00.5Z";

    fn state(spec: Value, status: Value) -> Progress {
        let mut full = json!({"audience": "https://a", "serviceAccount": "1"});
        full.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let object = json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "a", "namespace": "b", "generation": 2, "annotations": {"idtoken.dev/renew": REQUEST_ID}},
            "spec": full, "status": status,
        });
        progress(&serde_json::from_value(object).unwrap(), REQUEST_ID)
    }

    fn condition(type_: &str, status: &str, reason: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn done_when_handled_and_ready() {
        let status = |handled: &str, ready: &str| json!({"lastHandledRenewRequest": handled, "conditions": [condition("Ready", ready, "Issued")]});
        assert_eq!(state(json!({}), status(REQUEST_ID, "True")), Progress::Done);
        assert!(matches!(
            state(json!({}), status("before", "True")),
            Progress::Pending(_)
        ));
        assert!(matches!(
            state(json!({}), status(REQUEST_ID, "False")),
            Progress::Pending(_)
        ));
    }

    #[test]
    fn a_renewal_that_needs_a_user_has_failed() {
        assert!(matches!(
            state(json!({"suspend": true}), json!({})),
            Progress::Failed(_)
        ));
        let rejected = |observed: i64| json!({"observedGeneration": observed, "conditions": [condition("Ready", "False", "InvalidSpec")]});
        assert_eq!(
            state(json!({}), rejected(2)),
            Progress::Failed("InvalidSpec: m".to_owned())
        );
        assert_eq!(
            state(json!({}), rejected(1)),
            Progress::Pending("InvalidSpec: m".to_owned())
        );
    }

    #[test]
    fn a_failing_renewal_says_why() {
        let status = json!({"conditions": [
            condition("Ready", "True", "Issued"), condition("RenewalFailing", "True", "PermissionDenied"),
        ]});
        assert_eq!(
            state(json!({}), status),
            Progress::Pending("PermissionDenied: m".to_owned())
        );
    }

    #[test]
    fn another_value_of_the_annotation_is_a_failure() {
        let object: IdTokenRequest = serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "a", "annotations": {"idtoken.dev/renew": "other"}}, "spec": {"audience": "a"},
        }))
        .unwrap();
        assert!(matches!(progress(&object, REQUEST_ID), Progress::Failed(_)));
    }
}
