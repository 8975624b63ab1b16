//! The content of the grants file, a YAML list of grants: how large it may be, and how it is decoded.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::api::v1alpha1::{GrantFrom, GrantRef, GrantTo, IdTokenGrantSpec};
use crate::grants::index::Grant;
use crate::request::syntax::quote_bounded;

/// Maximum bytes of a grants file. A ConfigMap holds at most 1 MiB.
const MAX_SIZE: u64 = 4 * 1024 * 1024;

/// Why a grants file is rejected.
#[derive(Debug, Error)]
pub enum GrantsFileError {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    /// It is too large.
    #[error("it has {0} bytes, more than {MAX_SIZE}")]
    TooLarge(u64),
    /// It is not a list of grants.
    #[error("it must be a YAML list of {{name, from, to}}, each as an IdTokenGrant's spec: {0}")]
    Parse(String),
}

impl GrantsFileError {
    /// What is wrong, without the content of the file.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "cannot be read",
            Self::TooLarge(_) => "is too large",
            Self::Parse(_) => "is no valid list of grants",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileGrant {
    name: String,
    from: Vec<GrantFrom>,
    to: Vec<GrantTo>,
}

/// Parses a grants file. Each grant has a `name` beside the fields of an IdTokenGrant's spec, and is called `file:NAME`.
///
/// # Errors
/// It is not such a list. Unknown fields are errors, since an overlooked one could make the grant wider than it was meant.
pub fn parse_file(yaml: &str) -> Result<Vec<Grant>, GrantsFileError> {
    if yaml.trim().is_empty() {
        return Ok(Vec::new());
    }
    let parse_error = |error: serde_saphyr::Error| GrantsFileError::Parse(error.to_string());
    let shapes: Vec<Value> = serde_saphyr::from_str(yaml).map_err(parse_error)?;
    for (index, shape) in shapes.iter().enumerate() {
        check_shape(&format!("[{index}]"), "", shape).map_err(GrantsFileError::Parse)?;
    }
    let grants: Vec<FileGrant> = serde_saphyr::from_str(yaml).map_err(parse_error)?;
    let grant = |grant: FileGrant| Grant {
        id: GrantRef {
            name: format!("file:{}", grant.name),
            uid: None,
        },
        spec: Arc::new(IdTokenGrantSpec {
            from: grant.from,
            to: grant.to,
        }),
    };
    Ok(grants.into_iter().map(grant).collect())
}

/// Whether objects are objects, and labels have values. serde takes a list for an object, by the order of the fields; and a label whose value
/// is null, which the API server drops from an object, would widen a selector.
fn check_shape(path: &str, field: &str, value: &Value) -> Result<(), String> {
    let is_object = matches!(
        field,
        "" | "from" | "to" | "namespaceSelector" | "matchLabels" | "matchExpressions"
    );
    match value {
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let path = format!("{path}.{}", quote_bounded(name));
            match field {
                // Its keys are labels, no fields. Other values are serde's to check.
                "matchLabels" if value.is_null() => {
                    Err(format!("{path} is null: give the label a value, or leave it out"))
                }
                "matchLabels" => Ok(()),
                _ => check_list(&path, name, value),
            }
        }),
        // Not set.
        Value::Null if field == "namespaceSelector" || field == "matchLabels" => Ok(()),
        _ if is_object => Err(format!("{path} must be an object")),
        _ => Ok(()),
    }
}

/// As [`check_shape`], of each item if the field is a list.
fn check_list(path: &str, field: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::Array(items) if matches!(field, "from" | "to" | "matchExpressions") => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| check_shape(&format!("{path}[{index}]"), field, item)),
        // Null is not set.
        Value::Null => Ok(()),
        value => check_shape(path, field, value),
    }
}

/// Reads and parses a grants file.
///
/// # Errors
/// It cannot be read, or is not a list of grants.
pub fn read_file(path: &Path) -> Result<Vec<Grant>, GrantsFileError> {
    parse_file(&read_text(path)?)
}

