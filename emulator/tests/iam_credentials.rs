//! `generateIdToken` and `generateAccessToken` over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{AUDIENCE, CALLER, GONE, MIDDLE, OPERATOR, OTHER, SCOPE, now, start, start_with};
use idtoken_emulator::{Endpoint, Options, ServiceAccount, SigningKey};
use serde_json::{Value, json};

#[tokio::test]
async fn claims() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let claims = async |body: Value| {
        let (status, answer) = world.generate(&bearer, CALLER, &body).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer.as_object().unwrap().len(), 1, "only the token");
        world.google.verify(answer["token"].as_str().unwrap()).unwrap()
    };
    let plain = claims(json!({"audience": AUDIENCE})).await;
    let id = ServiceAccount::new(CALLER).unique_id();
    assert_eq!(
        (&plain["sub"], &plain["azp"]),
        (&id.as_str().into(), &id.as_str().into())
    );
    assert_eq!(plain["aud"], AUDIENCE);
    assert!(plain.get("email").is_none() && plain.get("google").is_none());

    let email = claims(json!({"audience": AUDIENCE, "includeEmail": true})).await;
    assert_eq!(
        (&email["email"], &email["email_verified"]),
        (&CALLER.into(), &true.into())
    );

    let organization = claims(json!({"audience": AUDIENCE, "organizationNumberIncluded": true})).await;
    assert_eq!(organization["google"]["organization_number"], 987);
}

#[tokio::test]
async fn what_official_clients_send_is_tolerated() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let account = CALLER.replace('@', "%40");
    let body = json!({"audience": AUDIENCE, "includeEmail": "true", "useEmailAzp": true, "delegates": null});
    for query in ["", "?$alt=json;enum-encoding=int", "?alt=json&prettyPrint=false"] {
        let url = world.url(&format!(
            "/v1/projects/-/serviceAccounts/{account}:generateIdToken{query}"
        ));
        let request = world
            .client
            .post(url)
            .bearer_auth(&bearer)
            .header("x-allowed-locations", "0x0")
            .json(&body);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{query}");
        let answer: Value = response.json().await.unwrap();
        let claims = world.google.verify(answer["token"].as_str().unwrap()).unwrap();
        assert_eq!(
            (&claims["email"], &claims["azp"]),
            (&CALLER.into(), &CALLER.into())
        );
    }
    let id = ServiceAccount::new(CALLER).unique_id();
    assert_eq!(
        world
            .generate(&bearer, &id, &json!({"audience": AUDIENCE}))
            .await
            .0,
        200
    );
    let url = world.url(&format!(
        "/v1/projects/-/serviceAccounts/{account}/allowedLocations"
    ));
    assert_eq!(world.client.get(url).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn denials_read_as_googles() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let body = json!({"audience": AUDIENCE});

    let (status, answer) = world.generate(&bearer, OTHER, &body).await;
    assert_eq!(status, 403);
    let error = &answer["error"];
    assert_eq!(
        error["message"],
        "Permission 'iam.serviceAccounts.getOpenIdToken' denied on resource (or it may not exist)."
    );
    assert_eq!(
        (&error["code"], &error["status"]),
        (&403.into(), &"PERMISSION_DENIED".into())
    );
    assert_eq!(error["details"][0]["reason"], "IAM_PERMISSION_DENIED");
    assert_eq!(
        error["details"][0]["metadata"]["permission"],
        "iam.serviceAccounts.getOpenIdToken"
    );

    let (status, answer) = world
        .generate(&bearer, "nobody@p.iam.gserviceaccount.com", &body)
        .await;
    assert_eq!(status, 404);
    assert_eq!(
        answer["error"]["message"],
        "Not found; Gaia id not found for email nobody@p.iam.gserviceaccount.com"
    );
    assert_eq!(answer["error"]["status"], "NOT_FOUND");

    let (status, answer) = world.generate(&bearer, GONE, &body).await;
    assert_eq!(
        (status, &answer["error"]["status"]),
        (400, &"FAILED_PRECONDITION".into())
    );

    let short = start_with(Options::default(), |policy| policy.error_details = false).await;
    let bearer = short.operator_bearer().await;
    let (_, answer) = short.generate(&bearer, OTHER, &body).await;
    assert!(answer["error"].get("details").is_none());
}

#[tokio::test]
async fn malformed_calls_are_refused() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    for body in [
        json!({}),
        json!({"audience": ""}),
        json!({"audience": 1}),
        json!({"audience": AUDIENCE, "includeEmail": "yes"}),
        json!({"audience": AUDIENCE, "delegates": [MIDDLE]}),
        json!({"audience": AUDIENCE, "nonsense": 1}),
    ] {
        let (status, answer) = world.generate(&bearer, CALLER, &body).await;
        assert_eq!(
            (status, &answer["error"]["status"]),
            (400, &"INVALID_ARGUMENT".into()),
            "{body}"
        );
    }
    let body = json!({"audience": AUDIENCE});
    let path = format!("/v1/projects/p/serviceAccounts/{CALLER}:generateIdToken");
    assert_eq!(
        world.post(&path, Some(&bearer), &body).await.0,
        400,
        "the project must be -"
    );

    let path = format!("/v1/projects/-/serviceAccounts/{CALLER}:generateIdToken");
    let (status, answer) = world.post(&path, None, &body).await;
    assert_eq!(
        (status, &answer["error"]["status"]),
        (401, &"UNAUTHENTICATED".into())
    );
    assert_eq!(world.post(&path, Some("ya29.unknown"), &body).await.0, 401);
    world.google.clear_caches();
    assert_eq!(
        world.post(&path, Some(&bearer), &body).await.0,
        401,
        "a forgotten token"
    );
    assert_eq!(world.google.mint_count(), 0);
}

