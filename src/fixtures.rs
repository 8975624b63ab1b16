//! What the tests of the pure phases share: requests, tokens and Secrets as the API server would answer them.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::api::v1alpha1::{IdTokenRequest, SecretStatus, TokenStatus};
use crate::controller::reconcile::outcome::CurrentToken;
use crate::kubernetes::secret::SecretContent;
use crate::request::{TokenSource, TokenSpec, ValidRequest, validate};
use crate::schedule::renewal::Renewal;
use crate::token::IdToken;

pub(crate) const UID: &str = "0b9a66cb-61a4-4f4e-8a3c-000000000001";
pub(crate) const ACCOUNT: &str = "caller@p.iam.gserviceaccount.com";
pub(crate) const AUDIENCE: &str = "https://billing-x.run.app";

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// The IdTokenRequest shop/billing with `spec`, which only `audience` and `serviceAccount` are added to.
pub(crate) fn object(spec: Value) -> IdTokenRequest {
    let mut whole = json!({"audience": AUDIENCE, "serviceAccount": ACCOUNT});
    apply(&mut whole, &spec);
    serde_json::from_value(json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {
            "name": "billing", "namespace": "shop", "uid": UID, "generation": 1, "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": whole,
    }))
    .unwrap()
}

pub(crate) fn request(spec: Value) -> ValidRequest {
    validate(&object(spec)).unwrap()
}

/// A token that `request` would get at `iat`, for an hour.
pub(crate) fn token(request: &ValidRequest, iat: i64) -> IdToken {
    let mut claims = json!({
        "iss": "https://accounts.google.com", "aud": request.token.audience, "sub": "123456789012345678901",
        "iat": iat, "exp": iat + 3600,
    });
    if request.token.include_email {
        claims["email"] = request.token.service_account.as_deref().unwrap_or(ACCOUNT).into();
        claims["email_verified"] = true.into();
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signature = URL_SAFE_NO_PAD.encode([7_u8; 256]);
    let raw = format!("{}.{}.{signature}", part(&json!({"alg": "RS256"})), part(&claims));
    IdToken::parse(raw).unwrap()
}

/// A merge patch (RFC 7396), as the RFC's own pseudocode has it.
pub(crate) fn apply(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            apply(&mut target[key], value);
        }
    }
}

/// Gives `secret` the fields that the API server sets.
pub(crate) fn stored(secret: &mut Value, resource_version: u64) {
    if secret["metadata"]["uid"].is_null() {
        secret["metadata"]["uid"] = format!("secret-{resource_version}").into();
    }
    secret["metadata"]["resourceVersion"] = resource_version.to_string().into();
}

/// `secret` as it is read.
pub(crate) fn content(secret: &Value) -> SecretContent {
    SecretContent::decode("shop", "get", &secret.to_string()).unwrap()
}

/// A token that was issued at 1,800,000,000 s and expires an hour later.
pub(crate) fn current_token() -> CurrentToken {
    let issued = 1_800_000_000;
    CurrentToken {
        unchanged: false,
        secret: SecretStatus {
            name: "billing".into(),
            uid: Some("secret".into()),
            resource_version: Some("7".into()),
        },
        token: TokenStatus {
            issue_time: Some(Time(at(issued))),
            expiration_time: Some(Time(at(issued + 3600))),
            audience: Some("https://a.run.app".into()),
            ..TokenStatus::default()
        },
        renewal: Renewal {
            at: at(issued + 1700) + SignedDuration::from_millis(123),
            clamped_to: None,
        },
    }
}

/// The token of `account` for `audience` by impersonation, without delegates.
pub(crate) fn token_spec(account: &str, audience: &str) -> TokenSpec {
    TokenSpec {
        audience: audience.into(),
        service_account: Some(account.into()),
        include_email: true,
        include_organization_number: false,
        source: TokenSource::Impersonation {
            delegates: Vec::new(),
        },
    }
}