/// Reads a grants file.
///
/// # Errors
/// It cannot be read.
pub fn read_text(path: &Path) -> Result<String, GrantsFileError> {
    let size = std::fs::metadata(path)?.len();
    if size > MAX_SIZE {
        return Err(GrantsFileError::TooLarge(size));
    }
    Ok(std::fs::read_to_string(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_grants_and_no_unknown_fields() {
        let yaml = "- name: shop\n  from: [{namespace: shop}]\n  to:\n  - serviceAccounts: [a@p.iam.gserviceaccount.com]\n    audiences: [aud]\n";
        let grants = parse_file(yaml).unwrap();
        assert_eq!(grants[0].id.name, "file:shop");
        assert_eq!(grants[0].spec.to[0].audiences, ["aud"]);
        assert!(parse_file(&yaml.replace("audiences", "audience")).is_err());
        assert!(parse_file(" \n").unwrap().is_empty());
    }

    #[test]
    fn a_list_is_no_object_and_a_label_without_a_value_no_label() {
        let to = "[{serviceAccounts: ['1'], audiences: [aud]}]";
        let whole = |from: &str, to: &str| parse_file(&format!("- name: shop\n  from: {from}\n  to: {to}\n"));
        for good in [
            "[{namespace: shop}]",
            "[{namespace: shop, namespaceSelector: null, allNamespaces: null}]",
            "[{namespaceSelector: {matchLabels: null, matchExpressions: [{key: a, operator: Exists, values: null}]}}]",
            "[{namespaceSelector: {matchLabels: {team: shop}, matchExpressions: []}}]",
            // Labels with the names of fields.
            "[{namespaceSelector: {matchLabels: {from: a, to: b, matchLabels: c, namespaceSelector: d, matchExpressions: e}}}]",
        ] {
            whole(good, to).unwrap();
        }
        for (from, to, named) in [
            ("[[]]", to, "[0].from[0] must be an object"),
            ("[[shop]]", to, "[0].from[0] must be an object"),
            (
                "[{namespaceSelector: []}]",
                to,
                "[0].from[0].namespaceSelector must be an object",
            ),
            (
                "[{namespaceSelector: {matchExpressions: [[team, Exists]]}}]",
                to,
                "[0].from[0].namespaceSelector.matchExpressions[0] must be an object",
            ),
            (
                "[{namespace: shop}]",
                "[[['1'], [aud]]]",
                "[0].to[0] must be an object",
            ),
            (
                "[{namespaceSelector: {matchLabels: {team: null, env: prod}}}]",
                to,
                "[0].from[0].namespaceSelector.matchLabels.team is null",
            ),
            (
                "[{namespaceSelector: {matchLabels: {env: prod, team: }}}]",
                to,
                "[0].from[0].namespaceSelector.matchLabels.team is null",
            ),
        ] {
            let error = whole(from, to).unwrap_err();
            assert!(error.to_string().contains(named), "{from} {to}: {error}");
        }
        let error = parse_file(&format!("- [shop, [{{namespace: shop}}], {to}]\n")).unwrap_err();
        assert!(error.to_string().contains("[0] must be an object"), "{error}");
    }

    #[test]
    fn a_misspelt_selector_is_refused() {
        let file = |selector: &str| {
            format!(
                "- name: shop\n  from: [{{namespaceSelector: {selector}}}]\n  to: [{{serviceAccounts: ['1'], audiences: [aud]}}]\n"
            )
        };
        parse_file(&file("{matchLabels: {team: shop}}")).unwrap();
        for misspelt in [
            "{matchlabels: {team: shop}}",
            "{matchLabels: {team: shop}, matchexpressions: []}",
            "{matchExpressions: [{key: team, operator: In, value: [shop]}]}",
        ] {
            let error = parse_file(&file(misspelt)).unwrap_err();
            assert!(error.to_string().contains("unknown field"), "{misspelt}: {error}");
        }
    }
}
