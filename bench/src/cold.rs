//! From the first request's creation until all are Ready, beside the floor and the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::calls::Calls;
use crate::cluster::Cluster;
use crate::report::{Report, median};
use crate::sample::Sample;
use crate::seen::Seen;
use crate::system::{Program, System};
use crate::usage::Usage;
use crate::{Arguments, floor, load};

const LIMIT: Duration = Duration::from_secs(900);
/// By how much a request may cost more among many than among few.
const MOST_GROWTH: f64 = 1.1;
/// How often the operator may look at a request until it is Ready.
const MOST_RECONCILES: f64 = 2.0;
/// Calls that are fewer for each request have another cause.
const LEAST_CALLS: f64 = 0.005;

/// Where these stand among the sides.
const FLOOR: usize = 0;
const OPERATOR: usize = 1;

const SECONDS: fn(&Run) -> f64 = |run| run.seconds;
/// CPU seconds of the program without its start.
const WORK: fn(&Run) -> f64 = |run| run.work;

/// What one run took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    /// Until the last request was seen Ready.
    pub(crate) seconds: f64,
    /// CPU seconds of the program, its start included, until it was quiet.
    cpu: f64,
    /// The same without its start.
    pub(crate) work: f64,
    /// CPU seconds of etcd and the API server.
    servers: f64,
    /// The most memory of the program, in MiB.
    peak: f64,
    /// ID tokens made.
    minted: u64,
    /// How many times the operator looked at a request.
    reconciles: Option<f64>,
    /// Calls that the API server has answered, the writing of the requests included.
    calls: BTreeMap<String, f64>,
    /// Connections of the program to the API server, watches open over them, and connections to Google.
    connections: [f64; 3],
    /// Watches that the API server gave up for being slow: each begins anew from where it was.
    dropped: f64,
}

impl Run {
    /// For the report.
    pub(crate) fn json(&self) -> Value {
        let [api, watches, google] = self.connections;
        json!({
            "seconds": self.seconds, "cpu": self.cpu, "cpuWithoutStart": self.work, "servers": self.servers,
            "peakMiB": self.peak, "minted": self.minted, "reconciles": self.reconciles, "calls": self.calls,
            "connections": {"apiServer": api, "watches": watches, "google": google},
            "watchesDropped": self.dropped,
        })
    }
}

/// Measures it for each count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let sample = Sample::take(arguments).await?;
    let operator = Program::Operator(arguments.operator.clone());
    let mut sides = vec![("floor", None), ("operator", Some(operator))];
    let others = [
        ("reference", arguments.reference.clone().map(Program::Reference)),
        ("other", arguments.other.clone().map(Program::Operator)),
    ];
    sides.extend(others.into_iter().filter(|(_, program)| program.is_some()));
    let counts: BTreeSet<usize> = arguments.counts.iter().copied().collect();
    let mut runs: BTreeMap<usize, Vec<Vec<Run>>> = counts
        .iter()
        .map(|&count| (count, vec![Vec::new(); sides.len()]))
        .collect();
    for pair in 0..arguments.pairs {
        // By turns, of sides as of counts, so that what changes with time meets all alike.
        for (&count, runs) in &mut runs {
            let mut order: Vec<usize> = (0..sides.len()).collect();
            order.rotate_left(pair % sides.len());
            for side in order {
                let (name, program) = &sides[side];
                let run = once(arguments, program.as_ref(), &sample, count).await?;
                report.progress(&format!(
                    "cold start, {count} requests, pair {} of {}: {name} {:.1} s, CPU {:.1} s, API server and etcd {:.1} s, {:.1} MiB, {} minted",
                    pair + 1,
                    arguments.pairs,
                    run.seconds,
                    run.cpu,
                    run.servers,
                    run.peak,
                    run.minted
                ));
                runs[side].push(run);
            }
        }
    }
    for (&count, runs) in &runs {
        tell(report, count, &sides, runs);
        details(report, count, &runs[OPERATOR]);
    }
    if let (Some(few), Some(many)) = (runs.first_key_value(), runs.last_key_value())
        && many.0 > few.0
    {
        growth(report, many, few);
    }
    Ok(())
}

