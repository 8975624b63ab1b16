//! The figures, as a table and as JSON.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Arguments, host};

/// The figures of all measurements so far.
pub(crate) struct Report {
    rows: Vec<Row>,
    raw: serde_json::Map<String, Value>,
    settings: Value,
    host: Value,
}

struct Row {
    scenario: String,
    figure: String,
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

    fn cells(&self) -> [String; 5] {
        let verdict = match (self.target, self.is_missed()) {
            (None, _) => "",
            (Some(_), false) => "✓",
            (Some(_), true) => "✗",
        };
        [
            self.scenario.clone(),
            self.figure.clone(),
            number(self.value),
            self.target.map(Target::text).unwrap_or_default(),
            verdict.to_owned(),
        ]
    }
}

impl Report {
    /// An empty report.
    pub(crate) fn new(arguments: &Arguments) -> Self {
        Self {
            rows: Vec::new(),
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
            value,
            target,
        });
    }

    /// Records the single values behind a figure, for the JSON file.
    pub(crate) fn raw(&mut self, name: &str, value: Value) {
        self.raw.insert(name.to_owned(), value);
    }

    /// The number of figures.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Prints a table of the figures, beginning with the index `from`.
    pub(crate) fn print(&self, from: usize) {
        let head = ["Scenario", "Figure", "Value", "Target", ""].map(str::to_owned);
        let cells: Vec<_> = self.rows[from..].iter().map(Row::cells).collect();
        let all = || std::iter::once(&head).chain(&cells);
        let widths: [usize; 5] =
            std::array::from_fn(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0));
        println!();
        for (n, row) in all().enumerate() {
            let [scenario, figure, value, target, verdict] = row;
            let [a, b, c, d, e] = widths;
            println!("| {scenario:a$} | {figure:b$} | {value:>c$} | {target:d$} | {verdict:e$} |");
            if n == 0 {
                let rule = |width: usize| "-".repeat(width + 2);
                let (a, b, c, d, e) = (rule(a), rule(b), rule(c - 1), rule(d), rule(e));
                println!("|{a}|{b}|{c}:|{d}|{e}|");
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
            let [scenario, figure, value, target, _] = row.cells();
            println!("✗ {scenario}: {figure} is {value}, target {target}");
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
                "scenario": row.scenario, "figure": row.figure, "value": row.value,
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
    fn quantiles_are_measured_values() {
        let values = || (1..=300).map(f64::from);
        assert_eq!(quantile(values(), 0.99), 297.0);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert!(median(std::iter::empty()).is_nan());
    }
}
