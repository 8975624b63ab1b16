//! Faults, control over HTTP, and stopping.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant, SystemTime};

use common::{AUDIENCE, CALLER, MIDDLE, OPERATOR, World, decode, now, start};
use idtoken_emulator::{EmulatorHandle, Endpoint, Fault, FaultKind, Options, RetryAfter, WrongToken};
use serde_json::{Value, json};

async fn call(world: &World, bearer: &str, account: &str) -> reqwest::Result<reqwest::Response> {
    let path = format!("/v1/projects/-/serviceAccounts/{account}:generateIdToken");
    let body = json!({"audience": AUDIENCE, "includeEmail": true});
    world
        .client
        .post(world.url(&path))
        .bearer_auth(bearer)
        .json(&body)
        .send()
        .await
}

async fn token(world: &World, bearer: &str) -> String {
    let answer: Value = call(world, bearer, CALLER).await.unwrap().json().await.unwrap();
    answer["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn statuses() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let order = |fault: Fault| {
        world
            .google
            .fault(fault.on(Endpoint::GenerateIdToken).times(1))
            .unwrap()
    };
    order(Fault::status(429));
    order(Fault::status_retry_after(429, RetryAfter::Seconds(7)));
    order(Fault::status_retry_after(503, RetryAfter::DateIn(60)));
    order(Fault::status_body(403, "IAM returned 403 Forbidden"));
    order(Fault::new(FaultKind::ApiDisabled));

    let first = call(&world, &bearer, CALLER).await.unwrap();
    assert_eq!(first.status(), 429);
    assert!(first.headers().get("retry-after").is_none());
    let body: Value = first.json().await.unwrap();
    assert_eq!(body["error"]["status"], "RESOURCE_EXHAUSTED");
    let second = call(&world, &bearer, CALLER).await.unwrap();
    assert_eq!(
        (second.status().as_u16(), &second.headers()["retry-after"]),
        (429, &"7".parse().unwrap())
    );
    let third = call(&world, &bearer, CALLER).await.unwrap();
    assert_eq!(third.status(), 503);
    let date = httpdate::parse_http_date(third.headers()["retry-after"].to_str().unwrap()).unwrap();
    assert!(date > SystemTime::now());
    let fourth = call(&world, &bearer, CALLER).await.unwrap();
    assert_eq!(fourth.status(), 403);
    assert_eq!(fourth.text().await.unwrap(), "IAM returned 403 Forbidden");
    let fifth: Value = call(&world, &bearer, CALLER).await.unwrap().json().await.unwrap();
    assert!(
        fifth["error"]["message"]
            .as_str()
            .unwrap()
            .contains("has not been used in project 123456789012")
    );
    assert_eq!(
        fifth["error"]["details"][0]["@type"],
        "type.googleapis.com/google.rpc.Help"
    );
    assert_eq!(call(&world, &bearer, CALLER).await.unwrap().status(), 200);
    assert_eq!(world.google.mint_count(), 1);
}

#[tokio::test]
async fn only_the_endpoint_and_the_account_ordered() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    world
        .google
        .fault(Fault::status(500).for_account(CALLER))
        .unwrap();
    assert_eq!(call(&world, &bearer, CALLER).await.unwrap().status(), 500);
    let id = idtoken_emulator::ServiceAccount::new(CALLER).unique_id();
    assert_eq!(
        call(&world, &bearer, &id).await.unwrap().status(),
        500,
        "by its other name"
    );
    assert_eq!(call(&world, &bearer, MIDDLE).await.unwrap().status(), 200);
    world.google.clear_faults();
    assert_eq!(call(&world, &bearer, CALLER).await.unwrap().status(), 200);

    world.google.fault(Fault::status(503)).unwrap();
    let (status, body) = world.form("/v1/token", &[]).await;
    assert_eq!(
        (status, &body["error"]),
        (503, &"internal_failure".into()),
        "in the endpoint's own shape"
    );
    let (status, body) = world.metadata("instance/service-accounts/default/email").await;
    assert_eq!((status, body.as_str()), (503, "Service Unavailable"));
    assert!(world.google.fault(Fault::status(200)).is_err());
}

