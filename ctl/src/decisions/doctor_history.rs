//! Pure: the statuses of requests → when the last token was issued, and when the last request began to fail. The metrics have counts and no times.

use idtoken_operator::api::conditions::{READY, RENEWAL_FAILING};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use jiff::Timestamp;
use kube::ResourceExt;

use crate::decisions::checkup::{Check, Seen};
use crate::output::age::age;

/// The check of the times of the last mint and of the last failure; none without requests.
pub(crate) fn check(requests: &Seen<(Vec<IdTokenRequest>, usize)>, now: Timestamp) -> Option<Check> {
    const AREA: &str = "tokens";
    let requests = &requests.as_ref().ok().filter(|(all, _)| !all.is_empty())?.0;
    let name = |request: &IdTokenRequest| {
        format!(
            "{}/{}",
            request.namespace().unwrap_or_default(),
            request.name_any()
        )
    };
    let ago = |time: Timestamp| format!("{} ago", age(now.duration_since(time)));
    let issued = requests
        .iter()
        .filter_map(|request| Some((issue_time(request)?, request)))
        .max_by_key(|(time, _)| *time);
    let failed = requests
        .iter()
        .filter_map(|request| Some((failure(request)?, request)))
        .max_by_key(|((time, _), _)| *time);
    let issued = match issued {
        Some((time, request)) => format!("the last was issued {}, for {}", ago(time), name(request)),
        None => "no request has one yet".to_owned(),
    };
    let failed = match failed {
        Some(((time, reason), request)) => {
            format!(
                "the last to begin failing is {}, {}: {reason}",
                name(request),
                ago(time)
            )
        }
        None => "no request fails".to_owned(),
    };
    Some(Check::ok(AREA, format!("{issued}; {failed}")))
}

fn issue_time(request: &IdTokenRequest) -> Option<Timestamp> {
    Some(request.status.as_ref()?.token.as_ref()?.issue_time.as_ref()?.0)
}

/// Since when a request fails, and its reason.
fn failure(request: &IdTokenRequest) -> Option<(Timestamp, String)> {
    if request.spec.suspend.unwrap_or(false) {
        return None;
    }
    let status = request.status.as_ref()?;
    let failing = status
        .condition(RENEWAL_FAILING)
        .filter(|condition| condition.status == "True")
        .or_else(|| {
            status
                .condition(READY)
                .filter(|condition| condition.status == "False")
        })?;
    Some((failing.last_transition_time.0, failing.reason.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(name: &str, suspend: bool, issued: Option<&str>, conditions: &Value) -> IdTokenRequest {
        serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"audience": "a", "serviceAccount": "1", "suspend": suspend},
            "status": {"token": {"issueTime": issued}, "conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn the_last_mint_and_the_last_failure_have_their_times() {
        let now = "2026-01-15T12:00:00Z".parse().unwrap();
        let condition = |type_: &str, status: &str, reason: &str, at: &str| json!([{"type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": at}]);
        let all = vec![
            request("old", false, Some("2026-01-15T10:00:00Z"), &json!([])),
            request(
                "new",
                false,
                Some("2026-01-15T11:55:00Z"),
                &condition("RenewalFailing", "True", "QuotaExceeded", "2026-01-15T11:00:00Z"),
            ),
            request(
                "locked",
                false,
                None,
                &condition("Ready", "False", "PermissionDenied", "2026-01-15T11:58:00Z"),
            ),
            request(
                "asleep",
                true,
                None,
                &condition("Ready", "False", "Suspended", "2026-01-15T11:59:00Z"),
            ),
        ];
        let told = |requests: Vec<IdTokenRequest>| check(&Ok((requests, 0)), now).map(|check| check.message);
        assert_eq!(
            told(all.clone()).unwrap(),
            "the last was issued 5m ago, for shop/new; the last to begin failing is shop/locked, 2m ago: PermissionDenied"
        );
        assert_eq!(
            told(all[..2].to_vec()).unwrap(),
            "the last was issued 5m ago, for shop/new; the last to begin failing is shop/new, 1h ago: QuotaExceeded"
        );
        assert_eq!(
            told(all[3..].to_vec()).unwrap(),
            "no request has one yet; no request fails"
        );
        assert_eq!(told(Vec::new()), None);
        assert_eq!(check(&Err("you may not".to_owned()), now), None);
    }
}
