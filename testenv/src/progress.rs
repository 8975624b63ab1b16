//! Progress of long steps on stderr.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Where a long step, such as a build of the binaries, reports progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// On stderr: one line updated in place on a terminal, else one line every 15 s.
    #[default]
    Stderr,
    /// Nowhere. Only what is decided is said on stderr, in a line, such as whether programs are downloaded or built.
    Quiet,
}

impl Progress {
    /// Writes a line, also if it is quiet.
    pub(crate) fn note(self, text: &str) {
        let step = Step::new(self);
        step.write(&format!("{}testenv: {text}\n", step.clear()));
    }
}

const LINE_INTERVAL: Duration = Duration::from_secs(15);

/// One step's line.
#[derive(Debug)]
pub(crate) struct Step {
    mode: Progress,
    terminal: bool,
    started: Instant,
    last_line: Option<Instant>,
    shown: String,
}

impl Step {
    pub(crate) fn new(mode: Progress) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            mode,
            terminal,
            started: Instant::now(),
            last_line: None,
            shown: String::new(),
        }
    }

    /// Writes `what` and the seconds since the start of the step.
    pub(crate) fn update(&mut self, what: &str) {
        let due = self.last_line.is_none_or(|at| at.elapsed() >= LINE_INTERVAL);
        let line = format!("testenv: {what}, {} s", self.started.elapsed().as_secs());
        if self.mode == Progress::Quiet || line == self.shown {
            return;
        }
        if self.terminal {
            self.write(&format!("\r\x1b[K{line}"));
            self.last_line = Some(Instant::now());
        } else if due {
            self.write(&format!("{line}\n"));
            self.last_line = Some(Instant::now());
        }
        self.shown = line;
    }

    /// Writes the step's last line. Writes nothing if the step never wrote anything.
    pub(crate) fn finish(&mut self, what: &str) {
        if self.mode == Progress::Quiet || self.last_line.is_none() {
            return;
        }
        self.write(&format!(
            "{}testenv: {what} after {} s\n",
            self.clear(),
            self.started.elapsed().as_secs()
        ));
    }

    fn clear(&self) -> &'static str {
        if self.terminal { "\r\x1b[K" } else { "" }
    }

    fn write(&self, text: &str) {
        // Not eprintln!: libtest captures that, so the terminal would stay empty for minutes.
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes());
        let _ = stderr.flush();
    }
}