#[tokio::test]
async fn wrong_tokens() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let wrong = async |kind| {
        world.google.fault(Fault::token(kind).times(1)).unwrap();
        token(&world, &bearer).await
    };
    assert_ne!(decode(&wrong(WrongToken::Audience).await).1["aud"], AUDIENCE);
    assert_eq!(
        decode(&wrong(WrongToken::AudienceList).await).1["aud"],
        json!([AUDIENCE])
    );
    let account = decode(&wrong(WrongToken::Account).await).1;
    assert_ne!(account["email"], CALLER);
    assert_ne!(
        account["sub"],
        idtoken_emulator::ServiceAccount::new(CALLER).unique_id()
    );
    let expired = wrong(WrongToken::Expired).await;
    assert!(decode(&expired).1["exp"].as_i64().unwrap() < now());
    assert!(
        world
            .google
            .verify(&expired)
            .unwrap_err()
            .to_string()
            .contains("expired")
    );
    assert!(decode(&wrong(WrongToken::NoExpiry).await).1.get("exp").is_none());
    assert!(world.google.verify(&wrong(WrongToken::Issuer).await).is_err());
    assert!(!wrong(WrongToken::Garbage).await.contains('.'));
    assert!(world.google.verify(&wrong(WrongToken::Truncated).await).is_err());
    let signature = wrong(WrongToken::Signature).await;
    assert!(
        world
            .google
            .verify(&signature)
            .unwrap_err()
            .to_string()
            .contains("signature")
    );
    assert!(world.google.verify(&token(&world, &bearer).await).is_ok());
}

#[tokio::test]
async fn lifetimes() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let lifetime = async || {
        let claims = decode(&token(&world, &bearer).await).1;
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap()
    };
    world
        .google
        .fault(Fault::new(FaultKind::Lifetime { seconds: 90 }).times(1))
        .unwrap();
    assert_eq!(lifetime().await, 90);
    assert_eq!(lifetime().await, 3600);
    world.google.set_lifetime(Duration::from_secs(20));
    assert_eq!(lifetime().await, 20);
}

#[tokio::test]
async fn clocks() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    for ahead in [600, -600] {
        world.google.fault(Fault::clock(ahead).times(1)).unwrap();
        let issued = decode(&token(&world, &bearer).await).1["iat"].as_i64().unwrap();
        let seen = issued - now();
        assert!((ahead - 60..=ahead).contains(&seen), "{seen}");
    }
}

#[tokio::test]
async fn delays_hangs_and_resets() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    world
        .google
        .fault(Fault::delay(Duration::from_millis(300)).times(1))
        .unwrap();
    let begin = Instant::now();
    assert_eq!(call(&world, &bearer, CALLER).await.unwrap().status(), 200);
    assert!(begin.elapsed() >= Duration::from_millis(300));

    world.google.fault(Fault::reset().times(1)).unwrap();
    let mut stream = tokio::net::TcpStream::connect(world.google.address())
        .await
        .unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream
        .write_all(b"GET /computeMetadata/v1/instance HTTP/1.1\r\nHost: metadata\r\n\r\n")
        .await
        .unwrap();
    let error = stream.read(&mut [0; 16]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    world.google.fault(Fault::reset().times(1)).unwrap();
    assert!(call(&world, &bearer, CALLER).await.is_err());

    world.google.reset_counts();
    world.google.fault(Fault::hang().times(1)).unwrap();
    let url = world.url("/computeMetadata/v1/instance");
    let hanging = tokio::spawn(world.client.get(&url).send());
    let deadline = Instant::now() + Duration::from_secs(30);
    while world.google.count(Endpoint::Metadata) == 0 {
        assert!(Instant::now() < deadline, "the call never arrived");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        world.google.calls()[0].status,
        None,
        "a hanging call is listed and has no status"
    );
    assert!(!hanging.is_finished());
    world.google.stop().await;
    assert!(hanging.await.unwrap().is_err(), "stopping ends connections");
}

