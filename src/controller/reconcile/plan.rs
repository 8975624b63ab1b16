//! Pure: (request, its Secret as observed, facts, now) → what to do. Every rule of a reconcile is here.

use jiff::{SignedDuration, Timestamp};

use crate::controller::cache::Standing;
use crate::controller::cache::request_state::HonouredRenewal;
use crate::controller::issue::IssueCause;
use crate::controller::issue::observation::{Integrity, Observation};
use crate::grants::policy::Denied;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::request::ValidRequest;
use crate::schedule::backoff::Backoff;
use crate::schedule::renewal::{Renewal, next_renewal, renewal};
use crate::token::MAX_LIFETIME;

/// What decides besides the request, its Secret and the time.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What the cache says of the request.
    pub standing: Standing,
    /// The other request that has the Secret, if one comes before this one.
    pub winning_claimant: Option<String>,
    /// Why no grant allows the request.
    pub denied: Option<Denied>,
    /// Failures in a row, if waiting after them still makes sense.
    pub backoff: Option<Backoff>,
    /// The resourceVersion of the Secret that the status records.
    pub recorded_version: Option<String>,
    /// Whether the digest of the last written token is known. A status of an older version lacks it.
    pub has_digest: bool,
    /// The last renewal by annotation that was handled.
    pub handled_renew: Option<String>,
    /// When the renewal is due that the annotation asks for, if it was not handled yet.
    pub requested_at: Option<Timestamp>,
    /// What moves a renewal.
    pub timing: Timing,
    /// Whether the last failure needs a user, who may have acted on the Secret unseen by the watch.
    pub awaits_user: bool,
    /// Whether the last failure was another client's Secret under the target's name.
    pub was_conflicting: bool,
    /// Whether another leader may have written the Secret since the cache saw it.
    pub needs_read: bool,
    /// Whether the cache lacks the Secret for want of memory, so that it may exist.
    pub may_lack_secret: bool,
}

impl Facts {
    /// The facts once the Secret was read and may be written. If it conflicted, it was handed over or is gone: that failure is no reason to
    /// wait any longer.
    pub fn after_read(self, standing: Standing) -> Self {
        Self {
            // The relist that was in progress when the facts were gathered may have shown an older status since, as after a restore of etcd.
            standing: match (self.standing, standing) {
                (Standing::Relisting, Standing::Current) => Standing::Relisting,
                (_, standing) => standing,
            },
            backoff: self.backoff.filter(|_| !self.was_conflicting),
            ..self
        }
    }
}

/// What moves the renewal of a token, beside its times and the spec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Until when the source returns the same token, as far as is known.
    pub source_repeats_until: Option<Timestamp>,
    /// When this process last issued the token, by this machine's clock.
    pub issued_at: Option<Timestamp>,
    /// When the renewal is honoured that the annotation asks for, if it is deferred.
    pub deferred_until: Option<Timestamp>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan<'f> {
    /// Nothing: the Secret is as it should be until the renewal.
    Keep(Renewal),
    /// Read the Secret. Never the plan for a Secret that was just read.
    Read,
    /// Write the token that the Secret holds again.
    Repair,
    /// Get a new token.
    Issue(IssueCause),
    /// Wait until the next attempt is due.
    BackOff(&'f Backoff),
    /// Write nothing, not even a token that is there already.
    Denied(&'f Denied),
    /// Write nothing: the named request has the Secret.
    Conflict(&'f str),
    /// Nothing is issued while the request is suspended.
    Suspended,
    /// Nothing now: what is cached may be stale.
    Requeue,
    /// Nothing at all: the request is gone.
    Gone,
}

/// Decides what to do.
pub fn decide<'f>(
    request: &ValidRequest,
    observation: &Observation,
    facts: &'f Facts,
    now: Timestamp,
) -> Plan<'f> {
    if facts.standing == Standing::Gone {
        return Plan::Gone;
    }
    if let Some(winner) = &facts.winning_claimant {
        return Plan::Conflict(winner);
    }
    let secret = observation.secret();
    let is_unread = !observation.is_read();
    if is_unread && facts.may_lack_secret {
        return Plan::Read;
    }
    let is_untouched =
        secret.is_some_and(|secret| facts.recorded_version.as_ref() == Some(&secret.resource_version));
    if request.suspend {
        return match is_unread && secret.is_some() && !is_untouched {
            true => Plan::Read,
            false => Plan::Suspended,
        };
    }
    // The status records a Secret that the watch does not show: it was deleted, or only its label was removed, which needs no new token.
    let has_vanished = facts.recorded_version.is_some() && secret.is_none();
    if is_unread && (facts.awaits_user || has_vanished) {
        return Plan::Read;
    }
    // An older version trusted what the Secret said of its token. A Secret with times that no token of Google's has is read again.
    if is_unread && !facts.has_digest && secret.is_some_and(|secret| lives_too_long(secret, now)) {
        return Plan::Read;
    }
    let backoff = facts.backoff.as_ref().filter(|backoff| backoff.next > now);
    // The hash covers the UID: a recreated request owns the Secret again.
    let is_outdated_rendering =
        secret.is_some_and(|secret| secret.render_hash.as_ref() != Some(&request.render_hash));
    let cause = match issue_cause(request, observation, facts, now) {
        Ok(renewal) => match observation.integrity() {
            None if is_outdated_rendering || !is_untouched => return Plan::Read,
            Some(Integrity::Drifted) => None,
            _ => return facts.denied.as_ref().map_or(Plan::Keep(renewal), Plan::Denied),
        },
        Err(cause) => {
            // A Secret that another client changed is read first: what it holds decides Ready while the attempt fails or waits.
            if is_unread && secret.is_some() && !is_untouched {
                return Plan::Read;
            }
            Some(cause)
        }
    };
    if let Some(denied) = &facts.denied {
        return Plan::Denied(denied);
    }
    if let Some(backoff) = backoff {
        return Plan::BackOff(backoff);
    }
    // More than the token changes: only the Secret itself shows which fields were ours and are no longer wanted.
    if is_unread && secret.is_some() && is_outdated_rendering {
        return Plan::Read;
    }
    if is_unread && cause.is_some() && facts.needs_read {
        return Plan::Read;
    }
    // A due renewal is safe during a relist. Any other difference may come from the relist itself, which may have shown only the request or
    // only its Secret, as after a restore of etcd.
    let is_certain = matches!(
        cause,
        Some(IssueCause::Expired | IssueCause::Requested | IssueCause::Due)
    );
    match facts.standing {
        Standing::Gone | Standing::Outdated => Plan::Requeue,
        Standing::Relisting if !is_certain => Plan::Requeue,
        Standing::Relisting | Standing::Current => cause.map_or(Plan::Repair, Plan::Issue),
    }
}

