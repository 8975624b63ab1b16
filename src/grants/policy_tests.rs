use std::sync::Arc;

use super::*;
use crate::api::v1alpha1::{GrantFrom, IdTokenGrantSpec};
use crate::fixtures::{ACCOUNT, token_spec as token};
use crate::grants::index::{Grant, Namespaces};
use crate::request::TokenSource;

fn to(account: &str, audience: &str) -> GrantTo {
    GrantTo {
        service_accounts: vec![account.into()],
        audiences: vec![audience.into()],
        ..GrantTo::default()
    }
}

#[test]
fn accounts() {
    let cases = [
        (ACCOUNT, ACCOUNT, true),
        ("*@p.iam.gserviceaccount.com", ACCOUNT, true),
        (
            "*@p.iam.gserviceaccount.com",
            "x@q.iam.gserviceaccount.com",
            false,
        ),
        (
            "*@p.iam.gserviceaccount.com",
            "x@p.iam.gserviceaccount.com.evil.io",
            false,
        ),
        (
            "*@p.iam.gserviceaccount.com",
            "x@evil.p.iam.gserviceaccount.com",
            false,
        ),
        ("*@p.iam.gserviceaccount.com", "123456789012345678901", false),
        ("*", ACCOUNT, false),
        (ACCOUNT, "123456789012345678901", false),
        ("123456789012345678901", "123456789012345678901", true),
    ];
    for (pattern, account, expected) in cases {
        assert_eq!(
            allows(&to(pattern, "aud"), &token(account, "aud")),
            expected,
            "{pattern} {account}"
        );
    }
}

#[test]
fn audiences() {
    let cases = [
        ("https://api.example.com/*", "https://api.example.com/a/b", true),
        ("https://api.example.com/*", "https://api.example.com/", true),
        ("https://api.example.com/*", "https://api.example.com", false),
        (
            "https://api.example.com/*",
            "https://api.example.com.evil.io/",
            false,
        ),
        (
            "https://api.example.com/*",
            "https://api.example.com@evil.io/",
            false,
        ),
        ("https://api.example.com/*", "https://API.example.com/", false),
        (
            "https://api.example.com/*",
            "https://api.example.com:8443/",
            false,
        ),
        ("https://api.example.com/*", "http://api.example.com/", false),
        ("https://api.example.com*", "https://api.example.com/", false),
        ("https:///*", "https:///x", false),
        ("https://*", "https://x", false),
        ("*", "https://x", false),
        ("https://a.io/*/b*", "https://a.io/*/b", false),
        (
            "1.apps.googleusercontent.com",
            "1.apps.googleusercontent.com",
            true,
        ),
    ];
    for (pattern, audience, expected) in cases {
        assert_eq!(
            allows(&to(ACCOUNT, pattern), &token(ACCOUNT, audience)),
            expected,
            "{pattern} {audience}"
        );
    }
}

#[test]
fn delegates_and_sources_must_be_named() {
    let mut entry = to(ACCOUNT, "aud");
    let mut wanted = token(ACCOUNT, "aud");
    let delegates = vec!["middle@p.iam.gserviceaccount.com".to_owned()];
    wanted.source = TokenSource::Impersonation {
        delegates: delegates.clone(),
    };
    assert!(!allows(&entry, &wanted));
    entry.delegates = Some(delegates);
    assert!(allows(&entry, &wanted));
    wanted.source = TokenSource::MetadataServer { licenses: false };
    assert!(!allows(&entry, &wanted));
    entry.sources = Some(vec![GrantSource::MetadataServer]);
    assert!(allows(&entry, &wanted));
}

fn grant(name: &str, from: GrantFrom, to: GrantTo) -> Grant {
    let id = GrantRef {
        name: name.into(),
        uid: None,
    };
    Grant {
        id,
        spec: Arc::new(IdTokenGrantSpec {
            from: vec![from],
            to: vec![to],
        }),
    }
}

#[test]
fn one_entry_must_allow_all_of_it_for_the_namespace() {
    let from = |namespace: &str| GrantFrom {
        namespace: Some(namespace.into()),
        ..GrantFrom::default()
    };
    let split = [
        grant("a", from("shop"), to(ACCOUNT, "other")),
        grant("b", from("shop"), to("other@p.iam.gserviceaccount.com", "aud")),
        grant("c", from("else"), to(ACCOUNT, "aud")),
    ];
    let index = GrantIndex::new(&split, &Namespaces::new());
    let decide = |namespace: &str| {
        authorize(
            &index,
            namespace,
            "my request",
            &token(ACCOUNT, "aud"),
            Remedy::ApplyGrant,
        )
    };
    let denied = decide("shop").unwrap_err();
    assert_eq!(denied.reason(), "NotGranted");
    let message = denied.to_string();
    assert!(
        message.contains("kubectl idtoken grant 'my request' -n shop"),
        "{message}"
    );
    assert!(!message.contains("other"), "quotes another grant: {message}");
    assert_eq!(decide("else").unwrap().name, "c");
}

#[test]
fn selectors_follow_namespace_labels() {
    let from = GrantFrom {
        namespace_selector: Some(
            serde_json::from_value(serde_json::json!({"matchLabels": {"team": "shop"}})).unwrap(),
        ),
        ..GrantFrom::default()
    };
    let grants = [grant("a", from, to(ACCOUNT, "aud"))];
    let namespaces: Namespaces = [("shop", "shop"), ("bank", "bank")]
        .map(|(name, team)| (name.to_owned(), [("team".to_owned(), team.to_owned())].into()))
        .into();
    let index = GrantIndex::new(&grants, &namespaces);
    assert_eq!(matching(&index, "shop", &token(ACCOUNT, "aud")).len(), 1);
    assert!(matching(&index, "bank", &token(ACCOUNT, "aud")).is_empty());
}

#[test]
fn sources_and_accounts_that_only_they_know() {
    let metadata = |account: Option<&str>| TokenSpec {
        service_account: account.map(str::to_owned),
        source: TokenSource::MetadataServer { licenses: false },
        ..token(ACCOUNT, "aud")
    };
    let with = |sources: &[GrantSource]| GrantTo {
        sources: Some(sources.to_vec()),
        ..to(ACCOUNT, "aud")
    };
    let both = [GrantSource::Impersonation, GrantSource::MetadataServer];
    assert!(!allows(&to(ACCOUNT, "aud"), &metadata(Some(ACCOUNT))));
    assert!(!allows(
        &with(&[GrantSource::Developer]),
        &metadata(Some(ACCOUNT))
    ));
    assert!(allows(&with(&both), &metadata(Some(ACCOUNT))));
    assert!(allows(&with(&both), &token(ACCOUNT, "aud")));
    assert!(!allows(
        &with(&[GrantSource::MetadataServer]),
        &token(ACCOUNT, "aud")
    ));
    // An unknown account matches if the rest does. A known one must match as well.
    assert!(allows(&with(&both), &metadata(None)));
    assert!(!allows(&to(ACCOUNT, "aud"), &metadata(None)));
    assert!(!allows(
        &with(&both),
        &metadata(Some("x@p.iam.gserviceaccount.com"))
    ));
    let no_account = TokenSpec {
        service_account: None,
        ..token(ACCOUNT, "aud")
    };
    assert!(!allows(&with(&both), &no_account));
}
