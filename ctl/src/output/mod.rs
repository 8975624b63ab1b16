//! What reaches the terminal. Nothing that comes from a cluster is printed as it is: it could hold control sequences.
//!
//! Imports nothing of this crate. Never reads a cluster and never decides.

pub(crate) mod age;
pub(crate) mod table;

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Result;
use idtoken_operator::text;
use serde::Serialize;

/// The longest message of an error, in characters.
const MAX_ERROR: usize = 4096;

/// The longest value of a cluster that is shown, in characters; a condition's message may have 4,096.
const MAX_VALUE: usize = 4096;

/// Writes `text` to standard output.
///
/// # Errors
/// The pipe is closed, or the disk full.
pub(crate) fn print(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// Writes pretty JSON and a newline to standard output.
///
/// # Errors
/// As [`print()`].
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    print(format_args!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Writes a line about what was found beside the result to standard error.
pub(crate) fn note(text: impl Display) {
    // Nobody is left to be told that standard error is closed.
    let _ = writeln!(io::stderr().lock(), "note: {text}");
}

/// Writes a failure with its causes to standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let _ = writeln!(
        io::stderr().lock(),
        "error: {}",
        text::redacted(&text::error_chain(error.as_ref()), MAX_ERROR)
    );
}

/// A text of the cluster, safe to show: without control characters, and without anything that looks like a credential.
pub(crate) fn shown(value: &str) -> String {
    text::redacted(value, MAX_VALUE)
}

/// A name or claim, which is no secret but can look like one: without control characters.
pub(crate) fn named(value: &str) -> String {
    text::printable(value, MAX_VALUE)
}

/// Whether a failure is that the reader of standard output has gone, as `head` does.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_and_tokens_stay_out() {
        let shown = shown("a\u{1b}[31mb eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2lnbmF0dXJl");
        assert!(!shown.contains('\u{1b}') && !shown.contains("eyJ"), "{shown}");
    }

    #[test]
    fn broken_pipe_is_seen_through_contexts() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("printing");
        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("other")));
    }
}
