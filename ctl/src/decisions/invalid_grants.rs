//! Pure: grants → the parts of them that grant nothing, since they are invalid, without credentials.

use idtoken_operator::grants::index::Grant;
use idtoken_operator::grants::selector::{FromError, invalid_entries};
use serde::Serialize;

use crate::output::redacted;

/// A grant, or a part of it, that grants nothing.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct InvalidGrant {
    /// Name of the grant.
    pub(crate) grant: String,
    /// Path of the part.
    pub(crate) field: String,
    /// Why it grants nothing.
    pub(crate) problem: String,
    /// Whether it is an empty selector, which earlier versions took for all namespaces.
    #[serde(skip)]
    pub(crate) was_everything: bool,
}

/// The parts of `grants` that grant nothing, by name and path. `undecodable` are the names of further grants, and why they cannot be decoded.
pub(crate) fn invalid(grants: &[Grant], undecodable: Vec<(String, String)>) -> Vec<InvalidGrant> {
    let parts = grants.iter().flat_map(|grant| {
        invalid_entries(&grant.spec).map(|(index, error)| InvalidGrant {
            grant: redacted(&grant.id.name),
            field: format!("spec.from[{index}]"),
            was_everything: error == FromError::EmptySelector,
            problem: redacted(&format!("it {error}")),
        })
    });
    let whole = undecodable.into_iter().map(|(grant, error)| InvalidGrant {
        grant: redacted(&grant),
        field: "spec".to_owned(),
        problem: redacted(&format!("it cannot be decoded: {error}")),
        was_everything: false,
    });
    let mut found: Vec<InvalidGrant> = parts.chain(whole).collect();
    found.sort_by(|a, b| a.grant.cmp(&b.grant));
    found
}

#[cfg(test)]
mod tests {
    use idtoken_operator::grants::file::parse_file;

    use super::*;

    #[test]
    fn each_part_that_grants_nothing_is_listed() {
        let to = "to: [{serviceAccounts: ['1'], audiences: [aud]}]";
        let grants = parse_file(&format!(
            "- {{name: b, from: [{{namespace: shop}}, {{namespaceSelector: {{}}}}], {to}}}\n\
             - {{name: a, from: [{{namespaceSelector: {{matchExpressions: [{{key: team, operator: NotIn}}]}}}}], {to}}}\n\
             - {{name: valid, from: [{{allNamespaces: true}}, {{namespaceSelector: {{matchLabels: {{team: a}}}}}}], {to}}}"
        ))
        .unwrap();
        let found = invalid(&grants, vec![("c".to_owned(), "unknown field".to_owned())]);
        let parts: Vec<(&str, &str, bool)> = found
            .iter()
            .map(|one| (one.grant.as_str(), one.field.as_str(), one.was_everything))
            .collect();
        assert_eq!(
            parts,
            [
                ("c", "spec", false),
                ("file:a", "spec.from[0]", false),
                ("file:b", "spec.from[1]", true),
            ]
        );
        assert!(found[1].problem.contains("team needs values"), "{found:?}");
    }

    #[test]
    fn a_credential_in_a_grant_is_not_shown() {
        let token = "ya29.a0AfH6SMBsecret-of-somebody";
        let to = "to: [{serviceAccounts: ['1'], audiences: [aud]}]";
        let selector = format!("{{matchExpressions: [{{key: team, operator: {token}}}]}}");
        let grants = parse_file(&format!(
            "- {{name: {token}, from: [{{namespaceSelector: {selector}}}], {to}}}"
        ))
        .unwrap();
        let found = invalid(
            &grants,
            vec![(token.to_owned(), format!("unknown field `{token}`"))],
        );
        assert_eq!(found.len(), 2);
        let json = serde_json::to_string(&found).unwrap();
        assert!(!json.contains("secret-of-somebody"), "{json}");
        assert!(json.contains("REDACTED") || json.contains("redacted"), "{json}");
    }
}
