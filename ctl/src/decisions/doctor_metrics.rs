//! Pure: the metrics of the leader → how its calls of Google, its clock, its watches and its grants file are. No new call is made.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::decisions::checkup::{Check, some};
use crate::output::age::age;

/// Clock skews that are worth a look, and that break tokens, in seconds.
const SKEW: (f64, f64) = (10.0, 60.0);

/// Areas that the pods' own checks tell about too.
pub(crate) const OF_HEALTH: [&str; 2] = ["grants file", "namespaces"];

/// A sample of a metric.
#[derive(Debug, PartialEq)]
pub(crate) struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// The samples of the operator's own metrics in Prometheus' text format. Lines that cannot be read are left out.
pub(crate) fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    if !line.starts_with("idtoken_") && !line.starts_with("process_start") || line.contains("_bucket{") {
        return None;
    }
    let (head, value) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, value) = labels(rest)?;
            ((name, labels), value)
        }
        None => {
            let (name, value) = line.split_once(' ')?;
            ((name, BTreeMap::new()), value)
        }
    };
    Some(Sample {
        name: head.0.to_owned(),
        labels: head.1,
        value: value.split_whitespace().next()?.parse().ok()?,
    })
}

/// `a="b",c="d"} REST` as a map, and REST.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((found, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, c) => value.push(c),
            }
        };
        found.insert(name.to_owned(), value);
        rest = &after[end + 1..];
    }
}

/// Whether the replica reconciles.
pub(crate) fn leads(samples: &[Sample]) -> bool {
    named(samples, "idtoken_leader").any(|sample| sample.value > 0.0)
}

/// The version that runs, as the replica itself says it.
pub(crate) fn version(samples: &[Sample]) -> Option<&str> {
    let info = named(samples, "idtoken_build_info").next();
    info.map(|sample| label(sample, "version"))
}

/// The checks of the leader's metrics.
pub(crate) fn checks(samples: &[Sample], now: Timestamp) -> Vec<Check> {
    let mut checks = vec![mints(samples, now), clock(samples)];
    checks.extend(egress(samples));
    checks.push(watches(samples));
    checks.extend(namespaces(samples));
    let failing_file = "idtoken_grants_file_failing_since_timestamp_seconds";
    if named(samples, failing_file).next().is_some() {
        checks.push(Check::failure(
            OF_HEALTH[0],
            "it cannot be used: its last good content is in force",
            "docs/metrics.md#idtokengrantsfileinvalid; the operator's log names the error",
        ));
    }
    checks
}

fn named<'s>(samples: &'s [Sample], name: &'static str) -> impl Iterator<Item = &'s Sample> {
    samples.iter().filter(move |sample| sample.name == name)
}

fn label<'s>(sample: &'s Sample, name: &str) -> &'s str {
    sample.labels.get(name).map_or("", String::as_str)
}

/// Counts as `NAME COUNT`, the largest first.
fn counts(counts: BTreeMap<String, f64>) -> Vec<String> {
    let mut counts: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0.0).collect();
    counts.sort_by(|a, b| b.1.total_cmp(&a.1));
    counts
        .into_iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect()
}

fn mints(samples: &[Sample], now: Timestamp) -> Check {
    const AREA: &str = "tokens";
    let mut issued = 0.0;
    let mut refused = BTreeMap::<String, f64>::new();
    for sample in named(samples, "idtoken_mint_total") {
        match label(sample, "result") {
            "Issued" | "Unchanged" => issued += sample.value,
            reason => *refused.entry(reason.to_owned()).or_default() += sample.value,
        }
    }
    let start = named(samples, "process_start_time_seconds").next();
    #[allow(clippy::cast_possible_truncation)]
    let start = start.and_then(|sample| Timestamp::from_second(sample.value as i64).ok());
    let since = start.map_or_else(String::new, |start| {
        format!(" since the leader started {} ago", age(now.duration_since(start)))
    });
    let refused = counts(refused);
    let fix = "kubectl idtoken explain NAME -n NAMESPACE, for those that kubectl get idtr -A shows as not ready; docs/reasons.md has each reason";
    match (issued > 0.0, refused.is_empty()) {
        (true, true) => Check::ok(AREA, format!("{issued} issued and none refused{since}")),
        (true, false) => Check::warning(
            AREA,
            format!("{issued} issued{since}; refused: {}", some(&refused)),
            fix,
        ),
        (false, true) => Check::ok(AREA, format!("none requested{since}")),
        (false, false) => Check::failure(
            AREA,
            format!("none issued{since}; refused: {}", some(&refused)),
            fix,
        ),
    }
}

