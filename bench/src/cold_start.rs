//! A cold start: from the first request's creation until all are Ready, compared with the baseline and the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::apiserver_calls::Calls;
use crate::cluster::Cluster;
use crate::process::Usage;
use crate::ready_watch::ReadyWatch;
use crate::report::{Report, median};
use crate::subject::{ProcessUnderTest, Program};
use crate::template::Template;
use crate::{Arguments, baseline_client, workload};

const TIMEOUT: Duration = Duration::from_secs(900);
/// How much more a request may cost among many requests than among few.
const MAX_GROWTH: f64 = 1.1;
/// How much longer a cold start may take with the slower answers of Google than with the fastest.
const MAX_FOR_LATENCY: f64 = 1.15;
/// The target of reconciles until a request is Ready.
const MAX_RECONCILES: f64 = 2.0;
/// Kinds of calls with fewer calls a request are not part of serving it.
const MIN_CALLS: f64 = 0.005;

/// The positions of two sides in a comparison.
const BASELINE: usize = 0;
const OPERATOR: usize = 1;

const SECONDS: fn(&Run) -> f64 = |run| run.seconds;
/// CPU seconds of the program without its start.
const WORK: fn(&Run) -> f64 = |run| run.work;

/// The results of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    /// The time until the last request was seen Ready.
    pub(crate) seconds: f64,
    /// CPU seconds of the program from its start until it was idle.
    cpu: f64,
    /// CPU seconds of the program without its start.
    pub(crate) work: f64,
    /// CPU seconds of etcd and the API server.
    servers: f64,
    /// The peak of the program's memory, in MiB.
    peak: f64,
    /// Issued ID tokens.
    minted: u64,
    /// The operator's reconciles.
    reconciles: Option<f64>,
    /// Calls that the API server received, including the creation of the requests.
    calls: BTreeMap<String, f64>,
    /// The program's connections to the API server, open watches, and connections to Google.
    connections: [f64; 3],
    /// Watches that the API server closed as too slow. Each resumes.
    dropped: f64,
}

impl Run {
    /// For the report.
    pub(crate) fn json(&self) -> Value {
        let [api, watches, google] = self.connections;
        json!({
            "seconds": self.seconds, "cpu": self.cpu, "cpuWithoutStart": self.work, "apiServerAndEtcdCpu": self.servers,
            "peakMiB": self.peak, "minted": self.minted, "reconciles": self.reconciles, "calls": self.calls,
            "connections": {"apiServer": api, "watches": watches, "google": google},
            "watchesClosed": self.dropped,
        })
    }
}

/// Measures each count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let template = Template::take(arguments).await?;
    let operator = Program::Operator(arguments.operator.clone());
    let mut sides = vec![("baseline", None), ("operator", Some(operator))];
    let others = [
        ("reference", arguments.reference.clone().map(Program::Reference)),
        ("other", arguments.other.clone().map(Program::Operator)),
    ];
    sides.extend(others.into_iter().filter(|(_, program)| program.is_some()));
    let counts: BTreeSet<usize> = arguments.counts.iter().copied().collect();
    let nothing: BTreeMap<usize, Vec<Vec<Run>>> = counts
        .iter()
        .map(|&count| (count, vec![Vec::new(); sides.len()]))
        .collect();
    let mut of_latencies: Vec<_> = arguments
        .answer
        .iter()
        .map(|&latency| (arguments.with_latency(latency), nothing.clone()))
        .collect();
    for pair in 0..arguments.pairs {
        // Alternates sides, counts and latencies, so that changes of the machine over time affect all of them.
        for &count in &counts {
            for (arguments, runs) in &mut of_latencies {
                let mut order: Vec<usize> = (0..sides.len()).collect();
                order.rotate_left(pair % sides.len());
                for side in order {
                    let (name, program) = &sides[side];
                    let run = run_once(arguments, program.as_ref(), &template, count).await?;
                    report.progress(&format!(
                        "cold start, {count} requests, answers of {} ms, pair {} of {}: {name} {:.1} s, CPU {:.1} s, API server and etcd {:.1} s, {:.1} MiB, {} tokens",
                        arguments.latency(),
                        pair + 1,
                        arguments.pairs,
                        run.seconds,
                        run.cpu,
                        run.servers,
                        run.peak,
                        run.minted
                    ));
                    if let Some(runs) = runs.get_mut(&count) {
                        runs[side].push(run);
                    }
                }
            }
        }
    }
    for (arguments, runs) in &of_latencies {
        report.at_latency(arguments.latency());
        for (&count, runs) in runs {
            record_comparison(report, count, &sides, runs);
            record_costs(report, count, &runs[OPERATOR]);
        }
        if let (Some(few), Some(many)) = (runs.first_key_value(), runs.last_key_value())
            && many.0 > few.0
        {
            record_growth(report, many, few);
        }
    }
    if let [(slow, of_slow), .., (fast, of_fast)] = &*of_latencies {
        report.at_latency(slow.latency());
        for (&count, runs) in of_slow {
            let pairs = runs[OPERATOR].iter().zip(&of_fast[&count][OPERATOR]);
            let ratio = median(pairs.map(|(slow, fast)| slow.seconds / fast.seconds));
            report.at_most(
                &format!("cold start of {count}"),
                &format!("time, ratio to its own with answers of {} ms", fast.latency()),
                Some(ratio),
                MAX_FOR_LATENCY,
            );
        }
    }
    Ok(())
}

