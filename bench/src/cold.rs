//! From the first request's creation until all are Ready, beside the floor and the reference.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::cluster::Cluster;
use crate::report::{Report, median};
use crate::sample::Sample;
use crate::seen::Seen;
use crate::system::Program;
use crate::usage::Usage;
use crate::{Arguments, floor, load};

const LIMIT: Duration = Duration::from_secs(900);

/// What one run took.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    seconds: f64,
    /// CPU seconds of the program.
    cpu: f64,
    /// CPU seconds of etcd and the API server.
    servers: f64,
    /// The most memory of the program, in MiB.
    peak: f64,
    /// ID tokens made.
    minted: u64,
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
    for &count in &arguments.counts {
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); sides.len()];
        for pair in 0..arguments.pairs {
            let mut order: Vec<usize> = (0..sides.len()).collect();
            // By turns, so that what changes with time meets all alike.
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
        tell(report, count, &sides, &runs);
    }
    Ok(())
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
    let seconds: fn(&Run) -> f64 = |run| run.seconds;
    let cpu: fn(&Run) -> f64 = |run| run.cpu;
    report.at_most(
        &scenario,
        "time to the floor's",
        ratio("operator", "floor", seconds),
        1.15,
    );
    report.at_most(
        &scenario,
        "time to the reference's",
        ratio("operator", "reference", seconds),
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
        ratio("reference", "floor", seconds),
    );
    report.told(
        &scenario,
        "time to the other build's",
        ratio("operator", "other", seconds),
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
        let each = median(runs.iter().map(|run| run.cpu * 1e6 / count as f64));
        report.told(&scenario, "CPU microseconds a request", Some(each));
        report.told(
            &scenario,
            "peak MiB",
            Some(median(runs.iter().map(|run| run.peak))),
        );
    }
    for (side, (name, _)) in sides.iter().enumerate() {
        let raw: Vec<_> = runs[side]
            .iter()
            .map(|run| json!({"seconds": run.seconds, "cpu": run.cpu, "servers": run.servers, "peakMiB": run.peak, "minted": run.minted}))
            .collect();
        report.raw(&format!("{scenario}, {name}"), json!(raw));
    }
}

/// One run; the floor's where there is no program.
async fn once(
    arguments: &Arguments,
    program: Option<&Program>,
    sample: &Sample,
    count: usize,
) -> Result<Run> {
    let cluster = Cluster::start(arguments).await?;
    let mut seen = Seen::begin(&cluster.admin).await?;
    let system = match program {
        Some(program) => Some(program.start(&cluster).await?),
        None => None,
    };
    let servers = cluster.pids().await;
    let used = Usage::cpu(&servers)?;
    let begun = Instant::now();
    match &system {
        Some(_) => load::create(&cluster, 0, count).await?,
        None => floor::run(&cluster, sample, count).await?,
    }
    let ended = seen.until(count, LIMIT).await;
    let ended = ended.with_context(|| {
        system
            .as_ref()
            .map(|system| system.log_tail())
            .unwrap_or_default()
    })?;
    let mut run = Run {
        seconds: ended.duration_since(begun).as_secs_f64(),
        servers: Usage::cpu(&servers)? - used,
        minted: cluster.google.minted().await?,
        ..Run::default()
    };
    ensure!(run.minted > 0, "nothing was minted");
    if let Some(system) = system {
        let usage = system.usage()?;
        (run.cpu, run.peak) = (usage.cpu, usage.peak_kib as f64 / 1024.0);
        system.stop().await?;
    }
    cluster.stop().await?;
    Ok(run)
}
