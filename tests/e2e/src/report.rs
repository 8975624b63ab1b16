//! What is printed: a line for each case, and a table at the end.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use anyhow::Result;

/// How often a long case says that it goes on.
const INTERVAL: Duration = Duration::from_secs(15);

/// Prints to stdout and remembers the cases.
#[derive(Default)]
pub(crate) struct Report {
    rows: RefCell<Vec<Row>>,
    notes: RefCell<Vec<String>>,
    said: Cell<Option<Instant>>,
}

struct Row {
    mark: char,
    name: String,
    took: Option<Duration>,
}

/// A case in progress.
pub(crate) struct Case<'r> {
    report: &'r Report,
    name: String,
    started: Instant,
}

impl Report {
    /// Begins a case.
    pub(crate) fn begin(&self, name: &str) -> Case<'_> {
        self.said.set(Some(Instant::now()));
        Case {
            report: self,
            name: name.to_owned(),
            started: Instant::now(),
        }
    }

    /// Says from time to time what is waited for.
    pub(crate) fn progress(&self, what: &str) {
        if self.said.get().is_none_or(|at| at.elapsed() >= INTERVAL) {
            println!("… {what}");
            self.said.set(Some(Instant::now()));
        }
    }

    /// Something that was measured; said again below the table.
    pub(crate) fn note(&self, text: String) {
        println!("  {text}");
        self.notes.borrow_mut().push(text);
    }

    /// A case that this cluster cannot run.
    pub(crate) fn skipped(&self, name: &str, why: &str) {
        println!("- {name}: left out, {why}");
        self.add('-', name, None);
    }

    /// Lines under a heading.
    pub(crate) fn block(&self, heading: &str, text: &str) {
        println!("\n{heading}\n{text}");
    }

    /// How many cases passed.
    pub(crate) fn passed(&self) -> usize {
        self.rows.borrow().iter().filter(|row| row.mark == '✓').count()
    }

    /// The table of all cases so far.
    pub(crate) fn table(&self) {
        let rows = self.rows.borrow();
        let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        println!("\nEnd-to-end cases");
        for row in rows.iter() {
            let fill = " ".repeat(width - row.name.chars().count());
            let took = row.took.map_or_else(
                || "left out".to_owned(),
                |took| format!("{:.1} s", took.as_secs_f64()),
            );
            println!("  {} {}{fill}  {took:>8}", row.mark, row.name);
        }
        let total: Duration = rows.iter().filter_map(|row| row.took).sum();
        println!(
            "    {:width$}  {:>8}",
            "all",
            format!("{:.1} s", total.as_secs_f64())
        );
        for note in self.notes.borrow().iter() {
            println!("  {note}");
        }
    }

    fn add(&self, mark: char, name: &str, took: Option<Duration>) {
        self.rows.borrow_mut().push(Row {
            mark,
            name: name.to_owned(),
            took,
        });
    }
}

impl Case<'_> {
    /// Says how it went, and gives that.
    pub(crate) fn ended<T>(self, result: Result<T>) -> Result<T> {
        let mark = if result.is_ok() { '✓' } else { '✗' };
        let took = self.started.elapsed();
        println!("{mark} {} ({:.1} s)", self.name, took.as_secs_f64());
        self.report.add(mark, &self.name, Some(took));
        result
    }
}
