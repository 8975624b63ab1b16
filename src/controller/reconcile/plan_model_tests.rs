//! A model of the world around the pure phases: a clock, one Secret as the API server would keep it, Google in three moods, and an
//! operator that forgets on restart. Whatever happens in it, the promises hold.

#[path = "plan_model_events.rs"]
mod acts;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use acts::{Action, Upstream, act};

use crate::api::annotations as notes;
use crate::api::conditions::reason;
use crate::controller::issue::observation::{Expectations, ReadSecret};
use crate::controller::reconcile::outcome::{Failure, STALLED_AFTER};
use crate::fixtures::{apply, content, object, stored, token};
use crate::render::render;
use crate::request::validate;
use crate::schedule::backoff::FailedAttempt;
use crate::token::IdToken;

#[derive(Debug)]
struct World {
    /// By this machine's clock, which is ahead of Google's by `ahead`.
    now: Timestamp,
    ahead: SignedDuration,
    issued_at: Option<Timestamp>,
    honoured: Option<HonouredRenewal>,
    version: u64,
    /// How often the request was created.
    created: u64,
    spec: Value,
    renew: Option<String>,
    generation: i64,
    secret: Option<Value>,
    /// The token that was written last, and the hash of what it was minted for.
    written: Option<(IdToken, String)>,
    recorded: Option<String>,
    /// Digest of the token that was written last: as the status has it, and as the process remembers it until then.
    digest: Option<String>,
    unrecorded: Option<String>,
    handled: Option<String>,
    retry: Option<Backoff>,
    upstream: Upstream,
    granted: bool,
    status_lost: bool,
    rival: bool,
    foreign: bool,
    lacking: bool,
    /// When the token expires that the source is said to return again, and until when.
    repeats: Option<(Timestamp, Timestamp)>,
    standing: Standing,
    /// The Secret as the watch showed it, while another leader has written it since.
    behind: Option<Option<Value>>,
    next: Option<Timestamp>,
    /// Since when no grant allows this generation of the request.
    denied: Option<(i64, Timestamp)>,
    mints: usize,
}

/// Why an attempt failed.
enum Failed {
    /// By what the source answered.
    Upstream(Upstream),
    /// Another client has the Secret.
    Conflict,
}

/// What the Secret holds in truth, whatever its annotations say.
fn truth<'a>(
    secret: Option<&Value>,
    written: Option<&'a (IdToken, String)>,
) -> Option<&'a (IdToken, String)> {
    let data = content(secret?).data;
    let (token, _) = written?;
    data.values()
        .any(|value| value.as_slice() == token.expose().as_bytes())
        .then_some(written?)
}

impl World {
    fn new() -> Self {
        Self {
            now: at(T0),
            ahead: SignedDuration::ZERO,
            issued_at: None,
            honoured: None,
            version: 1,
            created: 1,
            spec: json!({}),
            renew: None,
            generation: 1,
            secret: None,
            written: None,
            recorded: None,
            digest: None,
            unrecorded: None,
            handled: None,
            retry: None,
            upstream: Upstream::Ok,
            granted: true,
            status_lost: false,
            rival: false,
            foreign: false,
            lacking: false,
            repeats: None,
            standing: Standing::Current,
            behind: None,
            next: None,
            denied: None,
            mints: 0,
        }
    }

    fn request(&self) -> Option<ValidRequest> {
        let mut object = object(self.spec.clone());
        object.metadata.generation = Some(self.generation);
        object.metadata.uid = Some(format!("uid-{}", self.created));
        if let Some(renew) = &self.renew {
            object
                .metadata
                .annotations
                .get_or_insert_default()
                .insert(notes::RENEW.into(), renew.clone());
        }
        validate(&object).ok()
    }

    fn store(&mut self, mut secret: Value) {
        self.version += 1;
        stored(&mut secret, self.version);
        self.secret = Some(secret);
    }