/// What a request costs among `many` beside what it costs among `few`.
fn growth(report: &mut Report, many: (&usize, &Vec<Vec<Run>>), few: (&usize, &Vec<Vec<Run>>)) {
    let scenario = format!("cold start of {} to {}", many.0, few.0);
    let of = |side: usize| ((&*many.1[side], *many.0), (&*few.1[side], *few.0));
    let (more, less) = of(OPERATOR);
    judge(report, &scenario, more, less);
    // The API server's own time can grow with what it holds: that part is not the operator's.
    let (more, less) = of(FLOOR);
    let floor = median(each_to_each(more, less, SECONDS).into_iter());
    report.told(&scenario, "time a request, the floor's", Some(floor));
}

/// Judges what a request costs in `more` to what it costs in `less`; both are runs and how many requests they had.
pub(crate) fn judge(report: &mut Report, scenario: &str, more: (&[Run], usize), less: (&[Run], usize)) {
    for (figure, value) in [("CPU a request", WORK), ("time a request", SECONDS)] {
        let ratio = median(each_to_each(more, less, value).into_iter());
        report.at_most(scenario, figure, Some(ratio), MOST_GROWTH);
    }
}

/// Of each pair, `value` for a request among `more` to that among `less`.
fn each_to_each(more: (&[Run], usize), less: (&[Run], usize), value: fn(&Run) -> f64) -> Vec<f64> {
    let fewer = less.1 as f64 / more.1 as f64;
    let pairs = more.0.iter().zip(less.0);
    pairs
        .map(|(more, less)| value(more) / value(less) * fewer)
        .collect()
}

fn tell(report: &mut Report, count: usize, sides: &[(&str, Option<Program>)], runs: &[Vec<Run>]) {
    let of = |name: &str| {
        let side = sides.iter().position(|(side, _)| *side == name)?;
        Some(&runs[side])
    };
    let ratio = |a: &str, b: &str, value: fn(&Run) -> f64| {
        let pairs = of(a)?.iter().zip(of(b)?);
        Some(median(pairs.map(|(a, b)| value(a) / value(b))))
    };
    let scenario = format!("cold start of {count}");
    let cpu: fn(&Run) -> f64 = |run| run.cpu;
    report.at_most(
        &scenario,
        "time to the floor's",
        ratio("operator", "floor", SECONDS),
        1.15,
    );
    report.at_most(
        &scenario,
        "time to the reference's",
        ratio("operator", "reference", SECONDS),
        1.0,
    );
    report.at_most(
        &scenario,
        "CPU to the reference's",
        ratio("operator", "reference", cpu),
        0.5,
    );
    report.told(
        &scenario,
        "the reference's time to the floor's",
        ratio("reference", "floor", SECONDS),
    );
    report.told(
        &scenario,
        "time to the other build's",
        ratio("operator", "other", SECONDS),
    );
    report.told(
        &scenario,
        "CPU to the other build's",
        ratio("operator", "other", cpu),
    );
    if let Some(runs) = of("operator") {
        let extra = runs.iter().map(|run| run.minted.abs_diff(count as u64)).max();
        report.at_most(
            &scenario,
            "mints too many or too few",
            extra.map(|extra| extra as f64),
            0.0,
        );
        report.told(
            &scenario,
            "peak MiB",
            Some(median(runs.iter().map(|run| run.peak))),
        );
    }
    for (side, (name, _)) in sides.iter().enumerate() {
        let raw: Vec<_> = runs[side].iter().map(Run::json).collect();
        report.raw(&format!("{scenario}, {name}"), json!(raw));
    }
}

