//! What reaches the terminal. Text of a cluster is never printed as it is: it can contain control sequences.
//!
//! Imports nothing of this crate. Never reads a cluster and never decides.

pub(crate) mod age;
pub(crate) mod table;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use idtoken_operator::text;
use serde::Serialize;
use serde_saphyr::{ser_options, to_string_with_options};

/// Longest message of an error, in characters.
const MAX_ERROR: usize = 4096;

/// Longest value that is printed, in characters. The schema allows 4,096 for a condition's message.
const MAX_VALUE: usize = 4096;

/// Writes `text` to standard output.
///
/// # Errors
/// The pipe is closed, or the disk is full.
pub(crate) fn print(text: impl Display) -> Result<()> {
    verbatim(&text::printable_lines(&text.to_string()))
}

/// As [`print()`], for text with tabs that has nothing of a cluster but names which were checked.
///
/// # Errors
/// As [`print()`].
pub(crate) fn verbatim(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes pretty JSON and a newline to standard output.
///
/// # Errors
/// As [`print()`].
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    print(json_text(value)?)
}

/// Writes YAML to standard output.
///
/// # Errors
/// As [`print()`].
pub(crate) fn yaml(value: &impl Serialize) -> Result<()> {
    print(yaml_text(value)?)
}

fn yaml_text(value: &impl Serialize) -> Result<String> {
    let options = ser_options! { prefer_block_scalars: false };
    let yaml = to_string_with_options(value, options)?;
    let yaml = format!("{}\n", yaml.trim_end_matches('\n'));
    match text::printable_lines(&yaml) == yaml {
        true => Ok(yaml),
        // JSON is YAML, and has an escape for each character that is not printed.
        false => json_text(value),
    }
}

fn json_text(value: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string_pretty(value)?;
    Ok(format!("{}\n", text::printable_json(&json)))
}

/// The exit code of a command whose answer is yes or no.
pub(crate) fn exit_code(yes: bool) -> ExitCode {
    match yes {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Writes a line beside the result to standard error.
pub(crate) fn notice(text: impl Display) {
    // An error cannot be reported when standard error is closed.
    let _ = writeln!(
        io::stderr().lock(),
        "note: {}",
        text::printable_lines(&text.to_string())
    );
}

/// Writes an error with its causes to standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let _ = writeln!(
        io::stderr().lock(),
        "error: {}",
        text::redacted(&text::error_chain(error.as_ref()), MAX_ERROR)
    );
}

/// A text of the cluster that is safe to print: without control characters and without anything that looks like a credential.
pub(crate) fn redacted(value: &str) -> String {
    text::redacted(value, MAX_VALUE)
}

/// A name or a claim, which is no secret but can look like one: only control characters are escaped.
pub(crate) fn printable(value: &str) -> String {
    text::printable(value, MAX_VALUE)
}

/// Whether the reader of standard output has closed the pipe, as `head` does.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_and_tokens_stay_out() {
        let text = redacted("a\u{1b}[31mb eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2lnbmF0dXJl");
        assert!(!text.contains('\u{1b}') && !text.contains("eyJ"), "{text}");
    }

    #[test]
    fn json_and_text_are_escaped() {
        let value = "a\u{1b}[2J\u{9b}b\u{202e}\u{2066}\u{61c}\nc";
        let json = json_text(&[value]).unwrap();
        let is_unsafe = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2066}\u{61c}".contains(c));
        assert!(!json.contains(is_unsafe), "{json:?}");
        // Whoever parses it has the value.
        assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), [value]);
        // In YAML, no parser takes a text for anything else.
        let texts = [value, "yes", "null", "1", "- a", "a: b # c", ""];
        for texts in [&texts[..], &texts[1..]] {
            let yaml = yaml_text(&texts).unwrap();
            assert!(!yaml.contains(is_unsafe), "{yaml:?}");
            assert_eq!(serde_saphyr::from_str::<Vec<String>>(&yaml).unwrap(), texts);
        }
        assert!(!text::printable_lines(value).contains(is_unsafe));
        assert!(!printable(value).contains(is_unsafe) && !printable(value).contains('\n'));
    }

    #[test]
    fn broken_pipe_is_found_below_contexts() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("printing");
        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("other")));
    }
}
