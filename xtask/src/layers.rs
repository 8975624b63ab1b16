//! `cargo xtask layers`: the order of imports in `src/` and `ctl/src/`, circles of files, and the length of all Rust files.
//!
//! `xtask/layers.txt` is the order, and thereby the architecture. `xtask/layers-baseline.txt` lists what does not keep to it yet; the
//! list may only shrink.

mod circles;
mod crates;
mod findings;
mod order;
mod paths;
mod resolve;
mod sizes;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::progress::Output;
use crates::{Crates, Root};
use findings::Findings;
use order::Order;
use resolve::Imports;

const ORDER: &str = "xtask/layers.txt";
const BASELINE: &str = "xtask/layers-baseline.txt";
const HEADER: &str = "\
# What does not keep to xtask/layers.txt, stands in a circle, or has more than 400 lines. The list may only shrink:
# `cargo xtask layers` fails on what is not here, and on what is here and is no more. `cargo xtask layers --write` writes it.
";

const ROOTS: [Root; 3] = [
    Root {
        file: "src/lib.rs",
        name: Some("idtoken_operator"),
    },
    Root {
        file: "src/main.rs",
        name: None,
    },
    Root {
        file: "ctl/src/main.rs",
        name: None,
    },
];

/// What was read of the workspace.
struct Source {
    order: Order,
    imports: Imports,
    /// Files in layers, and their lines.
    files: BTreeMap<String, usize>,
    findings: Findings,
}

/// Checks the order of imports.
///
/// # Errors
/// What is not in the baseline, and lines of the baseline that are no longer true.
pub(crate) fn check(output: &Output) -> Result<()> {
    let workspace = crate::workspace();
    let source = Source::read(&workspace, &ROOTS)?;
    let baseline = baseline(&workspace)?;
    source.show(output);
    let faults = source.faults(&baseline);
    if !faults.is_empty() {
        bail!("{} findings:\n\n{}", faults.len(), faults.join("\n\n"));
    }
    let [upward, circled, _] = source.findings.amounts();
    output.line(&format!(
        "✓ nothing new; the baseline has {upward} imports that do not go down, {circled} files in {} circles and {} long files",
        source.findings.circles.len(),
        source.findings.long.len(),
    ));
    Ok(())
}

/// Writes the baseline.
///
/// # Errors
/// More is found than the baseline has, or the list of layers does not fit the files.
pub(crate) fn write(output: &Output) -> Result<()> {
    write_in(&crate::workspace(), &ROOTS)?;
    output.line(&format!("✓ {BASELINE} is written"));
    Ok(())
}

fn write_in(workspace: &Path, roots: &[Root]) -> Result<()> {
    let source = Source::read(workspace, roots)?;
    let baseline = baseline(workspace)?;
    let faults = source.order_faults();
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    let (now, before) = (source.findings.amounts(), baseline.amounts());
    if now.iter().zip(before).any(|(now, before)| *now > before) {
        let news = source.findings.news(&baseline, &source.order, &source.imports);
        let (before, now) = (baseline.text(), source.findings.text());
        let lines = now
            .lines()
            .filter(|line| !before.lines().any(|known| known == *line));
        let lines: Vec<&str> = lines.collect();
        bail!(
            "the baseline may only shrink. What is not in it:\n\n{}\n\nA move or a split that needs more lines adds them by hand:\n\n{}",
            news.join("\n\n"),
            lines.join("\n"),
        );
    }
    let path = workspace.join(BASELINE);
    std::fs::write(&path, format!("{HEADER}\n{}", source.findings.text()))
        .with_context(|| format!("{} cannot be written", path.display()))
}

fn baseline(workspace: &Path) -> Result<Findings> {
    let path = workspace.join(BASELINE);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    Findings::parse(&text)
}

impl Source {
    fn read(workspace: &Path, roots: &[Root]) -> Result<Self> {
        let path = workspace.join(ORDER);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let order = Order::parse(&text)?;
        let crates = Crates::read(workspace, roots)?;
        let imports = resolve::imports(&crates);
        let mut files = BTreeMap::new();
        for module in &crates.modules {
            *files.entry(module.file.clone()).or_default() += module.lines;
        }
        let findings = Findings::of(&order, &imports, sizes::long_files(workspace)?);
        Ok(Self {
            order,
            imports,
            files,
            findings,
        })
    }

    /// Everything that fails the check.
    fn faults(&self, baseline: &Findings) -> Vec<String> {
        let mut faults = self.order_faults();
        faults.extend(self.findings.news(baseline, &self.order, &self.imports));
        let stale = self.findings.stale(baseline);
        if !stale.is_empty() {
            faults.push(format!(
                "{BASELINE} has lines that are no longer true; remove them, or run `cargo xtask layers --write`:\n    {}",
                stale.join("\n    ")
            ));
        }
        faults
    }

    fn order_faults(&self) -> Vec<String> {
        let faults = self.order.faults(self.files.keys().map(String::as_str));
        faults
            .into_iter()
            .map(|fault| format!("{ORDER}: {fault}"))
            .collect()
    }

    /// Prints the layers, their files and lines, and how many imports of each do not go down.
    fn show(&self, output: &Output) {
        output.line(&format!("      {:>5} {:>6} {:>7}", "files", "lines", "upward"));
        for (layer, entries) in self.order.layers().iter().enumerate() {
            let is_here = |file: &str| self.order.place(file).is_some_and(|(place, _)| place == layer);
            let files: Vec<usize> = self
                .files
                .iter()
                .filter(|(file, _)| is_here(file))
                .map(|(_, lines)| *lines)
                .collect();
            let upward = self.findings.upward.iter();
            let upward = upward.filter(|(file, _)| is_here(file)).count();
            let upward = if upward == 0 {
                String::new()
            } else {
                upward.to_string()
            };
            let entries = entries.iter().filter(|entry| !entry.planned || files.is_empty());
            let entries: Vec<&str> = entries.map(|entry| entry.path.as_str()).collect();
            output.line(&format!(
                "{:>4}  {:>5} {:>6} {upward:>7}  {}",
                layer + 1,
                files.len(),
                files.iter().sum::<usize>(),
                entries.join(" "),
            ));
        }
    }
}