/// Records the cost of a request among `many`, compared with its cost among `few`.
fn record_growth(report: &mut Report, many: (&usize, &Vec<Vec<Run>>), few: (&usize, &Vec<Vec<Run>>)) {
    let scenario = format!("cold start of {}, compared with {}", many.0, few.0);
    let of = |side: usize| ((&*many.1[side], *many.0), (&*few.1[side], *few.0));
    let (more, less) = of(OPERATOR);
    evaluate(report, &scenario, more, less);
    // The API server can be slower with more objects. That part is not the operator's.
    let (more, less) = of(BASELINE);
    let baseline = median(pairwise_ratios(more, less, SECONDS).into_iter());
    report.record(&scenario, "time a request of the baseline, ratio", Some(baseline));
}

/// Compares the cost of a request in `more` with that in `less`, each the runs and their number of requests, with the target.
pub(crate) fn evaluate(report: &mut Report, scenario: &str, more: (&[Run], usize), less: (&[Run], usize)) {
    for (figure, value) in [("CPU a request, ratio", WORK), ("time a request, ratio", SECONDS)] {
        let ratio = median(pairwise_ratios(more, less, value).into_iter());
        report.at_most(scenario, figure, Some(ratio), MAX_GROWTH);
    }
}

/// For each pair, the ratio of `value` a request in `more` to that in `less`.
fn pairwise_ratios(more: (&[Run], usize), less: (&[Run], usize), value: fn(&Run) -> f64) -> Vec<f64> {
    let fewer = less.1 as f64 / more.1 as f64;
    let pairs = more.0.iter().zip(less.0);
    pairs
        .map(|(more, less)| value(more) / value(less) * fewer)
        .collect()
}

fn record_comparison(
    report: &mut Report,
    count: usize,
    sides: &[(&str, Option<Program>)],
    runs: &[Vec<Run>],
) {
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
        "time, ratio to the baseline",
        ratio("operator", "baseline", SECONDS),
        1.15,
    );
    report.at_most(
        &scenario,
        "time, ratio to the reference",
        ratio("operator", "reference", SECONDS),
        1.0,
    );
    let slowest = of("operator").zip(of("reference")).map(|(ours, others)| {
        let pairs = ours.iter().zip(others);
        pairs.map(|(a, b)| a.seconds / b.seconds).fold(0.0, f64::max)
    });
    report.record(&scenario, "time, ratio to the reference, worst pair", slowest);
    report.at_most(
        &scenario,
        "CPU, ratio to the reference",
        ratio("operator", "reference", cpu),
        0.5,
    );
    report.record(
        &scenario,
        "time of the reference, ratio to the baseline",
        ratio("reference", "baseline", SECONDS),
    );
    report.record(
        &scenario,
        "time, ratio to the other build",
        ratio("operator", "other", SECONDS),
    );
    report.record(
        &scenario,
        "CPU, ratio to the other build",
        ratio("operator", "other", cpu),
    );
    if let Some(runs) = of("operator") {
        let extra = runs.iter().map(|run| run.minted.abs_diff(count as u64)).max();
        report.at_most(
            &scenario,
            "tokens issued too many or too few",
            extra.map(|extra| extra as f64),
            0.0,
        );
        report.record(
            &scenario,
            "peak memory, MiB",
            Some(median(runs.iter().map(|run| run.peak))),
        );
    }
    for (side, (name, _)) in sides.iter().enumerate() {
        let raw: Vec<_> = runs[side].iter().map(Run::json).collect();
        report.raw(&format!("{scenario}, {name}"), json!(raw));
    }
}

