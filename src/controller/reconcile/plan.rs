//! Pure: (ValidRequest, what was observed, now) → what to do.

use jiff::Timestamp;

use crate::api::annotations;
use crate::controller::cache::{Backoff, SecretSummary};
use crate::grants::policy::Denied;
use crate::request::ValidRequest;
use crate::schedule::renewal as schedule;

/// What was seen of the target Secret.
#[derive(Debug, Default)]
pub struct Observation {
    /// The Secret, if there is one that carries our label or was read. After a read its times are those of the token in it, where that
    /// is the one that was written: what somebody made of the annotations is no reason for a new token.
    pub secret: Option<SecretSummary>,
    /// What reading it showed; none where it was not read.
    pub content: Option<Integrity>,
    /// The resourceVersion that status recorded for it.
    pub recorded: Option<String>,
    /// The last renewal by annotation that status recorded.
    pub handled_renew: Option<String>,
    /// Until when the source gives the same token again, as far as is known.
    pub unchanged_until: Option<Timestamp>,
    /// When this process issued the token last, by this machine's clock.
    pub issued_at: Option<Timestamp>,
}

/// What a Secret's data showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// The token is not the one that was written, or is none.
    Damaged,
    /// The token is as written, something else of ours is not.
    Drifted,
    /// All of ours is as written.
    Intact,
}

/// Why a token is minted; a log line's field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssueCause {
    /// There is no Secret.
    Missing,
    /// The spec asks for another token.
    Changed,
    /// The Secret's token was replaced.
    Damaged,
    /// The token has expired.
    Expired,
    /// The annotation asks for it.
    Requested,
    /// The renewal is due.
    Due,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: the Secret is as it should be until then.
    Keep {
        /// When to look again.
        until: Timestamp,
    },
    /// Read the Secret: it is not as we left it.
    Read,
    /// Write the token that the Secret holds anew.
    Repair,
    /// Get a new token.
    Issue(IssueCause),
    /// A new token is needed, and the last failure says when to try.
    BackOff {
        /// When the next attempt is due.
        until: Timestamp,
    },
    /// A new token is needed and not allowed.
    Denied(Denied),
    /// Nothing is issued while the request is suspended.
    Suspended,
}

/// Decides what to do.
pub fn decide(
    request: &ValidRequest,
    observed: &Observation,
    denied: Option<&Denied>,
    retry: Option<&Backoff>,
    now: Timestamp,
) -> Plan {
    if request.suspend {
        return Plan::Suspended;
    }
    let kept = observed
        .secret
        .as_ref()
        .and_then(|secret| Some((secret, secret.issued?, secret.expires?)));
    let untouched = observed
        .secret
        .as_ref()
        .is_some_and(|secret| observed.recorded.as_ref() == Some(&secret.resource_version));
    let cause = match (&observed.secret, kept) {
        (None, _) => Some(IssueCause::Missing),
        (Some(secret), _) if secret.token_hash.as_ref() != Some(&request.token_hash) => {
            Some(IssueCause::Changed)
        }
        (Some(_), None) => Some(IssueCause::Damaged),
        (Some(_), Some(_)) if observed.content == Some(Integrity::Damaged) => Some(IssueCause::Damaged),
        (Some(_), Some((_, _, expires))) if expires <= now => Some(IssueCause::Expired),
        (Some(_), Some(_))
            if request.renew_request.is_some() && request.renew_request != observed.handled_renew =>
        {
            Some(IssueCause::Requested)
        }
        (Some(_), Some((_, issued, expires))) => {
            (due(request, observed, issued, expires).at <= now).then_some(IssueCause::Due)
        }
    };
    let stale = observed.secret.as_ref().is_some_and(|secret| {
        secret.render_hash.as_ref() != Some(&request.render_hash)
            || secret.request_uid.as_ref() != Some(&request.uid)
    });
    if let Some(cause) = cause {
        let unread = observed.secret.is_some() && observed.content.is_none();
        return match (denied, retry) {
            // A Secret that was changed behind our back is read first: what it holds decides Ready while the attempt fails or waits.
            _ if unread && !untouched => Plan::Read,
            (Some(denied), _) => Plan::Denied(denied.clone()),
            (None, Some(retry)) if retry.next > now => Plan::BackOff { until: retry.next },
            // More than the token is to change: what was ours and is not wanted any more can be told from the Secret alone.
            (None, _) if unread && stale => Plan::Read,
            (None, _) => Plan::Issue(cause),
        };
    }
    let Some((_, issued, expires)) = kept else {
        return Plan::Issue(IssueCause::Missing);
    };
    match observed.content {
        None if stale || !untouched => Plan::Read,
        Some(Integrity::Drifted) => waiting(retry, now).unwrap_or(Plan::Repair),
        Some(_) if stale => waiting(retry, now).unwrap_or(Plan::Repair),
        _ => Plan::Keep {
            until: due(request, observed, issued, expires).at,
        },
    }
}

