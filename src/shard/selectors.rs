//! Pure: whether two label selectors can select the same object.

use std::collections::{BTreeMap, BTreeSet};

/// What selectors require of one label.
#[derive(Default)]
struct Requirement<'a> {
    /// One of these values, if the label is limited to some.
    only: Option<BTreeSet<&'a str>>,
    /// None of these values.
    not: BTreeSet<&'a str>,
    is_present: bool,
    is_absent: bool,
}

impl<'a> Requirement<'a> {
    fn allow(&mut self, values: BTreeSet<&'a str>) {
        self.only = Some(match self.only.take() {
            Some(only) => &only & &values,
            None => values,
        });
        self.is_present = true;
    }

    fn is_contradiction(&self) -> bool {
        let no_value = self.only.as_ref().is_some_and(|only| only.is_subset(&self.not));
        no_value || self.is_present && self.is_absent
    }
}

/// Whether no object can have labels that match both, as far as the requirements of each label alone show. A text that is no selector is
/// taken for one that matches anything.
pub(super) fn are_disjoint(one: &str, other: &str) -> bool {
    let mut all: BTreeMap<&str, Requirement<'_>> = BTreeMap::new();
    for text in parts(one).into_iter().chain(parts(other)) {
        require(&mut all, text.trim());
    }
    all.values().any(Requirement::is_contradiction)
}

/// The requirements of a selector: a comma in parentheses separates values.
fn parts(selector: &str) -> Vec<&str> {
    let mut in_values = false;
    selector
        .split(|c: char| {
            in_values = c == '(' || in_values && c != ')';
            c == ',' && !in_values
        })
        .collect()
}

fn require<'a>(all: &mut BTreeMap<&'a str, Requirement<'a>>, text: &'a str) {
    if let Some((head, values)) = text.split_once('(') {
        let values = values.trim_end_matches(')').split(',').map(str::trim).collect();
        match head.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => all.entry(key).or_default().allow(values),
            [key, "notin"] => all.entry(key).or_default().not.extend(values),
            _ => {}
        }
    } else if let Some((key, value)) = text.split_once("!=") {
        all.entry(key.trim()).or_default().not.insert(value.trim());
    } else if let Some((key, value)) = text.split_once('=') {
        let value = value.trim_start_matches('=').trim();
        all.entry(key.trim()).or_default().allow(BTreeSet::from([value]));
    } else if let Some(key) = text.strip_prefix('!') {
        all.entry(key.trim()).or_default().is_absent = true;
    } else if !text.is_empty() && !text.contains(['<', '>', ' ']) {
        all.entry(text).or_default().is_present = true;
    }
}

#[cfg(test)]
mod tests {
    use super::are_disjoint;

    #[test]
    fn only_a_contradiction_about_one_label_separates() {
        for (one, other) in [
            ("shard=a", "shard=b"),
            ("shard==a", "shard = b"),
            ("shard=a", "shard!=a"),
            ("shard=a", "!shard"),
            ("shard", "!shard"),
            ("shard in (a,b)", "shard in (c, d)"),
            ("shard in (a,b)", "shard notin (a,b,c)"),
            ("shard in(a)", "tier=x,shard notin(a)"),
            ("tier=x,shard=a", "shard=b,tier=x"),
            ("shard in (a,b),shard!=a", "shard!=b"),
        ] {
            assert!(
                are_disjoint(one, other) && are_disjoint(other, one),
                "{one}; {other}"
            );
        }
        for (one, other) in [
            ("", ""),
            ("", "shard=a"),
            ("shard=a", "shard=a"),
            ("shard=a", "tier=b"),
            ("shard=a", "shard"),
            ("shard!=a", "shard!=b"),
            ("shard!=a", "!shard"),
            ("shard notin (a)", "!shard"),
            ("shard in (a,b)", "shard in (b,c)"),
            ("shard in (a,b)", "shard!=a"),
            // Not understood, so nothing is proved.
            ("shard>1", "shard<1"),
            ("shard among (a)", "shard among (b)"),
        ] {
            assert!(
                !are_disjoint(one, other) && !are_disjoint(other, one),
                "{one}; {other}"
            );
        }
    }
}
