//! docs/api.md: a table for each object of the kinds' schemas.

use anyhow::{Context, Result};
use idtoken_operator::api::{self, annotations};
use serde_json::Value;

use super::{head, notice, row};

/// Kubernetes' own types, which the page links instead of repeating: recognized by their fields.
const KUBERNETES_TYPES: [(&str, &[&str], &str); 1] = [(
    "Condition",
    &[
        "lastTransitionTime",
        "message",
        "observedGeneration",
        "reason",
        "status",
        "type",
    ],
    "https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.34/#condition-v1-meta",
)];

pub(super) fn page() -> Result<String> {
    let mut page = format!("# API reference\n\n{}\n", notice("src/api/"));
    page.push_str(
        "Every field of both kinds. `kubectl explain idtr.spec` shows the same in a cluster. No field of a spec has a default in the \
         schema, so that what Git holds is what the cluster holds: what an absent field means is in its description.\n",
    );
    for crd in api::crds() {
        let crd = serde_json::to_value(&crd)?;
        page.push_str(&kind(&crd).context("a CustomResourceDefinition without names or a version")?);
    }
    page.push_str(&marks());
    Ok(page)
}

fn kind(crd: &Value) -> Option<String> {
    let spec = &crd["spec"];
    let name = spec["names"]["kind"].as_str()?;
    let version = spec["versions"].get(0)?;
    let schema = &version["schema"]["openAPIV3Schema"];
    let short: Vec<String> = strings(&spec["names"]["shortNames"])
        .map(|name| format!("`{name}`"))
        .collect();
    let mut text = format!("\n## {name}\n\n{}\n\n", plain(schema["description"].as_str()?));
    text.push_str(&head(&["", ""]));
    let api_version = format!("`{}/{}`", spec["group"].as_str()?, version["name"].as_str()?);
    text.push_str(&row(["`apiVersion`", &api_version]));
    text.push_str(&row(["`kind`", &format!("`{name}`")]));
    let scope = match spec["scope"].as_str()? {
        "Cluster" => "the cluster",
        _ => "a namespace",
    };
    text.push_str(&row(["Scope", scope]));
    text.push_str(&row(["Short name", &short.join(", ")]));
    let columns: Vec<String> = version["additionalPrinterColumns"]
        .as_array()?
        .iter()
        .filter_map(|column| {
            let name = column["name"].as_str()?;
            let is_wide = column["priority"].as_i64().unwrap_or_default() > 0;
            Some(if is_wide {
                format!("{name} (wide)")
            } else {
                name.to_owned()
            })
        })
        .collect();
    text.push_str(&row(["Columns of `kubectl get`", &columns.join(", ")]));
    for part in ["spec", "status"] {
        object(name, part, &schema["properties"][part], &mut text);
    }
    Some(text)
}

/// The section of the object at `path`, and the sections of objects in it.
fn object(kind: &str, path: &str, schema: &Value, text: &mut String) {
    let mut below = Vec::new();
    text.push_str(&format!("\n### {kind}: {path}\n\n"));
    if let Some(description) = schema["description"].as_str() {
        text.push_str(&format!("{}\n\n", plain(description)));
    }
    if let Some(bounds) = counted(schema, "Properties", "field") {
        text.push_str(&format!("Has {bounds}.\n\n"));
    }
    text.push_str(&head(&[
        "Field",
        "Type",
        "Required",
        "Description",
        "Constraints",
    ]));
    let required: Vec<&str> = strings(&schema["required"]).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{path}.{name}");
        let (shown, inner) = type_of(kind, &at, field);
        below.extend(inner);
        let is_required = if required.contains(&name.as_str()) {
            "yes"
        } else {
            ""
        };
        text.push_str(&row([
            &format!("`{name}`"),
            &shown,
            is_required,
            field["description"].as_str().unwrap_or_default(),
            &constraints(field).join("; "),
        ]));
    }
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        if let (Some(rule), Some(message)) = (rule["rule"].as_str(), rule["message"].as_str()) {
            text.push_str(&format!("\nRule: {message}.\n\n```cel\n{}\n```\n", plain(rule)));
        }
    }
    for (path, schema) in below {
        object(kind, &path, schema, text);
    }
}

