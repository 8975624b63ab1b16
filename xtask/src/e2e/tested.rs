//! The table of the Kubernetes versions on which the end-to-end tests passed, in docs/upgrade-policy.md: `--record` writes a row.

use anyhow::{Context, Result};
use idtoken_testenv::binaries::KUBERNETES_VERSION;
use jiff::civil::Date;

/// The page, in the workspace.
const PAGE: &str = "docs/upgrade-policy.md";
const MARKS: [&str; 2] = [
    "<!-- Versions, written by `cargo xtask e2e --record`; not edited by hand. -->\n",
    "<!-- End of the versions. -->",
];
const HEAD: &str = "| Kubernetes | Cases that passed | On |\n|---|---|---|\n";
/// The last release of the oldest minor version that the chart accepts.
pub(crate) const OLDEST: &str = "v1.30.14";

/// Writes into the page that so many cases passed today on this version, or the pinned one.
///
/// # Errors
/// When the page has no place for it, or cannot be written.
pub(super) fn record(version: Option<&str>, cases: usize) -> Result<()> {
    let path = crate::workspace().join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| format!("cannot read {PAGE}"))?;
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let page = with_row(&page, version.unwrap_or(KUBERNETES_VERSION), cases, today)?;
    std::fs::write(&path, page).with_context(|| format!("cannot write {PAGE}"))
}

/// The page with the row of this version, in place of that of the same minor version. The newest comes first.
fn with_row(page: &str, version: &str, cases: usize, on: Date) -> Result<String> {
    let (before, rows, after) = parts(page)?;
    let minor = minor(version).with_context(|| format!("{version} is no version"))?;
    let mut rows: Vec<_> = rows
        .filter_map(|row| Some((self::minor(version_of(row)?)?, row.to_owned())))
        .collect();
    rows.retain(|(other, _)| *other != minor);
    rows.push((minor, format!("| {version} | {cases} | {on} |")));
    rows.sort_by_key(|(minor, _)| std::cmp::Reverse(*minor));
    let rows: String = rows.iter().map(|(_, row)| format!("{row}\n")).collect();
    Ok([before, MARKS[0], HEAD, &rows, MARKS[1], after].concat())
}

/// What is before the table, its lines, and what is after it.
fn parts(page: &str) -> Result<(&str, std::str::Lines<'_>, &str)> {
    let place = || format!("{PAGE} has no place for the versions");
    let (before, rest) = page.split_once(MARKS[0]).with_context(place)?;
    let (rows, after) = rest.split_once(MARKS[1]).with_context(place)?;
    Ok((before, rows.lines(), after))
}

/// The version in a row; none in the head.
fn version_of(row: &str) -> Option<&str> {
    let cell = row.split('|').nth(1)?.trim();
    cell.starts_with('v').then_some(cell)
}

/// `v1.30.14` → 30.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("v1.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_of_the_minor_version_that_the_chart_accepts() {
        let chart = crate::workspace().join("charts/idtoken-operator/Chart.yaml");
        let chart = std::fs::read_to_string(chart).unwrap();
        let oldest = minor(OLDEST).unwrap();
        assert!(chart.contains(&format!("kubeVersion: \">=1.{oldest}.0-0\"\n")));
    }

    #[test]
    fn the_page_has_the_pinned_and_the_oldest_version() {
        let page = std::fs::read_to_string(crate::workspace().join(PAGE)).unwrap();
        let (_, rows, _) = parts(&page).unwrap();
        let tested: Vec<_> = rows.filter_map(version_of).collect();
        assert_eq!(tested, [KUBERNETES_VERSION, OLDEST]);
    }

    #[test]
    fn a_run_replaces_the_row_of_its_minor_version() {
        let page = format!("a\n{}{}b\n", MARKS[0], MARKS[1]);
        let on = |day| Date::constant(2026, 1, day);
        let page = with_row(&page, "v1.30.14", 20, on(1)).unwrap();
        let page = with_row(&page, "v1.37.1", 21, on(2)).unwrap();
        let page = with_row(&page, "v1.37.2", 22, on(3)).unwrap();
        let rows = "| v1.37.2 | 22 | 2026-01-03 |\n| v1.30.14 | 20 | 2026-01-01 |\n";
        assert_eq!(page, format!("a\n{}{HEAD}{rows}{}b\n", MARKS[0], MARKS[1]));
        let error = with_row("a", "v1.30.14", 20, on(1)).unwrap_err().to_string();
        assert!(error.contains("no place"), "{error}");
        assert!(with_row(&page, "1.30", 20, on(1)).is_err());
    }
}
