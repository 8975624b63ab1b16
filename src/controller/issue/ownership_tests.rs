use serde_json::json;

use super::*;
use crate::fixtures::request;

/// The Secret as `request`'s last issuance left it.
fn left(request: &ValidRequest) -> SecretSummary {
    SecretSummary {
        request: Some(request.name.clone()),
        request_uid: Some(request.uid.clone()),
        managed: true,
        ..SecretSummary::default()
    }
}

#[test]
fn ownership_table() {
    let request = request(json!({}));
    let ours = left(&request);
    let foreign = SecretSummary::default();
    let other = SecretSummary {
        request: Some("other".into()),
        request_uid: Some("other-uid".into()),
        ..ours.clone()
    };
    let restored = SecretSummary {
        request_uid: Some("an-earlier-life".into()),
        ..ours.clone()
    };
    let unlabelled = SecretSummary {
        managed: false,
        ..ours.clone()
    };
    let copied = SecretSummary {
        managed: false,
        ..restored.clone()
    };
    type Row<'a> = (
        &'a str,
        &'a SecretSummary,
        Option<&'a str>,
        Option<&'a str>,
        bool,
        &'a str,
    );
    let rows: &[Row<'_>] = &[
        ("ours", &ours, None, None, false, "ours"),
        ("our label was taken away", &unlabelled, None, None, false, "ours"),
        ("restored from a backup", &restored, None, None, false, "ours"),
        (
            "of our name, but neither labelled nor of our UID",
            &copied,
            None,
            None,
            false,
            "was not written by the operator",
        ),
        ("a younger request's", &other, None, None, true, "ours"),
        (
            "another request's",
            &other,
            None,
            None,
            false,
            "belongs to IdTokenRequest other;",
        ),
        (
            "another request's, handed over",
            &other,
            Some("billing"),
            None,
            false,
            "adopted",
        ),
        (
            "foreign",
            &foreign,
            None,
            None,
            true,
            "was not written by the operator",
        ),
        (
            "foreign, handed over",
            &foreign,
            Some("billing"),
            None,
            false,
            "adopted",
        ),
        (
            "foreign, handed to somebody else",
            &foreign,
            Some("others"),
            None,
            false,
            "was not written by the operator",
        ),
        (
            "a controller's",
            &foreign,
            None,
            Some("ExternalSecret e"),
            false,
            "belongs to ExternalSecret e; choose another",
        ),
        (
            "a controller's, handed over",
            &foreign,
            Some("billing"),
            Some("ExternalSecret e"),
            false,
            "belongs to ExternalSecret e; choose another",
        ),
        (
            "a controller's that carries our label, handed over",
            &other,
            Some("billing"),
            Some("ExternalSecret e"),
            false,
            "belongs to ExternalSecret e; choose another",
        ),
    ];
    for (name, secret, adopt, controller, outranked, expected) in rows {
        let found = match ownership(&request, secret, *adopt, *controller, |_| *outranked) {
            Ownership::Ours => "ours".to_owned(),
            Ownership::Adopted => "adopted".to_owned(),
            Ownership::Foreign { why } => why,
        };
        assert!(found.starts_with(expected), "{name}: {found}");
    }
    let Ownership::Foreign { why } = ownership(&request, &foreign, None, None, |_| false) else {
        panic!("foreign");
    };
    assert!(
        why.ends_with("kubectl annotate secret billing -n shop idtoken.dev/adopt=billing"),
        "{why}"
    );
}
