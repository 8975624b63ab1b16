//! What the check finds, and its comparison with the baseline: what is known may go, and nothing may come.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Result, bail};

use super::circles::{self, Circle};
use super::order::Order;
use super::resolve::Imports;
use super::sizes::MAX_LINES;

/// How many places of one import are shown.
const MAX_PLACES: usize = 3;

/// What breaks a rule.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Imports that do not go down: the importer and the imported.
    pub(super) upward: BTreeSet<(String, String)>,
    /// Files that import one another.
    pub(super) circles: BTreeSet<Circle>,
    /// Files with too many lines, and how many.
    pub(super) long: BTreeMap<String, usize>,
}

impl Findings {
    /// What `imports` and `long` show by `order`. Files in no layer are not judged.
    pub(super) fn of(order: &Order, imports: &Imports, long: BTreeMap<String, usize>) -> Self {
        let pairs = imports
            .iter()
            .flat_map(|(file, targets)| targets.keys().map(move |target| (file, target)));
        let upward = pairs
            .filter(|(file, target)| match (order.place(file), order.place(target)) {
                (Some((from, _)), Some((to, _))) => from > to,
                _ => false,
            })
            .map(|(file, target)| (file.clone(), target.clone()));
        Self {
            upward: upward.collect(),
            circles: circles::find(imports),
            long,
        }
    }

    /// Reads what [`Self::text`] wrote.
    ///
    /// # Errors
    /// A line that it would not write.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut findings = Self::default();
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["upward", file, "->", target] => {
                    findings.upward.insert((file.to_owned(), target.to_owned()));
                }
                ["circle", _, _, ..] => {
                    let files = words[1..].iter().map(|file| (*file).to_owned());
                    findings.circles.insert(files.collect());
                }
                ["long", file, lines] if lines.parse::<usize>().is_ok() => {
                    findings.long.insert(file.to_owned(), lines.parse()?);
                }
                _ => bail!("the baseline has the line `{line}`, which says nothing"),
            }
        }
        Ok(findings)
    }

    /// One line for each finding.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (file, target) in &self.upward {
            let _ = writeln!(text, "upward {file} -> {target}");
        }
        for circle in &self.circles {
            let files: Vec<&str> = circle.iter().map(String::as_str).collect();
            let _ = writeln!(text, "circle {}", files.join(" "));
        }
        for (file, lines) in &self.long {
            let _ = writeln!(text, "long {file} {lines}");
        }
        text
    }

    /// How much there is: imports that do not go down, files in circles, lines of long files.
    pub(super) fn amounts(&self) -> [usize; 3] {
        [
            self.upward.len(),
            self.circles.iter().map(BTreeSet::len).sum(),
            self.long.values().sum(),
        ]
    }

    /// What is here and not in `baseline`, one text for each.
    pub(super) fn news(&self, baseline: &Self, order: &Order, imports: &Imports) -> Vec<String> {
        let mut news = Vec::new();
        for (file, target) in self.upward.difference(&baseline.upward) {
            let mut text = format!("{file} imports {target}:{}", places(imports, file, target));
            let place = |file: &str| {
                let place = order.place(file);
                place.map_or((0, ""), |(layer, entry)| (layer + 1, entry.path.as_str()))
            };
            let ((from, importer), (to, imported)) = (place(file), place(target));
            let _ = write!(
                text,
                "\n    {imported} (layer {to}) stands above {importer} (layer {from}): by xtask/layers.txt imports go down"
            );
            news.push(text);
        }
        for circle in &self.circles {
            let known = baseline.circles.iter().any(|known| circle.is_subset(known));
            if !known {
                news.push(shown_circle(circle, baseline, imports));
            }
        }
        for (file, lines) in &self.long {
            let known = baseline.long.get(file).copied();
            if known.is_none_or(|known| known < *lines) {
                let known = known.map_or(String::new(), |known| format!(" (it had {known})"));
                news.push(format!(
                    "{file} has {lines} lines{known}: at most {MAX_LINES}, tests aside"
                ));
            }
        }
        news
    }

    /// What is in `baseline` and no longer here, one text for each.
    pub(super) fn stale(&self, baseline: &Self) -> Vec<String> {
        let upward = baseline.upward.difference(&self.upward);
        let upward = upward.map(|(file, target)| format!("upward {file} -> {target}"));
        let circles = baseline.circles.difference(&self.circles).map(|circle| {
            let files: Vec<&str> = circle.iter().map(String::as_str).collect();
            format!("circle {}", files.join(" "))
        });
        let long = baseline
            .long
            .iter()
            .filter(|(file, _)| !self.long.contains_key(*file));
        let long = long.map(|(file, lines)| format!("long {file} {lines}"));
        upward.chain(circles).chain(long).collect()
    }
}

/// The first places where `file` names what is in `target`.
fn places(imports: &Imports, file: &str, target: &str) -> String {
    let places = imports.get(file).and_then(|targets| targets.get(target));
    let mut text = String::new();
    for (index, place) in places.into_iter().flatten().enumerate() {
        if index == MAX_PLACES {
            text.push_str("\n    …");
            break;
        }
        let _ = write!(text, "\n    {file}:{}: {}", place.line, place.text());
    }
    text
}

/// A circle through an import that no circle of the baseline has.
fn shown_circle(circle: &Circle, baseline: &Findings, imports: &Imports) -> String {
    let together = |a: &str, b: &str| {
        let mut known = baseline.circles.iter();
        known.any(|known| known.contains(a) && known.contains(b))
    };
    let within = imports.iter().filter(|(file, _)| circle.contains(*file));
    let mut pairs = within.flat_map(|(file, targets)| targets.keys().map(move |target| (file, target)));
    let tie = pairs.find(|(file, target)| circle.contains(*target) && !together(file, target));
    let way = tie.and_then(|(file, target)| {
        let mut way = circles::way(imports, target, file)?;
        way.insert(0, file);
        Some(way)
    });
    let way = way.unwrap_or_default();
    let mut text = "files import one another in a circle:".to_owned();
    for pair in way.windows(2) {
        let place = imports.get(pair[0]).and_then(|targets| targets.get(pair[1]));
        if let Some(place) = place.and_then(|places| places.first()) {
            let (file, line, target) = (pair[0], place.line, pair[1]);
            let _ = write!(text, "\n    {file}:{line}: {} ({target})", place.text());
        }
    }
    text
}
