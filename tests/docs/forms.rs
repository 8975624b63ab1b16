//! The forms of issues are such as GitHub shows: it ignores one that is wrong
//! (<https://docs.github.com/en/communities/using-templates-to-encourage-useful-issues-and-pull-requests/syntax-for-githubs-form-schema>).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::root;

/// What is wrong with a form.
fn faults(form: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for field in ["name", "description"] {
        if form[field].as_str().is_none_or(str::is_empty) {
            found.push(format!("no {field}"));
        }
    }
    let mut ids = BTreeSet::new();
    for item in form["body"].as_array().into_iter().flatten() {
        let attributes = &item["attributes"];
        let complete = match item["type"].as_str().unwrap_or_default() {
            "markdown" => attributes["value"].is_string(),
            "input" | "textarea" => attributes["label"].is_string(),
            "dropdown" => {
                attributes["label"].is_string()
                    && attributes["options"]
                        .as_array()
                        .is_some_and(|all| !all.is_empty())
            }
            "checkboxes" => attributes["options"]
                .as_array()
                .is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["label"].is_string())),
            _ => false,
        };
        if !complete {
            found.push(format!("not complete: {item}"));
        }
        if item["type"] != "markdown" && !item["id"].as_str().is_some_and(|id| ids.insert(id.to_owned())) {
            found.push(format!("no id of its own: {item}"));
        }
    }
    if ids.is_empty() {
        found.push("nothing to fill in".to_owned());
    }
    found
}

#[test]
fn github_shows_the_forms() {
    let mut count = 0;
    for entry in std::fs::read_dir(root().join(".github/ISSUE_TEMPLATE")).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("config.yml") {
            continue;
        }
        let form: Value = serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(faults(&form), [""; 0], "{}", path.display());
        count += 1;
    }
    assert_eq!(count, 2);
    let wrong = "name: A\nbody: [{type: input, id: a, attributes: {}}, {type: text, id: a}]";
    assert_eq!(faults(&serde_saphyr::from_str(wrong).unwrap()).len(), 4);
}
