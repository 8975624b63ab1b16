//! The operators of all shards, Google, and the clock. The operator's own code makes the decisions: `plan`, `retry`, `schedule` and the
//! limits of Google's endpoints. Only the order of effects is repeated here: permits, waiting, calls and writes.

mod operator;
mod reconcile;
mod request;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use idtoken_operator::api::v1alpha1::{IdTokenRequest, IdTokenRequestSpec};
use idtoken_operator::controller::MAX_WAITING_RECONCILES;
use idtoken_operator::controller::issue::observation::Observation;
use idtoken_operator::controller::reconcile::plan::{Facts, Timing, due_renewal};
use idtoken_operator::google::GoogleConfig;
use idtoken_operator::google::simulation::WaiterId;
use idtoken_operator::kubernetes::secret_summary::SecretSummary;
use idtoken_operator::request::{ValidRequest, validate};
use idtoken_operator::schedule::backoff::BackoffKey;
use operator::Operator;
use request::{SimulatedRequest, write_uid};
use tokio::time::Instant;

use crate::event_queue::EventQueue;
use crate::statistics::Statistics;
use crate::time::{HOUR, SECOND, START, Time, from_timestamp, to_timestamp};
use crate::upstream::{Google, Random, Response, Upstream};

/// The lifetime of Google's tokens.
const LIFETIME: Time = HOUR;

/// The number of requests, shards and namespaces, and the operators' settings.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) requests: u32,
    pub(crate) shards: u16,
    pub(crate) namespaces: u32,
    /// Each operator's calls a second: `--google-rate`.
    pub(crate) rate: Option<NonZeroU32>,
    /// Each operator's calls in flight: `--google-max-in-flight`.
    pub(crate) in_flight: usize,
    /// Each operator's concurrent reconciles: `--concurrency`.
    pub(crate) concurrency: usize,
    /// How long the writes of the Secret and the status take together.
    pub(crate) writes: Time,
}

/// The state of all requests at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitialState {
    /// All requests are created at the start.
    New,
    /// All requests have tokens of different age, as after many hours.
    Settled,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// An operator polls its waiting calls.
    Poll { shard: u16 },
    /// A call has waited for the maximum time.
    WaitTimedOut { request: u32, id: WaiterId, term: u16 },
    /// Google responds to a call.
    Responded {
        request: u32,
        started: Time,
        response: Response,
        term: u16,
    },
    /// The Secret and the status are written.
    Written { request: u32, issued: Time, term: u16 },
    /// An operator stops for a time.
    Stop { shard: u16, duration: Time },
    /// An operator starts.
    Start { shard: u16 },
}

/// The whole simulation.
pub(crate) struct Simulation {
    settings: Settings,
    max_wait: Time,
    start: Instant,
    now: Time,
    /// When requests are reconciled.
    wakeups: EventQueue,
    /// Everything else that happens. The number keeps events of the same time in the order of their creation.
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    sequence: u64,
    requests: Vec<SimulatedRequest>,
    operators: Vec<Operator>,
    flows: Vec<String>,
    google: Google,
    /// The request for the planner. Requests differ only in their UID and in the times of `observation`.
    template: ValidRequest,
    observation: Observation,
    facts: Facts,
    key: BackoffKey,
    pub(crate) statistics: Statistics,
}

