//! The file of `--grants-file`: a YAML list of grants.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use thiserror::Error;

use crate::api::v1alpha1::{GrantFrom, GrantRef, GrantTo, IdTokenGrantSpec};
use crate::grants::index::Grant;

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
    let grants: Vec<FileGrant> =
        serde_saphyr::from_str(yaml).map_err(|error| GrantsFileError::Parse(error.to_string()))?;
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
