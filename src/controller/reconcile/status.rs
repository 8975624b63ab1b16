//! Pure: what happened → the status and the event; then the call that writes it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use kube::Resource;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request as ApiRequest;
use kube::core::request::Error as BuildError;
use kube::runtime::events::{Event, EventType};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::api::conditions::{READY, RECONCILING, RENEWAL_FAILING, STALLED, reason};
use crate::api::v1alpha1::{GrantRef, IdTokenRequest, IdTokenRequestStatus, SecretStatus, TokenStatus};
use crate::api::{FIELD_MANAGER, UNOBSERVED};
use crate::controller::Context;
use crate::controller::reconcile::log::Action;
use crate::kubernetes::error::{KubeError, code};
use crate::kubernetes::partial_metadata::{for_metadata, metadata};
use crate::schedule::renewal::Renewal;

/// A refusal that lasts this long is shown as Stalled.
pub const STALLED_AFTER: SignedDuration = SignedDuration::from_mins(10);

/// The source whose tokens have another audience than the spec's.
const DEVELOPER: &str = "Developer";

/// A valid token that matches the spec and is in the Secret: what makes Ready true. Made by the reconciler alone, from a write or from
/// a Secret that is as it was left.
#[derive(Clone, Debug)]
pub struct CurrentToken {
    /// The Secret.
    pub secret: SecretStatus,
    /// The token in it.
    pub token: TokenStatus,
    /// When it is renewed.
    pub renewal: Renewal,
    /// Whether the source gave this very token again when it was asked for another.
    pub unchanged: bool,
}

impl CurrentToken {
    /// When the token ends.
    pub fn expiry(&self) -> Option<Timestamp> {
        self.token.expiration_time.as_ref().map(|time| time.0)
    }
}

/// Why the wanted state was not reached.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Stable reason.
    pub reason: &'static str,
    /// What failed and what to do.
    pub message: String,
    /// Whether only somebody's act will change it.
    pub stalled: bool,
}

/// What a reconcile came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The token that is held, if one is.
    pub held: Option<CurrentToken>,
    /// What failed.
    pub failure: Option<Failure>,
    /// Whether the request is suspended.
    pub suspended: bool,
    /// Name of the source.
    pub source: Option<&'static str>,
    /// The allowing grant.
    pub grant: Option<GrantRef>,
    /// The renewal by annotation that was honoured.
    pub handled_renew: Option<String>,
    /// Whether the Secret under the name in the previous status has yet to be removed.
    pub keep_secret_name: bool,
    /// Whether the attempt was put off: nothing was tried, and nothing failed.
    pub postponed: bool,
    /// Whether nothing was done, since what is cached may be out of date.
    pub behind: bool,
    /// What was done to the Secret.
    pub acted: Option<Action>,
    /// How many attempts in a row have failed, where one was made and failed.
    pub attempts: Option<u32>,
    /// When to look again.
    pub next: Option<Timestamp>,
}

/// Computes the status. Equal to `previous` where nothing changed.
///
/// RenewalFailing, Reconciling and Stalled are absent until they are True for the first time, as kstatus has it for conditions that tell
/// of what is abnormal (<https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md>): each takes a tenth of what a
/// status costs the API server. After that they stay, to tell since when all is well.
pub fn compute(
    previous: &IdTokenRequestStatus,
    generation: i64,
    report: &Report,
    now: Timestamp,
) -> IdTokenRequestStatus {
    let mut next = previous.clone();
    next.observed_generation = Some(generation);
    next.source = report.source.map(str::to_owned).or(next.source);
    next.grant = report.grant.clone();
    if let Some(held) = &report.held {
        if !report.keep_secret_name {
            next.secret = Some(held.secret.clone());
        }
        next.token = Some(held.token.clone());
        next.renewal_time = Some(Time(held.renewal.at));
    } else {
        next.renewal_time = None;
    }
    if let Some(handled) = &report.handled_renew {
        next.last_handled_renew_request = Some(handled.clone());
    }
    let ready = ready(report);
    let had_token = previous.token.is_some();
    let failing = report
        .failure
        .as_ref()
        .filter(|_| had_token || report.held.is_some());
    let conditions = [
        (READY, report.held.is_some(), ready.0, ready.1),
        match failing {
            Some(failure) => (RENEWAL_FAILING, true, failure.reason, failure.message.clone()),
            None if report.held.is_some() => (RENEWAL_FAILING, false, reason::RENEWED, String::new()),
            None => (RENEWAL_FAILING, false, reason::ISSUING, String::new()),
        },
        // A renewal that fails while the token is valid is no unfinished work to those who wait for the request: they read Current.
        match &report.failure {
            Some(failure) if !failure.stalled && report.held.is_none() => (
                RECONCILING,
                true,
                reason::RETRYING,
                "The operator tries again by itself".to_owned(),
            ),
            _ => (RECONCILING, false, reason::RECONCILED, String::new()),
        },
        match report.failure.as_ref().filter(|failure| failure.stalled) {
            Some(failure) => (STALLED, true, failure.reason, failure.message.clone()),
            None => (STALLED, false, reason::RECONCILED, String::new()),
        },
    ];
    next.conditions = conditions
        .into_iter()
        .filter(|(type_, status, ..)| *status || *type_ == READY || previous.condition(type_).is_some())
        .map(|(type_, status, reason, message)| {
            condition(previous, generation, now, type_, status, reason, message)
        })
        .collect();
    next
}