/// The type of a field for the table, and the object that gets its own section.
fn type_of<'a>(kind: &str, path: &str, schema: &'a Value) -> (String, Option<(String, &'a Value)>) {
    if schema["type"] == "array" {
        let (inner, below) = type_of(kind, &format!("{path}[]"), &schema["items"]);
        return (format!("list of {inner}"), below);
    }
    if let Some(values) = schema["additionalProperties"].as_object() {
        let inner = values.get("type").and_then(Value::as_str).unwrap_or("any");
        return (format!("map of {inner}"), None);
    }
    let Some(fields) = schema["properties"].as_object() else {
        let known = match (schema["type"].as_str(), schema["format"].as_str()) {
            (_, Some("date-time")) => "time (RFC 3339)",
            (Some("object"), _) => "object, empty",
            (Some(known), _) => known,
            (None, _) => "any",
        };
        return (known.to_owned(), None);
    };
    for (name, known, url) in KUBERNETES_TYPES {
        if fields.len() == known.len() && known.iter().all(|field| fields.contains_key(*field)) {
            return (format!("[{name}]({url})"), None);
        }
    }
    let anchor: String = format!("{kind}: {path}")
        .to_lowercase()
        .replace(' ', "-")
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
        .collect();
    let last = path.rsplit('.').next().unwrap_or(path).trim_end_matches("[]");
    (format!("[{last}](#{anchor})"), Some((path.to_owned(), schema)))
}

/// The constraints of a value, in words.
fn constraints(schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let values: Vec<String> = strings(&schema["enum"])
        .map(|value| format!("`{value}`"))
        .collect();
    if !values.is_empty() {
        found.push(format!("one of {}", values.join(", ")));
    }
    found.extend(counted(schema, "Length", "character"));
    found.extend(counted(schema, "Items", "item"));
    if schema["properties"].is_null() {
        found.extend(counted(schema, "Properties", "entry"));
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        found.push(format!("matches `{pattern}`"));
    }
    match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => found.push("no item twice".to_owned()),
        Some("map") => {
            let keys: Vec<&str> = strings(&schema["x-kubernetes-list-map-keys"]).collect();
            found.push(format!("one item for each `{}`", keys.join("`, `")));
        }
        _ => {}
    }
    if let Some(default) = schema.get("default") {
        found.push(format!("default `{default}`"));
    }
    for inner in ["items", "additionalProperties"].map(|inner| &schema[inner]) {
        // The object's section has its constraints.
        if !inner.is_object() || inner["properties"].is_object() {
            continue;
        }
        let each = constraints(inner);
        if !each.is_empty() {
            found.push(format!("each: {}", each.join(", ")));
        }
    }
    found
}

/// `min{what}` and `max{what}` in words.
fn counted(schema: &Value, what: &str, unit: &str) -> Option<String> {
    let units = match unit.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{unit}s"),
    };
    let bound = |side: &str| schema[format!("{side}{what}")].as_u64();
    match (bound("min"), bound("max")) {
        (Some(1), Some(1)) => Some(format!("exactly one {unit}")),
        (Some(least), Some(most)) => Some(format!("{least} to {most} {units}")),
        (None, Some(most)) => Some(format!("at most {most} {units}")),
        (Some(least), None) => Some(format!("at least {least} {units}")),
        (None, None) => None,
    }
}