impl Simulation {
    pub(crate) fn new(
        settings: Settings,
        upstream: Upstream,
        initial: InitialState,
        length: Time,
    ) -> Result<Self> {
        let spec: IdTokenRequestSpec = serde_json::from_value(serde_json::json!({
            "audience": "https://billing-x.run.app",
            "serviceAccount": "caller@p.iam.gserviceaccount.com",
        }))?;
        let template = validate(&IdTokenRequest::new("billing", spec)).context("the request")?;
        let mut random = Random(7);
        let requests = (0..settings.requests).map(|_| SimulatedRequest {
            expires: 0,
            issued_at: 0,
            backoff: None,
            wakeup: 0,
            shard: random.below(settings.shards.into()) as u16,
            flow: random.below(settings.namespaces.into()) as u32,
        });
        let requests = requests.collect();
        let mut statistics = Statistics::new(START, length, settings.shards.into());
        statistics.outage_end = upstream
            .outages
            .iter()
            .map(|(_, end, _)| *end)
            .max()
            .unwrap_or(START);
        let operators = (0..settings.shards).map(|_| Operator::new(&settings, 0));
        let mut simulation = Self {
            max_wait: GoogleConfig::default().max_wait.as_millis() as Time,
            start: Instant::now(),
            now: START,
            wakeups: EventQueue::new(START),
            events: BinaryHeap::new(),
            sequence: 0,
            operators: operators.collect(),
            flows: (0..settings.namespaces)
                .map(|n| format!("namespace-{n}"))
                .collect(),
            google: Google::new(upstream),
            observation: Observation::Cached(None),
            facts: Facts::default(),
            key: BackoffKey {
                generation: 1,
                renew: None,
                grant: None,
            },
            statistics,
            template,
            settings,
            requests,
        };
        for number in 0..simulation.settings.requests {
            if initial == InitialState::Settled {
                // At a random point between its last renewal and the next.
                let period = simulation.renewal(number, START)? - START;
                let issued = (START - random.below(period)) / SECOND * SECOND;
                let request = &mut simulation.requests[number as usize];
                request.expires = issued + LIFETIME;
                request.issued_at = issued;
                let next = simulation.renewal(number, issued)?;
                simulation.schedule(number, next);
            } else {
                simulation.schedule(number, START);
            }
        }
        Ok(simulation)
    }

    /// Stops every operator at `at`, and starts it again after `duration`.
    pub(crate) fn restart(&mut self, at: Time, duration: Time) {
        for shard in 0..self.settings.shards {
            self.push_event(at, Event::Stop { shard, duration });
        }
    }

    fn push_event(&mut self, time: Time, event: Event) {
        self.sequence += 1;
        self.events
            .push(Reverse((time.max(self.now), self.sequence, event)));
    }

    /// Schedules the next reconcile of a request, in place of the one before.
    fn schedule(&mut self, number: u32, at: Time) {
        let at = at.max(self.now);
        self.requests[number as usize].wakeup = at;
        self.wakeups.push(at, number);
    }

    fn instant(&self, time: Time) -> Instant {
        self.start + Duration::from_millis(time)
    }

    /// Loads one request into [`Self::template`] and [`Self::observation`].
    fn load_into_template(&mut self, number: u32) -> Result<()> {
        let request = &self.requests[number as usize];
        write_uid(number, &mut self.template.uid);
        if request.expires == 0 {
            self.observation = Observation::Cached(None);
            self.facts = Facts::default();
            return Ok(());
        }
        let template = &self.template;
        if self.observation.secret().is_none() {
            self.facts.recorded_version = Some("1".into());
            self.observation = Observation::Cached(Some(SecretSummary {
                resource_version: "1".into(),
                request_uid: Some(String::new()),
                token_hash: Some(template.token_hash.clone()),
                render_hash: Some(template.render_hash.clone()),
                managed: true,
                ..SecretSummary::default()
            }));
        }
        let Observation::Cached(Some(secret)) = &mut self.observation else {
            bail!("the simulation reads no Secret");
        };
        if let Some(uid) = &mut secret.request_uid {
            uid.clone_from(&template.uid);
        }
        secret.issued_at = Some(to_timestamp(request.expires - LIFETIME)?);
        secret.expires_at = Some(to_timestamp(request.expires)?);
        let issued_at = (request.issued_at > 0).then(|| to_timestamp(request.issued_at));
        self.facts.timing.issued_at = issued_at.transpose()?;
        Ok(())
    }

    /// When a token of the request that is issued at `issued` is renewed.
    fn renewal(&mut self, number: u32, issued: Time) -> Result<Time> {
        write_uid(number, &mut self.template.uid);
        let (issued, expires) = (to_timestamp(issued)?, to_timestamp(issued + LIFETIME)?);
        Ok(from_timestamp(
            due_renewal(&self.template, Timing::default(), issued, expires).at,
        ))
    }

