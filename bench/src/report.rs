//! The figures, as a table and as JSON.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Arguments, machine};

/// What was measured so far.
pub(crate) struct Report {
    rows: Vec<Row>,
    raw: serde_json::Map<String, Value>,
    settings: Value,
    machine: Value,
}

struct Row {
    scenario: String,
    figure: String,
    value: f64,
    goal: Option<Goal>,
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    /// Not a number is no success.
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
        self.goal.is_some_and(|goal| !goal.is_met(self.value))
    }

    fn cells(&self) -> [String; 5] {
        let verdict = match (self.goal, self.is_missed()) {
            (None, _) => "",
            (Some(_), false) => "✓",
            (Some(_), true) => "✗",
        };
        [
            self.scenario.clone(),
            self.figure.clone(),
            number(self.value),
            self.goal.map(Goal::text).unwrap_or_default(),
            verdict.to_owned(),
        ]
    }
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new(arguments: &Arguments) -> Self {
        Self {
            rows: Vec::new(),
            raw: serde_json::Map::new(),
            settings: json!({
                "counts": arguments.counts, "pairs": arguments.pairs, "namespaces": arguments.namespaces,
                "grants": arguments.grants, "answerMilliseconds": arguments.answer, "seconds": arguments.seconds,
            }),
            machine: machine::describe(arguments),
        }
    }

    /// Says what has been done.
    pub(crate) fn progress(&self, text: &str) {
        eprintln!("… {text}");
    }

    /// A figure without a goal. Nothing is told of what was not measured.
    pub(crate) fn told(&mut self, scenario: &str, figure: &str, value: Option<f64>) {
        self.row(scenario, figure, value, None);
    }

    /// A figure that is to be `most` at most.
    pub(crate) fn at_most(&mut self, scenario: &str, figure: &str, value: Option<f64>, most: f64) {
        self.row(scenario, figure, value, Some(Goal::AtMost(most)));
    }

    /// A figure that is to be `least` at least.
    pub(crate) fn at_least(&mut self, scenario: &str, figure: &str, value: Option<f64>, least: f64) {
        self.row(scenario, figure, value, Some(Goal::AtLeast(least)));
    }

    fn row(&mut self, scenario: &str, figure: &str, value: Option<f64>, goal: Option<Goal>) {
        let Some(value) = value else { return };
        self.rows.push(Row {
            scenario: scenario.to_owned(),
            figure: figure.to_owned(),
            value,
            goal,
        });
    }

    /// The single values behind a figure.
    pub(crate) fn raw(&mut self, name: &str, value: Value) {
        self.raw.insert(name.to_owned(), value);
    }

    /// How many figures there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Prints a table of the figures from the one with this index on.
    pub(crate) fn print(&self, from: usize) {
        let head = ["Scenario", "Figure", "Value", "Goal", ""].map(str::to_owned);
        let cells: Vec<_> = self.rows[from..].iter().map(Row::cells).collect();
        let all = || std::iter::once(&head).chain(&cells);
        let widths: [usize; 5] =
            std::array::from_fn(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0));
        println!();
        for (n, row) in all().enumerate() {
            let [scenario, figure, value, goal, verdict] = row;
            let [a, b, c, d, e] = widths;
            println!("| {scenario:a$} | {figure:b$} | {value:>c$} | {goal:d$} | {verdict:e$} |");
            if n == 0 {
                let rule = |width: usize| "-".repeat(width + 2);
                let (a, b, c, d, e) = (rule(a), rule(b), rule(c - 1), rule(d), rule(e));
                println!("|{a}|{b}|{c}:|{d}|{e}|");
            }
        }
        println!();
    }

    /// Says which goals were missed. Gives whether all were met.
    pub(crate) fn summary(&self) -> bool {
        let judged = self.rows.iter().filter(|row| row.goal.is_some()).count();
        let missed: Vec<_> = self.rows.iter().filter(|row| row.is_missed()).collect();
        println!("{} of {judged} goals are met.", judged - missed.len());
        for row in &missed {
            let [scenario, figure, value, goal, _] = row.cells();
            println!("✗ {scenario}: {figure} is {value}, goal {goal}");
        }
        missed.is_empty()
    }

    /// Writes all values as JSON.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let figure = |row: &Row| {
            let (most, least) = match row.goal {
                Some(Goal::AtMost(most)) => (Some(most), None),
                Some(Goal::AtLeast(least)) => (None, Some(least)),
                None => (None, None),
            };
            let met = row.goal.map(|goal| goal.is_met(row.value));
            json!({
                "scenario": row.scenario, "figure": row.figure, "value": row.value,
                "atMost": most, "atLeast": least, "met": met,
            })
        };
        let figures: Vec<_> = self.rows.iter().map(figure).collect();
        let all = json!({
            "machine": self.machine, "settings": self.settings, "figures": figures, "runs": self.raw,
        });
        std::fs::write(file, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

fn number(value: f64) -> String {
    match value {
        // A sum of nothing is -0.
        value if value == value.trunc() => format!("{}", value + 0.0),
        value if value.abs() >= 100.0 => format!("{value:.0}"),
        value if value.abs() < 0.1 => format!("{value:.4}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_meets_no_goal() {
        assert!(Goal::AtMost(1.0).is_met(1.0) && !Goal::AtMost(1.0).is_met(1.01));
        assert!(Goal::AtLeast(1.0).is_met(1.0) && !Goal::AtLeast(1.0).is_met(0.99));
        assert!(!Goal::AtMost(1.0).is_met(f64::NAN) && !Goal::AtLeast(1.0).is_met(f64::NAN));
    }

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values = || (1..=300).map(f64::from);
        assert_eq!(quantile(values(), 0.99), 297.0);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert!(median(std::iter::empty()).is_nan());
    }
}
