//! The order of layers, as `xtask/layers.txt` gives it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};

/// Layers from top to bottom.
#[derive(Debug)]
pub(super) struct Order {
    layers: Vec<Vec<Entry>>,
}

/// A folder or a file.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its path, relative to the workspace.
    pub(super) path: String,
    /// Nothing is there yet.
    pub(super) planned: bool,
}

impl Order {
    /// Reads lines of entries, separated by blanks; `#` begins a comment, and `?` ends the path of a planned entry.
    ///
    /// # Errors
    /// An entry that is there twice.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .map(|line| line.split_once('#').map_or(line, |(line, _)| line));
        let layers: Vec<Vec<Entry>> = lines
            .map(|line| line.split_whitespace().map(Entry::parse).collect())
            .filter(|layer: &Vec<Entry>| !layer.is_empty())
            .collect();
        let mut known = BTreeSet::new();
        if let Some(twice) = layers.iter().flatten().find(|entry| !known.insert(&entry.path)) {
            bail!("the list of layers has {} twice", twice.path);
        }
        Ok(Self { layers })
    }

    /// The layers.
    pub(super) fn layers(&self) -> &[Vec<Entry>] {
        &self.layers
    }

    /// The layer of `file`, from 0 at the top, and the entry that holds it: the longest that does. None where no entry does.
    pub(super) fn place(&self, file: &str) -> Option<(usize, &Entry)> {
        let entries = self
            .layers
            .iter()
            .enumerate()
            .flat_map(|(layer, entries)| entries.iter().map(move |entry| (layer, entry)));
        entries
            .filter(|(_, entry)| Path::new(file).starts_with(&entry.path))
            .max_by_key(|(_, entry)| entry.path.len())
    }

    /// Where the list does not fit `files`: a file without a layer, an entry without a file, a planned entry with a file.
    pub(super) fn faults<'f>(&self, files: impl Iterator<Item = &'f str> + Clone) -> Vec<String> {
        let homeless = files.clone().filter(|file| self.place(file).is_none());
        let mut faults: Vec<String> = homeless.map(|file| format!("{file} is in no layer")).collect();
        let used: BTreeSet<&str> = files
            .filter_map(|file| self.place(file))
            .map(|(_, entry)| entry.path.as_str())
            .collect();
        for Entry { path, planned } in self.layers.iter().flatten() {
            match (used.contains(path.as_str()), planned) {
                (true, true) => faults.push(format!("{path} is there now: remove its `?`")),
                (false, false) => faults.push(format!("{path} is an entry that holds no file: remove it")),
                _ => {}
            }
        }
        faults
    }
}

impl Entry {
    fn parse(text: &str) -> Self {
        let path = text.strip_suffix('?');
        Self {
            path: path.unwrap_or(text).to_owned(),
            planned: path.is_some(),
        }
    }
}
