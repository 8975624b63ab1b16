//! Pure: the text formats of a scrape, and which of them a client gets. The registry writes OpenMetrics; a client that does not accept it
//! gets the older text format.

use std::fmt::Write;

/// Text format of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
    OpenMetrics,
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
    Text,
}

impl Format {
    /// The format that a client accepts, by its `Accept` header.
    pub fn accepted(accept: &str) -> Self {
        match accept.contains("application/openmetrics-text") {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// The `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Writes a gauge histogram: its buckets count the present `values`, not all that were ever observed. The registry has no such type.
/// `bounds` are the upper bounds of the buckets, without `+Inf`.
pub(super) fn gauge_histogram(text: &mut String, name: &str, help: &str, bounds: &[f64], values: &[f64]) {
    let count = |bound: f64| values.iter().filter(|value| **value <= bound).count();
    // Writing to a string does not fail.
    let mut line = |line: std::fmt::Arguments<'_>| {
        let _ = text.write_fmt(line);
        text.push('\n');
    };
    line(format_args!("# HELP {name} {help}."));
    line(format_args!("# TYPE {name} gaugehistogram"));
    line(format_args!("# UNIT {name} seconds"));
    for bound in bounds {
        line(format_args!(
            "{name}_bucket{{le=\"{bound:?}\"}} {}",
            count(*bound)
        ));
    }
    line(format_args!("{name}_bucket{{le=\"+Inf\"}} {}", values.len()));
    line(format_args!("{name}_gcount {}", values.len()));
    line(format_args!(
        "{name}_gsum {:?}",
        values.iter().fold(0.0, |sum, value| sum + value)
    ));
}

/// Converts OpenMetrics to the older text format, in which a family is named as its samples are.
pub(super) fn as_text(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help = "";
    let mut unnamed = false;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.rsplit_once(' ').unwrap_or((rest, "unknown"));
            unnamed = kind == "gaugehistogram";
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "gaugehistogram" => ("_bucket", "untyped"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            let _ = writeln!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            let name = line.split([' ', '{']).next().unwrap_or_default();
            if unnamed && (name.ends_with("_gcount") || name.ends_with("_gsum")) {
                let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} untyped");
            }
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_families_by_their_samples() {
        let mut open = "# HELP a_seconds A.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\na_seconds_total{x=\"1\"} 1\n\
                        # HELP b B.\n# TYPE b info\nb_info{v=\"#\"} 1\n\
                        # HELP c C.\n# TYPE c gauge\nc 1\n"
            .to_owned();
        gauge_histogram(&mut open, "d", "D", &[0.0, 60.0], &[0.0, 30.0, 90.0]);
        open.push_str("# EOF\n");
        let wanted = "# HELP a_seconds_total A.\n# TYPE a_seconds_total counter\na_seconds_total{x=\"1\"} 1\n\
                      # HELP b_info B.\n# TYPE b_info gauge\nb_info{v=\"#\"} 1\n\
                      # HELP c C.\n# TYPE c gauge\nc 1\n\
                      # HELP d_bucket D.\n# TYPE d_bucket untyped\n\
                      d_bucket{le=\"0.0\"} 1\nd_bucket{le=\"60.0\"} 2\nd_bucket{le=\"+Inf\"} 3\n\
                      # HELP d_gcount D.\n# TYPE d_gcount untyped\nd_gcount 3\n\
                      # HELP d_gsum D.\n# TYPE d_gsum untyped\nd_gsum 120.0\n";
        assert_eq!(as_text(&open), wanted);
    }

    #[test]
    fn a_client_gets_the_format_that_it_accepts() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted("*/*"), Format::Text);
        assert_eq!(Format::accepted(""), Format::Text);
    }
}