    fn act(&mut self, act: Action) -> Result<(), TestCaseError> {
        match act {
            Action::Spec(patch) => {
                let before = self.spec.clone();
                apply(&mut self.spec, &patch);
                self.generation += i64::from(self.spec != before);
            }
            Action::Renew(value) => self.renew = Some(value.to_string()),
            Action::Secret(patch) => {
                if let Some(mut secret) = self.secret.take() {
                    // A key of that name which is not ours would be theirs to keep.
                    let key = ["token", "header"]
                        .into_iter()
                        .find(|key| patch["data"].get(key).is_some());
                    if key.is_none_or(|key| secret["data"].get(key).is_some()) {
                        apply(&mut secret, &patch);
                    }
                    self.store(secret);
                }
                // A watch shows changes in their order.
                self.behind = None;
            }
            Action::Delete => (self.secret, self.behind) = (None, None),
            Action::Foreign(foreign) => {
                if foreign {
                    (self.secret, self.behind) = (None, None);
                }
                self.foreign = foreign;
            }
            Action::Lacking(lacking) => self.lacking = lacking,
            Action::Upstream(upstream) => self.upstream = upstream,
            Action::Restart => self.forget(),
            Action::Recreate { with_status } => {
                self.created += 1;
                self.forget();
                if !with_status {
                    (self.recorded, self.digest, self.handled, self.denied) = (None, None, None, None);
                }
            }
            Action::OlderVersion => self.lead_as_older_version(),
            Action::Repeats(seconds) => {
                let held = truth(self.secret.as_ref(), self.written.as_ref());
                let until = self.now + SignedDuration::from_secs(seconds);
                self.repeats = held.map(|(token, _)| (token.claims().exp, until));
            }
            Action::Clock(seconds) => {
                let ahead = SignedDuration::from_secs(seconds);
                let step = ahead - self.ahead;
                self.ahead = ahead;
                self.now += step;
                // Timers follow no clock; the step itself is what wakes the operator.
                self.next = self.next.map(|next| next + step);
            }
            Action::Grant(granted) => {
                self.granted = granted;
                self.denied = self.denied.filter(|_| !granted);
            }
            Action::StatusLost => self.status_lost = true,
            Action::Rival(rival) => self.rival = rival,
            Action::Standing(standing) => self.standing = standing,
            Action::OtherLeader => self.lead_elsewhere(),
            Action::Watch => self.behind = None,
            Action::Wait(seconds) => return self.pass(SignedDuration::from_secs(seconds)),
        }
        self.reconcile()
    }

    /// It is Stalled after ten minutes, no sooner and no later, and until then it is reconciled again when that is due.
    fn check_denied(&mut self, denied: &Denied) -> Result<Option<Timestamp>, TestCaseError> {
        let known = self
            .denied
            .filter(|(generation, _)| *generation == self.generation);
        let since = known.map_or(self.now, |(_, since)| since.min(self.now));
        self.denied = Some((self.generation, since));
        let failure = Failure::denied(denied, since, None, self.now);
        let lasts = self.now.duration_since(since);
        prop_assert_eq!(failure.stalled, lasts >= STALLED_AFTER, "denied for {}", lasts);
        prop_assert_eq!(failure.retry_at.is_none(), failure.stalled);
        if let Some(next) = failure.retry_at {
            prop_assert_eq!(next.duration_since(since), STALLED_AFTER);
        }
        Ok(failure.retry_at)
    }

    /// What this process does not know after a restart.
    fn forget(&mut self) {
        self.retry = None;
        self.unrecorded = None;
        self.issued_at = None;
        self.honoured = None;
    }