fn waiting(retry: Option<&Backoff>, now: Timestamp) -> Option<Plan> {
    retry
        .filter(|retry| retry.next > now)
        .map(|retry| Plan::BackOff { until: retry.next })
}

/// When the token with these times is renewed.
pub fn renewal(request: &ValidRequest, issued: Timestamp, expires: Timestamp) -> schedule::Renewal {
    schedule::renewal(issued, expires, request.renew_before, &request.uid)
}

/// The same, but not before the source may have another token, and not within a tenth of what was left of it when it was issued: where this
/// machine's clock is far ahead of Google's, every token is due when it comes.
pub fn due(
    request: &ValidRequest,
    observed: &Observation,
    issued: Timestamp,
    expires: Timestamp,
) -> schedule::Renewal {
    let renewal = renewal(request, issued, expires);
    let pause = |at: Timestamp| at.checked_add(expires.duration_since(at) / 10).ok();
    let earliest = observed.unchanged_until.max(observed.issued_at.and_then(pause));
    schedule::Renewal {
        at: earliest.map_or(renewal.at, |earliest| earliest.max(renewal.at).min(expires)),
        ..renewal
    }
}

/// Whose a Secret of the target's name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This request's, or one that it may take over.
    Ours,
    /// Somebody else's that is handed over by annotation.
    Adopted,
    /// Somebody else's.
    Foreign {
        /// Whose, and how to hand it over.
        why: String,
    },
}

/// Decides whose the Secret is. `controller` is another controller that owns it; `outranked` says whether a named request is one that
/// `request` comes before.
pub fn ownership(
    request: &ValidRequest,
    secret: &SecretSummary,
    adopt: Option<&str>,
    controller: Option<&str>,
    outranked: impl Fn(&str) -> bool,
) -> Ownership {
    let named = secret.request.as_deref();
    // Without its label it is still ours: somebody took the label away, and the watch lost sight of it.
    if secret.request_uid.as_ref() == Some(&request.uid) || (secret.managed && named == Some(&request.name)) {
        return Ownership::Ours;
    }
    if secret.managed && named.is_some_and(&outranked) {
        return Ownership::Ours;
    }
    if let Some(controller) = controller {
        return Ownership::Foreign {
            why: format!("belongs to {controller}; choose another spec.target.name"),
        };
    }
    if adopt == Some(request.name.as_str()) {
        return Ownership::Adopted;
    }
    let whose = match named.filter(|_| secret.managed) {
        Some(named) => format!("belongs to IdTokenRequest {named}"),
        None => "was not written by the operator".to_owned(),
    };
    Ownership::Foreign {
        why: format!(
            "{whose}; choose another spec.target.name, delete it, or hand it over: kubectl annotate secret {} -n {} {}={}",
            request.target.name,
            request.namespace,
            annotations::ADOPT,
            request.name
        ),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
