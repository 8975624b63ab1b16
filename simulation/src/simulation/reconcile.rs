//! One reconcile of an operator, from the permit to the two writes.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use idtoken_operator::controller::reconcile::plan::{self, Plan};
use idtoken_operator::google::simulation::{Decision, WaiterId, classify_result, rejection_error};
use idtoken_operator::google::{Endpoint, Error, Reason};
use idtoken_operator::schedule::backoff::{Backoff, FailedAttempt, deferral};

use super::request::write_uid;
use super::{Event, LIFETIME, Simulation};
use crate::time::{SECOND, START, Time, from_timestamp, to_timestamp};
use crate::upstream::Response;

impl Simulation {
    /// Decides what to do with a request, and starts it.
    pub(super) fn reconcile(&mut self, number: u32) -> Result<()> {
        let minute = self.statistics.minute(self.now);
        self.statistics.reconciled[minute] += 1;
        self.load_into_template(number)?;
        let request = &mut self.requests[number as usize];
        self.facts.backoff = request.backoff.take().map(|backoff| *backoff);
        let now = to_timestamp(self.now)?;
        let next = match plan::decide(&self.template, &self.observation, &self.facts, now) {
            Plan::Keep(renewal) => Some(renewal.at),
            Plan::BackOff(backoff) => Some(backoff.next),
            Plan::Issue(_) => None,
            other => bail!("unexpected plan: {other:?}"),
        };
        request.backoff = self.facts.backoff.take().map(Box::new);
        match next {
            Some(next) => {
                let next = from_timestamp(next);
                ensure!(next > self.now, "the reconcile would be repeated at once");
                self.complete(number, next);
            }
            None => {
                let request = &self.requests[number as usize];
                let remaining = request.expires.checked_sub(self.now).filter(|left| *left > 0);
                let (now, shard) = (self.instant(self.now), request.shard);
                let flow = &self.flows[request.flow as usize];
                let operator = &mut self.operators[usize::from(shard)];
                let remaining = remaining.map(Duration::from_millis);
                match operator.queue.enqueue(now, flow, remaining) {
                    Ok(id) => {
                        operator.waiting.insert(id, number);
                        let term = operator.term;
                        self.poll(shard)?;
                        if self.operators[usize::from(shard)].waiting.contains_key(&id) {
                            let event = Event::WaitTimedOut {
                                request: number,
                                id,
                                term,
                            };
                            self.push_event(self.now + self.max_wait, event);
                        }
                    }
                    Err(decision) => self.not_admitted(number, decision)?,
                }
            }
        }
        Ok(())
    }

    /// Completes a reconcile. The next one of the request is at `next`.
    fn complete(&mut self, number: u32, next: Time) {
        let shard = self.requests[number as usize].shard;
        self.operators[usize::from(shard)].running -= 1;
        self.schedule(number, next);
    }

    /// Starts the calls that an operator's limits admit now, and fails those that they reject.
    pub(super) fn poll(&mut self, shard: u16) -> Result<()> {
        let now = self.instant(self.now);
        let (decisions, next) = self.operators[usize::from(shard)].queue.poll(now);
        for (id, decision) in decisions {
            let operator = &mut self.operators[usize::from(shard)];
            let number = operator
                .waiting
                .remove(&id)
                .context("no call waits with this id")?;
            if decision == Decision::Admit {
                let (started, term) = (self.now, operator.term);
                let response = self.google.call(started);
                let event = Event::Responded {
                    request: number,
                    started,
                    response,
                    term,
                };
                self.push_event(response.at, event);
            } else {
                self.not_admitted(number, decision)?;
            }
        }
        if let Some(next) = next {
            let next = next.duration_since(self.start).as_millis() as Time + 1;
            let operator = &mut self.operators[usize::from(shard)];
            if operator.next_poll.is_none_or(|poll| next < poll) {
                operator.next_poll = Some(next);
                self.push_event(next, Event::Poll { shard });
            }
        }
        Ok(())
    }

    /// Cancels a call that has waited for the maximum time. Returns the request's shard.
    pub(super) fn wait_timed_out(&mut self, number: u32, id: WaiterId, term: u16) -> Result<u16> {
        let now = self.instant(self.now);
        let request = &self.requests[number as usize];
        let (shard, flow) = (request.shard, &self.flows[request.flow as usize]);
        let operator = &mut self.operators[usize::from(shard)];
        if operator.term == term && operator.waiting.remove(&id).is_some() {
            operator.queue.cancel(flow, id);
            let decision = operator.queue.rejection(now);
            let error = decision.and_then(|decision| rejection_error(Endpoint::IamCredentials, decision));
            let error = error.unwrap_or_else(|| {
                Error::new(
                    Endpoint::IamCredentials,
                    Reason::LocallyLimited,
                    "waited too long",
                )
            });
            self.not_issued(number, &error)?;
        }
        Ok(shard)
    }

