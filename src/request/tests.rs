use std::collections::BTreeMap;

use regex::Regex;
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::api::conditions::reason;
use crate::api::v1alpha1::MAX_SPEC_CHARACTERS;
use crate::classify::Classify;
use crate::fixtures::{ACCOUNT, AUDIENCE, UID, apply, object, request};

#[derive(Deserialize)]
struct Row {
    name: String,
    spec: Value,
    #[serde(default = "yes")]
    schema: bool,
    field: Option<String>,
}

/// Stands for the field where the whole spec is too large.
const TOO_LARGE: &str = "";

fn yes() -> bool {
    true
}

/// The table that the tests against a real API server read too, and values that are too large for it.
fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = serde_saphyr::from_str(include_str!("../../tests/data/specs.yaml")).unwrap();
    let mut rejected = |name: &str, spec: Value, field: &str| {
        rows.push(Row {
            name: name.into(),
            spec,
            schema: false,
            field: Some(field.into()),
        });
    };
    let many: BTreeMap<String, String> = (0..33).map(|n| (format!("k{n}"), "v".to_owned())).collect();
    for kind in ["labels", "annotations"] {
        let field = format!("target.template.metadata.{kind}");
        rejected(
            kind,
            json!({"target": {"template": {"metadata": {kind: many}}}}),
            &field,
        );
    }
    rejected(
        "many keys",
        json!({"target": {"template": {"data": many}}}),
        "target.template.data",
    );
    rejected(
        "a long template",
        json!({"target": {"template": {"data": {"x": "y".repeat(8193)}}}}),
        "target.template.data[x]",
    );
    rejected(
        "a long annotation",
        json!({"target": {"template": {"metadata": {"annotations": {"x": "y".repeat(4097)}}}}}),
        "target.template.metadata.annotations[x]",
    );
    rejected(
        "a long audience",
        json!({"audience": "a".repeat(2049)}),
        "audience",
    );
    let account = format!("{}@p.io", "a".repeat(250));
    rejected(
        "a long account",
        json!({"serviceAccount": account}),
        "serviceAccount",
    );
    rejected(
        "a long whole",
        json!({"target": {"template": {"data": {"x": "y".repeat(8192), "z": "y".repeat(8192)}}}}),
        TOO_LARGE,
    );
    for (field, length) in [("name", 254), ("key", 254)] {
        let spec = json!({"target": {field: "a".repeat(length)}});
        rejected(field, spec, &format!("target.{field}"));
    }
    rows
}

/// The sum of `size` of all texts in `value`, and of the keys of maps, whose names are not those of fields.
pub(super) fn texts(value: &Value, size: fn(&str) -> usize) -> usize {
    match value {
        Value::String(text) => size(text),
        Value::Array(items) => items.iter().map(|item| texts(item, size)).sum(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| {
                let map = value.as_object();
                let map = map.filter(|_| matches!(name.as_str(), "labels" | "annotations" | "data"));
                let keys = map.into_iter().flat_map(|map| map.keys());
                texts(value, size) + keys.map(|key| size(key)).sum::<usize>()
            })
            .sum(),
        _ => 0,
    }
}

fn whole(spec: &Value) -> Value {
    let mut whole = json!({"audience": AUDIENCE, "serviceAccount": ACCOUNT});
    apply(&mut whole, spec);
    whole
}

#[test]
fn every_rule_names_its_field() {
    for row in rows() {
        let found = validate(&object(row.spec)).err();
        if let Some(error) = &found {
            let is_too_large = row.field.as_deref() == Some(TOO_LARGE);
            let expected = if is_too_large {
                reason::TOO_LARGE
            } else {
                reason::INVALID_SPEC
            };
            assert_eq!(error.reason(), expected, "{}", row.name);
            if is_too_large {
                continue;
            }
        }
        let (found, expected) = (found.map(|error| error.to_string()), row.field.as_ref());
        let named = match (&found, expected) {
            (Some(message), Some(field)) => message.starts_with(&format!("spec.{field}: ")),
            (found, expected) => found.is_none() && expected.is_none(),
        };
        assert!(named, "{}: {found:?} instead of {expected:?}", row.name);
    }
}

