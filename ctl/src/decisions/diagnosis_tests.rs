use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use idtoken_operator::request::validate;
use serde_json::{Value, json};

use super::*;

const EMAIL: &str = "caller@p.iam.gserviceaccount.com";
const IAT: i64 = 1_800_000_000;

fn jwt(change: impl FnOnce(&mut Value)) -> String {
    let mut claims = json!({
        "iss": "https://accounts.google.com", "aud": "https://a", "sub": "1234", "azp": "1234",
        "email": EMAIL, "email_verified": true, "iat": IAT, "exp": IAT + 3600,
    });
    change(&mut claims);
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&json!({"alg": "RS256"})), part(&claims))
}

fn request(change: impl FnOnce(&mut Value)) -> IdTokenRequest {
    let mut object = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {"name": "billing", "namespace": "shop", "uid": "u-1", "generation": 3},
        "spec": {
            "audience": "https://a", "serviceAccount": EMAIL,
            "target": {"template": {"metadata": {"labels": {"team": "a"}}, "data": {"header": "Bearer $(token)"}}},
        },
        "status": {"observedGeneration": 3, "token": {"subject": "1234"}},
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

/// The Secret that the operator writes for `object` and `jwt`, changed by `change`.
fn secret(object: &IdTokenRequest, jwt: &str, change: impl FnOnce(&mut Value)) -> SecretView {
    let validated = validate(object).unwrap();
    let rendered = render::render(&validated, &IdToken::parse(jwt.to_owned()).unwrap()).unwrap();
    let mut secret = json!(rendered.create("shop", "billing"));
    secret["metadata"]["uid"] = "s-1".into();
    secret["metadata"]["resourceVersion"] = "7".into();
    change(&mut secret);
    SecretView::Found(Box::new(
        SecretContent::decode("shop", "get", &secret.to_string()).unwrap(),
    ))
}

fn fields(object: &IdTokenRequest, view: &SecretView) -> Vec<String> {
    let state = token_state(view, token_key(object));
    let found = differences(object, &validate(object), view, &state);
    let token = jwt(|_| ());
    let shown = format!("{found:?}");
    assert!(
        !token.split('.').take(2).any(|part| shown.contains(part)),
        "{shown}"
    );
    found.into_iter().map(|difference| difference.field).collect()
}

#[test]
fn a_secret_as_written_has_no_differences() {
    let object = request(|_| ());
    assert_eq!(
        fields(&object, &secret(&object, &jwt(|_| ()), |_| ())),
        Vec::<String>::new()
    );
    let orphan = request(|object| object["spec"]["target"]["creationPolicy"] = "Orphan".into());
    assert_eq!(
        fields(&orphan, &secret(&orphan, &jwt(|_| ()), |_| ())),
        Vec::<String>::new()
    );
}

#[test]
fn claims_that_differ() {
    type Change = fn(&mut Value);
    for (change, expected) in [
        (
            (|claims| claims["aud"] = "https://b".into()) as Change,
            &["aud"][..],
        ),
        (
            |claims| claims["email"] = "other@p.iam.gserviceaccount.com".into(),
            &["email"],
        ),
        (
            |claims| drop(claims.as_object_mut().unwrap().remove("email")),
            &["email"],
        ),
        (
            |claims| claims["email_verified"] = false.into(),
            &["email_verified"],
        ),
        (|claims| claims["sub"] = "9".into(), &["sub"]),
        (|claims| claims["iss"] = "https://evil.example".into(), &["iss"]),
    ] {
        let object = request(|_| ());
        assert_eq!(fields(&object, &secret(&object, &jwt(change), |_| ())), expected);
    }
}

#[test]
fn email_that_was_not_requested() {
    let object = request(|object| object["spec"]["includeEmail"] = false.into());
    assert_eq!(fields(&object, &secret(&object, &jwt(|_| ()), |_| ())), ["email"]);
}

#[test]
fn account_by_unique_id() {
    let object = request(|object| {
        object["spec"]["serviceAccount"] = "77".into();
        object["status"] = json!({"observedGeneration": 3});
    });
    assert_eq!(fields(&object, &secret(&object, &jwt(|_| ()), |_| ())), ["sub"]);
}

#[test]
fn secret_of_another_spec() {
    let before = request(|_| ());
    let view = secret(&before, &jwt(|_| ()), |_| ());
    let after = request(|object| {
        object["spec"]["audience"] = "https://c".into();
        object["spec"]["renewBefore"] = "10m".into();
        object["metadata"]["generation"] = 4.into();
    });
    assert_eq!(
        fields(&after, &view),
        [
            "status.observedGeneration",
            "aud",
            "metadata.annotations[idtoken.dev/token-hash]",
            "metadata.annotations[idtoken.dev/render-hash]"
        ]
    );
}

#[test]
fn owners() {
    let object = request(|_| ());
    let other =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "x", "uid": "y", "controller": true});
    for owners in [
        json!([]),
        json!([{"apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest", "name": "billing", "uid": "stale"}]),
    ] {
        let view = secret(&object, &jwt(|_| ()), |secret| {
            secret["metadata"]["ownerReferences"] = owners
        });
        assert_eq!(fields(&object, &view), ["metadata.ownerReferences"]);
    }
    let view = secret(&object, &jwt(|_| ()), |secret| {
        secret["metadata"]["ownerReferences"]
            .as_array_mut()
            .unwrap()
            .push(other);
    });
    assert_eq!(fields(&object, &view), ["metadata.ownerReferences"]);
}

