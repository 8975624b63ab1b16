//! Days of many requests in seconds: a virtual clock, an upstream with faults, and the decisions that the reconciler makes, those of
//! [`plan`], [`retry`], [`schedule`] and the limits of Google's endpoints.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::time::Instant;

use super::index::{Basis, Retry, SecretMeta};
use super::plan::{self, Observed, Plan};
use super::render::fixtures::request;
use super::retry::{self, Attempt};
use super::schedule;
use super::validate::Request;
use crate::google::decisions::{Bounds, MAX_WAITING, Ticket, Turns, Verdict, end, refused};
use crate::google::{Endpoint, Error, Reason};

const T0: i64 = 1_800_000_000_000;
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Lifetime of Google's tokens.
const LIFETIME: u64 = HOUR;
/// How long a call waits for its turn, as in `GoogleConfig`'s default.
const MAX_WAIT: u64 = 20 * SECOND;
/// What follows an outage, as [the spreading](crate::google) has it.
const AFTERMATH: u64 = 30 * MINUTE;

/// Milliseconds since the start.
type Time = u64;

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>): the same faults in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

struct One {
    request: Request,
    observed: Observed,
    retry: Option<Retry>,
    basis: Basis,
    expires: Option<Time>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Reconcile(usize),
    Drive,
    GaveUp(usize, Ticket),
    Answered { of: usize, started: Time, status: u16 },
}

/// What is done to the upstream.
#[derive(Default)]
struct Faults {
    /// From, until, and whether calls hang or are refused at once.
    outages: Vec<(Time, Time, bool)>,
    /// From, until: each second call is one too many.
    bursts: Vec<(Time, Time)>,
    /// Of a thousand calls.
    errors: u64,
}

#[derive(Default)]
struct Tally {
    minted: Vec<u64>,
    failed: Vec<u64>,
    put_off: u64,
    held_back: u64,
    expired: Time,
    in_outages: u64,
}

struct Simulation {
    start: Instant,
    now: Time,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    sequence: u64,
    all: Vec<One>,
    turns: Turns,
    waiting: HashMap<Ticket, usize>,
    drive: Option<Time>,
    faults: Faults,
    random: Random,
    tally: Tally,
}

fn between(times: &[(Time, Time)], now: Time) -> bool {
    times.iter().any(|(from, until)| (*from..*until).contains(&now))
}

impl Simulation {
    /// `count` new requests in `namespaces`, all made at once.
    fn new(count: usize, namespaces: usize, length: Time, faults: Faults) -> Self {
        let template = request(json!({}));
        let mut random = Random(7);
        let one = |n: usize| One {
            request: Request {
                namespace: format!("namespace-{}", n % namespaces),
                name: format!("request-{n}"),
                uid: format!("{:016x}-{n}", random.next()),
                ..template.clone()
            },
            observed: Observed::default(),
            retry: None,
            basis: Basis {
                generation: 1,
                renew: None,
                grant: Some("grant".into()),
            },
            expires: None,
        };
        let all: Vec<One> = (0..count).map(one).collect();
        let minutes = (length / MINUTE) as usize + 2;
        let mut simulation = Self {
            start: Instant::now(),
            now: 0,
            events: BinaryHeap::new(),
            sequence: 0,
            turns: Turns::new(Bounds {
                interval: Duration::ZERO,
                in_flight: 32,
                waiting: MAX_WAITING,
            }),
            waiting: HashMap::new(),
            drive: None,
            faults,
            random: Random(42),
            tally: Tally {
                minted: vec![0; minutes],
                failed: vec![0; minutes],
                ..Tally::default()
            },
            all,
        };
        for n in 0..count {
            simulation.at(0, Event::Reconcile(n));
        }
        simulation
    }

    fn at(&mut self, time: Time, event: Event) {
        self.sequence += 1;
        self.events
            .push(Reverse((time.max(self.now), self.sequence, event)));
    }

