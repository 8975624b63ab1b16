//! The OAuth 2.0 token endpoint and the published keys over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{AUDIENCE, CALLER, OPERATOR, SCOPE, World, decode, now, start};
use idtoken_emulator::{Jwks, ServiceAccount, SigningKey};
use serde_json::{Value, json};

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// Makes claims wrong.
type Change = fn(&mut Value);

async fn assert_with(world: &World, key: &SigningKey, change: impl FnOnce(&mut Value)) -> (u16, Value) {
    let mut claims = json!({"iss": OPERATOR, "aud": world.url("/token"), "iat": now(), "exp": now() + 3600, "scope": SCOPE});
    change(&mut claims);
    let assertion = key.sign(&claims).unwrap();
    world
        .form("/token", &[("grant_type", JWT_BEARER), ("assertion", &assertion)])
        .await
}

#[tokio::test]
async fn jwt_bearer_grants() {
    let world = start().await;
    let file = world.google.service_account_key(OPERATOR).unwrap();
    assert_eq!(
        (&file["type"], &file["client_email"]),
        (&"service_account".into(), &OPERATOR.into())
    );
    assert_eq!(file["token_uri"], world.url("/token"));
    assert_eq!(file["universe_domain"], "googleapis.com");
    let key = SigningKey::from_pem(file["private_key"].as_str().unwrap()).unwrap();
    assert_eq!(file["private_key_id"], key.kid());

    let (status, answer) = assert_with(&world, &key, |_| {}).await;
    assert_eq!(
        (status, &answer["token_type"], &answer["expires_in"]),
        (200, &"Bearer".into(), &3600.into())
    );
    let bearer = answer["access_token"].as_str().unwrap();
    assert_eq!(
        world
            .generate(bearer, CALLER, &json!({"audience": AUDIENCE}))
            .await
            .0,
        200
    );

    let audience = |claims: &mut Value| {
        claims.as_object_mut().unwrap().remove("scope");
        claims["target_audience"] = AUDIENCE.into();
    };
    let (status, answer) = assert_with(&world, &key, audience).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.get("access_token").is_none());
    let claims = world.google.verify(answer["id_token"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&claims["aud"], &claims["email"]),
        (&AUDIENCE.into(), &OPERATOR.into())
    );
    assert_eq!(claims["sub"], ServiceAccount::new(OPERATOR).unique_id());

    let google = |claims: &mut Value| claims["aud"] = "https://oauth2.googleapis.com/token".into();
    assert_eq!(assert_with(&world, &key, google).await.0, 200);
}

#[tokio::test]
async fn wrong_assertions_are_refused() {
    let world = start().await;
    let file = world.google.service_account_key(OPERATOR).unwrap();
    let key = SigningKey::from_pem(file["private_key"].as_str().unwrap()).unwrap();
    let cases: [(Change, &str, &str); 6] = [
        (
            |claims| claims["iss"] = "nobody@x".into(),
            "invalid_grant",
            "Invalid grant: account not found",
        ),
        (
            |claims| claims["iss"] = CALLER.into(),
            "invalid_grant",
            "Invalid JWT Signature.",
        ),
        (
            |claims| claims["aud"] = "https://x".into(),
            "invalid_grant",
            "Invalid JWT: Failed audience check.",
        ),
        (
            |claims| claims["exp"] = (now() - 1).into(),
            "invalid_grant",
            "Invalid JWT: Token must be a short-lived",
        ),
        (
            |claims| claims["exp"] = (now() + 7200).into(),
            "invalid_grant",
            "Invalid JWT: Token must be a short-lived",
        ),
        (
            |claims| claims["scope"] = "".into(),
            "invalid_scope",
            "Invalid OAuth scope or ID token audience provided.",
        ),
    ];
    for (change, error, description) in cases {
        let (status, answer) = assert_with(&world, &key, change).await;
        assert_eq!((status, &answer["error"]), (400, &error.into()), "{answer}");
        assert!(
            answer["error_description"]
                .as_str()
                .unwrap()
                .starts_with(description),
            "{answer}"
        );
    }
    let foreign = SigningKey::generate().unwrap();
    assert_eq!(
        assert_with(&world, &foreign, |_| {}).await.1["error_description"],
        "Invalid JWT Signature."
    );
    let mut policy = world.google.policy();
    policy.service_accounts[0].disabled = true;
    world.google.set_policy(policy).unwrap();
    assert_eq!(
        assert_with(&world, &key, |_| {}).await.1["error_description"],
        "Robot is disabled."
    );
    assert_eq!(world.google.mint_count(), 0);
}

#[tokio::test]
async fn refresh_grants() {
    let world = start().await;
    let refresh = async |secret: &str, token: &str| {
        let fields = [
            ("grant_type", "refresh_token"),
            ("client_id", "client.apps.googleusercontent.com"),
            ("client_secret", secret),
            ("refresh_token", token),
        ];
        world.form("/token", &fields).await
    };
    let (status, answer) = refresh("sesame", "1//good").await;
    assert_eq!(status, 200, "{answer}");
    let claims = world.google.verify(answer["id_token"].as_str().unwrap()).unwrap();
    assert_eq!(claims["aud"], "client.apps.googleusercontent.com");
    assert_eq!(claims["email"], "dev@example.com");
    let path = format!("/v1/projects/-/serviceAccounts/{OPERATOR}:generateIdToken");
    let bearer = answer["access_token"].as_str();
    assert_eq!(
        world.post(&path, bearer, &json!({"audience": AUDIENCE})).await.0,
        200
    );

    // As google-cloud-auth writes it.
    let json = json!({
        "grant_type": "refresh_token", "client_id": "client.apps.googleusercontent.com", "client_secret": "sesame",
        "refresh_token": "1//good", "scopes": null
    });
    let (status, answer) = world.post("/token", None, &json).await;
    assert_eq!(status, 200, "{answer}");

    let (status, answer) = refresh("sesame", "1//bad").await;
    assert_eq!((status, &answer["error"]), (400, &"invalid_grant".into()));
    assert_eq!(answer["error_description"], "Token has been expired or revoked.");
    assert_eq!(refresh("wrong", "1//good").await.0, 401);
    let (status, answer) = world.form("/token", &[("grant_type", "password")]).await;
    assert_eq!(
        (status, &answer["error"]),
        (400, &"unsupported_grant_type".into())
    );
}

#[tokio::test]
async fn keys_are_published() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let (_, answer) = world
        .generate(&bearer, CALLER, &json!({"audience": AUDIENCE}))
        .await;
    let token = answer["token"].as_str().unwrap();
    let (header, _) = decode(token);

    let keys: Jwks = world
        .client
        .get(world.url("/oauth2/v3/certs"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let key = keys
        .keys
        .iter()
        .find(|key| key.kid.as_deref() == header["kid"].as_str())
        .unwrap();
    let (input, signature) = token.rsplit_once('.').unwrap();
    use base64::Engine;
    let signature = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(signature)
        .unwrap();
    assert!(key.verifies("RS256", input.as_bytes(), &signature));
    assert!(!key.verifies("RS256", b"something else", &signature));

    let map: Value = world
        .client
        .get(world.url("/oauth2/v1/certs"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let certificate = map[header["kid"].as_str().unwrap()].as_str().unwrap();
    assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
}
