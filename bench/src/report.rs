//! The figures, as a table and as JSON.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::Arguments;

/// What was measured so far.
pub(crate) struct Report {
    rows: Vec<Row>,
    raw: serde_json::Map<String, Value>,
    settings: Value,
}

struct Row {
    scenario: String,
    figure: String,
    value: f64,
    at_most: Option<f64>,
}

impl Row {
    fn verdict(&self) -> &'static str {
        match self.at_most {
            None => "",
            Some(most) if self.value <= most => "✓",
            Some(_) => "✗",
        }
    }
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self {
            rows: Vec::new(),
            raw: serde_json::Map::new(),
            settings: json!({
                "cores": cores, "pairs": arguments.pairs, "namespaces": arguments.namespaces,
                "grants": arguments.grants, "answerMilliseconds": arguments.answer, "seconds": arguments.seconds,
            }),
        }
    }

    /// Says what has been done.
    pub(crate) fn progress(&self, text: &str) {
        eprintln!("… {text}");
    }

    /// A figure without a bound. Nothing is told of what was not measured.
    pub(crate) fn told(&mut self, scenario: &str, figure: &str, value: Option<f64>) {
        self.row(scenario, figure, value, None);
    }

    /// A figure that is to be `most` at most.
    pub(crate) fn at_most(&mut self, scenario: &str, figure: &str, value: Option<f64>, most: f64) {
        self.row(scenario, figure, value, Some(most));
    }

    fn row(&mut self, scenario: &str, figure: &str, value: Option<f64>, at_most: Option<f64>) {
        let Some(value) = value else { return };
        self.rows.push(Row {
            scenario: scenario.to_owned(),
            figure: figure.to_owned(),
            value,
            at_most,
        });
    }

    /// The single values behind a figure.
    pub(crate) fn raw(&mut self, name: &str, value: Value) {
        self.raw.insert(name.to_owned(), value);
    }

    /// Prints the table, and writes the JSON where `file` says.
    pub(crate) fn write(&self, file: Option<&Path>) -> Result<()> {
        println!("\n| Scenario | Figure | Value | At most | |\n|---|---|---:|---:|---|");
        for row in &self.rows {
            let most = row.at_most.map(number).unwrap_or_default();
            println!(
                "| {} | {} | {} | {most} | {} |",
                row.scenario,
                row.figure,
                number(row.value),
                row.verdict()
            );
        }
        let Some(file) = file else { return Ok(()) };
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| json!({"scenario": row.scenario, "figure": row.figure, "value": row.value, "atMost": row.at_most}))
            .collect();
        let all = json!({"settings": self.settings, "figures": rows, "runs": self.raw});
        std::fs::write(file, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

fn number(value: f64) -> String {
    match value {
        value if value == value.trunc() => format!("{value}"),
        value if value.abs() >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

/// The middle one; not a number where there is none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value below which `fraction` of all are; not a number where there is none.
pub(crate) fn quantile(values: impl Iterator<Item = f64>, fraction: f64) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * fraction).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}