/// Labels and annotations: the part of the API that no schema describes.
fn marks() -> String {
    let mut text = String::from("\n## Labels and annotations\n\nWhat you may set:\n\n");
    text.push_str(&head(&["On", "Name", "Meaning"]));
    let grants = format!("{}*", api::GRANT_LABEL_PREFIX);
    for (on, name, meaning) in [
        (
            "IdTokenRequest",
            annotations::RENEW,
            "Annotation: any new value of at most 256 bytes requests a new token now, as `kubectl idtoken renew` does. The operator honours the \
             annotation at most once a minute: an earlier value waits until `status.renewalTime`. `status.lastHandledRenewRequest` has the last \
             value that was honoured.",
        ),
        (
            "IdTokenRequest",
            annotations::ACCEPT_SUBJECT,
            "Annotation: the unique ID of the Google account that was created again under the e-mail of the former one (reason \
             `TokenSubjectChanged`). Tokens of that account, and of no other, are accepted instead. Each value is used once: \
             `status.token.acceptedSubject` has the last one.",
        ),
        (
            "Secret",
            annotations::ADOPT,
            "Annotation: the name of the IdTokenRequest that may take over a Secret which the operator did not write. The operator \
             removes the annotation when it has taken the Secret over.",
        ),
        (
            "Namespace",
            grants.as_str(),
            "Label: for `namespaceSelector` of grants. An admission policy reserves it for users who may bind grants.",
        ),
    ] {
        text.push_str(&row([on, &format!("`{name}`"), meaning]));
    }
    text.push_str(
        "\nThe operator writes these labels and annotations on its Secrets. They are for reading only: if another client changes one, the \
         operator restores it:\n\n",
    );
    text.push_str(&head(&["Name", "Meaning"]));
    let managed = format!("{}: {}", api::LABEL_MANAGED_BY, api::MANAGED_BY);
    let handled = format!(
        "Hash of the last honoured value of the request's annotation `{}`.",
        annotations::RENEW
    );
    for (name, meaning) in [
        (
            managed.as_str(),
            "Label: the Secret is the operator's. `kubectl get secrets -A -l app.kubernetes.io/managed-by=idtoken-operator` finds them.",
        ),
        (
            api::LABEL_SHARD,
            "Label, only with `--selector`: the shard that the request belongs to.",
        ),
        (annotations::REQUEST, "Name of the request."),
        (annotations::REQUEST_UID, "UID of the request."),
        (annotations::ISSUED, "The token's `iat`, RFC 3339."),
        (annotations::EXPIRES, "The token's `exp`, RFC 3339."),
        (annotations::RENEWS, "When the token is renewed, RFC 3339."),
        (annotations::TOKEN_HASH, "Hash of the inputs of the token."),
        (
            annotations::RENDER_HASH,
            "Hash of the inputs of the Secret's content, except the token.",
        ),
        (
            annotations::DIGEST,
            "Fingerprint of the token, by which the operator notices a change of the token.",
        ),
        (
            annotations::OWNED,
            "Which keys, labels and annotations are the operator's. The operator does not change others.",
        ),
        (
            annotations::ADOPTED,
            "The Secret was taken over, and stays when its request is deleted.",
        ),
        (annotations::HANDLED_RENEW, handled.as_str()),
    ] {
        text.push_str(&row([&format!("`{name}`"), meaning]));
    }
    text
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_object_has_a_table_that_its_field_links_to() {
        let page = page().unwrap();
        assert!(
            page.contains("| `source` | [source](#idtokenrequest-specsource) |"),
            "{page}"
        );
        assert!(page.contains("\n### IdTokenRequest: spec.source\n"));
        assert!(page.contains("| `audience` | string | yes |"));
        assert!(page.contains("| `from` | list of [from](#idtokengrant-specfrom) | yes |"));
        // Kubernetes documents the fields of its type.
        assert!(page.contains("[Condition](") && !page.contains("lastTransitionTime"));
        assert!(page.contains("Rule: serviceAccount is required"));
    }

    #[test]
    fn constraints_are_said_in_words() {
        let schema = json!({"type": "array", "maxItems": 3, "x-kubernetes-list-type": "set",
            "items": {"type": "string", "minLength": 1, "maxLength": 9, "pattern": "^a|b$"}});
        assert_eq!(
            constraints(&schema),
            [
                "at most 3 items",
                "no item twice",
                "each: 1 to 9 characters, matches `^a|b$`"
            ]
        );
        assert_eq!(constraints(&json!({"enum": ["A", "B"]})), ["one of `A`, `B`"]);
        let one = json!({"minProperties": 1, "maxProperties": 1});
        assert_eq!(
            counted(&one, "Properties", "field").as_deref(),
            Some("exactly one field")
        );
    }
}
