//! Pure: a request and the value of its renew annotation → how far the renewal is.

use idtoken_operator::api::annotations;
use idtoken_operator::api::conditions::{READY, RENEWAL_FAILING, reason};
use idtoken_operator::api::v1alpha1::IdTokenRequest;

/// How far a renewal is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The Secret holds a token that was minted after the request for it.
    Done,
    /// Not yet, and why as far as is known.
    Waiting(String),
    /// It will not happen by itself.
    Failed(String),
}

pub(crate) fn progress(object: &IdTokenRequest, stamp: &str) -> Progress {
    let asked = object
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(annotations::RENEW));
    if asked.map(String::as_str) != Some(stamp) {
        return Progress::Failed(
            "somebody else has changed the annotation idtoken.dev/renew meanwhile".to_owned(),
        );
    }
    if object.spec.suspend.unwrap_or(false) {
        return Progress::Failed("it is suspended (spec.suspend)".to_owned());
    }
    let Some(status) = &object.status else {
        return Progress::Waiting("the operator has not looked at it yet".to_owned());
    };
    let condition = |type_| status.condition(type_);
    let handled = status.last_handled_renew_request.as_deref() == Some(stamp);
    let ready = condition(READY);
    match (handled, ready) {
        (true, Some(ready)) if ready.status == "True" => return Progress::Done,
        // No renewal helps a spec that the operator refuses.
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
    Progress::Waiting(why.map_or_else(
        || "the operator has not renewed it in time".to_owned(),
        |condition| format!("{}: {}", condition.reason, condition.message),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const STAMP: &str = "2026-01-01T00:00:00.5Z";

    fn state(spec: Value, status: Value) -> Progress {
        let mut full = json!({"audience": "https://a", "serviceAccount": "1"});
        full.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let object = json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "a", "namespace": "b", "generation": 2, "annotations": {"idtoken.dev/renew": STAMP}},
            "spec": full, "status": status,
        });
        progress(&serde_json::from_value(object).unwrap(), STAMP)
    }

    fn condition(type_: &str, status: &str, reason: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn done_when_handled_and_ready() {
        let status = |handled: &str, ready: &str| json!({"lastHandledRenewRequest": handled, "conditions": [condition("Ready", ready, "Issued")]});
        assert_eq!(state(json!({}), status(STAMP, "True")), Progress::Done);
        assert!(matches!(
            state(json!({}), status("before", "True")),
            Progress::Waiting(_)
        ));
        assert!(matches!(
            state(json!({}), status(STAMP, "False")),
            Progress::Waiting(_)
        ));
    }

    #[test]
    fn what_will_not_happen_is_not_waited_for() {
        assert!(matches!(
            state(json!({"suspend": true}), json!({})),
            Progress::Failed(_)
        ));
        let refused = |seen: i64| json!({"observedGeneration": seen, "conditions": [condition("Ready", "False", "InvalidSpec")]});
        assert_eq!(
            state(json!({}), refused(2)),
            Progress::Failed("InvalidSpec: m".to_owned())
        );
        assert_eq!(
            state(json!({}), refused(1)),
            Progress::Waiting("InvalidSpec: m".to_owned())
        );
    }

    #[test]
    fn a_failing_renewal_says_why() {
        let status = json!({"conditions": [
            condition("Ready", "True", "Issued"), condition("RenewalFailing", "True", "PermissionDenied"),
        ]});
        assert_eq!(
            state(json!({}), status),
            Progress::Waiting("PermissionDenied: m".to_owned())
        );
    }

    #[test]
    fn another_request_for_renewal_ends_the_wait() {
        let object: IdTokenRequest = serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "a", "annotations": {"idtoken.dev/renew": "other"}}, "spec": {"audience": "a"},
        }))
        .unwrap();
        assert!(matches!(progress(&object, STAMP), Progress::Failed(_)));
    }
}
