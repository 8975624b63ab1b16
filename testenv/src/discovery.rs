//! Google's discovery documents: the definitions of its REST APIs, as the Go module `google.golang.org/api` carries them.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::go_module::GoModule;

const API: GoModule = GoModule {
    name: "discovery",
    go_mod: include_str!("../tools/discovery/go.mod"),
    go_sum: include_str!("../tools/discovery/go.sum"),
    files: &[],
    ldflags: "",
    tags: "",
    optimized: false,
    tools: &[],
};

/// The discovery document of `api`, such as `iam`, in `version`. Blocks.
///
/// # Errors
/// When Go is missing, the module cannot be had, or its content is another one than go.sum says.
pub fn discovery_document(api: &str, version: &str) -> Result<Value> {
    let folder = API.download("google.golang.org/api")?;
    let path = folder.join(api).join(version).join(format!("{api}-api.json"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}
