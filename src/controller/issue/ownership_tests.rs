use serde_json::{Value, json};

use super::*;
use crate::fixtures::{content, request};

/// The Secret as `request`'s last issuance left it, and these changes.
fn left(request: &ValidRequest, changes: &Value) -> SecretContent {
    let mut secret = json!({
        "type": "Opaque",
        "metadata": {
            "uid": "secret", "resourceVersion": "7",
            "labels": {"app.kubernetes.io/managed-by": "idtoken-operator"},
            "annotations": {"idtoken.dev/request": request.name, "idtoken.dev/request-uid": request.uid},
        },
    });
    crate::fixtures::apply(&mut secret["metadata"], changes);
    content(&secret)
}

/// What the status of a request says of its Secret.
fn status(name: &str, uid: Option<&str>, version: &str) -> Option<SecretStatus> {
    Some(SecretStatus {
        name: name.to_owned(),
        uid: uid.map(str::to_owned),
        resource_version: Some(version.to_owned()),
    })
}

fn owner(kind: &str, uid: &str) -> Value {
    let group = if kind == "IdTokenRequest" {
        "idtoken.dev/v1alpha1"
    } else {
        "example.com/v1"
    };
    json!({"ownerReferences": [{"apiVersion": group, "kind": kind, "name": "e", "uid": uid, "controller": true}]})
}

fn found(request: &ValidRequest, content: &SecretContent, recorded: Option<&SecretStatus>) -> String {
    // Our own UID and that of a neighbour.
    let is_living = |uid: &str| uid == request.uid || uid == "other-uid";
    match ownership(request, content, recorded, is_living) {
        Ownership::Ours => "ours".to_owned(),
        Ownership::Inherited => "inherited".to_owned(),
        Ownership::Adopted => "adopted".to_owned(),
        Ownership::Foreign { why } => why,
    }
}

#[test]
fn ownership_table() {
    let request = request(json!({}));
    let recorded = || status("billing", Some("secret"), "1");
    let notes = |name: Value, uid: Value| json!({"annotations": {"idtoken.dev/request": name, "idtoken.dev/request-uid": uid}});
    let unlabelled = json!({"labels": null});
    let foreign = json!({"labels": null, "annotations": null});
    let adopt = |name: &str| json!({"labels": null, "annotations": {"idtoken.dev/request": null, "idtoken.dev/request-uid": null, "idtoken.dev/adopt": name}});
    let with = |mut changes: Value, more: Value| {
        crate::fixtures::apply(&mut changes, &more);
        changes
    };
    let ours = json!({});
    let unwritten = "was not written by the operator";
    let rows: Vec<(&str, Value, Option<SecretStatus>, &str)> = vec![
        ("all of our marks", ours.clone(), None, "ours"),
        ("and the status records it", ours.clone(), recorded(), "ours"),
        ("our label was taken away", unlabelled.clone(), recorded(), "ours"),
        (
            "as an older version recorded it",
            unlabelled.clone(),
            status("billing", None, "7"),
            "ours",
        ),
        ("our marks were taken away", foreign.clone(), recorded(), "ours"),
        (
            "the name was changed",
            notes(json!("other"), json!(request.uid)),
            recorded(),
            "ours",
        ),
        // A UID that a tenant writes on any Secret proves nothing.
        (
            "our UID alone",
            with(unlabelled.clone(), notes(Value::Null, json!(request.uid))),
            None,
            unwritten,
        ),
        ("our name and UID alone", unlabelled.clone(), None, unwritten),
        (
            "our name and UID alone, the status records another Secret",
            unlabelled.clone(),
            status("billing", Some("gone"), "7"),
            unwritten,
        ),
        (
            "our name and UID alone, the status records another name",
            unlabelled.clone(),
            status("former", Some("secret"), "7"),
            unwritten,
        ),
        (
            "an older version recorded another state",
            unlabelled.clone(),
            status("billing", None, "6"),
            unwritten,
        ),
        (
            "all of our marks and more owners than are read",
            json!({"ownerReferences": vec![json!({"apiVersion": "v1", "kind": "Pod", "name": "x".repeat(200), "uid": "u"}); 400]}),
            recorded(),
            "has ownerReferences of more than 64 KiB",
        ),
        (
            "our label and UID, another's name",
            notes(json!("other"), json!(request.uid)),
            None,
            "belongs to IdTokenRequest other;",
        ),
        // Restored from a backup, or the request was recreated.
        (
            "a UID of no request",
            notes(json!("billing"), json!("gone")),
            None,
            "inherited",
        ),
        ("no UID", notes(json!("billing"), Value::Null), None, "inherited"),
        (
            "and its owner is gone",
            with(
                notes(json!("billing"), json!("gone")),
                owner("IdTokenRequest", "gone"),
            ),
            None,
            "inherited",
        ),
        (
            "the UID of another request",
            notes(json!("billing"), json!("other-uid")),
            None,
            "belongs to IdTokenRequest billing;",
        ),
        (
            "without our label",
            with(unlabelled.clone(), notes(json!("billing"), json!("gone"))),
            None,
            unwritten,
        ),
        // Another request's.
        (
            "another request's",
            notes(json!("other"), json!("other-uid")),
            None,
            "belongs to IdTokenRequest other;",
        ),
        (
            "another request's that is gone",
            notes(json!("other"), json!("gone")),
            None,
            "belongs to IdTokenRequest other;",
        ),
        (
            "another request owns it",
            owner("IdTokenRequest", "other-uid"),
            recorded(),
            "belongs to IdTokenRequest e; choose another",
        ),
        (
            "handed over",
            with(
                notes(json!("other"), json!("other-uid")),
                json!({"annotations": {"idtoken.dev/adopt": "billing"}}),
            ),
            None,
            "adopted",
        ),
        // Of others.
        ("foreign", foreign.clone(), None, unwritten),
        ("foreign, handed over", adopt("billing"), None, "adopted"),
        (
            "foreign, handed to somebody else",
            adopt("others"),
            None,
            unwritten,
        ),
        (
            "a controller's",
            with(foreign.clone(), owner("ExternalSecret", "x")),
            None,
            "belongs to ExternalSecret e; choose another",
        ),
        (
            "a controller's, handed over",
            with(adopt("billing"), owner("ExternalSecret", "x")),
            None,
            "belongs to ExternalSecret e; choose another",
        ),
        (
            "a controller's that bears our marks",
            owner("ExternalSecret", "x"),
            None,
            "belongs to ExternalSecret e; choose another",
        ),
        (
            "a controller's that the status records",
            owner("ExternalSecret", "x"),
            recorded(),
            "belongs to ExternalSecret e; choose another",
        ),
        (
            "a controller's with our UID as its own",
            owner("ExternalSecret", &request.uid),
            recorded(),
            "belongs to ExternalSecret e; choose another",
        ),
        (
            "our own reference",
            owner("IdTokenRequest", &request.uid),
            None,
            "ours",
        ),
    ];
    for (what, changes, recorded, expected) in &rows {
        let found = found(&request, &left(&request, changes), recorded.as_ref());
        assert!(found.starts_with(expected), "{what}: {found}");
    }
    let why = found(&request, &left(&request, &foreign), None);
    assert!(
        why.ends_with("kubectl annotate secret billing -n shop idtoken.dev/adopt=billing"),
        "{why}"
    );
}

