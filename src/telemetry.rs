//! Logs, on standard error: one line for each reconcile that did something or failed, as text or JSON.
//!
//! May import [`crate::text`] only, which makes each line safe to show. Never decides what a line says: its callers do.

use std::io::Write;

use clap::ValueEnum;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::text::{printable, printable_json};

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

/// Starts logging. A level alone, such as `debug`, sets the operator's own level; the libraries below it then log warnings at most.
/// `TARGET=LEVEL` is for one library, `all=LEVEL` for all of them, and further directives of `tracing` are taken as they are
/// (<https://docs.rs/tracing-subscriber/latest/tracing_subscriber/filter/struct.EnvFilter.html#directives>).
///
/// # Errors
/// The filter cannot be parsed.
pub fn init(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(directives(filter))?;
    let writer = move || Printable {
        out: std::io::stderr(),
        format,
    };
    tracing_subscriber::registry()
        .with(lines(format, writer))
        .with(filter)
        .with(WithoutAnswers)
        .init();
    Ok(())
}

/// The layer that writes a line for each event. Without colours: they are control characters.
fn lines<S>(
    format: LogFormat,
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false);
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    }
}

/// Escapes each line. The text of a field or message may be another's, whichever crate logs it.
struct Printable<W> {
    out: W,
    format: LogFormat,
}

impl<W: Write> Write for Printable<W> {
    /// `line` is a whole line, as the layer writes it.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let safe = match self.format {
            LogFormat::Json => printable_json(&text),
            // What would look like another line is not one.
            LogFormat::Text => {
                let text = text.strip_suffix('\n').unwrap_or(&text);
                format!("{}\n", printable(text, usize::MAX)).into()
            }
        };
        self.out.write_all(safe.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Drops whatever logs answers of the Kubernetes API, whatever the filter lets pass: a Secret stands in some of them. A layer, since any
/// directive for a span of a filter would let such lines pass again.
struct WithoutAnswers;

impl WithoutAnswers {
    /// kube's client logs a body that it cannot decode, and refusals, in which an admission webhook may quote a Secret. kube's runtime
    /// logs decoding errors, which quote a value of the body.
    fn is_allowed(metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        target != "kube_client::client" && !target.starts_with("kube_runtime")
    }
}

impl<S: Subscriber> Layer<S> for WithoutAnswers {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match Self::is_allowed(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        Self::is_allowed(metadata)
    }
}

/// What is asked for, as `tracing` understands it.
fn directives(asked: &str) -> String {
    let mut all: Vec<String> = Vec::new();
    for part in asked.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let level = |text: &str| text.parse::<LevelFilter>().ok();
        match (level(part), part.strip_prefix("all=").and_then(level)) {
            (Some(level), _) => {
                let others = level.min(LevelFilter::WARN);
                all.extend([others.to_string(), format!("idtoken_operator={level}")]);
            }
            (_, Some(level)) => all.push(level.to_string()),
            _ => all.push(part.to_owned()),
        }
    }
    all.join(",")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::sync::lock;

    #[test]
    fn each_line_is_escaped() {
        let forged = "x\u{1b}[31m\u{9b}0m\u{202e}\n2026-01-01T00:00:00Z  INFO forged";
        for format in [LogFormat::Text, LogFormat::Json] {
            let written = Arc::new(Mutex::new(Vec::new()));
            let out = Arc::clone(&written);
            let writer = move || Printable {
                out: Shared(Arc::clone(&out)),
                format,
            };
            let subscriber = tracing_subscriber::registry().with(lines(format, writer));
            tracing::subscriber::with_default(subscriber, || {
                tracing::info!(field = %forged, debug = ?forged, "{forged}");
                tracing::info!("naïve – 日本語");
            });
            let text = String::from_utf8(lock(&written).clone()).expect("UTF-8");
            assert_eq!(text.lines().count(), 2, "{text:?}");
            let is_safe = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
            assert!(text.chars().all(is_safe), "{text:?}");
            assert!(text.contains("naïve – 日本語"));
            if format == LogFormat::Json {
                let line: serde_json::Value =
                    serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
                assert_eq!(line["message"], forged);
            }
        }
    }

    #[derive(Clone)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn libraries_say_no_more_than_warnings_unless_they_are_asked() {
        for (asked, wanted) in [
            ("info", "warn,idtoken_operator=info"),
            ("trace", "warn,idtoken_operator=trace"),
            ("error", "error,idtoken_operator=error"),
            ("off", "off,idtoken_operator=off"),
            ("info,hyper=debug", "warn,idtoken_operator=info,hyper=debug"),
            ("all=trace", "trace"),
            (
                " all=warn , idtoken_operator=debug ",
                "warn,idtoken_operator=debug",
            ),
            (
                "idtoken_operator::google[{id}]=trace",
                "idtoken_operator::google[{id}]=trace",
            ),
        ] {
            assert_eq!(directives(asked), wanted, "{asked}");
            assert!(EnvFilter::try_new(directives(asked)).is_ok(), "{asked}");
        }
        assert!(EnvFilter::try_new(directives("all=much")).is_err());
    }
}
