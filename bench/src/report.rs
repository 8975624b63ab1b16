//! The figures, as a table and as JSON.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Arguments, host};

/// The figures of all measurements so far.
pub(crate) struct Report {
    rows: Vec<Row>,
    /// Google's latency in the figures that are recorded, in milliseconds.
    latency: u64,
    raw: serde_json::Map<String, Value>,
    settings: Value,
    host: Value,
}

struct Row {
    scenario: String,
    figure: String,
    latency: u64,
    value: f64,
    target: Option<Target>,
}

/// The target of a figure.
#[derive(Clone, Copy, Debug)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    /// NaN never meets a target.
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", number(most)),
            Self::AtLeast(least) => format!("≥ {}", number(least)),
        }
    }
}

impl Row {
    fn is_missed(&self) -> bool {
        self.target.is_some_and(|target| !target.is_met(self.value))
    }

    fn is_same_figure(&self, other: &Self) -> bool {
        (&self.scenario, &self.figure) == (&other.scenario, &other.figure)
    }
}

/// The lines of a table: a head, and each figure with a column for each latency of Google.
fn lines(rows: &[Row]) -> Vec<Vec<String>> {
    let mut latencies: Vec<u64> = Vec::new();
    let mut figures: Vec<&Row> = Vec::new();
    for row in rows {
        if !latencies.contains(&row.latency) {
            latencies.push(row.latency);
        }
        if !figures.iter().any(|other| other.is_same_figure(row)) {
            figures.push(row);
        }
    }
    let columns = latencies.iter().map(|latency| format!("{latency} ms"));
    let mut head = vec!["Scenario".to_owned(), "Figure".to_owned()];
    head.extend(columns.chain(["Target".to_owned(), String::new()]));
    let line = |figure: &&Row| {
        let same = || rows.iter().filter(|row| row.is_same_figure(figure));
        let target = same().find_map(|row| row.target);
        let verdict = match target {
            None => "",
            Some(_) if same().any(Row::is_missed) => "✗",
            Some(_) => "✓",
        };
        let mut line = vec![figure.scenario.clone(), figure.figure.clone()];
        line.extend(latencies.iter().map(|latency| {
            let row = same().find(|row| row.latency == *latency);
            row.map(|row| number(row.value)).unwrap_or_default()
        }));
        line.extend([target.map(Target::text).unwrap_or_default(), verdict.to_owned()]);
        line
    };
    let mut all = vec![head];
    all.extend(figures.iter().map(line));
    all
}

impl Report {
    /// An empty report.
    pub(crate) fn new(arguments: &Arguments) -> Self {
        Self {
            rows: Vec::new(),
            latency: arguments.latency(),
            raw: serde_json::Map::new(),
            settings: json!({
                "counts": arguments.counts, "pairs": arguments.pairs, "namespaces": arguments.namespaces,
                "grants": arguments.grants, "googleLatencyMilliseconds": arguments.answer, "seconds": arguments.seconds,
            }),
            host: host::describe(arguments),
        }
    }

    /// Prints progress.
    pub(crate) fn progress(&self, text: &str) {
        eprintln!("… {text}");
    }

    /// The figures from now on are those of this latency of Google, in milliseconds.
    pub(crate) fn at_latency(&mut self, milliseconds: u64) {
        self.latency = milliseconds;
    }

    /// Records a figure without a target. Ignores an absent value.
    pub(crate) fn record(&mut self, scenario: &str, figure: &str, value: Option<f64>) {
        self.row(scenario, figure, value, None);
    }

    /// Records a figure whose target is at most `most`.
    pub(crate) fn at_most(&mut self, scenario: &str, figure: &str, value: Option<f64>, most: f64) {
        self.row(scenario, figure, value, Some(Target::AtMost(most)));
    }

    /// Records a figure whose target is at least `least`.
    pub(crate) fn at_least(&mut self, scenario: &str, figure: &str, value: Option<f64>, least: f64) {
        self.row(scenario, figure, value, Some(Target::AtLeast(least)));
    }

    fn row(&mut self, scenario: &str, figure: &str, value: Option<f64>, target: Option<Target>) {
        let Some(value) = value else { return };
        self.rows.push(Row {
            scenario: scenario.to_owned(),
            figure: figure.to_owned(),
            latency: self.latency,
            value,
            target,
        });
    }