    /// Handles Google's response: writes the token, or backs off. Returns the request's shard.
    pub(super) fn responded(
        &mut self,
        number: u32,
        started: Time,
        response: Response,
        term: u16,
    ) -> Result<u16> {
        let request = &self.requests[number as usize];
        let (shard, flow) = (request.shard, request.flow as usize);
        let minute = self.statistics.minute(self.now);
        let error = response.error();
        if error.is_none() {
            self.statistics.minted[minute] += 1;
            self.statistics.by_shard[usize::from(shard)] += 1;
        } else {
            self.statistics.failed[minute] += 1;
            self.statistics.over_quota += u64::from(response.status == 429);
        }
        let (now, started) = (self.instant(self.now), self.instant(started));
        let operator = &mut self.operators[usize::from(shard)];
        if operator.term != term {
            return Ok(shard);
        }
        let result = classify_result(error.as_ref());
        let recovered = operator.queue.complete(now, &self.flows[flow], started, result);
        self.end_waits(shard, &recovered)?;
        let operator = &mut self.operators[usize::from(shard)];
        match error {
            Some(error) => self.not_issued(number, &error)?,
            None if operator.writing < self.settings.concurrency => {
                operator.writing += 1;
                self.start_write(number, self.now, term);
            }
            None => operator.to_write.push_back((number, self.now)),
        }
        self.poll(shard)?;
        Ok(shard)
    }

    /// Ends the waits of the requests of these flows that have no valid token because Google failed, as the cache of an operator does.
    fn end_waits(&mut self, shard: u16, flows: &[String]) -> Result<()> {
        if flows.is_empty() {
            return Ok(());
        }
        let (flows, now): (HashSet<_>, _) = (flows.iter().collect(), to_timestamp(self.now)?);
        for number in 0..self.settings.requests {
            let request = &mut self.requests[number as usize];
            let is_meant = request.shard == shard && flows.contains(&self.flows[request.flow as usize]);
            let backoff = request.backoff.as_mut().filter(|_| is_meant);
            if backoff.is_some_and(|backoff| backoff.end(now)) {
                self.schedule(number, self.now);
            }
        }
        Ok(())
    }

    fn start_write(&mut self, number: u32, issued: Time, term: u16) {
        let event = Event::Written {
            request: number,
            issued,
            term,
        };
        self.push_event(self.now + self.settings.writes, event);
    }

    /// The Secret and the status are written. Returns the request's shard.
    pub(super) fn written(&mut self, number: u32, issued: Time, term: u16) -> Result<u16> {
        let minute = self.statistics.minute(self.now);
        self.statistics.written[minute] += 2;
        let request = &mut self.requests[number as usize];
        let shard = request.shard;
        let operator = &mut self.operators[usize::from(shard)];
        if operator.term != term {
            return Ok(shard);
        }
        if request.expires == 0 {
            self.statistics.ready = self.now - START;
        } else if request.expires < self.now {
            self.statistics
                .record_expired(self.now - request.expires, self.now);
        }
        let is_recovery = request.backoff.take().is_some();
        // The event of the first issue, or of the recovery.
        self.statistics.written[minute] += u32::from(is_recovery || request.expires == 0);
        if is_recovery || request.expires < self.now {
            self.statistics.recovered = self.now - START;
        }
        request.expires = issued / SECOND * SECOND + LIFETIME;
        request.issued_at = issued;
        let expires = request.expires;
        match operator.to_write.pop_front() {
            Some((next, issued)) => self.start_write(next, issued, term),
            None => operator.writing -= 1,
        }
        self.load_into_template(number)?;
        let due = plan::due_renewal(
            &self.template,
            self.facts.timing,
            to_timestamp(expires - LIFETIME)?,
            to_timestamp(expires)?,
        );
        self.complete(number, from_timestamp(due.at));
        Ok(shard)
    }

    fn not_admitted(&mut self, number: u32, decision: Decision) -> Result<()> {
        let error = rejection_error(Endpoint::IamCredentials, decision).context("the call was admitted")?;
        self.not_issued(number, &error)
    }

    /// Defers the request or backs off, as the reconciler does without a token.
    fn not_issued(&mut self, number: u32, error: &Error) -> Result<()> {
        write_uid(number, &mut self.template.uid);
        let now = to_timestamp(self.now)?;
        let minute = self.statistics.minute(self.now);
        let request = &mut self.requests[number as usize];
        let expiry = (request.expires > self.now)
            .then(|| to_timestamp(request.expires))
            .transpose()?;
        let next = if let Some(by) = error.deferred_for() {
            self.statistics.deferred += 1;
            let remaining = expiry.map(|expiry| expiry.duration_since(now));
            now + deferral(by, remaining, &self.template.uid, now)
        } else {
            self.statistics.rejected_locally += u64::from(error.status().is_none());
            let attempt = FailedAttempt {
                since: None,
                reason: error.reason().as_str(),
                message: String::new(),
                class: error.class(),
                retry_after: error.retry_after(),
                needs_user_action: false,
                expires: expiry,
                is_from_google: true,
            };
            let previous = request.backoff.as_deref();
            let is_new_reason = previous.is_none_or(|backoff| backoff.reason != attempt.reason);
            // A status and an event, if the reason changes.
            self.statistics.written[minute] += 2 * u32::from(is_new_reason);
            let backoff = Backoff::next(previous, attempt, self.key.clone(), &self.template.uid, now);
            let next = backoff.next;
            request.backoff = Some(Box::new(backoff));
            next
        };
        let next = from_timestamp(next);
        ensure!(
            next >= self.now + SECOND,
            "the reconcile would be repeated at once"
        );
        self.complete(number, next);
        Ok(())
    }
}
