//! The output of tasks: steps with a mark and their seconds. Colours and updates in place only on a terminal.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a long step prints its progress if the output is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(15);

const GREEN: &str = "32";
const YELLOW: &str = "33";
const RED: &str = "31";
const DIM: &str = "2";
const BOLD: &str = "1";

/// Prints to stdout, and keeps the steps for a table.
pub(crate) struct Output {
    terminal: bool,
    colour: bool,
    steps: Mutex<Vec<(String, Duration)>>,
    lines: Mutex<Vec<String>>,
}

/// A running step.
pub(crate) struct Step<'o> {
    output: &'o Output,
    started: Instant,
    last: Mutex<Last>,
}

/// The last line of a step's progress, and its time.
struct Last {
    line: String,
    at: Instant,
}

impl Output {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        // https://no-color.org
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            terminal,
            colour: terminal && !refused,
            steps: Mutex::default(),
            lines: Mutex::default(),
        }
    }

    /// All lines that were printed to stdout, without colours.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts a step. [`Step::done`] completes it.
    pub(crate) fn begin(&self, what: &str) -> Step<'_> {
        let step = Step {
            output: self,
            started: Instant::now(),
            last: Mutex::new(Last {
                line: String::new(),
                at: Instant::now(),
            }),
        };
        if self.terminal {
            self.write(&format!("\r\x1b[K{}", self.paint(DIM, &format!("… {what}"))));
        }
        step
    }

    /// Prints a line.
    pub(crate) fn line(&self, text: &str) {
        self.write(&format!("{}{text}\n", self.clear()));
        let lines = text.split('\n').map(plain);
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(lines);
    }

    /// Prints an empty line and a heading.
    pub(crate) fn heading(&self, text: &str) {
        self.line(&format!("\n{}", self.paint(BOLD, text)));
    }

    /// Prints a command and its output, indented.
    pub(crate) fn command(&self, command: &str, printed: &str) {
        self.line(&format!("    {}", self.paint(DIM, &format!("$ {command}"))));
        self.quote(printed);
    }

    /// Prints the output of another program, indented.
    pub(crate) fn quote(&self, text: &str) {
        for line in text.trim_end().lines() {
            self.line(format!("    {line}").trim_end());
        }
    }

    /// Prints a success.
    pub(crate) fn passed(&self, text: &str) {
        self.line(&format!("{} {text}", self.paint(GREEN, "✓")));
    }

    /// Prints a warning to stderr.
    pub(crate) fn warn(&self, text: &str) {
        eprintln!("{}{} {text}", self.clear(), self.paint(YELLOW, "!"));
    }

    /// Prints why something failed, to stderr.
    pub(crate) fn fail(&self, text: &str) {
        eprintln!("{}{} {text}", self.clear(), self.paint(RED, "✗"));
    }

    /// Prints a table of the completed steps and their seconds.
    pub(crate) fn table(&self) {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let width = steps
            .iter()
            .map(|(what, _)| what.chars().count())
            .max()
            .unwrap_or(0);
        for (what, took) in steps.iter() {
            let fill = " ".repeat(width - what.chars().count());
            self.line(&format!("  {what}{fill}  {:>6.1} s", took.as_secs_f64()));
        }
        let total: Duration = steps.iter().map(|(_, took)| *took).sum();
        self.line(&format!(
            "  {:width$}  {:>6.1} s",
            "all steps",
            total.as_secs_f64()
        ));
    }

    fn clear(&self) -> &'static str {
        if self.terminal { "\r\x1b[K" } else { "" }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn write(&self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        // If the reader has gone (`| head`), the task goes on and stops its processes as usual.
        let _ = stdout.write_all(text.as_bytes());
        let _ = stdout.flush();
    }
}

/// A text without the colours of [`Output::paint`].
fn plain(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| {
        plain + part.split_once('m').map_or(part, |(_, text)| text)
    })
}

impl Step<'_> {
    /// Shows the step's progress: in place on a terminal, otherwise as a line every 15 s.
    pub(crate) fn progress(&self, what: &str) {
        let line = format!("… {what} ({} s)", self.started.elapsed().as_secs());
        let output = self.output;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if output.terminal && line != last.line {
            output.write(&format!("\r\x1b[K{}", output.paint(DIM, &line)));
            last.line = line;
        } else if !output.terminal && last.at.elapsed() >= LINE_INTERVAL {
            output.line(&line);
            last.at = Instant::now();
        }
    }

    /// Completes the step and prints its line.
    pub(crate) fn done(self, what: &str) {
        let took = self.started.elapsed();
        let output = self.output;
        output.line(&format!(
            "{} {what} {}",
            output.paint(GREEN, "✓"),
            output.paint(DIM, &format!("({:.1} s)", took.as_secs_f64()))
        ));
        output
            .steps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((what.to_owned(), took));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_without_colours() {
        let output = Output {
            colour: true,
            ..Output::new()
        };
        output.heading("A");
        output.passed("b");
        assert_eq!(output.lines(), ["", "A", "✓ b"]);
    }
}