/// Whether a Secret claims to hold a token that is valid for longer than any of Google's.
fn lives_too_long(secret: &SecretSummary, now: Timestamp) -> bool {
    let times = secret.issued_at.zip(secret.expires_at);
    times.is_some_and(|(issued, expires)| expires.duration_since(issued.min(now)) > MAX_LIFETIME)
}

/// Why a new token is needed, or when the token that is there is renewed.
fn issue_cause(
    request: &ValidRequest,
    observation: &Observation,
    facts: &Facts,
    now: Timestamp,
) -> Result<Renewal, IssueCause> {
    let Some(secret) = observation.secret() else {
        return Err(IssueCause::Missing);
    };
    if secret.token_hash.as_ref() != Some(&request.token_hash) {
        return Err(IssueCause::Changed);
    }
    let (Some(issued), Some(expires)) = (secret.issued_at, secret.expires_at) else {
        return Err(IssueCause::Damaged);
    };
    if observation.integrity() == Some(Integrity::Damaged) {
        return Err(IssueCause::Damaged);
    }
    if expires <= now {
        return Err(IssueCause::Expired);
    }
    if facts.requested_at.is_some_and(|at| at <= now) {
        return Err(IssueCause::Requested);
    }
    let renewal = due_renewal(request, facts.timing, issued, expires);
    match renewal.at <= now {
        true => Err(IssueCause::Due),
        false => Ok(renewal),
    }
}

/// When the renewal is due that the annotation requests; none if it requests none, or one that was handled. The next value is honoured
/// `interval` after the one before, so that a client that annotates in a loop gets no token for each value.
pub fn requested_at(
    request: &ValidRequest,
    handled: Option<&str>,
    honoured: Option<&HonouredRenewal>,
    interval: SignedDuration,
    now: Timestamp,
) -> Option<Timestamp> {
    let wanted = request.renew_request.as_deref()?;
    if handled == Some(wanted) {
        return None;
    }
    let another = honoured.filter(|honoured| *honoured.value != *wanted);
    Some(next_renewal(another.map(|honoured| honoured.at), interval, now))
}

/// When to renew the token with these times: when the annotation asks for it, else never before the source can return a different token, and
/// not within the first tenth of the remaining lifetime. The latter prevents a renewal loop when this machine's clock runs far ahead of
/// Google's.
pub fn due_renewal(request: &ValidRequest, timing: Timing, issued: Timestamp, expires: Timestamp) -> Renewal {
    let renewal = renewal(issued, expires, request.renew_before, &request.uid);
    let pause = |at: Timestamp| at.checked_add(expires.duration_since(at) / 10).ok();
    let earliest = timing.source_repeats_until.max(timing.issued_at.and_then(pause));
    let at = earliest.map_or(renewal.at, |earliest| earliest.max(renewal.at).min(expires));
    Renewal {
        at: timing.deferred_until.map_or(at, |deferred| deferred.min(at)),
        ..renewal
    }
}

/// Whether the Secret is as the operator left it, so that the status and the hashes on it are true of its data.
pub fn is_whole(observation: &Observation, facts: &Facts) -> bool {
    let is_recorded =
        |secret: &SecretSummary| facts.recorded_version.as_ref() == Some(&secret.resource_version);
    match observation.integrity() {
        Some(integrity) => integrity == Integrity::Intact,
        None => observation.secret().is_some_and(is_recorded),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