    /// Records the single values behind a figure, for the JSON file.
    pub(crate) fn raw(&mut self, name: &str, value: Value) {
        self.raw.insert(format!("{name}, {} ms", self.latency), value);
    }

    /// The number of figures.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Prints a table of the figures, beginning with the index `from`.
    pub(crate) fn print(&self, from: usize) {
        let all = lines(&self.rows[from..]);
        let columns = all.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| all.iter().map(|line| line[column].chars().count()).max();
        let widths: Vec<usize> = (0..columns)
            .map(|column| width(column).unwrap_or_default())
            .collect();
        // The figures stand right.
        let is_value = |column: usize| (2..columns - 2).contains(&column);
        println!();
        for (n, line) in all.iter().enumerate() {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                match is_value(column) {
                    true => print!("| {cell:>width$} "),
                    false => print!("| {cell:width$} "),
                }
            }
            println!("|");
            if n == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let end = if is_value(column) { ":" } else { "-" };
                    print!("|{}{end}", "-".repeat(width + 1));
                }
                println!("|");
            }
        }
        println!();
    }

    /// Prints which targets were missed. Returns whether all were met.
    pub(crate) fn summary(&self) -> bool {
        let with_target = self.rows.iter().filter(|row| row.target.is_some()).count();
        let missed: Vec<_> = self.rows.iter().filter(|row| row.is_missed()).collect();
        println!("{} of {with_target} targets are met.", with_target - missed.len());
        for row in &missed {
            let (value, target) = (
                number(row.value),
                row.target.map(Target::text).unwrap_or_default(),
            );
            println!(
                "✗ {}, {} ms: {} is {value}, target {target}",
                row.scenario, row.latency, row.figure
            );
        }
        missed.is_empty()
    }

    /// Writes all values as JSON.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let figure = |row: &Row| {
            let (most, least) = match row.target {
                Some(Target::AtMost(most)) => (Some(most), None),
                Some(Target::AtLeast(least)) => (None, Some(least)),
                None => (None, None),
            };
            let met = row.target.map(|target| target.is_met(row.value));
            json!({
                "scenario": row.scenario, "figure": row.figure, "googleLatencyMilliseconds": row.latency, "value": row.value,
                "atMost": most, "atLeast": least, "met": met,
            })
        };
        let figures: Vec<_> = self.rows.iter().map(figure).collect();
        let all = json!({
            "host": self.host, "settings": self.settings, "figures": figures, "runs": self.raw,
        });
        std::fs::write(file, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

fn number(value: f64) -> String {
    match value {
        // The empty sum is -0.
        value if value == value.trunc() => format!("{}", value + 0.0),
        value if value.abs() >= 100.0 => format!("{value:.0}"),
        value if value.abs() < 0.1 => format!("{value:.4}"),
        value => format!("{value:.2}"),
    }
}

/// The median; NaN for no values.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value at `fraction` of the sorted values; NaN for no values.
pub(crate) fn quantile(values: impl Iterator<Item = f64>, fraction: f64) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * fraction).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_meets_no_target() {
        assert!(Target::AtMost(1.0).is_met(1.0) && !Target::AtMost(1.0).is_met(1.01));
        assert!(Target::AtLeast(1.0).is_met(1.0) && !Target::AtLeast(1.0).is_met(0.99));
        assert!(!Target::AtMost(1.0).is_met(f64::NAN) && !Target::AtLeast(1.0).is_met(f64::NAN));
    }

    #[test]
    fn each_latency_has_a_column_and_one_that_misses_the_target_is_enough() {
        let row = |figure: &str, latency, value| Row {
            scenario: "cold".to_owned(),
            figure: figure.to_owned(),
            latency,
            value,
            target: Some(Target::AtMost(1.0)),
        };
        let rows = [row("time", 200, 1.5), row("CPU", 200, 0.5), row("time", 20, 0.25)];
        assert_eq!(
            lines(&rows),
            [
                ["Scenario", "Figure", "200 ms", "20 ms", "Target", ""],
                ["cold", "time", "1.50", "0.25", "≤ 1", "✗"],
                ["cold", "CPU", "0.50", "", "≤ 1", "✓"],
            ]
        );
    }

    #[test]
    fn quantiles_are_measured_values() {
        let values = || (1..=300).map(f64::from);
        assert_eq!(quantile(values(), 0.99), 297.0);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert!(median(std::iter::empty()).is_nan());
    }
}