#[test]
fn a_secret_that_another_client_changed() {
    let object = request(|_| ());
    let newer = jwt(|claims| claims["exp"] = (IAT + 7200).into());
    let view = secret(&object, &jwt(|_| ()), |secret| {
        secret["data"]["token"] = STANDARD.encode(newer).into()
    });
    assert_eq!(
        fields(&object, &view),
        [
            "metadata.annotations[idtoken.dev/expiration-time]",
            "metadata.annotations[idtoken.dev/token-digest]"
        ]
    );
    let view = secret(&object, &jwt(|_| ()), |secret| {
        secret["data"]["header"] = STANDARD.encode("Bearer x").into()
    });
    assert_eq!(fields(&object, &view), ["data[header]"]);
    let view = secret(&object, &jwt(|_| ()), |secret| {
        secret["metadata"]["labels"]["team"] = "b".into()
    });
    assert_eq!(fields(&object, &view), ["metadata.labels[team]"]);
    let view = secret(&object, &jwt(|_| ()), |secret| secret["immutable"] = true.into());
    assert_eq!(fields(&object, &view), ["immutable"]);
    let view = secret(&object, &jwt(|_| ()), |secret| {
        secret["metadata"]["labels"] = json!({});
    });
    assert_eq!(fields(&object, &view), ["Secret"]);
}

#[test]
fn no_token() {
    let object = request(|_| ());
    assert_eq!(fields(&object, &SecretView::Missing), ["Secret"]);
    assert_eq!(
        fields(&object, &SecretView::Unreadable("no".into())),
        Vec::<String>::new()
    );
    let view = secret(&object, &jwt(|_| ()), |secret| {
        drop(secret["data"].as_object_mut().unwrap().remove("token"))
    });
    assert_eq!(fields(&object, &view), ["data[token]"]);
    for junk in [&b"junk"[..], &[0xff, 0xfe]] {
        let view = secret(&object, &jwt(|_| ()), |secret| {
            secret["data"]["token"] = STANDARD.encode(junk).into()
        });
        assert_eq!(fields(&object, &view), ["data[token]"]);
        assert!(matches!(token_state(&view, "token"), TokenState::NoToken(_)));
    }
}

#[test]
fn a_spec_that_the_operator_rejects() {
    let object = request(|object| object["spec"]["audience"] = "a b".into());
    let found = differences(
        &object,
        &validate(&object),
        &SecretView::Missing,
        &TokenState::NoSecret,
    );
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].field, "spec");
    assert!(found[0].found.contains("spec.audience"), "{found:?}");
}

#[test]
fn ready_is_the_condition_of_this_generation_while_its_token_is_valid() {
    let now = Timestamp::from_second(IAT).unwrap();
    let ready = |condition: &str, observed: i64, expires: i64| {
        let object = request(|object| {
            object["status"] = json!({
                "observedGeneration": observed,
                "conditions": [{
                    "type": "Ready", "status": condition, "reason": "Issued", "message": "m",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
                "token": {"expirationTime": Timestamp::from_second(IAT + expires).unwrap().to_string()},
            });
        });
        is_ready(&object, now)
    };
    assert!(ready("True", 3, 60));
    assert!(!ready("False", 3, 60));
    assert!(!ready("Unknown", 3, 60));
    assert!(!ready("True", 2, 60), "the condition of another spec");
    assert!(!ready("True", 3, 0), "no operator has reported the expiry");
    assert!(!is_ready(&request(|_| ()), now), "no condition");
    assert!(
        !is_ready(&request(|object| drop(object["status"].take())), now),
        "no status"
    );
}
