//! Pure: a status before and after → the event.

use kube::runtime::events::Event;

use crate::api::conditions::{READY, RECONCILING, RENEWAL_FAILING, STALLED, reason};
use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::kubernetes::events::{normal, warning};

/// The source whose tokens have another audience than the spec's.
const DEVELOPER: &str = "Developer";

/// The event that the change of a status deserves: first issue, failure and recovery only.
pub(crate) fn between(previous: &IdTokenRequestStatus, next: &IdTokenRequestStatus) -> Option<Event> {
    let failing = |status: &IdTokenRequestStatus| {
        let failing = [RENEWAL_FAILING, RECONCILING, STALLED]
            .iter()
            .any(|type_| status.condition(type_).is_some_and(|c| c.status == "True"));
        let reported = status
            .condition(RENEWAL_FAILING)
            .filter(|c| c.status == "True")
            .or_else(|| status.condition(READY));
        failing
            .then(|| reported.map(|c| (c.reason.clone(), c.message.clone())))
            .flatten()
    };
    let issued = |status: &IdTokenRequestStatus| {
        let ready = status.condition(READY);
        ready.is_some_and(|c| c.status == "True" && c.reason == reason::ISSUED)
    };
    match (failing(previous), failing(next)) {
        (before, Some((reason, message))) if before.as_ref().is_none_or(|(old, _)| *old != reason) => {
            Some(warning(&reason, &message))
        }
        (Some(_), None) if issued(next) => Some(normal("Recovered", "The Secret holds a fresh token again")),
        (None, None)
            if previous.token.is_none()
                && next.token.is_some()
                && next.source.as_deref() == Some(DEVELOPER) =>
        {
            let audience = next.token.as_ref().and_then(|token| token.audience.as_deref());
            let note = format!(
                "The Secret holds a developer's token for the audience {}, an OAuth client, whatever spec.audience says: only Cloud \
                 Run and Cloud Functions may accept it",
                audience.unwrap_or_default()
            );
            Some(warning(reason::DEVELOPER_TOKEN, &note))
        }
        (None, None) if previous.token.is_none() && next.token.is_some() => {
            Some(normal(reason::ISSUED, "The Secret holds its first token"))
        }
        _ => None,
    }
}
