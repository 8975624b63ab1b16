//! The cost of a request with many namespaces and grants, compared with one of each.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use crate::Arguments;
use crate::cold_start::{Run, evaluate, run_once};
use crate::report::Report;
use crate::subject::Program;
use crate::template::Template;

const NAMESPACES: usize = 500;
const GRANTS: usize = 1000;

/// Measures each count.
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
    let template = Template::take(&sides[0]).await?;
    let operator = Program::Operator(arguments.operator.clone());
    let mut all: BTreeMap<usize, [Vec<Run>; 2]> = BTreeMap::new();
    for pair in 0..arguments.pairs {
        // Alternates sides and counts, so that changes of the machine over time affect all of them.
        for &count in &arguments.counts {
            let runs = all.entry(count).or_default();
            for turn in 0..2 {
                let side = (pair + turn) % 2;
                let run = run_once(&sides[side], Some(&operator), &template, count).await?;
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
    }
    for (&count, runs) in &all {
        let scenario = format!("{count} in {}, compared with {}", names[1], names[0]);
        evaluate(report, &scenario, (&runs[1], count), (&runs[0], count));
        for (side, name) in names.iter().enumerate() {
            let raw: Vec<_> = runs[side].iter().map(Run::json).collect();
            report.raw(&format!("{count} in {name}"), json!(raw));
        }
    }
    if let (Some((&few, of_few)), Some((&many, of_many))) = (all.first_key_value(), all.last_key_value())
        && many > few
    {
        for (side, name) in names.iter().enumerate() {
            let scenario = format!("{many} compared with {few}, in {name}");
            evaluate(report, &scenario, (&of_many[side], many), (&of_few[side], few));
        }
    }
    Ok(())
}
