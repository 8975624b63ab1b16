//! The committed counts, and the comparison of new counts with them. Pure except for reading and writing the file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// How far a case may exceed its committed count, in percent. The same program has the same counts on any machine; another patch of the
/// C library or another order of functions changes small cases by about one percent.
const LIMIT: u64 = 5;

/// Instructions by case.
pub(crate) type Counts = BTreeMap<String, u64>;

/// The file's content: counts by the processor's architecture.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct Baseline(pub(crate) BTreeMap<String, ArchCounts>);

/// The counts of an architecture.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ArchCounts {
    /// Versions of the compiler, the C library and valgrind.
    pub(crate) counted_with: Vec<String>,
    pub(crate) cases: Counts,
}

/// How new counts differ from the committed ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Cases that exceed the limit.
    pub(crate) more: Vec<String>,
    /// Cases that are so far below the committed count that it protects nothing.
    pub(crate) less: Vec<String>,
    /// The faults, one line each.
    pub(crate) faults: Vec<String>,
}

impl Baseline {
    /// # Errors
    /// The file exists and cannot be read.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = format!("{}\n", serde_json::to_string_pretty(self)?);
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Compares new counts with the committed ones. A case that only one side has is a fault too: nothing would guard it.
pub(crate) fn compare(before: &Counts, now: &Counts) -> Comparison {
    let mut comparison = Comparison::default();
    for (name, &count) in now {
        let Some(&allowed) = before.get(name) else {
            comparison.faults.push(format!("{name} has no committed count"));
            continue;
        };
        if count * 100 > allowed * (100 + LIMIT) {
            comparison.more.push(name.clone());
            comparison.faults.push(format!(
                "{name} takes {count} instructions, {} against the committed {allowed}; the limit is {}",
                change(allowed, count),
                limit()
            ));
        } else if count * 100 < allowed * (100 - LIMIT) {
            comparison.less.push(name.clone());
        }
    }
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    comparison
        .faults
        .extend(gone.map(|name| format!("there is no case {name} any more")));
    comparison
}

/// The limit as text.
pub(crate) fn limit() -> String {
    format!("{LIMIT} %")
}

/// The difference in percent as text.
pub(crate) fn change(before: u64, now: u64) -> String {
    let percent = (now as f64 / before.max(1) as f64 - 1.0) * 100.0;
    if percent.abs() < 0.05 {
        return "=".to_owned();
    }
    format!("{percent:+.1} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: &[(&str, u64)]) -> Counts {
        all.iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect()
    }

    #[test]
    fn more_than_the_limit_is_a_fault_and_less_is_told() {
        let before = counts(&[("edge", 1000), ("less", 1000), ("more", 1000), ("same", 1000)]);
        let now = counts(&[("edge", 1050), ("less", 949), ("more", 1051), ("same", 951)]);
        let found = compare(&before, &now);
        assert_eq!(found.more, ["more"]);
        assert_eq!(found.less, ["less"]);
        assert_eq!(
            found.faults,
            ["more takes 1051 instructions, +5.1 % against the committed 1000; the limit is 5 %"]
        );
        assert_eq!(compare(&before, &before), Comparison::default());
    }

    #[test]
    fn a_case_that_nothing_guards_is_a_fault() {
        let found = compare(&counts(&[("old", 1)]), &counts(&[("new", 1)]));
        assert_eq!(
            found.faults,
            ["new has no committed count", "there is no case old any more"]
        );
        assert!(found.more.is_empty() && found.less.is_empty());
    }

    #[test]
    fn changes_are_shown_in_percent() {
        assert_eq!(change(200, 200), "=");
        assert_eq!(change(10_000, 10_004), "=");
        assert_eq!(change(200, 203), "+1.5 %");
        assert_eq!(change(200, 100), "-50.0 %");
    }
}
