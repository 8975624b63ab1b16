//! What a request costs with many namespaces and grants, beside one of each.

use anyhow::Result;
use serde_json::json;

use crate::Arguments;
use crate::cold::{MOST_GROWTH, Run, SECONDS, WORK, each, once};
use crate::report::Report;
use crate::sample::Sample;
use crate::system::Program;

const NAMESPACES: usize = 500;
const GRANTS: usize = 1000;

/// Measures it for each count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let of = |namespaces, grants| Arguments {
        namespaces: Some(namespaces),
        grants: Some(grants),
        ..arguments.clone()
    };
    let namespaces = arguments.namespaces.unwrap_or(NAMESPACES);
    let grants = arguments.grants.unwrap_or(GRANTS);
    let sides = [of(1, 1), of(namespaces, grants)];
    let names = [
        "1 namespace and 1 grant".to_owned(),
        format!("{namespaces} namespaces and {grants} grants"),
    ];
    let sample = Sample::take(&sides[0]).await?;
    let operator = Program::Operator(arguments.operator.clone());
    let mut all: Vec<(usize, [Vec<Run>; 2])> = Vec::new();
    for &count in &arguments.counts {
        let mut runs = [Vec::new(), Vec::new()];
        for pair in 0..arguments.pairs {
            for turn in 0..2 {
                let side = (pair + turn) % 2;
                let run = once(&sides[side], Some(&operator), &sample, count).await?;
                report.progress(&format!(
                    "{count} requests, {}, pair {} of {}: {:.2} s, CPU {:.2} s",
                    names[side],
                    pair + 1,
                    arguments.pairs,
                    run.seconds,
                    run.work,
                ));
                runs[side].push(run);
            }
        }
        let scenario = format!("{count} in {} to {}", names[1], names[0]);
        judge(report, &scenario, (&runs[1], count), (&runs[0], count));
        for (side, name) in names.iter().enumerate() {
            let raw: Vec<_> = runs[side].iter().map(Run::json).collect();
            report.raw(&format!("{count} in {name}"), json!(raw));
        }
        all.push((count, runs));
    }
    all.sort_by_key(|(count, _)| *count);
    if let [(few, of_few), .., (many, of_many)] = &all[..] {
        for (side, name) in names.iter().enumerate() {
            let scenario = format!("{many} to {few} in {name}");
            judge(report, &scenario, (&of_many[side], *many), (&of_few[side], *few));
        }
    }
    Ok(())
}

/// Judges what a request costs in `more` to what it costs in `less`; both are runs and how many requests they had.
fn judge(report: &mut Report, scenario: &str, more: (&[Run], usize), less: (&[Run], usize)) {
    for (figure, value) in [("CPU a request", WORK), ("time a request", SECONDS)] {
        let ratio = each(more.0, more.1, value) / each(less.0, less.1, value);
        report.at_most(scenario, figure, Some(ratio), MOST_GROWTH);
    }
}
