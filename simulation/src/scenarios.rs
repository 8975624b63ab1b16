//! The scenarios, and the table of their results.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use clap::ValueEnum;

use crate::Arguments;
use crate::simulation::{InitialState, Settings, Simulation};
use crate::statistics::{Statistics, mean, peak};
use crate::time::{HOUR, MINUTE, SECOND, START, Time};
use crate::upstream::{Outage, Quota, Upstream};

/// When the failover or the outage starts.
const INCIDENT: Time = HOUR;
/// How long the simulation continues after it.
const AFTERMATH: Time = 3 * HOUR;
/// How long a killed leader has no successor: lease duration and retry period.
const FAILOVER: Time = 17 * SECOND;

/// What happens in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Undisturbed operation, after many hours.
    Steady,
    /// All requests are created at once.
    Cold,
    /// All leaders are killed at once, and their standbys take over.
    Failover,
    /// Google returns 503.
    Outage,
    /// The goals of a cold start and of recoveries, with the figures beside them. Not among all: it has counts of its own.
    Goals,
}

/// One simulation, and its row of the table.
struct Run {
    name: String,
    scenario: Scenario,
    settings: Settings,
    upstream: Upstream,
    /// Length of the outage, in minutes.
    outage: Time,
    length: Time,
}

fn all_runs(arguments: &Arguments) -> Vec<Run> {
    let all = [
        Scenario::Steady,
        Scenario::Cold,
        Scenario::Failover,
        Scenario::Outage,
    ];
    let mut runs = Vec::new();
    for requests in &arguments.counts {
        for shards in &arguments.shards {
            for scenario in all {
                if !arguments.scenarios.is_empty() && !arguments.scenarios.contains(&scenario) {
                    continue;
                }
                let outages: &[Time] = match scenario {
                    Scenario::Outage => &arguments.outages,
                    _ => &[0],
                };
                for outage in outages {
                    runs.push(new_run(arguments, scenario, *requests, *shards, *outage));
                }
            }
        }
    }
    runs
}

fn new_run(arguments: &Arguments, scenario: Scenario, requests: u32, shards: u16, outage: Time) -> Run {
    let from = START + INCIDENT;
    let outages = match scenario {
        Scenario::Outage => vec![(from, from + outage * MINUTE, Outage::Unavailable)],
        _ => Vec::new(),
    };
    Run {
        name: match scenario {
            Scenario::Steady => "steady".into(),
            Scenario::Cold => "all new at once".into(),
            Scenario::Failover => "failover of all".into(),
            Scenario::Outage => format!("{outage} min without Google"),
            Scenario::Goals => "goals".into(),
        },
        scenario,
        settings: Settings {
            requests,
            shards,
            namespaces: arguments.namespaces,
            rate: Some(arguments.google_rate),
            in_flight: arguments.google_max_in_flight.into(),
            concurrency: arguments.concurrency.into(),
            writes: arguments.writes,
        },
        upstream: Upstream {
            outages,
            quota: Some(Quota::Window {
                per_minute: arguments.quota,
            }),
            latency: arguments.answer,
            ..Upstream::default()
        },
        outage,
        length: match scenario {
            Scenario::Steady => arguments.hours * HOUR,
            _ => INCIDENT + outage * MINUTE + AFTERMATH,
        },
    }
}

impl Run {
    fn run(&self) -> Result<Vec<String>> {
        let initial = match self.scenario {
            Scenario::Cold => InitialState::New,
            _ => InitialState::Settled,
        };
        let mut simulation =
            Simulation::new(self.settings.clone(), self.upstream.clone(), initial, self.length)?;
        if self.scenario == Scenario::Failover {
            simulation.restart(START + INCIDENT, FAILOVER);
        }
        simulation.run(self.length)?;
        Ok(self.row(&simulation.statistics))
    }

    fn row(&self, statistics: &Statistics) -> Vec<String> {
        let minutes = (self.length / MINUTE) as usize;
        let seconds = |a_minute: f64| figure(a_minute / 60.0);
        let within = |counts: &[u32], from: Time| peak(&counts[(from / MINUTE) as usize..minutes]);
        let incident = match self.scenario {
            Scenario::Steady | Scenario::Cold | Scenario::Goals => 0,
            Scenario::Failover | Scenario::Outage => INCIDENT,
        };
        let recovered = match self.scenario {
            Scenario::Steady => "–".into(),
            _ if statistics.recovered == Time::MAX => "not within 3 h".into(),
            Scenario::Cold | Scenario::Goals => duration(statistics.ready),
            Scenario::Failover | Scenario::Outage => duration(
                statistics
                    .recovered
                    .saturating_sub(INCIDENT + self.outage * MINUTE),
            ),
        };
        vec![
            thousands(self.settings.requests.into()),
            self.settings.shards.to_string(),
            self.name.clone(),
            seconds(mean(&statistics.minted[..minutes])),
            seconds(within(&statistics.minted, incident)),
            seconds(peak(&statistics.minted[minutes - 60..minutes])),
            seconds(within(&statistics.written, incident)),
            seconds(within(&statistics.reconciled, incident)),
            thousands(statistics.over_quota),
            thousands(statistics.expired),
            duration(statistics.longest_expired),
            recovered,
            format!("{:.2}", statistics.imbalance()),
        ]
    }
}

const HEAD: [&str; 13] = [
    "Requests",
    "Shards",
    "Scenario",
    "Tokens/s, mean",
    "in the peak minute",
    "in the last hour's peak minute",
    "API writes/s, peak",
    "Reconciles/s, peak",
    "429",
    "Expired tokens",
    "for up to",
    "Recovered after",
    "Busiest shard",
];

/// Runs the requested scenarios on all processors, and prints the table.
pub(crate) fn run_all(arguments: &Arguments) -> Result<()> {
    let runs = all_runs(arguments);
    print_table(&HEAD, in_parallel(&runs, Run::run))
}

/// Calls `work` for each of `items` on all processors. The results have the order of the items.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(number) else { break };
                    let result = work(item);
                    if let Ok(mut results) = results.lock() {
                        results.push((number, result));
                    }
                }
            });
        }
    });
    let mut results = results
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Prints a table in Markdown.
pub(crate) fn print_table<const N: usize>(head: &[&str; N], rows: Vec<Result<Vec<String>>>) -> Result<()> {
    let line = |cells: &[String]| println!("| {} |", cells.join(" | "));
    line(&head.map(str::to_owned));
    line(&head.map(|_| "---".to_owned()));
    for row in rows {
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

pub(crate) fn thousands(value: u64) -> String {
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