#[tokio::test]
async fn expired_access_tokens_are_refused() {
    let options = Options {
        access_token_lifetime: std::time::Duration::ZERO,
        ..Options::default()
    };
    let world = start_with(options, |_| {}).await;
    let bearer = world.operator_bearer().await;
    assert_eq!(
        world
            .generate(&bearer, CALLER, &json!({"audience": AUDIENCE}))
            .await
            .0,
        401
    );
}

#[tokio::test]
async fn delegates_are_walked() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let chain = |accounts: &[&str]| {
        let names: Vec<String> = accounts
            .iter()
            .map(|name| format!("projects/-/serviceAccounts/{name}"))
            .collect();
        json!({"audience": AUDIENCE, "delegates": names})
    };
    assert_eq!(world.generate(&bearer, OTHER, &chain(&[])).await.0, 403);
    assert_eq!(world.generate(&bearer, OTHER, &chain(&[MIDDLE])).await.0, 200);
    let (status, answer) = world.generate(&bearer, OTHER, &chain(&[CALLER])).await;
    assert_eq!(status, 403);
    assert!(
        answer["error"]["message"]
            .as_str()
            .unwrap()
            .contains("implicitDelegation")
    );
    assert_eq!(world.generate(&bearer, OTHER, &chain(&["nobody@x"])).await.0, 404);

    let mut policy = world.google.policy();
    policy
        .service_accounts
        .iter_mut()
        .find(|account| account.email == OTHER)
        .unwrap()
        .delegates = Some(vec![]);
    world.google.set_policy(policy).unwrap();
    assert_eq!(world.generate(&bearer, OTHER, &chain(&[MIDDLE])).await.0, 403);
}

#[tokio::test]
async fn a_self_signed_jwt_is_a_bearer() {
    let world = start().await;
    let file = world.google.service_account_key(OPERATOR).unwrap();
    let key = SigningKey::from_pem(file["private_key"].as_str().unwrap()).unwrap();
    let claims = |change: fn(&mut Value)| {
        let mut claims = json!({
            "iss": OPERATOR, "sub": OPERATOR, "aud": "https://iamcredentials.googleapis.com/",
            "iat": now(), "exp": now() + 3600,
        });
        change(&mut claims);
        claims
    };
    let call = async |token: String| {
        let (status, _) = world
            .generate(&token, CALLER, &json!({"audience": AUDIENCE}))
            .await;
        status
    };
    assert_eq!(call(key.sign(&claims(|_| {})).unwrap()).await, 200);
    let scoped = claims(|claims| {
        claims["scope"] = SCOPE.into();
        claims["aud"] = "".into();
    });
    assert_eq!(call(key.sign(&scoped).unwrap()).await, 200);
    let wrong: [fn(&mut Value); 4] = [
        |claims| claims["aud"] = "https://pubsub.googleapis.com/".into(),
        |claims| claims["exp"] = (now() - 1).into(),
        |claims| claims["sub"] = CALLER.into(),
        |claims| claims["exp"] = (now() + 7200).into(),
    ];
    for change in wrong {
        assert_eq!(call(key.sign(&claims(change)).unwrap()).await, 401);
    }
    let foreign = SigningKey::generate().unwrap();
    assert_eq!(call(foreign.sign(&claims(|_| {})).unwrap()).await, 401);
}

#[tokio::test]
async fn access_tokens_by_impersonation() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let path = |account: &str| format!("/v1/projects/-/serviceAccounts/{account}:generateAccessToken");
    let body = json!({"scope": [SCOPE], "lifetime": "600s"});
    let (status, answer) = world.post(&path(MIDDLE), Some(&bearer), &body).await;
    assert_eq!(status, 200, "{answer}");
    let expires: jiff::Timestamp = answer["expireTime"].as_str().unwrap().parse().unwrap();
    assert!((590..=600).contains(&(expires.as_second() - now())));
    let middle = answer["accessToken"].as_str().unwrap();
    assert_eq!(
        world
            .generate(middle, OTHER, &json!({"audience": AUDIENCE}))
            .await
            .0,
        200
    );

    // The role that mints ID tokens does not give access tokens.
    assert_eq!(world.post(&path(CALLER), Some(&bearer), &body).await.0, 403);
    assert_eq!(world.post(&path(MIDDLE), Some(&bearer), &json!({})).await.0, 400);
}

#[tokio::test]
async fn calls_are_logged_without_tokens() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let before = jiff::Timestamp::now().as_millisecond();
    let path = format!("/v1/projects/-/serviceAccounts/{CALLER}:generateIdToken");
    let request = world
        .client
        .post(world.url(&path))
        .bearer_auth(&bearer)
        .json(&json!({"audience": AUDIENCE}));
    request
        .header("X-Goog-Request-Reason", "shop/billing")
        .send()
        .await
        .unwrap();
    let call = world.google.calls().pop().unwrap();
    assert_eq!(call.endpoint, Endpoint::GenerateIdToken);
    assert_eq!(call.account.as_deref(), Some(CALLER));
    assert_eq!(call.audience.as_deref(), Some(AUDIENCE));
    assert_eq!(call.principal, Some(format!("serviceAccount:{OPERATOR}")));
    assert_eq!(
        (call.status, call.request_reason.as_deref()),
        (Some(200), Some("shop/billing"))
    );
    assert!(call.time_unix_ms >= before);
    assert!(!format!("{:?}", world.google.calls()).contains(&bearer));
}
