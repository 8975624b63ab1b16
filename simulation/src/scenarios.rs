//! What is simulated, and the table of what came of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use clap::ValueEnum;

use crate::Arguments;
use crate::calendar::{HOUR, MINUTE, SECOND, Time};
use crate::tally::{Tally, mean, peak};
use crate::upstream::{Outage, Upstream};
use crate::world::{Begin, START, Settings, World};

/// When something happens to a settled world.
const INCIDENT: Time = HOUR;
/// How long it is watched after that.
const AFTERMATH: Time = 3 * HOUR;
/// How long a leader that was killed is missed: lease duration and retry period.
const FAILOVER: Time = 17 * SECOND;

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Nothing special, after many hours.
    Steady,
    /// All requests are made at once.
    Cold,
    /// Every operator is killed and another takes over.
    Failover,
    /// Google is away.
    Outage,
}

/// One run.
struct Job {
    name: String,
    what: What,
    settings: Settings,
    upstream: Upstream,
    /// Minutes of the outage.
    outage: Time,
    length: Time,
}

fn jobs(arguments: &Arguments) -> Vec<Job> {
    let all = [What::Steady, What::Cold, What::Failover, What::Outage];
    let mut jobs = Vec::new();
    for requests in &arguments.counts {
        for shards in &arguments.shards {
            for what in all {
                if !arguments.what.is_empty() && !arguments.what.contains(&what) {
                    continue;
                }
                let outages: &[Time] = match what {
                    What::Outage => &arguments.outages,
                    _ => &[0],
                };
                for outage in outages {
                    jobs.push(job(arguments, what, *requests, *shards, *outage));
                }
            }
        }
    }
    jobs
}

fn job(arguments: &Arguments, what: What, requests: u32, shards: u16, outage: Time) -> Job {
    let from = START + INCIDENT;
    let outages = match what {
        What::Outage => vec![(from, from + outage * MINUTE, Outage::Refuses)],
        _ => Vec::new(),
    };
    Job {
        name: match what {
            What::Steady => "steady".into(),
            What::Cold => "all new at once".into(),
            What::Failover => "failover of all".into(),
            What::Outage => format!("{outage} min without Google"),
        },
        what,
        settings: Settings {
            requests,
            shards,
            namespaces: arguments.namespaces,
            rate: arguments.google_rate,
            in_flight: arguments.google_max_in_flight.into(),
            concurrency: arguments.concurrency.into(),
            writes: arguments.writes,
        },
        upstream: Upstream {
            outages,
            quota: Some(arguments.quota),
            answer: arguments.answer,
            ..Upstream::default()
        },
        outage,
        length: match what {
            What::Steady => arguments.hours * HOUR,
            _ => INCIDENT + outage * MINUTE + AFTERMATH,
        },
    }
}

impl Job {
    fn run(&self) -> Result<Vec<String>> {
        let begin = match self.what {
            What::Cold => Begin::New,
            _ => Begin::Settled,
        };
        let mut world = World::new(self.settings.clone(), self.upstream.clone(), begin, self.length)?;
        if self.what == What::Failover {
            world.restart(START + INCIDENT, FAILOVER);
        }
        world.run(self.length)?;
        Ok(self.row(&world.tally))
    }

    fn row(&self, tally: &Tally) -> Vec<String> {
        let minutes = (self.length / MINUTE) as usize;
        let seconds = |a_minute: f64| figure(a_minute / 60.0);
        let within = |counts: &[u32], from: Time| peak(&counts[(from / MINUTE) as usize..minutes]);
        let incident = match self.what {
            What::Steady | What::Cold => 0,
            What::Failover | What::Outage => INCIDENT,
        };
        let well = match self.what {
            What::Steady => "–".into(),
            _ if tally.well == Time::MAX => "not within 3 h".into(),
            What::Cold => duration(tally.ready),
            What::Failover | What::Outage => {
                duration(tally.well.saturating_sub(INCIDENT + self.outage * MINUTE))
            }
        };
        vec![
            thousands(self.settings.requests.into()),
            self.settings.shards.to_string(),
            self.name.clone(),
            seconds(mean(&tally.minted[..minutes])),
            seconds(within(&tally.minted, incident)),
            seconds(peak(&tally.minted[minutes - 60..minutes])),
            seconds(within(&tally.written, incident)),
            seconds(within(&tally.reconciled, incident)),
            thousands(tally.over_quota),
            thousands(tally.expired),
            duration(tally.longest),
            well,
            format!("{:.2}", tally.imbalance()),
        ]
    }
}

const HEAD: [&str; 13] = [
    "Requests",
    "Shards",
    "What",
    "Tokens/s, mean",
    "in the peak minute",
    "in the last hour's",
    "API writes/s, peak",
    "Looked at/s, peak",
    "429",
    "Tokens that ended",
    "for up to",
    "All well after",
    "Busiest shard",
];

/// Runs all that is asked for, on all processors, and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let jobs = jobs(arguments);
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(number) else { break };
                    let row = job.run();
                    if let Ok(mut rows) = rows.lock() {
                        rows.push((number, row));
                    }
                }
            });
        }
    });
    let mut rows = rows
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    rows.sort_by_key(|(number, _)| *number);
    let line = |cells: &[String]| println!("| {} |", cells.join(" | "));
    line(&HEAD.map(str::to_owned));
    line(&HEAD.map(|_| "---".to_owned()));
    for (_, row) in rows {
        line(&row?);
    }
    Ok(())
}

fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => thousands(value.round() as u64),
        value => format!("{value:.1}"),
    }
}

fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn duration(time: Time) -> String {
    match time {
        0 => "0".into(),
        time if time < 2 * MINUTE => format!("{:.0} s", time as f64 / SECOND as f64),
        time => format!("{:.0} min", time as f64 / MINUTE as f64),
    }
}
