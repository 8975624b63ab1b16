use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use idtoken_operator::api::v1alpha1::GrantRef;
use idtoken_operator::grants::index::{Grant, GrantIndex, Namespaces};
use idtoken_operator::grants::policy::matching;

use super::*;
use idtoken_operator::request::TokenSource;

fn impersonation(delegates: &[&str]) -> TokenSource {
    TokenSource::Impersonation {
        delegates: delegates.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn token() -> TokenSpec {
    TokenSpec {
        audience: "https://billing-x.run.app".into(),
        service_account: Some("caller@p.iam.gserviceaccount.com".into()),
        include_email: true,
        include_organization_number: false,
        source: impersonation(&["link@p.iam.gserviceaccount.com", "1234"]),
    }
}

fn allowed(grant: &IdTokenGrant, namespace: &str, token: &TokenSpec) -> bool {
    let grant = Grant {
        id: GrantRef {
            name: grant.metadata.name.clone().unwrap(),
            uid: None,
        },
        spec: Arc::new(grant.spec.clone()),
    };
    let label = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
    let namespaces: Namespaces = HashMap::from([(namespace.to_owned(), label)]);
    !matching(&GrantIndex::new(&[grant], &namespaces), namespace, token).is_empty()
}

#[test]
fn allows_the_request_and_nothing_wider() {
    let token = token();
    let grant = grant("shop", "billing", &token).unwrap();
    assert!(allowed(&grant, "shop", &token));
    let without_delegates = TokenSpec {
        source: impersonation(&[]),
        ..token.clone()
    };
    assert!(
        allowed(&grant, "shop", &without_delegates),
        "a grant allows delegates and does not require them"
    );
    assert!(!allowed(&grant, "shop2", &token));
    for other in [
        TokenSpec {
            audience: "https://billing-x.run.app/".into(),
            ..token.clone()
        },
        TokenSpec {
            audience: "https://billing-x.run.app/a".into(),
            ..token.clone()
        },
        TokenSpec {
            audience: "https://other.run.app".into(),
            ..token.clone()
        },
        TokenSpec {
            service_account: Some("other@p.iam.gserviceaccount.com".into()),
            ..token.clone()
        },
        TokenSpec {
            service_account: Some("1234".into()),
            ..token.clone()
        },
        TokenSpec {
            source: impersonation(&["5678"]),
            ..token.clone()
        },
        TokenSpec {
            source: TokenSource::MetadataServer { licenses: false },
            ..token.clone()
        },
        TokenSpec {
            source: TokenSource::Developer,
            ..token.clone()
        },
    ] {
        assert!(!allowed(&grant, "shop", &other), "{other:?}");
    }
}

#[test]
fn a_grant_for_another_source_allows_that_source_only() {
    let token = TokenSpec {
        source: TokenSource::MetadataServer { licenses: false },
        ..token()
    };
    let grant = grant("shop", "billing", &token).unwrap();
    assert!(allowed(&grant, "shop", &token));
    assert!(!allowed(
        &grant,
        "shop",
        &TokenSpec {
            source: impersonation(&[]),
            ..token
        }
    ));
}

#[test]
fn an_audience_with_a_star_is_rejected() {
    for audience in ["https://a.example/*", "*", "a*b", "https://a.example/x*y"] {
        let wide = TokenSpec {
            audience: audience.into(),
            ..token()
        };
        assert!(
            matches!(grant("shop", "billing", &wide), Err(ManifestError::Wildcard(_))),
            "{audience}"
        );
    }
}

#[test]
fn yaml_reads_back_the_same() {
    let long = format!("https://{}.example/{}", "a".repeat(60), "b".repeat(200));
    for audience in [
        "https://billing-x.run.app",
        "123456789-abc.apps.googleusercontent.com",
        "1234",
        "1_000",
        "0x1F",
        "1e3",
        "yes",
        "on",
        "~",
        "null",
        "12:30:45",
        "2001-01-01",
        "<<",
        "=",
        "-",
        "#a",
        "&a",
        "!a",
        "%a",
        "@a",
        "`a",
        "a:",
        "{a}",
        "[a]",
        "'a'",
        "\"a\\n\"",
        "a#b",
        "|",
        ">",
        "?",
        ".inf",
        &long,
    ] {
        let token = TokenSpec {
            audience: audience.into(),
            service_account: Some("1234".into()),
            ..token()
        };
        let grant = grant("0123", "1e3", &token).unwrap();
        let text = yaml(&grant).unwrap();
        let read: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read, serde_json::to_value(&grant).unwrap(), "{text}");
    }
}

#[test]
fn yaml_is_what_kubectl_applies() {
    let token = TokenSpec {
        source: impersonation(&[]),
        ..token()
    };
    let text = yaml(&grant("shop", "billing", &token).unwrap()).unwrap();
    let expected = "\
apiVersion: idtoken.dev/v1alpha1
kind: IdTokenGrant
metadata:
  name: shop.billing
spec:
  from:
  - namespace: shop
  to:
  - serviceAccounts:
    - caller@p.iam.gserviceaccount.com
    audiences:
    - https://billing-x.run.app
";
    assert_eq!(text, expected);
}

#[test]
fn names_are_valid_and_differ() {
    let long = "n".repeat(63);
    let names = [
        ("a-b", "c".to_owned()),
        ("a", "b-c".to_owned()),
        ("a", "b.c".to_owned()),
        ("ab", "c".to_owned()),
        (long.as_str(), "x".repeat(253)),
        (long.as_str(), format!("{}y", "x".repeat(252))),
        (long.as_str(), format!("{}.{}", "x".repeat(145), "y".repeat(100))),
        (long.as_str(), format!("{}-{}", "x".repeat(145), "y".repeat(100))),
        (long.as_str(), "x".repeat(140)),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for (namespace, name) in &names {
        let grant = grant_name(namespace, name);
        let label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        assert!(grant.len() <= 253 && grant.split('.').all(label), "{grant}");
        assert!(seen.insert(grant), "{namespace}/{name}");
    }
}
