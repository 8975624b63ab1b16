//! Pure: the outcome of a reconcile → the status.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::outcome::{CurrentToken, Outcome, Reconciled, STALLED_AFTER};
use crate::api::conditions::{READY, RECONCILING, RENEWAL_FAILING, STALLED, reason};
use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::text::printable;

/// The longest message of a condition, in characters.
const MAX_MESSAGE: usize = 4096;

/// The next status. Equal to `previous` if nothing changed.
///
/// RenewalFailing, Reconciling and Stalled are absent until they are True for the first time, as kstatus has it for conditions that report
/// what is abnormal (<https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md>): each costs the API server a tenth
/// of what a status costs it. After that they stay, to show since when all is well.
pub fn next(
    previous: &IdTokenRequestStatus,
    generation: i64,
    reconciled: &Reconciled,
    now: Timestamp,
) -> IdTokenRequestStatus {
    let outcome = &reconciled.outcome;
    let (token, failure) = (outcome.token(), outcome.failure());
    let mut next = previous.clone();
    next.observed_generation = Some(generation);
    next.source = reconciled.source.map(str::to_owned).or(next.source);
    next.grant.clone_from(&reconciled.grant);
    next.renewal_time = token.map(|token| Time(token.renewal.at));
    if let Some(token) = token {
        if !failure.is_some_and(|failure| failure.old_secret_remains) {
            next.secret = Some(token.secret.clone());
        }
        next.token = Some(token.token.clone());
    }
    if let Some(handled) = &reconciled.handled_renew {
        next.last_handled_renew_request = Some(handled.clone());
    }
    let (ready, message) = ready(outcome);
    let had_token = previous.token.is_some();
    let failing = failure.filter(|_| had_token || token.is_some());
    let conditions = [
        (READY, token.is_some(), ready, message),
        match failing {
            Some(failure) => (RENEWAL_FAILING, true, failure.reason, failure.message.clone()),
            None if token.is_some() => (RENEWAL_FAILING, false, reason::RENEWED, String::new()),
            None => (RENEWAL_FAILING, false, reason::ISSUING, String::new()),
        },
        // A renewal that fails while the token is valid is not in progress for those who wait for the request: they read Current.
        match failure {
            Some(failure) if !failure.stalled && token.is_none() => (
                RECONCILING,
                true,
                reason::RETRYING,
                "The operator retries automatically".to_owned(),
            ),
            _ => (RECONCILING, false, reason::RECONCILED, String::new()),
        },
        match failure.filter(|failure| failure.stalled) {
            Some(failure) => (STALLED, true, failure.reason, failure.message.clone()),
            None => (STALLED, false, reason::RECONCILED, String::new()),
        },
    ];
    next.conditions = conditions
        .into_iter()
        .filter(|(type_, status, ..)| *status || *type_ == READY || previous.condition(type_).is_some())
        .map(|(type_, status, reason, message)| {
            condition(previous, generation, now, type_, status, reason, &message)
        })
        .collect();
    next
}

/// Whether `previous` is still accurate after a deferred attempt, or says nothing yet: then nothing is written.
pub fn still_accurate(previous: &IdTokenRequestStatus, generation: i64, outcome: &Outcome) -> bool {
    previous.condition(READY).is_none_or(|ready| {
        previous.observed_generation == Some(generation)
            && (ready.status == "True") == outcome.token().is_some()
    })
}

/// Since when `status` has reported `reason` for this generation, as far as it shows. A restarted process goes on counting. None if it reports another reason now.
pub fn reported_since(status: &IdTokenRequestStatus, reason: &str, generation: i64) -> Option<Timestamp> {
    let is = |type_, wanted: &str| {
        status
            .condition(type_)
            .filter(|condition| condition.status == wanted)
    };
    let failing = is(RENEWAL_FAILING, "True");
    let reported = failing.or_else(|| is(READY, "False"))?;
    if reported.reason != reason || reported.observed_generation != Some(generation) {
        return None;
    }
    let began = failing.or_else(|| is(RECONCILING, "True"));
    let stalled = is(STALLED, "True")
        .and_then(|stalled| stalled.last_transition_time.0.checked_sub(STALLED_AFTER).ok());
    began
        .map(|condition| condition.last_transition_time.0)
        .into_iter()
        .chain(stalled)
        .min()
}

/// Reason and message of Ready.
fn ready(outcome: &Outcome) -> (&'static str, String) {
    match (outcome, outcome.token()) {
        (Outcome::Suspended(_), Some(token)) => (reason::SUSPENDED, holds(token)),
        (_, Some(token)) => (reason::ISSUED, holds(token)),
        (Outcome::Denied(failure) | Outcome::Waiting(failure) | Outcome::Failed(failure, _), None) => {
            (failure.reason, failure.message.clone())
        }
        (Outcome::Suspended(_), None) => (
            reason::SUSPENDED,
            "spec.suspend is true and the Secret holds no valid token for this spec".to_owned(),
        ),
        (_, None) => (reason::ISSUING, "A token is being issued".to_owned()),
    }
}

/// Which token the Secret holds.
fn holds(token: &CurrentToken) -> String {
    let audience = token.token.audience.as_deref().unwrap_or_default();
    let mut message = format!("Secret {} holds a token for {audience}", token.secret.name);
    if let Some(used) = token.renewal.clamped_to {
        let used = match used < SignedDuration::from_secs(10) {
            true => used,
            false => SignedDuration::from_secs(used.as_secs()),
        };
        let text = format!("; spec.renewBefore does not fit the token's lifetime, {used:#} is used");
        message.push_str(&text);
    }
    if token.unchanged {
        message
            .push_str("; the metadata server returns the same token until about 5 minutes before it expires");
    }
    message
}

fn condition(
    previous: &IdTokenRequestStatus,
    generation: i64,
    now: Timestamp,
    type_: &str,
    status: bool,
    reason: &str,
    message: &str,
) -> Condition {
    let status = if status { "True" } else { "False" };
    let since = previous
        .condition(type_)
        .filter(|condition| condition.status == status)
        .map(|condition| condition.last_transition_time.clone());
    // The API server keeps whole seconds: a finer time would read back different.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: printable(message, MAX_MESSAGE - 1),
        observed_generation: Some(generation),
        last_transition_time: since.unwrap_or(Time(now)),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
