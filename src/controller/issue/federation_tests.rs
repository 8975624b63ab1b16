use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;
use crate::api::conditions::reason;
use crate::fixtures::{ACCOUNT, request};

fn kubernetes(annotation: Option<&str>) -> KubernetesServiceAccount {
    KubernetesServiceAccount {
        uid: "u".into(),
        gcp_service_account: annotation.map(str::to_owned),
    }
}

#[test]
fn the_spec_names_the_account_before_the_annotation() {
    let spelled = request(json!({}));
    let other = kubernetes(Some("other@p.iam.gserviceaccount.com"));
    assert_eq!(account(&spelled, "billing", &other), Ok(ACCOUNT.to_owned()));
    let source = json!({"federation": {"serviceAccountRef": {"name": "billing"}}});
    let open = request(json!({"serviceAccount": null, "source": source}));
    assert_eq!(
        account(&open, "billing", &other),
        Ok("other@p.iam.gserviceaccount.com".to_owned())
    );
    for wrong in [
        None,
        Some(""),
        Some("../x"),
        Some("A@p.iam.gserviceaccount.com"),
        Some("a/b@c.d"),
    ] {
        let error = account(&open, "billing", &kubernetes(wrong)).unwrap_err();
        assert_eq!(error.reason(), reason::SERVICE_ACCOUNT_NOT_ANNOTATED, "{wrong:?}");
    }
}

#[test]
fn subjects_follow_the_template() {
    let of = |template: Option<&str>| {
        let settings = SourceSettings {
            federation_subject_template: template.map(str::to_owned),
            ..SourceSettings::default()
        };
        subject(&settings, "shop", "billing", "u-1")
    };
    assert_eq!(of(None), "system:serviceaccount:shop:billing");
    assert_eq!(of(Some("prod:{namespace}/{name}")), "prod:shop/billing");
    assert_eq!(of(Some("{uid}")), "u-1");
}

#[test]
fn the_operator_knows_itself() {
    let operator = |username: &str| OperatorIdentity {
        username: username.into(),
    };
    let pod = operator("system:serviceaccount:idtoken-system:idtoken-operator");
    assert!(pod.is("idtoken-system", "idtoken-operator"));
    assert!(!pod.is("idtoken-system", "other") && !pod.is("shop", "idtoken-operator"));
    assert_eq!(
        pod.kubectl_subject_flag(),
        "--serviceaccount=idtoken-system:idtoken-operator"
    );
    let person = operator("jane doe");
    assert!(!person.is("jane", "doe"));
    assert_eq!(person.kubectl_subject_flag(), "--user='jane doe'");
}

#[test]
fn claims_of_a_kubernetes_token_are_read() {
    let jwt = |claims: &Value| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let whole = json!({
        "iss": "https://i", "sub": "system:serviceaccount:shop:billing", "aud": ["a"], "exp": 2, "iat": 1,
        "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "billing", "uid": "u"}},
    });
    let read = unverified_claims::<Claims>(&jwt(&whole)).unwrap();
    assert_eq!(
        (read.iss.as_str(), read.kubernetes.serviceaccount.uid.as_str()),
        ("https://i", "u")
    );
    let mut legacy = whole.clone();
    legacy["kubernetes.io"] = Value::Null;
    for wrong in [
        String::new(),
        "a.b".into(),
        "e30.%.c2ln".into(),
        jwt(&json!({})),
        jwt(&legacy),
    ] {
        assert!(unverified_claims::<Claims>(&wrong).is_none(), "{wrong}");
    }
}

#[test]
fn commands_of_messages_are_whole() {
    let error = FederationError::TokenForbidden {
        namespace: "shop".into(),
        name: "billing".into(),
        message: "no".into(),
        subject: "--serviceaccount=a:b".into(),
    };
    assert!(
        error.to_string().ends_with(
            "kubectl create role idtoken-billing -n shop --verb=create --resource=serviceaccounts/token --resource-name=billing && \
             kubectl create rolebinding idtoken-billing -n shop --role=idtoken-billing --serviceaccount=a:b"
        ),
        "{error}"
    );
}