/// Whether `previous` is still true of an attempt that was put off, or says nothing yet: then nothing is written.
pub fn says_still(previous: &IdTokenRequestStatus, generation: i64, report: &Report) -> bool {
    previous.condition(READY).is_none_or(|ready| {
        previous.observed_generation == Some(generation) && (ready.status == "True") == report.held.is_some()
    })
}

fn ready(report: &Report) -> (&'static str, String) {
    match (&report.held, &report.failure) {
        (Some(held), _) => {
            let audience = held.token.audience.as_deref().unwrap_or_default();
            let mut message = format!("Secret {} holds a token for {audience}", held.secret.name);
            if let Some(used) = held.renewal.clamped_to {
                let used = match used < SignedDuration::from_secs(10) {
                    true => used,
                    false => SignedDuration::from_secs(used.as_secs()),
                };
                let text = format!("; spec.renewBefore does not fit the token's lifetime, {used:#} is used");
                message.push_str(&text);
            }
            if held.unchanged {
                message.push_str(
                    "; the metadata server gives the same token again until about 5 minutes before its end",
                );
            }
            (
                if report.suspended {
                    reason::SUSPENDED
                } else {
                    reason::ISSUED
                },
                message,
            )
        }
        (None, Some(failure)) => (failure.reason, failure.message.clone()),
        (None, None) if report.suspended => (
            reason::SUSPENDED,
            "spec.suspend is true and the Secret holds no valid token for this spec".to_owned(),
        ),
        (None, None) => (reason::ISSUING, "A token is being issued".to_owned()),
    }
}

fn condition(
    previous: &IdTokenRequestStatus,
    generation: i64,
    now: Timestamp,
    type_: &str,
    status: bool,
    reason: &str,
    message: String,
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
        message: message.chars().take(4096).collect(),
        observed_generation: Some(generation),
        last_transition_time: since.unwrap_or(Time(now)),
    }
}

/// The event that the change of status deserves: first issue, failure and recovery only.
pub fn event(previous: &IdTokenRequestStatus, next: &IdTokenRequestStatus) -> Option<Event> {
    let failing = |status: &IdTokenRequestStatus| {
        let failing = [RENEWAL_FAILING, RECONCILING, STALLED]
            .iter()
            .any(|type_| status.condition(type_).is_some_and(|c| c.status == "True"));
        let told = status
            .condition(RENEWAL_FAILING)
            .filter(|c| c.status == "True")
            .or_else(|| status.condition(READY));
        failing
            .then(|| told.map(|c| (c.reason.clone(), c.message.clone())))
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
        (Some(_), None) if issued(next) => Some(event_of(
            EventType::Normal,
            "Recovered",
            "The Secret holds a fresh token again",
        )),
        (None, None)
            if previous.token.is_none()
                && next.token.is_some()
                && next.source.as_deref() == Some(DEVELOPER) =>
        {
            let audience = next.token.as_ref().and_then(|token| token.audience.as_deref());
            let note = format!(
                "The Secret holds a developer's token for the audience {}, an OAuth client, whatever spec.audience says: only Cloud \
                 Run and Cloud Functions accept it",
                audience.unwrap_or_default()
            );
            Some(warning(reason::DEVELOPER_TOKEN, &note))
        }
        (None, None) if previous.token.is_none() && next.token.is_some() => Some(event_of(
            EventType::Normal,
            reason::ISSUED,
            "The Secret holds its first token",
        )),
        _ => None,
    }
}

