//! The operators of all shards, Google and the clock. What an operator does is decided by its own code: `plan`, `retry`, `schedule`
//! and the limits of Google's endpoints. Only the order of effects stands here a second time: places, waiting, calls and writes.

mod reconcile;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result};
use idtoken_operator::api::v1alpha1::{IdTokenRequest, IdTokenRequestSpec};
use idtoken_operator::controller::WAITING;
use idtoken_operator::controller::cache::{Basis, Retry, SecretMeta};
use idtoken_operator::controller::reconcile::plan::{self, Observed};
use idtoken_operator::google::decisions::{Bounds, MAX_WAITING, Ticket, Turns, refused};
use idtoken_operator::google::{Endpoint, Error, GoogleConfig, Reason};
use idtoken_operator::request::{Request, validate};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::calendar::{Calendar, HOUR, SECOND, Time};
use crate::tally::Tally;
use crate::upstream::{Answer, Google, Random, Upstream};

/// Lifetime of Google's tokens.
pub(crate) const LIFETIME: Time = HOUR;
/// When the simulation begins: tokens that are older have times as well, and 0 is none.
pub(crate) const START: Time = 2 * HOUR;
/// What the clock shows at 0, in milliseconds since 1970.
const EPOCH: i64 = 1_800_000_000_000;

/// How many there are of what, and how the operators are set up.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) requests: u32,
    pub(crate) shards: u16,
    pub(crate) namespaces: u32,
    /// Calls a second of each operator: its `--google-rate`.
    pub(crate) rate: Option<NonZeroU32>,
    /// Calls under way of each operator: its `--google-max-in-flight`.
    pub(crate) in_flight: usize,
    /// Reconciles under way of each operator: its `--concurrency`.
    pub(crate) concurrency: usize,
    /// How long the writes of the Secret and the status take together.
    pub(crate) writes: Time,
}

/// How it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// All requests are made at once.
    New,
    /// All have tokens, as after many hours.
    Settled,
}

/// What is known of one request.
struct One {
    /// End of its token; 0 for none.
    expires: Time,
    /// When its operator got it; 0 where that has started since.
    issued_at: Time,
    retry: Option<Box<Retry>>,
    /// When it is looked at next; another entry of the calendar is void.
    wake: Time,
    shard: u16,
    lane: u32,
}

/// One operator.
struct Operator {
    turns: Turns,
    waiting: HashMap<Ticket, u32>,
    /// When the turns are looked at by themselves.
    drive: Option<Time>,
    due: VecDeque<u32>,
    running: usize,
    writing: usize,
    to_write: VecDeque<(u32, Time)>,
    /// Until when it is not there.
    away: Time,
    /// Counts its starts: what came of calls before is lost.
    term: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Drive {
        shard: u16,
    },
    GaveUp {
        of: u32,
        ticket: Ticket,
        term: u16,
    },
    Answered {
        of: u32,
        started: Time,
        answer: Answer,
        term: u16,
    },
    Written {
        of: u32,
        issued: Time,
        term: u16,
    },
    Stop {
        shard: u16,
        for_ms: Time,
    },
    Start {
        shard: u16,
    },
}

/// All of it.
pub(crate) struct World {
    settings: Settings,
    max_wait: Time,
    start: Instant,
    now: Time,
    calendar: Calendar,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    sequence: u64,
    all: Vec<One>,
    operators: Vec<Operator>,
    lanes: Vec<String>,
    google: Google,
    /// The one that is looked at: it differs from others in its UID and times alone.
    request: Request,
    observed: Observed,
    basis: Basis,
    pub(crate) tally: Tally,
}

fn turns(settings: &Settings) -> Turns {
    Turns::new(Bounds {
        interval: settings
            .rate
            .map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.get()),
        in_flight: settings.in_flight,
        waiting: MAX_WAITING,
    })
}

fn stamp(time: Time) -> Result<Timestamp> {
    Ok(Timestamp::from_millisecond(EPOCH + time as i64)?)
}

/// The first millisecond that is not before `stamp`.
fn time(stamp: Timestamp) -> Time {
    let nanoseconds = stamp.as_nanosecond() - i128::from(EPOCH) * 1_000_000;
    (nanoseconds.max(0) as u64).div_ceil(1_000_000)
}