    /// Runs for `length` after the start.
    pub(crate) fn run(&mut self, length: Time) -> Result<()> {
        let end = START + length;
        loop {
            let event = self.events.peek().map_or(Time::MAX, |Reverse((time, ..))| *time);
            let due = self.wakeups.next().unwrap_or(Time::MAX);
            self.now = event.min(due).min(end);
            if event.min(due) > end {
                break;
            }
            let shard = if event <= due {
                let Some(Reverse((.., event))) = self.events.pop() else {
                    break;
                };
                self.handle(event)?
            } else {
                let Some((_, number)) = self.wakeups.pop() else {
                    break;
                };
                let request = &mut self.requests[number as usize];
                if request.wakeup != due {
                    continue;
                }
                // Makes another entry of the same time stale.
                request.wakeup = 0;
                let operator = &mut self.operators[usize::from(request.shard)];
                operator.due.insert((request.expires.max(self.now), number));
                request.shard
            };
            self.start_reconciles(shard)?;
        }
        for request in &self.requests {
            if request.expires == 0 || request.expires < end {
                self.statistics
                    .record_expired(end - request.expires.max(START), end);
                self.statistics.recovered = Time::MAX;
            }
        }
        Ok(())
    }

    /// Handles an event. Returns the shard that may have room for more reconciles now.
    fn handle(&mut self, event: Event) -> Result<u16> {
        Ok(match event {
            Event::Poll { shard } => {
                self.operators[usize::from(shard)].next_poll = None;
                self.poll(shard)?;
                shard
            }
            Event::WaitTimedOut { request, id, term } => self.wait_timed_out(request, id, term)?,
            Event::Responded {
                request,
                started,
                response,
                term,
            } => self.responded(request, started, response, term)?,
            Event::Written {
                request,
                issued,
                term,
            } => self.written(request, issued, term)?,
            Event::Stop { shard, duration } => {
                self.stop(shard);
                self.operators[usize::from(shard)].away = self.now + duration;
                self.push_event(self.now + duration, Event::Start { shard });
                shard
            }
            Event::Start { shard } => {
                for number in 0..self.settings.requests {
                    let request = &mut self.requests[number as usize];
                    if request.shard == shard {
                        request.wakeup = 0;
                        let rank = request.expires.max(self.now);
                        self.operators[usize::from(shard)].due.insert((rank, number));
                    }
                }
                shard
            }
        })
    }

    /// Stops an operator. Its memory and everything in flight are lost.
    fn stop(&mut self, shard: u16) {
        let operator = &mut self.operators[usize::from(shard)];
        *operator = Operator::new(&self.settings, operator.term + 1);
        let requests = self.requests.iter_mut();
        for request in requests.filter(|request| request.shard == shard) {
            (request.issued_at, request.backoff, request.wakeup) = (0, None, 0);
        }
    }

    /// Starts reconciles of due requests while the operator has room.
    fn start_reconciles(&mut self, shard: u16) -> Result<()> {
        let max_running = self.settings.concurrency + MAX_WAITING_RECONCILES;
        loop {
            let operator = &mut self.operators[usize::from(shard)];
            if operator.running >= max_running || operator.away > self.now {
                return Ok(());
            }
            let Some((_, number)) = operator.due.pop_first() else {
                return Ok(());
            };
            operator.running += 1;
            self.reconcile(number)?;
        }
    }

    /// How many tokens the schedule requires within `length`, if each is issued when it is due and all requests are new at the start.
    #[cfg(test)]
    pub(crate) fn scheduled(&mut self, length: Time) -> Result<u64> {
        let mut tokens = 0;
        for number in 0..self.settings.requests {
            let period = self.renewal(number, START)? - START;
            tokens += 1 + length / period;
        }
        Ok(tokens)
    }

    /// All calls that Google received.
    pub(crate) fn calls(&self) -> u64 {
        self.google.calls
    }

    /// The share of other users' calls that got 429.
    pub(crate) fn others_refused(&self) -> f64 {
        self.google.others_refused()
    }

    /// How many calls Google received during outages.
    #[cfg(test)]
    pub(crate) fn in_outages(&self) -> u64 {
        self.google.in_outages
    }
}