    /// Of a Secret that is whole otherwise, an older version records also the times that no token has.
    fn lead_as_older_version(&mut self) {
        let read = self.request().map(|request| self.read(&request));
        if read.and_then(|read| read.integrity()) == Some(Integrity::Intact) {
            let mut secret = self.secret.take().unwrap();
            apply(
                &mut secret,
                &json!({"metadata": {"annotations": {(notes::EXPIRES): "2999-01-01T00:00:00Z"}}}),
            );
            self.store(secret);
            self.behind = None;
            self.recorded = Some(self.version.to_string());
        }
        self.forget();
        self.digest = None;
    }

    /// What another leader does with the same rules: it reads the Secret and issues a token for it.
    fn lead_elsewhere(&mut self) {
        let Some(request) = self
            .request()
            .filter(|request| self.granted && !self.rival && !self.foreign && !request.suspend)
        else {
            return;
        };
        let seen = self.behind.take().unwrap_or_else(|| self.secret.clone());
        let token = token(&request, (self.now - self.ahead).as_second());
        let observation = self.read(&request);
        self.write(&request, &token, &observation);
        self.written = Some((token, request.token_hash.clone()));
        self.handled = request.renew_request.clone();
        // This process leads again: what it remembered is gone.
        self.retry = None;
        self.issued_at = None;
        self.behind = Some(seen);
    }