/// An event that something is wrong.
pub fn warning(reason: &str, note: &str) -> Event {
    event_of(EventType::Warning, reason, note)
}

fn event_of(type_: EventType, reason: &str, note: &str) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        // The API server takes 1,024 bytes.
        note: Some(note[..note.floor_char_boundary(1024)].to_owned()),
        action: "Issue".to_owned(),
        secondary: None,
    }
}

/// What is wrong with this machine's clock; `skew` is Google's time less ours.
pub fn clock_skew(skew: SignedDuration) -> String {
    let side = if skew.is_positive() { "behind" } else { "ahead of" };
    format!(
        "the clock of the operator's machine is {:#} {side} Google's: set it right, since tokens are renewed by it",
        SignedDuration::from_secs(skew.abs().as_secs())
    )
}

/// The merge patch (RFC 7396) that turns `old` into `new`; none where they are equal.
pub fn merge_patch(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for (key, value) in new {
                if let Some(change) = merge_patch(old.get(key).unwrap_or(&Value::Null), value) {
                    patch.insert(key.clone(), change);
                }
            }
            patch.extend(
                old.keys()
                    .filter(|key| !new.contains_key(*key))
                    .map(|key| (key.clone(), Value::Null)),
            );
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (old, new) => (old != new).then(|| new.clone()),
    }
}

/// The patch of a status.
#[derive(Serialize)]
struct Change<'a> {
    metadata: Seen<'a>,
    status: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Seen<'a> {
    resource_version: &'a str,
}

/// What is to be written to turn `previous` into `next`; none where both are written alike.
fn change(previous: &IdTokenRequestStatus, next: &IdTokenRequestStatus) -> Option<Value> {
    if previous == next {
        return None;
    }
    let json = |status| serde_json::to_value(status).unwrap_or_default();
    merge_patch(&json(previous), &json(next))
}

/// The whole request as the API server reads it where its status is replaced: of the rest, it takes these alone
/// (<https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#status-subresource>).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct First<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: Named<'a>,
    status: &'a IdTokenRequestStatus,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
    resource_version: &'a str,
}

/// Writes the status where it changed, on the request as of `resource_version`: the API server ignores a UID in a patch of a status,
/// so that one could hit another request of the same name. Returns the request's resourceVersion after the write; none where nothing
/// changed or the request is gone.
///
/// The first one replaces what the API server put there itself, which costs it less than to patch the object; all others are patches,
/// so that the fields of a newer version stay.
///
/// # Errors
/// The request changed meanwhile, or the API server refused or did not answer.
pub async fn write(
    ctx: &Context,
    meta: &ObjectMeta,
    resource_version: &str,
    previous: &IdTokenRequestStatus,
    next: &IdTokenRequestStatus,
) -> Result<Option<String>, KubeError> {
    let [namespace, name, uid] =
        [&meta.namespace, &meta.name, &meta.uid].map(|text| text.as_deref().unwrap_or_default());
    let calls = ApiRequest::new(IdTokenRequest::url_path(&(), Some(namespace)));
    let (verb, call) = if previous.observed_generation == Some(UNOBSERVED) {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        let metadata = Named {
            namespace,
            name,
            uid,
            resource_version,
        };
        let body = serde_json::to_vec(&First {
            api_version: &IdTokenRequest::api_version(&()),
            kind: &IdTokenRequest::kind(&()),
            metadata,
            status: next,
        });
        let call = body
            .map_err(BuildError::SerializeBody)
            .and_then(|body| calls.replace_subresource("status", name, &params, body));
        ("update", call)
    } else {
        let Some(status) = change(previous, next) else {
            return Ok(None);
        };
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(Change {
            metadata: Seen { resource_version },
            status,
        });
        ("patch", calls.patch_subresource("status", name, &params, &patch))
    };
    let fault = |error: &kube::Error| KubeError::new(verb, "idtokenrequests/status", namespace, error);
    let mut call = call.map_err(|error| fault(&kube::Error::BuildRequest(error)))?;
    for_metadata(&mut call);
    match ctx.client.request_text(call).await {
        Ok(json) => match metadata(&json) {
            Ok(written) => Ok(written.resource_version),
            Err(error) => Err(fault(&kube::Error::SerdeError(error))),
        },
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(fault(&error)),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