/// What each request has cost the operator, without its start.
fn details(report: &mut Report, count: usize, runs: &[Run]) {
    let scenario = format!("cold start of {count}");
    report.told(
        &scenario,
        "CPU microseconds a request",
        Some(each(runs, count, WORK) * 1e6),
    );
    let reconciles = runs.iter().filter_map(|run| run.reconciles);
    let reconciles = median(reconciles.map(|all| all / count as f64));
    report.at_most(
        &scenario,
        "reconciles a request",
        Some(reconciles),
        MOST_RECONCILES,
    );
    let kinds: BTreeSet<&String> = runs.iter().flat_map(|run| run.calls.keys()).collect();
    for kind in kinds {
        let calls = runs
            .iter()
            .map(|run| run.calls.get(kind).copied().unwrap_or_default());
        let mut calls = median(calls) / count as f64;
        if kind == "POST idtokenrequests" {
            // The load's own.
            calls -= 1.0;
        }
        if calls >= LEAST_CALLS {
            report.told(&scenario, &format!("calls a request: {kind}"), Some(calls));
        }
    }
    report.told(
        &scenario,
        "watches that the API server ended as too slow",
        Some(median(runs.iter().map(|run| run.dropped))),
    );
    let names = [
        "connections to the API server",
        "watches over them (HTTP/1.1 would need one connection each)",
        "connections to Google, whose emulator speaks HTTP/1.1",
    ];
    for (n, name) in names.into_iter().enumerate() {
        let middle = median(runs.iter().map(|run| run.connections[n]));
        report.told(&scenario, name, Some(middle));
    }
}

/// The median of `value` for each of `count` requests.
fn each(runs: &[Run], count: usize, value: fn(&Run) -> f64) -> f64 {
    median(runs.iter().map(value)) / count as f64
}

/// One run; the floor's where there is no program.
pub(crate) async fn once(
    arguments: &Arguments,
    program: Option<&Program>,
    sample: &Sample,
    count: usize,
) -> Result<Run> {
    let cluster = Cluster::start(arguments).await?;
    let mut seen = Seen::begin(&cluster.admin).await?;
    let watches = Calls::read(&cluster.admin).await?.watches();
    let system = match program {
        Some(program) => Some(program.start(&cluster).await?),
        None => None,
    };
    if let Some(system) = &system {
        system.quiet().await?;
    }
    let before = Calls::read(&cluster.admin).await?;
    let servers = cluster.pids().await;
    let used = Usage::cpu(&servers)?;
    let started = system.as_ref().map(System::usage).transpose()?;
    let begun = Instant::now();
    match &system {
        Some(_) => load::create(&cluster, 0, count).await?,
        None => floor::run(&cluster, sample, count).await?,
    }
    let ended = seen.until(count, LIMIT).await;
    let ended = ended.with_context(|| system.as_ref().map(System::log_tail).unwrap_or_default())?;
    let mut run = Run {
        seconds: ended.duration_since(begun).as_secs_f64(),
        servers: Usage::cpu(&servers)? - used,
        ..Run::default()
    };
    run.dropped = Calls::read(&cluster.admin).await?.dropped() - before.dropped();
    if let Some(system) = system {
        let (api, google) = system.connections(&cluster)?;
        // What it does after the last one is Ready is work for it too.
        system.quiet().await?;
        let usage = system.usage()?;
        (run.cpu, run.peak) = (usage.cpu, usage.peak_kib as f64 / 1024.0);
        run.work = usage.cpu - started.unwrap_or_default().cpu;
        let calls = Calls::read(&cluster.admin).await?;
        run.calls = calls.since(&before);
        run.connections = [api as f64, calls.watches() - watches, google as f64];
        if matches!(program, Some(Program::Operator(_))) {
            run.reconciles = Some(system.reconciles().await?);
        }
        system.stop().await?;
    }
    run.minted = cluster.google.minted().await?;
    ensure!(run.minted > 0, "nothing was minted");
    cluster.stop().await?;
    Ok(run)
}