    /// Lets time pass, and reconciles whenever it was asked for.
    fn pass(&mut self, duration: SignedDuration) -> Result<(), TestCaseError> {
        let end = self.now + duration;
        let mut rounds = 0;
        while let Some(next) = self.next.filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.reconcile()?;
            rounds += 1;
            prop_assert!(rounds < 1000, "{rounds} reconciles in {duration}");
            prop_assert!(self.next.is_none_or(|next| next > self.now), "it would spin");
        }
        self.now = end;
        Ok(())
    }

    fn reconcile(&mut self) -> Result<(), TestCaseError> {
        let before = self.secret.clone();
        let minted = self.mints;
        self.next = self.phases()?;
        prop_assert!(self.next.is_none_or(|next| next > self.now), "it would spin");
        if let Some((token, _)) =
            truth(before.as_ref(), self.written.as_ref()).filter(|_| minted == self.mints)
        {
            prop_assert!(
                truth(self.secret.as_ref(), self.written.as_ref()).is_some(),
                "the token until {} was lost",
                token.claims().exp
            );
        }
        Ok(())
    }

    /// What the reconciler does with the pure phases. Returns when to look again.
    fn phases(&mut self) -> Result<Option<Timestamp>, TestCaseError> {
        let Some(request) = self.request() else {
            return Ok(None);
        };
        let denied = (!self.granted).then(denied);
        let failed_by = |what: fn(&Backoff) -> bool| self.retry.as_ref().is_some_and(what);
        let awaits_user = failed_by(|failure| failure.needs_user_action);
        let was_conflicting = failed_by(|failure| failure.reason == reason::SECRET_CONFLICT);
        let basis = BackoffKey {
            generation: self.generation,
            renew: self.renew.clone(),
            grant: self.granted.then(String::new),
        };
        let last = self.honoured.as_ref().map(|honoured| honoured.at);
        let renewal = next_renewal(last, MINUTE, self.now);
        let retry = self.retry.as_ref();
        let retry = retry.and_then(|retry| retry.at(&basis, renewal, self.now));
        let requested_at = requested_at(
            &request,
            self.handled.as_deref(),
            self.honoured.as_ref(),
            MINUTE,
            self.now,
        );
        let mut facts = Facts {
            standing: self.standing,
            winning_claimant: self.rival.then(|| "rival".to_owned()),
            needs_read: self.behind.is_some(),
            denied,
            backoff: retry.clone(),
            recorded_version: self.recorded.clone(),
            has_digest: self.known_digest().is_some(),
            handled_renew: self.handled.clone(),
            timing: Timing {
                source_repeats_until: self.repeated().map(|(_, until)| until),
                issued_at: self.issued_at,
                deferred_until: requested_at.filter(|at| *at > self.now),
            },
            requested_at,
            awaits_user,
            was_conflicting,
            may_lack_secret: self.lacking,
        };
        let cached = match (self.standing, &self.behind) {
            _ if self.lacking => None,
            (Standing::Relisting, _) => None,
            (_, Some(seen)) => seen.as_ref(),
            (_, None) => self.secret.as_ref(),
        };
        let cached = cached.map(|secret| content(secret).summary);
        let mut observation = Observation::Cached(cached.filter(|secret| secret.managed));
        let mut plan = decide(&request, &observation, &facts, self.now);
        if plan == Plan::Read {
            self.behind = None;
            if self.foreign {
                return self.failed(&request, Failed::Conflict, retry, basis).map(Some);
            }
            observation = self.read(&request);
            // A relist may end meanwhile.
            facts = facts.after_read(match self.standing {
                Standing::Relisting => Standing::Current,
                standing => standing,
            });
            plan = decide(&request, &observation, &facts, self.now);
        }
        self.check_observed(&request, &observation, &facts, &plan)?;
        match plan {
            Plan::Read => return Err(TestCaseError::fail("read twice")),
            Plan::Suspended => {
                prop_assert!(request.suspend);
                return Ok(None);
            }
            Plan::Denied(denied) => {
                prop_assert!(!self.granted);
                return self.check_denied(denied);
            }
            Plan::Gone => return Ok(None),
            Plan::Conflict(winner) => {
                prop_assert!(self.rival && winner == "rival");
                return Ok(None);
            }
            Plan::Requeue => {
                prop_assert!(self.standing != Standing::Current, "the cache is synced");
                // It is requeued until the cache is, which is an action here.
                return Ok(None);
            }
            Plan::Keep(renewal) => {
                let until = renewal.at;
                prop_assert!(self.granted);
                self.check_kept(&request, until)?;
                prop_assert!(!self.is_requested(&request), "a requested renewal is due");
                let deferred = self.honoured.as_ref().filter(|_| self.asks(&request));
                prop_assert!(
                    deferred.is_none_or(|honoured| until <= honoured.at + MINUTE),
                    "a requested renewal is lost"
                );
                self.record(observation.secret());
                self.retry = None;
                return Ok(Some(until));
            }
            Plan::BackOff(backoff) => {
                let until = backoff.next;
                prop_assert!(until > self.now);
                prop_assert!(
                    self.foreign || !was_conflicting,
                    "what a user set right is waited for"
                );
                prop_assert_eq!(Some(until), retry.map(|retry| retry.next));
                return Ok(Some(until));
            }
            Plan::Repair => {
                self.check_may_write(&request, &observation, false)?;
                let (token, hash) = self.written.take().unwrap();
                prop_assert_eq!(&hash, &request.token_hash, "another spec's token was kept");
                self.write(&request, &token, &observation);
                self.written = Some((token, hash));
            }
            Plan::Issue(cause) => {
                let is_certain = matches!(
                    cause,
                    IssueCause::Expired | IssueCause::Requested | IssueCause::Due
                );
                self.check_may_write(&request, &observation, is_certain)?;
                self.check_mint(&request, cause)?;
                prop_assert!(
                    !self.foreign || !was_conflicting,
                    "another client's Secret costs a token again"
                );
                let early = facts.backoff.as_ref().filter(|retry| retry.next > self.now);
                prop_assert!(early.is_none(), "tried again before its time");
                if let Some(value) = request
                    .renew_request
                    .as_deref()
                    .filter(|_| requested_at.is_some())
                {
                    self.honoured = honoured(value, self.now.as_second());
                }
                let failed = match self.upstream {
                    Upstream::Ok if self.foreign => {
                        self.mints += 1;
                        Failed::Conflict
                    }
                    Upstream::Ok => {
                        let token = token(&request, (self.now - self.ahead).as_second());
                        let claims = token.claims().clone();
                        self.mints += 1;
                        self.issued_at = Some(self.now);
                        let timing = Timing {
                            issued_at: self.issued_at,
                            deferred_until: None,
                            ..facts.timing
                        };
                        self.write(&request, &token, &observation);
                        self.written = Some((token, request.token_hash.clone()));
                        self.handled = request.renew_request.clone();
                        self.retry = None;
                        return Ok(Some(due_renewal(&request, timing, claims.iat, claims.exp).at));
                    }
                    upstream => Failed::Upstream(upstream),
                };
                return self.failed(&request, failed, facts.backoff, basis).map(Some);
            }
        }
        let times = self.written.as_ref().map(|(token, _)| token.claims());
        Ok(times.map(|claims| due_renewal(&request, facts.timing, claims.iat, claims.exp).at))
    }

    /// Until when the source returns the token again that is there, which expires at the first time.
    fn repeated(&self) -> Option<(Timestamp, Timestamp)> {
        let (token, _) = truth(self.secret.as_ref(), self.written.as_ref())?;
        self.repeats.filter(|(expires, _)| *expires == token.claims().exp)
    }

    /// Whether the annotation asks for a renewal that was not handled.
    fn asks(&self, request: &ValidRequest) -> bool {
        let value = request.renew_request.as_deref();
        value.is_some() && value != self.handled.as_deref()
    }

    /// Whether it does, and another value was honoured no less than a minute ago.
    fn is_requested(&self, request: &ValidRequest) -> bool {
        let value = request.renew_request.as_deref();
        let is_early = self.honoured.as_ref().is_some_and(|honoured| {
            value != Some(&*honoured.value)
                && honoured.at <= self.now
                && self.now.duration_since(honoured.at) < MINUTE
        });
        self.asks(request) && !is_early
    }

    fn known_digest(&self) -> Option<&str> {
        self.unrecorded.as_deref().or(self.digest.as_deref())
    }

    fn read(&self, request: &ValidRequest) -> Observation {
        let read = |secret| {
            let expectations = Expectations {
                digest: self.known_digest(),
                ..Expectations::default()
            };
            let read = ReadSecret::compare(content(secret), request, &expectations, self.now);
            Box::new(read.unwrap())
        };
        Observation::Read(self.secret.as_ref().map(read))
    }

    fn write(&mut self, request: &ValidRequest, token: &IdToken, observation: &Observation) {
        let rendered = render(request, token).unwrap();
        let secret = match self.secret.take() {
            None => json!(rendered.create("shop", "billing")),
            Some(mut secret) => {
                let seen = content(&secret);
                let patch = match (observation.secret(), observation.integrity()) {
                    (Some(_), None) => {
                        json!(rendered.token_patch(&seen.summary.uid, &seen.summary.resource_version))
                    }
                    // A creation fails where there is a Secret, which is read then.
                    _ => rendered.full_patch(&seen, false),
                };
                apply(&mut secret, &patch);
                secret
            }
        };
        self.store(secret);
        self.unrecorded = Some(token.digest());
        let written = self.secret.as_ref().map(|secret| content(secret).summary);
        self.record(written.as_ref());
    }

    /// Writes the status that names the Secret as it was last seen.
    fn record(&mut self, seen: Option<&SecretSummary>) {
        if !std::mem::take(&mut self.status_lost) {
            self.recorded = seen.map(|secret| secret.resource_version.clone());
            self.digest = self.unrecorded.take().or(self.digest.take());
        }
    }

    /// Whatever the plan, it is made of what is there.
    fn check_observed(
        &self,
        request: &ValidRequest,
        observation: &Observation,
        facts: &Facts,
        plan: &Plan<'_>,
    ) -> Result<(), TestCaseError> {
        let is_gone = self.standing == Standing::Gone;
        prop_assert_eq!(*plan == Plan::Gone, is_gone, "the request is {:?}", self.standing);
        let is_whole = is_whole(observation, facts);
        let holds_token = truth(self.secret.as_ref(), self.written.as_ref()).is_some();
        prop_assert!(holds_token || !is_whole, "a token is reported that is not there");
        let is_absent = observation.secret().is_none() && self.secret.is_some();
        prop_assert!(
            !self.lacking || !is_absent || matches!(plan, Plan::Gone | Plan::Conflict(_)),
            "a Secret that memory has no place for is taken for absent"
        );
        if *plan == Plan::Suspended && !is_absent && self.behind.is_none() {
            let is_intact = self.read(request).integrity() == Some(Integrity::Intact);
            prop_assert!(is_whole || !is_intact, "a token that is there is not reported");
        }
        let is_held_up = self.standing == Standing::Relisting && *plan == Plan::Requeue;
        prop_assert!(
            !is_held_up || observation.integrity() != Some(Integrity::Intact),
            "a relist holds up a renewal"
        );
        Ok(())
    }

    /// Nothing is written without a grant or a claim, while suspended, or by what may be stale.
    fn check_may_write(
        &self,
        request: &ValidRequest,
        observation: &Observation,
        is_certain: bool,
    ) -> Result<(), TestCaseError> {
        prop_assert!(self.granted, "no grant, no write");
        prop_assert!(!self.rival, "another request has the Secret");
        prop_assert!(!request.suspend, "suspended");
        prop_assert!(
            self.behind.is_none() || observation.is_read(),
            "another leader wrote the Secret"
        );
        match self.standing {
            Standing::Current => {}
            Standing::Relisting => prop_assert!(is_certain, "the relist may not have shown the Secret yet"),
            standing => {
                return Err(TestCaseError::fail(format!(
                    "written for a request that is {standing:?}"
                )));
            }
        }
        Ok(())
    }

    fn check_kept(&self, request: &ValidRequest, until: Timestamp) -> Result<(), TestCaseError> {
        let held = truth(self.secret.as_ref(), self.written.as_ref());
        let Some((token, hash)) = held else {
            return Err(TestCaseError::fail("kept without a token"));
        };
        prop_assert_eq!(hash, &request.token_hash);
        prop_assert!(token.claims().exp > self.now);
        prop_assert!(until > self.now && until <= token.claims().exp);
        let rendered = render(request, token).unwrap();
        let content = content(self.secret.as_ref().unwrap());
        prop_assert_eq!(rendered.drift(&content), None);
        let ours = ["token", "jwt", "header", "until"];
        let extra = content.data.keys().find(|key| {
            ours.contains(&key.as_str())
                && !request.target.data.contains_key(*key)
                && **key != request.target.key
        });
        prop_assert!(
            extra.is_none(),
            "{:?} was left behind in {:#}",
            extra,
            self.secret.as_ref().unwrap()
        );
        Ok(())
    }

    fn check_mint(&self, request: &ValidRequest, cause: IssueCause) -> Result<(), TestCaseError> {
        let needed = match truth(self.secret.as_ref(), self.written.as_ref()) {
            None => true,
            Some((token, hash)) => {
                let claims = token.claims();
                // The operator was restarted between its two writes, and Google's keys are out of reach in this world.
                let is_unproven = self.known_digest() != Some(&token.digest());
                let is_proven = !is_unproven && *hash == request.token_hash;
                let is_expired = claims.exp <= self.now;
                let is_renewed = matches!(cause, IssueCause::Requested | IssueCause::Due);
                prop_assert!(
                    !is_proven || !is_renewed || !is_expired,
                    "{cause:?}: it is expired"
                );
                let repeated = self.repeated().filter(|_| cause == IssueCause::Due);
                prop_assert!(
                    repeated.is_none_or(|(_, until)| until <= self.now),
                    "the source has no other token yet"
                );
                // Nothing tells the operator that there is a Secret: no status, no label.
                let secret = content(self.secret.as_ref().unwrap()).summary;
                let is_unknown = self.recorded.is_none() && !secret.managed;
                is_unproven
                    || is_unknown
                    || *hash != request.token_hash
                    || planned(request, claims.iat, claims.exp).at <= self.now
                    || self.is_requested(request)
            }
        };
        prop_assert!(needed, "{cause:?} is no reason for a token");
        Ok(())
    }

    fn failed(
        &mut self,
        request: &ValidRequest,
        failed: Failed,
        before: Option<Backoff>,
        basis: BackoffKey,
    ) -> Result<Timestamp, TestCaseError> {
        let conflicts = matches!(failed, Failed::Conflict);
        let (class, asked) = match failed {
            Failed::Upstream(Upstream::Transient) => (ErrorClass::Transient, None),
            Failed::Upstream(Upstream::Asked(seconds)) => (
                ErrorClass::Transient,
                Some(std::time::Duration::from_secs(seconds)),
            ),
            _ => (ErrorClass::Rejected, None),
        };
        let held = truth(self.secret.as_ref(), self.written.as_ref());
        let expiry = held
            .filter(|(token, hash)| *hash == request.token_hash && token.claims().exp > self.now)
            .map(|(token, _)| token.claims().exp);
        let attempt = FailedAttempt {
            since: None,
            reason: if conflicts {
                reason::SECRET_CONFLICT
            } else {
                "Failed"
            },
            message: String::new(),
            class,
            retry_after: asked,
            needs_user_action: conflicts,
            expires: expiry,
            is_from_google: false,
        };
        let retry = Backoff::next(before.as_ref(), attempt, basis, &request.uid, self.now);
        let delay = retry.next.duration_since(self.now);
        let since_first = self.now.duration_since(retry.since);
        let early = since_first < SignedDuration::from_hours(1);
        let most = SignedDuration::from_mins(if early || class == ErrorClass::Transient {
            2
        } else {
            10
        });
        let second = SignedDuration::from_secs(1);
        prop_assert!(delay >= second && delay <= most);
        match asked {
            Some(asked) => prop_assert!(delay.unsigned_abs() >= asked, "the server asked for {asked:?}"),
            None => {
                let left = expiry.map(|expiry| expiry.duration_since(self.now));
                prop_assert!(left.is_none_or(|left| delay <= (left / 4).max(second)));
            }
        }
        self.retry = Some(retry);
        Ok(self.now + delay)
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 4,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn promises_hold_whatever_happens(acts in prop::collection::vec(act(), 1..40)) {
        let mut world = World::new();
        for act in acts {
            world.act(act)?;
        }
        // When all is well again, so is the token, and it stays so at about a token each half hour.
        world.act(Action::Spec(json!({"audience": "https://a.run.app", "suspend": false, "renewBefore": null})))?;
        world.act(Action::Clock(0))?;
        world.act(Action::Upstream(Upstream::Ok))?;
        world.act(Action::Grant(true))?;
        world.act(Action::Rival(false))?;
        world.act(Action::Foreign(false))?;
        world.act(Action::Lacking(false))?;
        world.act(Action::Standing(Standing::Current))?;
        world.act(Action::Watch)?;
        world.pass(SignedDuration::from_mins(10))?;
        let request = world.request().unwrap();
        let mut before = 0;
        for hour in 0..=6 {
            // The source may have returned one token again for as long as that is valid.
            if hour == 1 {
                before = world.mints;
            }
            world.pass(SignedDuration::from_hours(1))?;
            let (token, hash) = truth(world.secret.as_ref(), world.written.as_ref()).unwrap();
            prop_assert_eq!(hash, &request.token_hash);
            prop_assert!(token.claims().exp > world.now);
        }
        let mints = world.mints - before;
        prop_assert!((11..=16).contains(&mints), "{mints} tokens in six hours");
        // A restart costs nothing.
        world.act(Action::Restart)?;
        prop_assert_eq!(world.mints - before, mints);
    }
}