#[test]
fn sources_that_know_their_account() {
    let spec = |more: Value| {
        let mut spec = json!({"serviceAccount": null});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        validate(&object(spec))
    };
    let metadata = spec(json!({"source": {"metadataServer": {"licenses": true}}})).unwrap();
    assert_eq!(
        metadata.token.source,
        TokenSource::MetadataServer { licenses: true }
    );
    let developer = spec(json!({"source": {"developer": {}}})).unwrap();
    assert_eq!(developer.token.source, TokenSource::Developer);
    assert_ne!(metadata.token_hash, developer.token_hash);
    for (more, field) in [
        (
            json!({"source": {"metadataServer": {"licenses": true}}, "includeEmail": false}),
            "licenses",
        ),
        (
            json!({"source": {"metadataServer": {}}, "includeOrganizationNumber": true}),
            "includeOrganizationNumber",
        ),
        (
            json!({"source": {"developer": {}}, "includeOrganizationNumber": true}),
            "includeOrganizationNumber",
        ),
    ] {
        let error = spec(more).unwrap_err();
        assert_eq!(error.reason(), reason::INVALID_SPEC);
        assert!(error.to_string().contains(field), "{error}");
    }
    let off = SourceSettings::default();
    assert_eq!(check_allowed(&metadata.token.source, &off), Ok(()));
    let error = check_allowed(&developer.token.source, &off).unwrap_err();
    assert_eq!(error.reason(), reason::SOURCE_UNAVAILABLE);
    assert!(error.to_string().contains("--allow-developer-source"), "{error}");
    let on = SourceSettings {
        allow_developer: true,
        ..off
    };
    assert_eq!(check_allowed(&developer.token.source, &on), Ok(()));
}

/// Whether the CRD's schema accepts `value` after the API server has pruned unknown fields.
fn accepts(schema: &Value, value: &Value) -> bool {
    let number = |bound: &str| schema[bound].as_u64().map(|bound| bound as usize);
    let within = |size: usize, kind: &str| {
        number(&format!("min{kind}")).is_none_or(|least| size >= least)
            && number(&format!("max{kind}")).is_none_or(|most| size <= most)
    };
    let known = schema["enum"].as_array().is_none_or(|all| all.contains(value));
    known
        && match (schema["type"].as_str(), value) {
            (Some("string"), Value::String(text)) => {
                let matches = |pattern: &str| Regex::new(pattern).unwrap().is_match(text);
                within(text.chars().count(), "Length") && schema["pattern"].as_str().is_none_or(matches)
            }
            (Some("boolean"), Value::Bool(_)) => true,
            (Some("array"), Value::Array(items)) => {
                within(items.len(), "Items") && items.iter().all(|item| accepts(&schema["items"], item))
            }
            (Some("object"), Value::Object(map)) => {
                let property = |key: &String| {
                    let own = schema["properties"].get(key);
                    own.or_else(|| schema.get("additionalProperties"))
                };
                let kept: Vec<_> = map
                    .iter()
                    .filter_map(|(key, value)| Some((property(key)?, value)))
                    .collect();
                let required = schema["required"].as_array().into_iter().flatten();
                within(kept.len(), "Properties")
                    && required
                        .filter_map(Value::as_str)
                        .all(|key| map.contains_key(key))
                    && kept.iter().all(|(schema, value)| accepts(schema, value))
            }
            _ => false,
        }
}