/// A UID for the request of this number, always the same.
fn uid(number: u32, into: &mut String) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let (high, low) = (
        Random(number.into()).next(),
        Random(u64::from(number) << 32).next(),
    );
    into.clear();
    for digit in 0..32 {
        if matches!(digit, 8 | 12 | 16 | 20) {
            into.push('-');
        }
        let half = if digit < 16 { high } else { low };
        into.push(HEX[(half >> (digit % 16 * 4)) as usize % 16].into());
    }
}

impl Operator {
    /// One that has just started.
    fn new(settings: &Settings, term: u16) -> Self {
        Self {
            turns: turns(settings),
            waiting: HashMap::new(),
            drive: None,
            due: VecDeque::new(),
            running: 0,
            writing: 0,
            to_write: VecDeque::new(),
            away: 0,
            term,
        }
    }
}

impl World {
    pub(crate) fn new(settings: Settings, upstream: Upstream, begin: Begin, length: Time) -> Result<Self> {
        let spec: IdTokenRequestSpec = serde_json::from_value(serde_json::json!({
            "audience": "https://billing-x.run.app",
            "serviceAccount": "caller@p.iam.gserviceaccount.com",
        }))?;
        let request = validate(&IdTokenRequest::new("billing", spec)).context("the request")?;
        let mut random = Random(7);
        let all = (0..settings.requests).map(|_| One {
            expires: 0,
            issued_at: 0,
            retry: None,
            wake: 0,
            shard: random.below(settings.shards.into()) as u16,
            lane: random.below(settings.namespaces.into()) as u32,
        });
        let all = all.collect();
        let operators = (0..settings.shards).map(|_| Operator::new(&settings, 0));
        let mut world = Self {
            max_wait: GoogleConfig::default().max_wait.as_millis() as Time,
            start: Instant::now(),
            now: START,
            calendar: Calendar::new(START),
            events: BinaryHeap::new(),
            sequence: 0,
            operators: operators.collect(),
            lanes: (0..settings.namespaces)
                .map(|n| format!("namespace-{n}"))
                .collect(),
            google: Google::new(upstream),
            observed: Observed {
                secret: None,
                recorded: Some("1".into()),
                ..Observed::default()
            },
            basis: Basis {
                generation: 1,
                renew: None,
                grant: None,
            },
            tally: Tally::new(START, length, settings.shards.into()),
            request,
            settings,
            all,
        };
        for of in 0..world.settings.requests {
            if begin == Begin::Settled {
                // Somewhere between its last renewal and the next.
                let period = world.renewal(of, START)? - START;
                let issued = (START - random.below(period)) / SECOND * SECOND;
                let one = &mut world.all[of as usize];
                one.expires = issued + LIFETIME;
                one.issued_at = issued;
                let next = world.renewal(of, issued)?;
                world.wake(of, next);
            } else {
                world.wake(of, START);
            }
        }
        Ok(world)
    }

    /// Has every operator be gone for `length` at `at`, and start anew.
    pub(crate) fn restart(&mut self, at: Time, length: Time) {
        for shard in 0..self.settings.shards {
            self.at(
                at,
                Event::Stop {
                    shard,
                    for_ms: length,
                },
            );
        }
    }

    fn at(&mut self, time: Time, event: Event) {
        self.sequence += 1;
        self.events
            .push(Reverse((time.max(self.now), self.sequence, event)));
    }

    fn wake(&mut self, of: u32, at: Time) {
        let at = at.max(self.now);
        self.all[of as usize].wake = at;
        self.calendar.push(at, of);
    }

    fn instant(&self, time: Time) -> Instant {
        self.start + Duration::from_millis(time)
    }

    /// Makes [`Self::request`] and [`Self::observed`] those of one request.
    fn look_at(&mut self, of: u32) -> Result<()> {
        let one = &self.all[of as usize];
        uid(of, &mut self.request.uid);
        if one.expires == 0 {
            self.observed.secret = None;
            self.observed.issued_at = None;
            return Ok(());
        }
        let request = &self.request;
        let secret = self.observed.secret.get_or_insert_with(|| SecretMeta {
            resource_version: "1".into(),
            request_uid: Some(String::new()),
            token_hash: Some(request.token_hash.clone()),
            render_hash: Some(request.render_hash.clone()),
            managed: true,
            ..SecretMeta::default()
        });
        if let Some(uid) = &mut secret.request_uid {
            uid.clone_from(&request.uid);
        }
        secret.issued = Some(stamp(one.expires - LIFETIME)?);
        secret.expires = Some(stamp(one.expires)?);
        self.observed.issued_at = (one.issued_at > 0).then(|| stamp(one.issued_at)).transpose()?;
        Ok(())
    }

