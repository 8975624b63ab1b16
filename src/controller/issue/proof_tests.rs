use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;
use crate::controller::issue::observation::{Expectations, Integrity, ReadSecret};
use crate::fixtures::{at, content, request, stored, token};
use crate::render::render;

const T0: i64 = 1_800_000_000;
const SUBJECT: &str = "123456789012345678901";

/// The Secret of `request` with `token` in it.
fn holding(request: &ValidRequest, token: &IdToken) -> SecretContent {
    let mut secret = json!(render(request, token).unwrap().create("shop", "billing"));
    stored(&mut secret, 7);
    content(&secret)
}

#[test]
fn only_the_token_that_was_written_last_is_trusted() {
    let request = request(json!({}));
    let (last, other) = (token(&request, T0), token(&request, T0 + 1));
    let integrity = |token: &IdToken, digest: Option<&str>| {
        let expectations = Expectations {
            digest,
            ..Expectations::default()
        };
        let read = ReadSecret::compare(holding(&request, token), &request, &expectations, at(T0 + 60));
        let read = read.unwrap();
        assert_eq!(read.token.is_some(), read.integrity != Integrity::Damaged);
        read.integrity
    };
    assert_eq!(integrity(&last, Some(&last.digest())), Integrity::Intact);
    // Its annotations say what they should, and prove nothing.
    assert_eq!(integrity(&other, Some(&last.digest())), Integrity::Damaged);
    assert_eq!(integrity(&last, Some(&last.fingerprint())), Integrity::Damaged);
    assert_eq!(integrity(&last, None), Integrity::Damaged);
}

#[test]
fn what_can_be_the_token_of_a_restored_secret() {
    let by = |account: Value| request(json!({"serviceAccount": account}));
    let email = by(json!("caller@p.iam.gserviceaccount.com"));
    let id = by(json!(SUBJECT));
    let another_id = by(json!("999999999999999999999"));
    let without_email = request(json!({"includeEmail": false}));
    let attached = request(json!({"serviceAccount": null, "source": {"metadataServer": {}}}));
    let known = |subject: &str, issued: i64| {
        Some(TokenStatus {
            subject: Some(subject.to_owned()),
            issue_time: Some(Time(at(issued))),
            ..TokenStatus::default()
        })
    };
    let rows: Vec<(&str, &ValidRequest, Option<TokenStatus>, bool)> = vec![
        ("the account by e-mail", &email, None, true),
        ("the account by ID", &id, None, true),
        ("another account", &another_id, None, false),
        (
            "an account that the token does not name",
            &without_email,
            None,
            false,
        ),
        ("but the status does", &without_email, known(SUBJECT, T0), true),
        ("an account that only the source knows", &attached, None, false),
        ("but the status does", &attached, known(SUBJECT, T0), true),
        (
            "the e-mail of an account that was deleted",
            &email,
            known("1", T0),
            false,
        ),
        (
            "newer than the status says, after a crash",
            &email,
            known(SUBJECT, T0 - 1800),
            true,
        ),
        (
            "older than the status says",
            &email,
            known(SUBJECT, T0 + 1),
            false,
        ),
    ];
    for (what, request, known, expected) in rows {
        let content = holding(request, &token(request, T0));
        let found = unproven_token(&content, request, known.as_ref());
        assert_eq!(found.is_some(), expected, "{what}");
    }
    let mut content = holding(&email, &token(&email, T0));
    content.summary.token_fingerprint = Some("0011223344556677".to_owned());
    assert!(
        unproven_token(&content, &email, None).is_none(),
        "another token than was written"
    );
}