#[test]
fn the_schema_and_the_operator_agree() {
    let crd = serde_json::to_value(&crate::api::crds()[0]).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let rules = schema["x-kubernetes-validations"].as_array().unwrap();
    assert_eq!(
        rules.len(),
        2,
        "the first rules below are the only ones of CEL on the spec as a whole"
    );
    let rule = |spec: &Value| {
        let knows = ["federation", "metadataServer", "developer"];
        let has_account = spec.get("serviceAccount").is_some()
            || knows.iter().any(|source| !spec["source"][source].is_null());
        // Those on the target's name and labels.
        let target = &spec["target"];
        let labels = &target["template"]["metadata"]["labels"];
        let name = target["name"].as_str().unwrap_or_default();
        let is_trusted = name.starts_with("sh.helm.release.")
            || labels["owner"] == "helm"
            || labels.get("argocd.argoproj.io/secret-type").is_some()
            || labels
                .get("sealedsecrets.bitnami.com/sealed-secrets-key")
                .is_some();
        has_account && !is_trusted && texts(spec, |text| text.chars().count()) <= MAX_SPEC_CHARACTERS
    };
    for row in rows() {
        let spec = whole(&row.spec);
        let accepted = accepts(schema, &spec) && rule(&spec);
        assert_eq!(accepted, row.schema, "{}: the schema says {accepted}", row.name);
        assert!(
            accepted || row.field.is_some(),
            "{}: only the schema rejects it",
            row.name
        );
    }
}

#[test]
fn defaults_are_resolved() {
    let request = request(json!({}));
    assert_eq!(
        request.token,
        TokenSpec {
            audience: AUDIENCE.into(),
            service_account: Some(ACCOUNT.into()),
            include_email: true,
            include_organization_number: false,
            source: TokenSource::Impersonation {
                delegates: Vec::new()
            },
        }
    );
    assert_eq!((request.renew_before, request.suspend), (None, false));
    assert_eq!(request.renew_request, None);
    let target = &request.target;
    assert_eq!((target.name.as_str(), target.key.as_str()), ("billing", "token"));
    assert_eq!(
        (target.type_.as_str(), target.creation_policy),
        ("Opaque", CreationPolicy::Owner)
    );
    assert!(target.labels.is_empty() && target.annotations.is_empty() && target.data.is_empty());
    let identity = (
        request.namespace.as_str(),
        request.name.as_str(),
        request.uid.as_str(),
    );
    assert_eq!(identity, ("shop", "billing", UID));
    assert_eq!(target_name(&object(json!({}))), "billing");
    assert_eq!(target_name(&object(json!({"target": {"name": "s"}}))), "s");
}

#[test]
fn renew_before_is_a_go_duration() {
    let request = request(json!({"renewBefore": "1h30m"}));
    assert_eq!(request.renew_before, Some(SignedDuration::from_mins(90)));
}

/// `(token hash, render hash)` of the request with `spec`.
fn hashes(spec: &Value) -> (String, String) {
    let request = request(spec.clone());
    (request.token_hash, request.render_hash)
}

#[test]
fn each_hash_depends_on_its_inputs_and_nothing_else() {
    let base = json!({"target": {"template": {
        "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "data": {"e": "f$(token)"},
    }}});
    let (token, render) = hashes(&base);
    // A change, and whether it changes the token's hash and the rendering's.
    let cases = [
        (json!({"audience": "https://b.run.app"}), true, false),
        (
            json!({"serviceAccount": "other@p.iam.gserviceaccount.com"}),
            true,
            false,
        ),
        (json!({"includeEmail": false}), true, false),
        (json!({"includeOrganizationNumber": true}), true, false),
        (
            json!({"source": {"impersonation": {"delegates": ["a@p.io"]}}}),
            true,
            false,
        ),
        (json!({"renewBefore": "10m"}), false, true),
        (json!({"target": {"key": "jwt"}}), false, true),
        (json!({"target": {"creationPolicy": "Orphan"}}), false, true),
        (
            json!({"target": {"template": {"type": "servicebinding.io/x"}}}),
            false,
            true,
        ),
        (
            json!({"target": {"template": {"metadata": {"labels": {"a": "x"}}}}}),
            false,
            true,
        ),
        (
            json!({"target": {"template": {"metadata": {"labels": {"x": "b"}}}}}),
            false,
            true,
        ),
        (
            json!({"target": {"template": {"metadata": {"labels": null}}}}),
            false,
            true,
        ),
        (
            json!({"target": {"template": {"metadata": {"annotations": {"c": "x"}}}}}),
            false,
            true,
        ),
        (json!({"target": {"template": {"data": {"e": "f"}}}}), false, true),
        (
            json!({"target": {"template": {"data": {"e": "f$$(token)"}}}}),
            false,
            true,
        ),
        (json!({"target": {"template": {"data": {"x": "y"}}}}), false, true),
        // Neither: the Secret is the same.
        (json!({"suspend": true}), false, false),
        (json!({"target": {"name": "elsewhere"}}), false, false),
        (json!({"includeEmail": true}), false, false),
        (json!({"includeOrganizationNumber": false}), false, false),
        (
            json!({"source": {"impersonation": {"delegates": []}}}),
            false,
            false,
        ),
        (
            json!({"target": {"key": "token", "creationPolicy": "Owner"}}),
            false,
            false,
        ),
        (json!({"target": {"template": {"type": "Opaque"}}}), false, false),
    ];
    for (change, token_changes, render_changes) in cases {
        let mut spec = base.clone();
        apply(&mut spec, &change);
        let changed = hashes(&spec);
        assert_eq!(changed.0 != token, token_changes, "token hash: {change}");
        assert_eq!(changed.1 != render, render_changes, "render hash: {change}");
    }
    let mut other = object(base);
    other.metadata.uid = Some("another".into());
    other.metadata.generation = Some(9);
    other.metadata.annotations = Some([(annotations::RENEW.to_owned(), "now".to_owned())].into());
    let other = validate(&other).unwrap();
    assert_eq!(other.renew_request.as_deref(), Some("now"));
    assert_eq!(other.token_hash, token);
    assert_ne!(other.render_hash, render, "the Secret names its owner's UID");
}