fn egress(samples: &[Sample]) -> Vec<Check> {
    const AREA: &str = "egress";
    let mut endpoints = BTreeMap::<String, (f64, f64, BTreeMap<String, f64>)>::new();
    for sample in named(samples, "idtoken_upstream_request_duration_seconds_count") {
        let (all, answered, failed) = endpoints.entry(label(sample, "endpoint").to_owned()).or_default();
        *all += sample.value;
        let code = label(sample, "code");
        // A refusal is an answer: the network is well.
        match code.parse::<u16>() {
            Ok(status) if status < 500 && status != 429 => *answered += sample.value,
            _ => *failed.entry(code.to_owned()).or_default() += sample.value,
        }
    }
    let open: f64 = named(samples, "idtoken_upstream_circuits_open")
        .map(|sample| sample.value)
        .sum();
    let mut checks: Vec<Check> = endpoints
        .into_iter()
        .map(|(endpoint, (all, answered, failed))| {
            let failed = counts(failed);
            if answered > 0.0 {
                let rest = match failed.is_empty() {
                    true => String::new(),
                    false => format!("; not answered: {}", some(&failed)),
                };
                Check::ok(AREA, format!("{endpoint}: {answered} of {all} calls answered{rest}"))
            } else {
                Check::failure(
                    AREA,
                    format!("{endpoint}: none of {all} calls answered: {}", some(&failed)),
                    "Let the operator's pods reach it: docs/installation.md and docs/operations.md have hosts, proxies and NetworkPolicies",
                )
            }
        })
        .collect();
    if open > 0.0 {
        checks.push(Check::warning(
            AREA,
            format!("{open} circuit breakers are open: only single probes are sent"),
            "docs/metrics.md#idtokenupstreamdown",
        ));
    }
    checks
}

fn clock(samples: &[Sample]) -> Check {
    const AREA: &str = "clock";
    let Some(skew) = named(samples, "idtoken_clock_skew_seconds").next() else {
        return Check::ok(AREA, "nothing to compare with yet");
    };
    let seconds = skew.value.abs();
    let message = format!("the operator's clock and Google's differ by {seconds:.0} s");
    let fix = "Synchronize the clock of the operator's node";
    if seconds > SKEW.1 {
        Check::failure(AREA, message, fix)
    } else if seconds > SKEW.0 {
        Check::warning(AREA, message, fix)
    } else {
        Check::ok(AREA, message)
    }
}

fn watches(samples: &[Sample]) -> Check {
    const AREA: &str = "watches";
    let failing: Vec<String> = named(samples, "idtoken_watches_failing")
        .filter(|sample| sample.value > 0.0)
        .map(|sample| label(sample, "resource").to_owned())
        .collect();
    match failing.is_empty() {
        true => Check::ok(AREA, "none fails"),
        false => Check::failure(
            AREA,
            format!("those of {} fail", some(&failing)),
            "docs/metrics.md#idtokenwatchdead; the operator's log names the missing right",
        ),
    }
}

