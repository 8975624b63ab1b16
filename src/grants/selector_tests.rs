use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::*;

/// `tests/specs.rs` holds that a real API server agrees with this table.
#[derive(Deserialize)]
struct Row {
    name: String,
    selector: NamespaceSelector,
    #[serde(default)]
    empty: bool,
    kubernetes: Option<bool>,
    #[serde(default)]
    selects: Vec<String>,
}

fn namespaces() -> Vec<(String, BTreeMap<String, String>)> {
    [
        ("bare", json!({})),
        ("shop", json!({"team": "shop"})),
        ("bank", json!({"team": "bank", "tier": "gold"})),
        ("blank", json!({"team": ""})),
    ]
    .map(|(name, mut labels)| {
        labels["kubernetes.io/metadata.name"] = name.into();
        (name.to_owned(), serde_json::from_value(labels).unwrap())
    })
    .into()
}

#[test]
fn selectors_are_valid_and_match_by_the_rules_of_kubernetes() {
    let rows: Vec<Row> = serde_saphyr::from_str(include_str!("../../tests/data/selectors.yaml")).unwrap();
    assert!(rows.len() > 40);
    for row in rows {
        let selector = Selector::new(&row.selector);
        match (row.empty, row.kubernetes) {
            (true, _) => assert_eq!(selector.err(), Some(FromError::EmptySelector), "{}", row.name),
            (false, Some(false)) => assert!(
                matches!(selector, Err(FromError::InvalidSelector(_))),
                "{}: {selector:?}",
                row.name
            ),
            (false, _) => {
                let selector = selector.unwrap_or_else(|error| panic!("{}: {error}", row.name));
                let mut selected = namespaces();
                selected.retain(|(_, labels)| selector.matches(|key| labels.get(key).map(String::as_str)));
                let names: Vec<String> = selected.into_iter().map(|(name, _)| name).collect();
                assert_eq!(names, row.selects, "{}", row.name);
            }
        }
    }
}

#[test]
fn unknown_fields_are_refused() {
    for unknown in [
        json!({"matchlabels": {"team": "shop"}}),
        json!({"matchLabels": {"team": "shop"}, "matchExpression": []}),
        json!({"matchExpressions": [{"key": "team", "operator": "In", "values": ["shop"], "value": "bank"}]}),
    ] {
        let error = serde_json::from_value::<NamespaceSelector>(unknown).unwrap_err();
        assert!(error.to_string().contains("unknown field"), "{error}");
    }
}

#[test]
fn exactly_one_field_says_which_namespaces() {
    let from = |from| namespace_match(&serde_json::from_value(from).unwrap());
    assert_eq!(
        from(json!({"namespace": "shop"})),
        Ok(NamespaceMatch::Name("shop".to_owned()))
    );
    assert_eq!(from(json!({"allNamespaces": true})), Ok(NamespaceMatch::All));
    for invalid in [
        json!({}),
        json!({"allNamespaces": false}),
        json!({"allNamespaces": null}),
        json!({"namespace": "shop", "allNamespaces": true}),
        json!({"namespace": "shop", "allNamespaces": false}),
        json!({"namespace": "shop", "namespaceSelector": {"matchLabels": {"team": "shop"}}}),
        json!({"allNamespaces": true, "namespaceSelector": {}}),
    ] {
        assert_eq!(from(invalid.clone()), Err(FromError::NotOne), "{invalid}");
    }
}

#[test]
fn an_error_quotes_little_of_a_selector() {
    let long = json!({"namespaceSelector": {"matchLabels": {"team": "\u{1b}[2J".repeat(10_000)}}});
    let error = namespace_match(&serde_json::from_value(long).unwrap()).unwrap_err();
    assert_eq!(error.reason(), "InvalidSpec");
    let text = error.to_string();
    assert!(text.len() < 800 && !text.contains('\u{1b}'), "{text}");
}