#[test]
fn the_same_texts_in_other_fields_are_another_rendering() {
    let target = |labels: Value, annotations: Value, data: Value| {
        let metadata = json!({"labels": labels, "annotations": annotations});
        hashes(&json!({"target": {"template": {"metadata": metadata, "data": data}}})).1
    };
    let none = json!({});
    let renderings = [
        target(json!({"a": "m"}), json!({"n": "d"}), none.clone()),
        target(
            none.clone(),
            none.clone(),
            json!({"label": "a", "m": "annotation", "n": "d"}),
        ),
        target(json!({"n": "d"}), json!({"a": "m"}), none.clone()),
        target(json!({"a": "m", "n": "d"}), none.clone(), none.clone()),
        target(none.clone(), json!({"a": "m", "n": "d"}), none.clone()),
        target(none.clone(), none, json!({"a": "m", "n": "d"})),
    ];
    let different: std::collections::BTreeSet<_> = renderings.iter().collect();
    assert_eq!(different.len(), renderings.len());
    let delegates = |all: Value| hashes(&json!({"source": {"impersonation": {"delegates": all}}})).0;
    assert_ne!(
        delegates(json!(["a@p.io", "b@p.io"])),
        delegates(json!(["b@p.io", "a@p.io"]))
    );
}

#[test]
fn hashes_stay_the_same_from_version_to_version() {
    let spec = json!({
        "includeOrganizationNumber": true,
        "source": {"impersonation": {"delegates": ["middle@p.iam.gserviceaccount.com"]}},
        "renewBefore": "20m",
        "target": {"key": "jwt", "template": {
            "metadata": {"labels": {"team": "shop"}, "annotations": {"note": "x"}},
            "data": {"header": "Authorization: Bearer $(token)"},
        }},
    });
    let (token, render) = hashes(&spec);
    assert_eq!(
        token, "v1-60c9297e4ce77235a92872cdc96f0d28",
        "every Secret carries it: with another value an upgrade re-issues every token in every cluster"
    );
    assert_eq!(
        render, "v1-fc9f05aee3b211ed0f24e9c21a8f92f2",
        "every Secret carries it: with another value an upgrade reads and writes every Secret in every cluster"
    );
}

#[test]
fn a_long_or_odd_key_is_quoted_bounded_and_escaped() {
    let key = format!("\u{1b}[31m\n{}", "x".repeat(300));
    let error = validate(&object(json!({"target": {"template": {"data": {key: "v"}}}}))).unwrap_err();
    let text = error.to_string();
    assert!(text.len() < 250 && !text.contains(['\u{1b}', '\n']), "{text}");
}