fn namespaces(samples: &[Sample]) -> Option<Check> {
    let failing: Vec<String> = named(samples, "idtoken_namespace_failing_since_timestamp_seconds")
        .map(|sample| label(sample, "namespace").to_owned())
        .collect();
    (!failing.is_empty()).then(|| {
        Check::failure(
            OF_HEALTH[1],
            format!("{} cannot be listed or watched", some(&failing)),
            "Run helm upgrade again, which creates the operator's Roles there, or take them out of watchNamespaces",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decisions::checkup::Level;

    const WELL: &str = "# HELP idtoken_leader x\n# TYPE idtoken_leader gauge\nidtoken_leader 1\nprocess_start_time_seconds 1768474800.5\n\
        idtoken_mint_total{source=\"Impersonation\",result=\"Issued\"} 12\nidtoken_clock_skew_seconds -1\nidtoken_watches_failing{resource=\"secrets\"} 0\n\
        idtoken_upstream_request_duration_seconds_count{endpoint=\"iamcredentials\",code=\"200\"} 12\n\
        idtoken_upstream_request_duration_seconds_bucket{endpoint=\"iamcredentials\",code=\"Timeout\",le=\"1\"} 5\n";

    fn levels(text: &str) -> Vec<(&'static str, Level)> {
        let now = "2026-01-15T12:00:00Z".parse().unwrap();
        checks(&parse(text), now)
            .into_iter()
            .map(|check| (check.area, check.level))
            .collect()
    }

    /// The levels that are not those of an operator that is well.
    fn changed(more: &str) -> Vec<(&'static str, Level)> {
        let well = levels(WELL);
        let mut all = levels(&format!("{WELL}{more}"));
        all.retain(|one| !well.contains(one));
        all
    }

    #[test]
    fn an_operator_that_is_well() {
        let wanted = ["tokens", "clock", "egress", "watches"].map(|area| (area, Level::Ok));
        assert_eq!(levels(WELL), wanted);
        assert_eq!(
            version(&parse("idtoken_build_info{version=\"0.1.0\"} 1\n")),
            Some("0.1.0")
        );
        assert!(leads(&parse(WELL)) && !leads(&parse("idtoken_leader 0\n")));
        let now = "2026-01-15T12:00:00Z".parse().unwrap();
        assert_eq!(
            checks(&parse(WELL), now)[0].message,
            "12 issued and none refused since the leader started 1h ago"
        );
    }

    /// As a real operator served it: tests/telemetry/recorded.rs holds it up to date.
    const RECORDED: &str = include_str!("../../tests/recorded/metrics.txt");

    #[test]
    fn what_a_real_operator_serves_is_read() {
        let samples = parse(RECORDED);
        // The other metric of the namespaces is absent until one fails.
        for name in [
            "process_start_time_seconds",
            "idtoken_leader",
            "idtoken_build_info",
            "idtoken_mint_total",
            "idtoken_upstream_request_duration_seconds_count",
            "idtoken_upstream_circuits_open",
            "idtoken_clock_skew_seconds",
            "idtoken_watches_failing",
            "idtoken_grants_file_failing_since_timestamp_seconds",
        ] {
            assert!(named(&samples, name).next().is_some(), "{name}");
        }
        assert!(leads(&samples));
        assert_eq!(version(&samples), Some(env!("CARGO_PKG_VERSION")));
        let start = named(&samples, "process_start_time_seconds")
            .next()
            .unwrap()
            .value;
        let now = Timestamp::from_second(start as i64 + 3600).unwrap();
        let found: Vec<(&str, Level, String)> = checks(&samples, now)
            .into_iter()
            .map(|check| (check.area, check.level, check.message))
            .collect();
        let told = |area: &'static str, level, message: &str| (area, level, message.to_owned());
        assert_eq!(
            found,
            [
                told(
                    "tokens",
                    Level::Warning,
                    "1 issued since the leader started 1h ago; refused: PermissionDenied 1"
                ),
                told(
                    "clock",
                    Level::Ok,
                    "the operator's clock and Google's differ by 0 s"
                ),
                told("egress", Level::Ok, "iamcredentials: 2 of 2 calls answered"),
                told("egress", Level::Ok, "metadata: 4 of 4 calls answered"),
                told("watches", Level::Ok, "none fails"),
                told(
                    "grants file",
                    Level::Failure,
                    "it cannot be used: its last good content is in force"
                ),
            ]
        );
    }

    #[test]
    fn each_trouble_has_its_level() {
        let mint =
            |result: &str| format!("idtoken_mint_total{{source=\"Impersonation\",result=\"{result}\"}} 3\n");
        let call = |code: &str| {
            format!("idtoken_upstream_request_duration_seconds_count{{endpoint=\"sts\",code=\"{code}\"}} 2\n")
        };
        for (more, area, level) in [
            (mint("PermissionDenied"), "tokens", Level::Warning),
            (call("Timeout"), "egress", Level::Failure),
            (call("503"), "egress", Level::Failure),
            (
                "idtoken_upstream_circuits_open{endpoint=\"sts\"} 1\n".to_owned(),
                "egress",
                Level::Warning,
            ),
            (
                "idtoken_watches_failing{resource=\"requests\"} 1\n".to_owned(),
                "watches",
                Level::Failure,
            ),
            (
                "idtoken_namespace_failing_since_timestamp_seconds{namespace=\"shop\"} 1\n".to_owned(),
                "namespaces",
                Level::Failure,
            ),
            (
                "idtoken_grants_file_failing_since_timestamp_seconds 1\n".to_owned(),
                "grants file",
                Level::Failure,
            ),
        ] {
            assert_eq!(changed(&more), [(area, level)], "{more}");
        }
        // A refusal is an answer.
        assert_eq!(changed(&call("403")), []);
        let skewed = |seconds: &str| WELL.replace("skew_seconds -1", &format!("skew_seconds {seconds}"));
        assert_eq!(levels(&skewed("-30"))[1], ("clock", Level::Warning));
        assert_eq!(levels(&skewed("90"))[1], ("clock", Level::Failure));
        let refused = WELL.replace("Issued", "PermissionDenied");
        assert_eq!(levels(&refused)[0], ("tokens", Level::Failure));
        assert_eq!(levels("")[0], ("tokens", Level::Ok));
    }

    #[test]
    fn what_is_no_metric_is_left_out_and_what_is_shown_is_escaped() {
        let hostile = "idtoken_x{a=\"unfinished\nidtoken_y{} notanumber\nidtoken_z\n\u{1b}[2J\nidtoken_watches_failing{resource=\"a\\\"b\\\\\u{1b}[2J\"} 1\n";
        let samples = parse(hostile);
        assert_eq!(samples.len(), 1);
        assert_eq!(samples[0].labels["resource"], "a\"b\\\u{1b}[2J");
        let now = Timestamp::UNIX_EPOCH;
        let text = format!("{:?}", checks(&samples, now));
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
