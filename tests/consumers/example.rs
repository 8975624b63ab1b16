//! The files of `examples/consumers`, with the names of the emulated Google.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::common::CALLER;

/// The account that the examples name.
const ACCOUNT: &str = "caller@my-project.iam.gserviceaccount.com";
/// Where the examples mount the Secret.
pub(crate) const MOUNT: &str = "/var/run/idtoken";

/// The folder with all examples.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))
}

/// The documents of a file, for an account that exists.
pub(crate) fn documents(file: &str) -> Result<Vec<Value>> {
    let path = folder().join("consumers").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_saphyr::from_multiple(&text.replace(ACCOUNT, CALLER))?)
}

/// The documents of one kind.
pub(crate) fn of_kind(documents: &[Value], kind: &str) -> Vec<Value> {
    documents
        .iter()
        .filter(|document| document["kind"] == kind)
        .cloned()
        .collect()
}

/// The text under a key of the file's only ConfigMap.
pub(crate) fn config(documents: &[Value], key: &str) -> Result<String> {
    let maps = of_kind(documents, "ConfigMap");
    let text = maps.first().and_then(|map| map["data"][key].as_str());
    Ok(text
        .with_context(|| format!("the example has no ConfigMap with {key}"))?
        .to_owned())
}