#[tokio::test]
async fn stopping_frees_the_port_and_a_key_can_be_kept() {
    let pem = idtoken_emulator::SigningKey::generate()
        .unwrap()
        .to_pem()
        .unwrap();
    let options = Options {
        signing_key_pem: Some(pem),
        ..Options::default()
    };
    let first = EmulatorHandle::start(Default::default(), options.clone())
        .await
        .unwrap();
    let (address, key) = (first.address(), first.signing_jwk());
    let busy = EmulatorHandle::start(
        Default::default(),
        Options {
            listen: address,
            ..Options::default()
        },
    )
    .await;
    assert!(busy.unwrap_err().to_string().contains("cannot listen"));
    first.stop().await;
    let second = EmulatorHandle::start(
        Default::default(),
        Options {
            listen: address,
            ..options
        },
    )
    .await
    .unwrap();
    assert_eq!(second.signing_jwk(), key);
}

#[tokio::test]
async fn everything_is_controlled_over_http() {
    let world = start().await;
    let bearer = world.operator_bearer().await;
    let url = |path: &str| world.url(&format!("/_emulator/{path}"));
    let get = async |path: &str| -> Value {
        world
            .client
            .get(url(path))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    };

    let put = world
        .client
        .put(url("settings"))
        .json(&json!({"lifetimeSeconds": 20}));
    let settings: Value = put.send().await.unwrap().json().await.unwrap();
    assert_eq!(
        (&settings["lifetimeSeconds"], &settings["metadataMarginSeconds"]),
        (&20.into(), &300.into())
    );
    let minted = token(&world, &bearer).await;
    let claims = decode(&minted).1;
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        20
    );
    let verified = world
        .client
        .post(url("verify"))
        .body(minted)
        .send()
        .await
        .unwrap();
    assert_eq!(verified.json::<Value>().await.unwrap(), claims);

    let fault = json!({"endpoint": "generateIdToken", "times": 1, "kind": {"type": "status", "code": 503}});
    assert_eq!(
        world
            .client
            .post(url("faults"))
            .json(&fault)
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    assert_eq!(get("faults").await, json!([fault]));
    assert_eq!(call(&world, &bearer, CALLER).await.unwrap().status(), 503);
    assert_eq!(get("faults").await, json!([]));
    let wrong = json!({"kind": {"type": "nonsense"}});
    assert_eq!(
        world
            .client
            .post(url("faults"))
            .json(&wrong)
            .send()
            .await
            .unwrap()
            .status(),
        400
    );
    world.google.fault(Fault::status(500)).unwrap();
    world.client.delete(url("faults")).send().await.unwrap();
    assert_eq!(call(&world, &bearer, CALLER).await.unwrap().status(), 200);

    let counts = get("counts").await;
    assert_eq!(
        (&counts["calls"]["generateIdToken"], &counts["minted"]),
        (&3.into(), &2.into())
    );
    let calls = get("calls").await;
    assert_eq!(calls[2]["status"], 503);
    assert_eq!(calls[2]["principal"], format!("serviceAccount:{OPERATOR}"));
    world.client.delete(url("calls")).send().await.unwrap();
    assert_eq!(get("counts").await, json!({"calls": {}, "minted": 0}));

    let wanted = json!({"serviceAccount": OPERATOR});
    let key = world
        .client
        .post(url("service-account-keys"))
        .json(&wanted)
        .send()
        .await
        .unwrap();
    assert_eq!(key.json::<Value>().await.unwrap()["client_email"], OPERATOR);

    let policy = "serviceAccounts: [{email: new@p.iam.gserviceaccount.com}]";
    assert_eq!(
        world
            .client
            .put(url("policy"))
            .body(policy)
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    assert_eq!(call(&world, &bearer, CALLER).await.unwrap().status(), 404);
    let refused = world
        .client
        .put(url("policy"))
        .body("nonsense: 1")
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), 400);
    assert!(refused.text().await.unwrap().contains("nonsense"));
    assert_eq!(
        world.client.get(url("nothing")).send().await.unwrap().status(),
        404
    );
}
