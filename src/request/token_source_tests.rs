use serde_json::{Value, json};

use super::*;
use crate::fixtures::{object, request};
use crate::request::validate;

const POOL: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";

fn federated(more: Value) -> Value {
    let mut source = json!({"serviceAccountRef": {"name": "billing"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        source[key] = value.clone();
    }
    json!({"source": {"federation": source}})
}

fn resolved(more: Value, settings: &SourceSettings) -> Result<(String, String), String> {
    let TokenSource::Federation(federation) = request(federated(more)).token.source else {
        panic!("another source");
    };
    let (provider, audience) = federation.resolve(settings).map_err(|error| error.to_string())?;
    Ok((provider.to_string(), audience))
}

#[test]
fn the_cluster_has_a_provider_of_its_own() {
    let none = SourceSettings::default();
    let error = resolved(json!({}), &none).unwrap_err();
    assert!(
        error.starts_with("spec.source.federation.provider: ") && error.contains("--federation-provider")
    );
    let settings = SourceSettings {
        federation_provider: Some(POOL.parse().unwrap()),
        ..SourceSettings::default()
    };
    let expected = (POOL.to_owned(), format!("https:{POOL}"));
    assert_eq!(resolved(json!({}), &settings), Ok(expected));
    let other = POOL.replace("/q", "/other");
    let found = resolved(json!({"provider": other}), &settings).unwrap();
    assert_eq!(found, (other.clone(), format!("https:{other}")));
}

#[test]
fn a_kubernetes_token_is_for_a_provider_or_an_audience_that_is_allowed() {
    let settings = SourceSettings {
        allowed_token_audiences: vec!["my-cluster".into()],
        ..SourceSettings::default()
    };
    for audience in [POOL, &format!("https:{POOL}"), "p.svc.id.goog", "my-cluster"] {
        let found = resolved(json!({"provider": POOL, "tokenAudience": audience}), &settings);
        assert_eq!(found, Ok((POOL.to_owned(), audience.to_owned())));
    }
    for audience in [
        "https://kubernetes.default.svc",
        "my-cluster2",
        "vault",
        &format!("{POOL}x"),
    ] {
        let error = resolved(json!({"provider": POOL, "tokenAudience": audience}), &settings).unwrap_err();
        assert!(
            error.starts_with("spec.source.federation.tokenAudience: ")
                && error.contains("--allowed-token-audience"),
            "{error}"
        );
    }
}

#[test]
fn every_field_of_federation_is_checked() {
    for (more, field) in [
        (
            json!({"serviceAccountRef": {"name": "../x"}}),
            "serviceAccountRef.name",
        ),
        (
            json!({"serviceAccountRef": {"name": ""}}),
            "serviceAccountRef.name",
        ),
        (json!({"provider": "vault"}), "provider"),
        (json!({"tokenAudience": ""}), "tokenAudience"),
        (json!({"tokenAudience": "a b"}), "tokenAudience"),
        (json!({"tokenAudience": "a".repeat(513)}), "tokenAudience"),
    ] {
        let error = validate(&object(federated(more))).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("spec.source.federation.{field}: ")),
            "{error}"
        );
    }
    let mut anonymous = federated(json!({}));
    anonymous["serviceAccount"] = Value::Null;
    assert_eq!(request(anonymous).token.service_account, None);
}

#[test]
fn each_field_of_federation_decides_the_token() {
    let hash = |more: Value| request(federated(more)).token_hash;
    let all = [
        hash(json!({})),
        hash(json!({"serviceAccountRef": {"name": "other"}})),
        hash(json!({"provider": POOL})),
        hash(json!({"tokenAudience": POOL})),
        request(json!({})).token_hash,
    ];
    let different: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(different.len(), all.len());
    assert_eq!(
        all[0], "v1-10dd564d954b1318b19e82d80cc8c5c0",
        "every Secret carries it: with another value an upgrade re-issues every federated token in every cluster"
    );
}

#[test]
fn federation_needs_no_grant() {
    assert_eq!(request(federated(json!({}))).token.source.grant_source(), None);
    assert_eq!(
        request(json!({})).token.source.grant_source(),
        Some(GrantSource::Impersonation)
    );
}
