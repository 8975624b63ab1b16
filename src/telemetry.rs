//! Logs, on standard error: one line for each reconcile that did something or failed, as text or JSON.

use clap::ValueEnum;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

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
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = match format {
        LogFormat::Text => lines.with_ansi(is_terminal).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .with(WithoutAnswers)
        .init();
    Ok(())
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
    use super::*;

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
