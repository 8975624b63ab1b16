//! The tables of `docs/metrics.md` list the metrics of a scrape.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use regex::Regex;

/// Metrics by name, on the page or in a scrape: the type, and the labels without `le`.
pub(crate) type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// A file of the project.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The text of a page's headings.
pub(crate) fn headings(page: &str) -> Vec<String> {
    let heading = |line: &str| Some(line.trim_start_matches('#').strip_prefix(' ')?.to_owned());
    page.lines()
        .filter(|line| line.starts_with('#'))
        .filter_map(heading)
        .collect()
}

/// The rows of the page's tables of metrics: name, type, labels, meaning.
pub(crate) fn documented(page: &str) -> Metrics {
    let row = Regex::new(
        r"(?m)^\| `([a-z_]+)` \| (counter|gauge|histogram|gauge histogram|info) \|([^|]*)\| [^|]{10,} \|$",
    )
    .unwrap();
    let label = Regex::new("`([a-z]+)`").unwrap();
    let labels = |cell: &str| {
        label
            .captures_iter(cell)
            .map(|found| found[1].to_owned())
            .collect()
    };
    row.captures_iter(page)
        .map(|row| (row[1].to_owned(), (row[2].to_owned(), labels(&row[3]))))
        .collect()
}

/// The metrics of an OpenMetrics text, by the names that queries use; labels only of those that have a series.
pub(crate) fn scraped(text: &str) -> Metrics {
    let sample = Regex::new(r"^([a-z_]+)(?:\{(.*)\})? \S+$").unwrap();
    let label = Regex::new(r#"([a-z]+)="(?:[^"\\]|\\.)*""#).unwrap();
    let mut metrics = Metrics::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", kind),
                "gaugehistogram" => ("", "gauge histogram"),
                _ => ("", kind),
            };
            current = format!("{name}{suffix}");
            metrics.insert(current.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some(found) = sample.captures(line) {
            let labels = found.get(2).map_or("", |labels| labels.as_str());
            let names = label.captures_iter(labels).map(|label| label[1].to_owned());
            metrics
                .get_mut(&current)
                .unwrap()
                .1
                .extend(names.filter(|name| name != "le"));
        }
    }
    metrics
}

#[test]
fn a_scrape_is_read() {
    let text = "# HELP a_seconds A.\n# TYPE a_seconds counter\na_seconds_total{x=\"1,y=\\\"\",z=\"\"} 1\n# TYPE b histogram\n\
                b_bucket{le=\"+Inf\"} 2\nb_sum 1.5\n# EOF\n";
    let labels = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let wanted = Metrics::from([
        (
            "a_seconds_total".to_owned(),
            ("counter".to_owned(), labels(&["x", "z"])),
        ),
        ("b".to_owned(), ("histogram".to_owned(), labels(&[]))),
    ]);
    assert_eq!(scraped(text), wanted);
}