    /// When a token of the request that is issued at `issued` is renewed.
    fn renewal(&mut self, of: u32, issued: Time) -> Result<Time> {
        uid(of, &mut self.request.uid);
        let renewal = plan::renewal(&self.request, stamp(issued)?, stamp(issued + LIFETIME)?);
        Ok(time(renewal.at))
    }

    pub(crate) fn run(&mut self, until: Time) -> Result<()> {
        let until = START + until;
        loop {
            let event = self.events.peek().map_or(Time::MAX, |Reverse((time, ..))| *time);
            let due = self.calendar.next().unwrap_or(Time::MAX);
            self.now = event.min(due).min(until);
            if event.min(due) > until {
                break;
            }
            let shard = if event <= due {
                let Some(Reverse((.., event))) = self.events.pop() else {
                    break;
                };
                self.happens(event)?
            } else {
                let Some((_, of)) = self.calendar.pop() else { break };
                let one = &mut self.all[of as usize];
                if one.wake != due {
                    continue;
                }
                // Another entry of the same time is void.
                one.wake = 0;
                self.operators[usize::from(one.shard)].due.push_back(of);
                one.shard
            };
            self.work(shard)?;
        }
        for one in &self.all {
            if one.expires == 0 || one.expires < until {
                self.tally.late(until - one.expires.max(START));
                self.tally.well = Time::MAX;
            }
        }
        Ok(())
    }

    /// Does what `event` says. Returns the shard that may have room for more then.
    fn happens(&mut self, event: Event) -> Result<u16> {
        Ok(match event {
            Event::Drive { shard } => {
                self.operators[usize::from(shard)].drive = None;
                self.drive(shard)?;
                shard
            }
            Event::GaveUp { of, ticket, term } => {
                let now = self.instant(self.now);
                let shard = self.all[of as usize].shard;
                let operator = &mut self.operators[usize::from(shard)];
                if operator.term == term && operator.waiting.remove(&ticket).is_some() {
                    let lane = &self.lanes[self.all[of as usize].lane as usize];
                    operator.turns.give_up(lane, ticket);
                    let why = operator.turns.why_waiting(now);
                    let error = why.and_then(|why| refused(Endpoint::IamCredentials, why));
                    let error = error.unwrap_or_else(|| {
                        Error::new(Endpoint::IamCredentials, Reason::LocallyLimited, "held back")
                    });
                    self.not_started(of, &error)?;
                }
                shard
            }
            Event::Answered {
                of,
                started,
                answer,
                term,
            } => self.answered(of, started, answer, term)?,
            Event::Written { of, issued, term } => self.written(of, issued, term)?,
            Event::Stop { shard, for_ms } => {
                self.stop(shard);
                self.operators[usize::from(shard)].away = self.now + for_ms;
                self.at(self.now + for_ms, Event::Start { shard });
                shard
            }
            Event::Start { shard } => {
                for of in 0..self.settings.requests {
                    if self.all[of as usize].shard == shard {
                        self.all[of as usize].wake = 0;
                        self.operators[usize::from(shard)].due.push_back(of);
                    }
                }
                shard
            }
        })
    }

    /// An operator ends: what it remembers goes, and what it is doing is lost.
    fn stop(&mut self, shard: u16) {
        let operator = &mut self.operators[usize::from(shard)];
        *operator = Operator::new(&self.settings, operator.term + 1);
        for one in self.all.iter_mut().filter(|one| one.shard == shard) {
            (one.issued_at, one.retry, one.wake) = (0, None, 0);
        }
    }

    /// Has an operator look at what is due, as long as it has room.
    fn work(&mut self, shard: u16) -> Result<()> {
        let places = self.settings.concurrency + WAITING;
        loop {
            let operator = &mut self.operators[usize::from(shard)];
            if operator.running >= places || operator.away > self.now {
                return Ok(());
            }
            let Some(of) = operator.due.pop_front() else {
                return Ok(());
            };
            operator.running += 1;
            self.reconcile(of)?;
        }
    }

    /// How many tokens the schedule asks for until `until` where each is issued when it is due, from requests that are new at the start.
    #[cfg(test)]
    pub(crate) fn scheduled(&mut self, until: Time) -> Result<u64> {
        let mut tokens = 0;
        for of in 0..self.settings.requests {
            let period = self.renewal(of, START)? - START;
            tokens += 1 + until / period;
        }
        Ok(tokens)
    }

    #[cfg(test)]
    pub(crate) fn in_outages(&self) -> u64 {
        self.google.in_outages
    }
}
