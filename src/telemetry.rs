//! Logs, on standard error: one line for each reconcile that did something or failed, as text or JSON.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

/// Starts logging. A level alone, such as `debug`, is the operator's own; the libraries below it then say no more than warnings.
/// `TARGET=LEVEL` is for one library, `all=LEVEL` for all of them, and further directives of `tracing` are taken as they are
/// (<https://docs.rs/tracing-subscriber/latest/tracing_subscriber/filter/struct.EnvFilter.html#directives>).
///
/// # Errors
/// The filter cannot be parsed.
pub fn start(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(directives(filter))?)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init(),
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).init(),
    }
    Ok(())
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
    // At debug, kube's client prints the API server's refusals, in which an admission webhook may quote a Secret.
    all.push("kube_client::client=info".to_owned());
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_say_no_more_than_warnings_unless_they_are_asked() {
        let end = ",kube_client::client=info";
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
            assert_eq!(directives(asked), format!("{wanted}{end}"), "{asked}");
            assert!(EnvFilter::try_new(directives(asked)).is_ok(), "{asked}");
        }
        assert!(EnvFilter::try_new(directives("all=much")).is_err());
    }

    #[test]
    fn the_apis_refusals_are_printed_by_nobody() {
        for asked in [
            "all=trace",
            "trace,kube_client=trace",
            "kube_client::client=trace",
        ] {
            let filter = EnvFilter::try_new(directives(asked)).unwrap();
            let shown = filter.to_string();
            let most = shown
                .split(',')
                .find(|part| part.starts_with("kube_client::client"));
            assert_eq!(most, Some("kube_client::client=info"), "{shown}");
        }
    }
}
