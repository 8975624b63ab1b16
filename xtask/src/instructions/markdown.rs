//! The tables of counts in docs/performance.md.

use std::cmp::Reverse;
use std::path::Path;

use anyhow::{Context, Result};

use super::Counted;
use crate::crds::with_between;

/// The case whose functions are listed.
const HOT: &str = "reconcile/renew";
/// How many of them.
const FUNCTIONS: usize = 15;
/// The page's lines around the tables.
const MARKS: [&str; 2] = ["<!-- instructions -->\n", "<!-- end of instructions -->\n"];

/// Puts the tables into the page.
///
/// # Errors
/// The page lacks these lines, or cannot be written.
pub(super) fn write(page: &Path, tables: &str) -> Result<()> {
    let shown = page.display();
    let text = std::fs::read_to_string(page).with_context(|| format!("cannot read {shown}"))?;
    let text = with_between(&text, MARKS, tables)
        .with_context(|| format!("{shown} has no line {}", MARKS[0].trim_end()))?;
    std::fs::write(page, text).with_context(|| format!("cannot write {shown}"))
}

/// The table of the cases, and that of the functions of the longest one.
pub(super) fn tables(arch: &str, counted_with: &[String], all: &[Counted]) -> String {
    let mut text = format!("{arch}, {}:\n\n", counted_with.join(", "));
    text.push_str("| Case | What is done | Instructions |\n|---|---|---:|\n");
    for case in all {
        text.push_str(&row(&case.name, &case.what, case.profile.counted));
    }
    if let Some(hot) = all.iter().find(|case| case.name == HOT) {
        text.push_str(&format!(
            "\n| The functions of `{HOT}` that take most themselves | Instructions | Share |\n|---|---:|---:|\n"
        ));
        let mut own: Vec<_> = hot.profile.own.iter().collect();
        own.sort_by_key(|(_, cost)| Reverse(**cost));
        for (name, cost) in own.into_iter().take(FUNCTIONS) {
            let share = 100.0 * *cost as f64 / hot.profile.counted.max(1) as f64;
            text.push_str(&format!("| `{name}` | {} | {share:.1} % |\n", thousands(*cost)));
        }
    }
    text
}

fn row(name: &str, what: &str, counted: u64) -> String {
    format!("| `{name}` | {what} | {} |\n", thousands(counted))
}

/// A number with commas.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::baseline::Baseline;
    use crate::instructions::{BASELINE, PAGE};

    #[test]
    fn numbers_have_commas() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn the_page_shows_the_committed_counts() {
        let page = std::fs::read_to_string(crate::workspace().join(PAGE)).expect("the page");
        let (_, tables) = page.split_once(MARKS[0]).expect("the tables");
        let (arch, _) = tables.split_once(',').expect("the architecture");
        let baseline = Baseline::read(&crate::workspace().join(BASELINE)).expect("the counts");
        let cases = &baseline.0[arch].cases;
        assert!(cases.len() > 10, "{cases:?}");
        for (name, counted) in cases {
            let end = format!("| {} |", thousands(*counted));
            let shown = tables
                .lines()
                .find(|line| line.starts_with(&format!("| `{name}` |")));
            assert!(
                shown.is_some_and(|line| line.ends_with(&end)),
                "{name}: {counted}, not {shown:?}: cargo xtask instructions --bless"
            );
        }
    }
}
