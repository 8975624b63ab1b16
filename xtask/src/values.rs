//! The chart's values.yaml with its comments, from which its schema and the table in its README are generated.
//!
//! Each value has a comment. The comment's last lines may say what the default does not show:
//! `# @type core/v1.Toleration[]` (see [`crate::values_schema`]) and `# @schema {"minimum": 1}`, JSON Schema that is added.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// Longest default in the table. For a longer one, the table points to the file.
const MAX_DEFAULT: usize = 60;

/// One value, or a map of values.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Keys from the root.
    pub(crate) path: Vec<String>,
    /// Its comment without the annotations. A map's may be empty.
    pub(crate) comment: String,
    /// The annotation `@type`.
    pub(crate) kind: Option<String>,
    /// The annotation `@schema`.
    pub(crate) schema: Map<String, Value>,
    /// The default.
    pub(crate) default: Value,
}

impl Entry {
    /// Whether it is a map whose keys are entries.
    pub(crate) fn is_map(&self) -> bool {
        let keys = self.default.as_object();
        self.kind.is_none() && keys.is_some_and(|keys| !keys.is_empty())
    }
}

/// Reads values.yaml. Keys are indented by two spaces, and a comment is above its key.
///
/// # Errors
/// The file is not YAML, a value has no comment, or an annotation cannot be read.
pub(crate) fn parse(text: &str) -> Result<Vec<Entry>> {
    let values: Value = serde_saphyr::from_str(text).context("values.yaml")?;
    let mut entries: Vec<Entry> = Vec::new();
    let mut comments: Vec<&str> = Vec::new();
    let mut parents: Vec<String> = Vec::new();
    let mut leaf = None;
    for line in text.lines() {
        let content = line.trim_start();
        let depth = (line.len() - content.len()) / 2;
        if content.is_empty() {
            comments.clear();
        }
        // Lines of a value that is a map or a list.
        let inside = leaf.is_some_and(|leaf| depth > leaf || content.starts_with('-'));
        if content.is_empty() || inside {
            continue;
        }
        if let Some(comment) = content.strip_prefix('#') {
            comments.push(comment.trim_start());
            continue;
        }
        let (key, _) = content
            .split_once(':')
            .with_context(|| format!("values.yaml: {line}"))?;
        parents.truncate(depth);
        parents.push(key.to_owned());
        let entry = entry(&parents, &std::mem::take(&mut comments), &values)?;
        leaf = (!entry.is_map()).then_some(depth);
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(path: &[String], comments: &[&str], values: &Value) -> Result<Entry> {
    let name = path.join(".");
    let pointer = format!("/{}", path.join("/"));
    let mut entry = Entry {
        path: path.to_owned(),
        comment: String::new(),
        kind: None,
        schema: Map::new(),
        default: values.pointer(&pointer).cloned().context(pointer)?,
    };
    let mut words = Vec::new();
    for comment in comments {
        if let Some(kind) = comment.strip_prefix("@type ") {
            entry.kind = Some(kind.to_owned());
        } else if let Some(schema) = comment.strip_prefix("@schema ") {
            entry.schema = serde_json::from_str(schema).with_context(|| format!("@schema of {name}"))?;
        } else if comment.starts_with('@') {
            bail!("{name}: {comment} is no annotation");
        } else {
            words.push(*comment);
        }
    }
    entry.comment = words.join(" ");
    ensure!(
        entry.is_map() || !entry.comment.is_empty(),
        "values.yaml: {name} has no comment"
    );
    Ok(entry)
}

/// The table of all values, in Markdown.
pub(crate) fn table(entries: &[Entry]) -> String {
    let mut text = String::from("| Value | Default | Meaning |\n|---|---|---|\n");
    for entry in entries {
        let default = match &entry.default {
            _ if entry.is_map() && entry.comment.is_empty() => continue,
            _ if entry.is_map() => String::new(),
            default => match default.to_string() {
                long if long.len() > MAX_DEFAULT => "see values.yaml".to_owned(),
                short => format!("`{short}`"),
            },
        };
        let meaning = entry.comment.replace('|', "\\|");
        text.push_str(&format!(
            "| `{}` | {default} | {meaning} |\n",
            entry.path.join(".")
        ));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "# A map.\nmap:\n  # One,\n  # of two lines.\n  # @schema {\"minimum\": 1}\n  one: 1\n  # Two.\n  two:\n  - a: b\n# Not of the next.\n\n# Typed.\n# @type core/v1.Probe\ntyped:\n  periodSeconds: 2\n";

    #[test]
    fn comments_are_of_the_value_below() {
        let entries = parse(TEXT).unwrap();
        let shown: Vec<_> = entries
            .iter()
            .map(|entry| (entry.path.join("."), entry.comment.as_str(), entry.is_map()))
            .collect();
        assert_eq!(
            shown,
            [
                ("map".to_owned(), "A map.", true),
                ("map.one".to_owned(), "One, of two lines.", false),
                ("map.two".to_owned(), "Two.", false),
                ("typed".to_owned(), "Typed.", false),
            ]
        );
        assert_eq!(entries[1].schema["minimum"], 1);
        assert_eq!(entries[3].kind.as_deref(), Some("core/v1.Probe"));
        let table = table(&entries);
        assert!(
            table.contains("| `map.two` | `[{\"a\":\"b\"}]` | Two. |\n"),
            "{table}"
        );
    }

    #[test]
    fn every_value_has_a_comment_and_every_annotation_a_meaning() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        assert!(error("one: 1\n").contains("one has no comment"));
        assert!(error("# One.\n# @typo x\none: 1\n").contains("@typo x is no annotation"));
    }
}
