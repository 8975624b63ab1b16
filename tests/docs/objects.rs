//! Objects of ours that the pages and examples show are such that the operator reads all of them.

use idtoken_operator::api::v1alpha1::{IdTokenGrant, IdTokenRequest};
use serde_json::Value;

use crate::{blocks, texts};

/// Fields of `shown` that `read` does not have, with what they hold.
fn unread(path: &str, shown: &Value, read: &Value, found: &mut Vec<String>) {
    match (shown, read) {
        (Value::Object(fields), _) => {
            for (name, inner) in fields {
                unread(&format!("{path}.{name}"), inner, &read[name], found);
            }
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            for (item, other) in items.iter().zip(others) {
                unread(&format!("{path}[]"), item, other, found);
            }
        }
        _ if shown == read => {}
        _ => found.push(path.to_owned()),
    }
}

/// What the operator makes of an object; none where it is not one of ours.
fn read(object: &Value) -> Option<Result<Value, serde_json::Error>> {
    if !object["apiVersion"].as_str()?.starts_with("idtoken.dev/") {
        return None;
    }
    Some(match object["kind"].as_str()? {
        "IdTokenRequest" => {
            serde_json::from_value::<IdTokenRequest>(object.clone()).and_then(serde_json::to_value)
        }
        _ => serde_json::from_value::<IdTokenGrant>(object.clone()).and_then(serde_json::to_value),
    })
}

#[test]
fn every_object_that_a_page_shows_can_be_read() {
    let mut count = 0;
    for (page, text) in texts() {
        let yaml = blocks(&text)
            .into_iter()
            .filter(|(language, _)| language == "yaml");
        let documents =
            yaml.flat_map(|(_, block)| block.split("\n---\n").map(str::to_owned).collect::<Vec<_>>());
        for document in documents {
            let object: Value = serde_saphyr::from_str(&document)
                .unwrap_or_else(|error| panic!("{page}: {error}\n{document}"));
            let Some(done) = read(&object) else { continue };
            let done = done.unwrap_or_else(|error| panic!("{page}: {error}\n{document}"));
            let mut wrong = Vec::new();
            unread("", &object, &done, &mut wrong);
            assert!(
                wrong.is_empty(),
                "{page}: the operator has no {wrong:?}\n{document}"
            );
            count += 1;
        }
    }
    assert!(count > 10, "only {count} objects were found");
}

#[test]
fn a_misspelled_field_is_seen() {
    let object = serde_json::json!({"apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {"name": "a"}, "spec": {"audience": "b", "serviceAcount": "c"}});
    let done = read(&object).unwrap().unwrap();
    let mut wrong = Vec::new();
    unread("", &object, &done, &mut wrong);
    assert_eq!(wrong, [".spec.serviceAcount"]);
}