#[test]
fn text_of_others_is_escaped_and_bounded() {
    let request = request(json!({}));
    let name = format!("\u{1b}[2J\n{}", "x".repeat(9000));
    let changes = json!({"annotations": {"idtoken.dev/request": name}});
    let mut controlled = owner("Kind", "x");
    controlled["ownerReferences"][0]["name"] = json!(name);
    for changes in [changes, controlled] {
        let why = found(&request, &left(&request, &changes), None);
        assert!(why.starts_with("belongs to"), "{why}");
        assert!(!why.contains(['\u{1b}', '\n']) && why.len() < 1000, "{why:?}");
    }
}

#[test]
fn only_what_bears_our_marks_and_is_recorded_may_be_deleted() {
    let request = request(json!({}));
    let may = |changes: Value, recorded: Option<SecretStatus>| {
        let secret = left(&request, &changes).summary;
        may_delete(&request, "billing", &secret, recorded.as_ref())
    };
    assert!(may(json!({}), status("billing", Some("secret"), "1")));
    assert!(
        may(json!({}), status("billing", None, "7")),
        "as an older version recorded it"
    );
    for (what, changes, recorded) in [
        ("no status", json!({}), None),
        ("another Secret", json!({}), status("billing", Some("other"), "7")),
        ("another name", json!({}), status("former", Some("secret"), "7")),
        (
            "changed since an older version recorded it",
            json!({}),
            status("billing", None, "6"),
        ),
    ] {
        assert!(!may(changes, recorded), "{what}");
    }
    for changes in [
        json!({"labels": null}),
        json!({"labels": {"app.kubernetes.io/managed-by": "Helm"}}),
        json!({"annotations": {"idtoken.dev/request": "other"}}),
        json!({"annotations": {"idtoken.dev/request-uid": "gone"}}),
        json!({"annotations": {"idtoken.dev/adopted": "true"}}),
    ] {
        assert!(
            !may(changes.clone(), status("billing", Some("secret"), "7")),
            "{changes}"
        );
    }
}
