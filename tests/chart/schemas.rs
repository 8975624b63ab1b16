//! JSON Schemas of the kinds of an API server, made of what it publishes, in the folder that kubeconform reads them from.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// How the files are called, for `kubeconform -schema-location`.
pub(crate) const FILE: &str = "{{.Group}}_{{.ResourceAPIVersion}}_{{.ResourceKind}}.json";

/// Writes a file for each kind of `openapi`, the API server's `/openapi/v2`, into `dir`. They refuse unknown fields.
pub(crate) fn write(mut openapi: Value, dir: &Path) -> Result<()> {
    strict(&mut openapi);
    let definitions = openapi["definitions"].as_object().context("no definitions")?;
    let all = dir.join("definitions");
    std::fs::write(&all, json!({"definitions": definitions}).to_string())?;
    for (name, definition) in definitions {
        let kinds = definition["x-kubernetes-group-version-kind"].as_array();
        for kind in kinds.into_iter().flatten() {
            let text = |field: &str| kind[field].as_str().unwrap_or_default();
            // kubeconform has the version in the group's place for kinds of the core group.
            let group = match text("group") {
                "" => text("version"),
                group => group,
            };
            let file = format!("{group}_{}_{}.json", text("version"), text("kind").to_lowercase());
            let schema = json!({"$ref": format!("file://{}#/definitions/{name}", all.display())});
            std::fs::write(dir.join(file), schema.to_string())?;
        }
    }
    Ok(())
}

/// Refuses unknown fields wherever some are known, and says in JSON Schema's words what Kubernetes says in its own.
fn strict(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(strict),
        Value::Object(fields) => {
            let says = |key: &str, value: Value| fields.get(key) == Some(&value);
            if says("format", json!("int-or-string")) || says("x-kubernetes-int-or-string", json!(true)) {
                fields.insert("type".to_owned(), json!(["integer", "string"]));
            }
            let open = fields.contains_key("additionalProperties")
                || fields.contains_key("x-kubernetes-preserve-unknown-fields");
            if fields.get("properties").is_some_and(Value::is_object) && !open {
                fields.insert("additionalProperties".to_owned(), json!(false));
            }
            // Quantities may be numbers.
            if let Some(quantity) = fields.get_mut("io.k8s.apimachinery.pkg.api.resource.Quantity") {
                quantity["type"] = json!(["number", "string"]);
            }
            fields.values_mut().for_each(strict);
        }
        _ => {}
    }
}