    fn stamp(&self, time: Time) -> Timestamp {
        Timestamp::from_millisecond(T0 + time as i64).unwrap()
    }

    fn instant(&self, time: Time) -> Instant {
        self.start + Duration::from_millis(time)
    }

    /// The first millisecond that is not before `stamp`.
    fn time(stamp: Timestamp) -> Time {
        let nanoseconds = stamp.as_nanosecond() - i128::from(T0) * 1_000_000;
        (nanoseconds.max(0) as u64).div_ceil(1_000_000)
    }

    fn run(&mut self, until: Time) {
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            if time > until {
                break;
            }
            self.now = time;
            match event {
                Event::Reconcile(of) => self.reconcile(of),
                Event::Drive => {
                    self.drive = None;
                    self.drive();
                }
                Event::GaveUp(of, ticket) => {
                    if self.waiting.remove(&ticket).is_some() {
                        self.turns.give_up(&self.all[of].request.namespace, ticket);
                        let why = self.turns.why_waiting(self.instant(time));
                        let error = why.and_then(|why| refused(Endpoint::IamCredentials, why));
                        self.not_started(of, &error.unwrap_or_else(|| fault(Reason::LocallyLimited, 0)));
                    }
                }
                Event::Answered { of, started, status } => self.answered(of, started, status),
            }
        }
        self.now = until;
        for one in &self.all {
            let expired = one.expires.map_or(0, |expires| until.saturating_sub(expires));
            self.tally.expired += expired;
        }
    }

    fn reconcile(&mut self, of: usize) {
        let now = self.stamp(self.now);
        let one = &self.all[of];
        match plan::decide(&one.request, &one.observed, None, one.retry.as_ref(), now) {
            Plan::Keep { until } | Plan::Wait { until } => {
                assert!(until > now, "it would spin");
                self.at(Self::time(until), Event::Reconcile(of));
            }
            Plan::Mint(_) => {
                let left = one.expires.and_then(|expires| expires.checked_sub(self.now));
                let left = left.filter(|left| *left > 0).map(Duration::from_millis);
                let entered = self
                    .turns
                    .enter(self.instant(self.now), &one.request.namespace, left);
                match entered {
                    Ok(ticket) => {
                        self.waiting.insert(ticket, of);
                        self.drive();
                        if self.waiting.contains_key(&ticket) {
                            self.at(self.now + MAX_WAIT, Event::GaveUp(of, ticket));
                        }
                    }
                    Err(verdict) => self.refused(of, verdict),
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn drive(&mut self) {
        let (verdicts, wake) = self.turns.due(self.instant(self.now));
        for (ticket, verdict) in verdicts {
            let of = self.waiting.remove(&ticket).unwrap();
            if verdict == Verdict::Start {
                self.call(of);
            } else {
                self.refused(of, verdict);
            }
        }
        if let Some(wake) = wake {
            let wake = wake.duration_since(self.start).as_millis() as u64 + 1;
            if self.drive.is_none_or(|drive| wake < drive) {
                self.drive = Some(wake);
                self.at(wake, Event::Drive);
            }
        }
    }

    fn call(&mut self, of: usize) {
        let outage = self
            .faults
            .outages
            .iter()
            .find(|(from, until, _)| (*from..*until).contains(&self.now));
        let dice = self.random.below(1000);
        let quick = 100 + self.random.below(200);
        let (status, takes) = match outage {
            Some((_, _, true)) => (0, 20 * SECOND),
            Some((_, _, false)) => (503, quick),
            None if dice < self.faults.errors => (500, quick),
            None if dice.is_multiple_of(2) && between(&self.faults.bursts, self.now) => (429, quick),
            None => (200, quick),
        };
        self.tally.in_outages += u64::from(outage.is_some());
        let started = self.now;
        self.at(started + takes, Event::Answered { of, started, status });
    }

    fn answered(&mut self, of: usize, started: Time, status: u16) {
        let error = match status {
            200 => None,
            0 => Some(fault(Reason::UpstreamTimeout, 0)),
            429 => {
                let after = Duration::from_secs(1 + self.random.below(60));
                Some(fault(Reason::QuotaExceeded, 429).with_retry_after(after))
            }
            status => Some(fault(Reason::UpstreamUnavailable, status)),
        };
        let ended = end(error.as_ref());
        let (now, before) = (self.instant(self.now), self.instant(started));
        self.turns
            .ended(now, &self.all[of].request.namespace, before, ended);
        let minute = (self.now / MINUTE) as usize;
        match error {
            Some(error) => {
                self.tally.failed[minute] += 1;
                self.not_started(of, &error);
            }
            None => {
                self.tally.minted[minute] += 1;
                self.written(of, self.now);
            }
        }
        self.drive();
    }

    /// A token that was issued at `time`, in whole seconds as Google does.
    fn written(&mut self, of: usize, time: Time) {
        let issued = time / SECOND * SECOND;
        let (iat, exp) = (self.stamp(issued), self.stamp(issued + LIFETIME));
        let stamp = self.stamp(time);
        let one = &mut self.all[of];
        let late = one.expires.map_or(0, |expires| time.saturating_sub(expires));
        self.tally.expired += late;
        one.expires = Some(issued + LIFETIME);
        one.retry = None;
        let request = &one.request;
        one.observed.recorded = Some("1".into());
        one.observed.issued_at = Some(stamp);
        one.observed.secret.get_or_insert_with(|| SecretMeta {
            resource_version: "1".into(),
            request_uid: Some(request.uid.clone()),
            token_hash: Some(request.token_hash.clone()),
            render_hash: Some(request.render_hash.clone()),
            managed: true,
            ..SecretMeta::default()
        });
        if let Some(secret) = &mut one.observed.secret {
            (secret.issued, secret.expires) = (Some(iat), Some(exp));
        }
        let next = plan::due(&one.request, &one.observed, iat, exp).at;
        self.at(Self::time(next), Event::Reconcile(of));
    }

    fn refused(&mut self, of: usize, verdict: Verdict) {
        let error = refused(Endpoint::IamCredentials, verdict).unwrap();
        self.not_started(of, &error);
    }

    /// What the reconciler does with a token that it did not get.
    fn not_started(&mut self, of: usize, error: &Error) {
        let now = self.stamp(self.now);
        let expires = self.all[of].expires.filter(|expires| *expires > self.now);
        let expiry = expires.map(|expires| self.stamp(expires));
        let one = &mut self.all[of];
        let next = if let Some(by) = error.postponed() {
            self.tally.put_off += 1;
            let left = expiry.map(|expiry| expiry.duration_since(now));
            now + schedule::postponed_delay(by, left, &one.request.uid, now)
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
            let retry = retry::after(
                one.retry.as_ref(),
                attempt,
                one.basis.clone(),
                &one.request.uid,
                now,
            );
            let next = retry.next;
            one.retry = Some(retry);
            next
        };
        assert!(next.duration_since(now) >= SignedDuration::from_secs(1));
        self.at(Self::time(next), Event::Reconcile(of));
    }

    /// How many tokens the schedule asks for until `until` where each is issued when it is due.
    fn scheduled(&self, until: Time) -> u64 {
        let tokens = |one: &One| {
            let (iat, exp) = (self.stamp(0), self.stamp(LIFETIME));
            let period = Self::time(plan::renewal(&one.request, iat, exp).at);
            1 + until / period
        };
        self.all.iter().map(tokens).sum()
    }
}

fn fault(reason: Reason, status: u16) -> Error {
    let error = Error::new(Endpoint::IamCredentials, reason, "no");
    match status {
        0 => error,
        status => error.with_status(status),
    }
}

/// Outages of one to 25 minutes, the longest among them, and bursts of a minute, about one of each a day.
fn faults(length: Time) -> Faults {
    let mut random = Random(1);
    let mut faults = Faults {
        errors: 50,
        ..Faults::default()
    };
    for day in 0..length.div_ceil(DAY) {
        let from = day * DAY + HOUR + random.below(20 * HOUR);
        let minutes = if day == 1 { 25 } else { 1 + random.below(25) };
        faults
            .outages
            .push((from, from + minutes * MINUTE, random.below(2) == 0));
        let from = day * DAY + random.below(23 * HOUR);
        faults.bursts.push((from, from + MINUTE));
    }
    faults
}

/// Runs it, prints what came of it, and holds it against the promises.
fn check(count: usize, namespaces: usize, length: Time) {
    let faults = faults(length);
    let outages = faults.outages.clone();
    let mut simulation = Simulation::new(count, namespaces, length, faults);
    simulation.run(length);
    let scheduled = simulation.scheduled(length);
    let tally = &simulation.tally;
    let minted: u64 = tally.minted.iter().sum();
    let failed: u64 = tally.failed.iter().sum();
    let minutes = length / MINUTE;
    let mean = minted as f64 / minutes as f64;
    let after = |minute: u64, aftermath: Time| {
        let (from, to) = (minute * MINUTE, (minute + 1) * MINUTE);
        outages
            .iter()
            .any(|(start, end, _)| to > *start && from < *end + aftermath)
    };
    let peak = |range: std::ops::Range<u64>, outside: bool| {
        let within = range.filter(|minute| after(*minute, AFTERMATH) != outside);
        within
            .map(|minute| tally.minted[minute as usize])
            .max()
            .unwrap_or_default()
    };
    let day = DAY / MINUTE;
    let (calm, recovering) = (peak(day..minutes, true), peak(day..minutes, false));
    let down: u64 = outages.iter().map(|(from, until, _)| until - from).sum();
    println!(
        "requests                       {count} in {namespaces} namespaces, {} days\n\
         outages                        {} of {} minutes together; 5 % errors, a burst of 429 a day\n\
         expired-token seconds          {}\n\
         tokens by the schedule         {scheduled}\n\
         tokens issued                  {minted} ({:+.2} %)\n\
         failed tries                   {failed}, {} of them in outages\n\
         held back, put off             {}, {} (no call)\n\
         mean a minute                  {mean:.1}\n\
         peak minute after day 1        {calm} ({:.2} × mean)\n\
         peak minute of a recovery      {recovering} ({:.2} × mean)",
        length / DAY,
        outages.len(),
        down / MINUTE,
        tally.expired / SECOND,
        (minted as f64 / scheduled as f64 - 1.0) * 100.0,
        tally.in_outages,
        tally.held_back,
        tally.put_off,
        calm as f64 / mean,
        recovering as f64 / mean,
    );
    assert_eq!(tally.expired, 0, "milliseconds with an expired token");
    assert!(
        minted.abs_diff(scheduled) * 50 <= scheduled,
        "{minted} tokens, {scheduled} by the schedule"
    );
    // 5 % of all, one in two of the bursts until it is noticed, and single probes of an outage.
    assert!(
        failed <= minted / 17 + tally.in_outages + 2000,
        "{failed} failed tries"
    );
    assert!(
        tally.in_outages <= outages.len() as u64 * 250,
        "{} calls in outages",
        tally.in_outages
    );
    assert!(
        calm as f64 <= 2.0 * mean,
        "{calm} in a minute, the mean is {mean}"
    );
    assert!(
        recovering as f64 <= 3.0 * mean,
        "{recovering} in a minute, the mean is {mean}"
    );
}

/// With the longest outage in the second day.
#[test]
fn two_days_of_ten_thousand_requests() {
    check(10_000, 100, 2 * DAY);
}

#[test]
#[ignore = "takes minutes where the build is not optimised: cargo test --lib simulation -- --ignored --nocapture"]
fn a_week_of_ten_thousand_requests() {
    check(10_000, 100, 7 * DAY);
}