/// Records the operator's cost of a request, without its start.
fn record_costs(report: &mut Report, count: usize, runs: &[Run]) {
    let scenario = format!("cold start of {count}");
    report.record(
        &scenario,
        "CPU a request, microseconds",
        Some(median_per_request(runs, count, WORK) * 1e6),
    );
    let reconciles = runs.iter().filter_map(|run| run.reconciles);
    let reconciles = median(reconciles.map(|all| all / count as f64));
    report.at_most(
        &scenario,
        "reconciles a request",
        Some(reconciles),
        MAX_RECONCILES,
    );
    let kinds: BTreeSet<&String> = runs.iter().flat_map(|run| run.calls.keys()).collect();
    for kind in kinds {
        let calls = runs
            .iter()
            .map(|run| run.calls.get(kind).copied().unwrap_or_default());
        let mut calls = median(calls) / count as f64;
        if kind == "POST idtokenrequests" {
            // The workload's own call.
            calls -= 1.0;
        }
        if calls >= MIN_CALLS {
            report.record(&scenario, &format!("calls a request: {kind}"), Some(calls));
        }
    }
    report.record(
        &scenario,
        "watches that the API server closed as too slow",
        Some(median(runs.iter().map(|run| run.dropped))),
    );
    let names = [
        "connections to the API server",
        "watches over them (with HTTP/1.1 one connection each)",
        "connections to Google",
    ];
    for (n, name) in names.into_iter().enumerate() {
        let value = median(runs.iter().map(|run| run.connections[n]));
        report.record(&scenario, name, Some(value));
    }
}

/// The median of `value` for each of `count` requests.
fn median_per_request(runs: &[Run], count: usize, value: fn(&Run) -> f64) -> f64 {
    median(runs.iter().map(value)) / count as f64
}

/// Runs a cold start of `program`, or of the baseline without one.
pub(crate) async fn run_once(
    arguments: &Arguments,
    program: Option<&Program>,
    template: &Template,
    count: usize,
) -> Result<Run> {
    let cluster = Cluster::start(arguments).await?;
    let mut watch = ReadyWatch::begin(&cluster.admin).await?;
    let watches = Calls::read(&cluster.admin).await?.watches();
    let subject = match program {
        Some(program) => Some(program.start(&cluster).await?),
        None => None,
    };
    if let Some(subject) = &subject {
        subject.wait_idle().await?;
    }
    let before = Calls::read(&cluster.admin).await?;
    let servers = cluster.pids().await;
    let used = Usage::cpu(&servers)?;
    let startup = subject.as_ref().map(ProcessUnderTest::usage).transpose()?;
    let started = Instant::now();
    match &subject {
        Some(_) => workload::create(&cluster, 0, count).await?,
        None => baseline_client::run(&cluster, template, count).await?,
    }
    let ready = watch.wait_for(count, TIMEOUT).await;
    let ready = ready.with_context(|| {
        subject
            .as_ref()
            .map(ProcessUnderTest::log_tail)
            .unwrap_or_default()
    })?;
    let mut run = Run {
        seconds: ready.duration_since(started).as_secs_f64(),
        servers: Usage::cpu(&servers)? - used,
        ..Run::default()
    };
    run.dropped = Calls::read(&cluster.admin).await?.dropped() - before.dropped();
    if let Some(subject) = subject {
        let (api, google) = subject.connections(&cluster)?;
        // Its work after the last request is Ready counts too.
        subject.wait_idle().await?;
        let usage = subject.usage()?;
        (run.cpu, run.peak) = (usage.cpu, usage.peak_kib as f64 / 1024.0);
        run.work = usage.cpu - startup.unwrap_or_default().cpu;
        let calls = Calls::read(&cluster.admin).await?;
        run.calls = calls.since(&before);
        run.connections = [api as f64, calls.watches() - watches, google as f64];
        if matches!(program, Some(Program::Operator(_))) {
            run.reconciles = Some(subject.reconciles().await?);
        }
        subject.stop().await?;
    }
    run.minted = cluster.google.minted().await?;
    ensure!(run.minted > 0, "no token was issued");
    cluster.stop().await?;
    Ok(run)
}
