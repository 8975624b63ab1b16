//! What an operator does with one request, from its turn to the two writes.

use std::time::Duration;

use anyhow::{Context, Result};
use idtoken_operator::controller::reconcile::plan::{self, Plan};
use idtoken_operator::google::decisions::{Verdict, end, refused};
use idtoken_operator::google::{Endpoint, Error};
use idtoken_operator::schedule::backoff::{self as retry, Attempt};
use idtoken_operator::schedule::renewal as schedule;

use super::{Event, LIFETIME, START, World, stamp, time, uid};
use crate::calendar::{SECOND, Time};
use crate::upstream::Answer;

impl World {
    pub(super) fn reconcile(&mut self, of: u32) -> Result<()> {
        let minute = self.tally.minute(self.now);
        self.tally.reconciled[minute] += 1;
        self.look_at(of)?;
        let one = &self.all[of as usize];
        let plan = plan::decide(
            &self.request,
            &self.observed,
            None,
            one.retry.as_deref(),
            stamp(self.now)?,
        );
        match plan {
            Plan::Keep { until } | Plan::Wait { until } => {
                let until = time(until);
                anyhow::ensure!(until > self.now, "it would spin");
                self.done(of, until);
            }
            Plan::Mint(_) => {
                let left = one.expires.checked_sub(self.now).filter(|left| *left > 0);
                let (now, shard, lane) = (self.instant(self.now), one.shard, one.lane as usize);
                let operator = &mut self.operators[usize::from(shard)];
                let left = left.map(Duration::from_millis);
                match operator.turns.enter(now, &self.lanes[lane], left) {
                    Ok(ticket) => {
                        operator.waiting.insert(ticket, of);
                        let term = operator.term;
                        self.drive(shard)?;
                        if self.operators[usize::from(shard)].waiting.contains_key(&ticket) {
                            self.at(self.now + self.max_wait, Event::GaveUp { of, ticket, term });
                        }
                    }
                    Err(verdict) => self.refused(of, verdict)?,
                }
            }
            other => anyhow::bail!("not expected: {other:?}"),
        }
        Ok(())
    }

    /// A reconcile ends; the request is looked at again at `next`.
    fn done(&mut self, of: u32, next: Time) {
        self.operators[usize::from(self.all[of as usize].shard)].running -= 1;
        self.wake(of, next);
    }

    pub(super) fn drive(&mut self, shard: u16) -> Result<()> {
        let now = self.instant(self.now);
        let (verdicts, wake) = self.operators[usize::from(shard)].turns.due(now);
        for (ticket, verdict) in verdicts {
            let operator = &mut self.operators[usize::from(shard)];
            let of = operator.waiting.remove(&ticket).context("nobody waits")?;
            if verdict == Verdict::Start {
                let (started, term) = (self.now, operator.term);
                let answer = self.google.call(started);
                let event = Event::Answered {
                    of,
                    started,
                    answer,
                    term,
                };
                self.at(answer.at, event);
            } else {
                self.refused(of, verdict)?;
            }
        }
        if let Some(wake) = wake {
            let wake = wake.duration_since(self.start).as_millis() as Time + 1;
            let operator = &mut self.operators[usize::from(shard)];
            if operator.drive.is_none_or(|drive| wake < drive) {
                operator.drive = Some(wake);
                self.at(wake, Event::Drive { shard });
            }
        }
        Ok(())
    }

    pub(super) fn answered(&mut self, of: u32, started: Time, answer: Answer, term: u16) -> Result<u16> {
        let one = &self.all[of as usize];
        let (shard, lane) = (one.shard, one.lane as usize);
        let minute = self.tally.minute(self.now);
        let error = answer.error();
        if error.is_none() {
            self.tally.minted[minute] += 1;
            self.tally.by_shard[usize::from(shard)] += 1;
        } else {
            self.tally.failed[minute] += 1;
            self.tally.over_quota += u64::from(answer.status == 429);
        }
        let (now, before) = (self.instant(self.now), self.instant(started));
        let operator = &mut self.operators[usize::from(shard)];
        if operator.term != term {
            return Ok(shard);
        }
        operator
            .turns
            .ended(now, &self.lanes[lane], before, end(error.as_ref()));
        match error {
            Some(error) => self.not_started(of, &error)?,
            None if operator.writing < self.settings.concurrency => {
                operator.writing += 1;
                self.write(of, self.now, term);
            }
            None => operator.to_write.push_back((of, self.now)),
        }
        self.drive(shard)?;
        Ok(shard)
    }

    fn write(&mut self, of: u32, issued: Time, term: u16) {
        self.at(
            self.now + self.settings.writes,
            Event::Written { of, issued, term },
        );
    }

    /// The Secret and the status are written.
    pub(super) fn written(&mut self, of: u32, issued: Time, term: u16) -> Result<u16> {
        let minute = self.tally.minute(self.now);
        self.tally.written[minute] += 2;
        let one = &mut self.all[of as usize];
        let shard = one.shard;
        let operator = &mut self.operators[usize::from(shard)];
        if operator.term != term {
            return Ok(shard);
        }
        if one.expires == 0 {
            self.tally.ready = self.now - START;
        } else if one.expires < self.now {
            self.tally.late(self.now - one.expires);
        }
        let is_recovery = one.retry.take().is_some();
        // The event of the first issue, or of the recovery.
        self.tally.written[minute] += u32::from(is_recovery || one.expires == 0);
        if is_recovery || one.expires < self.now {
            self.tally.well = self.now - START;
        }
        one.expires = issued / SECOND * SECOND + LIFETIME;
        one.issued_at = issued;
        let expires = one.expires;
        match operator.to_write.pop_front() {
            Some((next, issued)) => self.write(next, issued, term),
            None => operator.writing -= 1,
        }
        self.look_at(of)?;
        let due = plan::due(
            &self.request,
            &self.observed,
            stamp(expires - LIFETIME)?,
            stamp(expires)?,
        );
        self.done(of, time(due.at));
        Ok(shard)
    }

    fn refused(&mut self, of: u32, verdict: Verdict) -> Result<()> {
        let error = refused(Endpoint::IamCredentials, verdict).context("it started")?;
        self.not_started(of, &error)
    }

    /// What the reconciler does with a token that it did not get.
    pub(super) fn not_started(&mut self, of: u32, error: &Error) -> Result<()> {
        uid(of, &mut self.request.uid);
        let now = stamp(self.now)?;
        let minute = self.tally.minute(self.now);
        let one = &mut self.all[of as usize];
        let expiry = (one.expires > self.now).then(|| stamp(one.expires)).transpose()?;
        let next = if let Some(by) = error.postponed() {
            self.tally.put_off += 1;
            let left = expiry.map(|expiry| expiry.duration_since(now));
            now + schedule::postponed_delay(by, left, &self.request.uid, now)
        } else {
            self.tally.held_back += u64::from(error.status().is_none());
            let attempt = Attempt {
                reason: error.reason(),
                message: String::new(),
                class: error.class(),
                retry_after: error.retry_after(),
                act: false,
                expiry,
            };
            let before = one.retry.as_deref();
            let is_news = before.is_none_or(|retry| retry.reason != attempt.reason);
            // A status and an event, when it changes.
            self.tally.written[minute] += 2 * u32::from(is_news);
            let basis = self.basis.clone();
            let retry = retry::after(before, attempt, basis, &self.request.uid, now);
            let next = retry.next;
            one.retry = Some(Box::new(retry));
            next
        };
        let next = time(next);
        anyhow::ensure!(next >= self.now + SECOND, "it would spin");
        self.done(of, next);
        Ok(())
    }
}
