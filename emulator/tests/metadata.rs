//! The metadata server over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{AUDIENCE, OPERATOR, decode, start, start_with};
use idtoken_emulator::{Endpoint, Options};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DEFAULT: &str = "instance/service-accounts/default";

#[tokio::test]
async fn it_is_detected_and_guards_itself() {
    let world = start().await;
    for path in ["/", "/computeMetadata/v1/instance"] {
        let response = world.client.get(world.url(path)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["metadata-flavor"], "Google");
    }
    let url = world.url("/computeMetadata/v1/instance/service-accounts/default/token");
    let bare = world.client.get(&url).send().await.unwrap();
    assert_eq!(bare.status(), 403);
    for flavor in ["google", "Amazon", "Google, Google", ""] {
        let wrong = world.client.get(&url).header("Metadata-Flavor", flavor);
        assert_eq!(wrong.send().await.unwrap().status(), 403, "{flavor:?}");
    }
    let posted = world.client.post(&url).header("Metadata-Flavor", "Google");
    assert_eq!(posted.send().await.unwrap().status(), 405);
    assert_eq!(world.google.mint_count(), 0);
    let forwarded = world
        .client
        .get(&url)
        .header("Metadata-Flavor", "Google")
        .header("X-Forwarded-For", "10.0.0.1");
    assert_eq!(forwarded.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn it_tells_about_itself() {
    let world = start().await;
    assert_eq!(
        world.metadata(&format!("{DEFAULT}/email")).await,
        (200, OPERATOR.into())
    );
    assert_eq!(
        world.metadata("universe/universe-domain").await,
        (200, "googleapis.com".into())
    );
    assert_eq!(
        world.metadata("project/project-id").await,
        (200, "emulated-project".into())
    );
    assert_eq!(
        world.metadata("project/numeric-project-id").await,
        (200, "123456789012".into())
    );
    assert_eq!(world.metadata("nothing/there").await.0, 404);
    for account in ["default", OPERATOR] {
        let (status, body) = world
            .metadata(&format!("instance/service-accounts/{account}/?recursive=true"))
            .await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["email"]), (200, &Value::from(OPERATOR)));
        assert_eq!(body["aliases"][0], "default");
        assert!(body["scopes"].is_array());
    }
    assert_eq!(
        world
            .metadata("instance/service-accounts/stranger@x/email")
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn access_tokens_have_the_scopes_asked_for() {
    let world = start().await;
    let (status, body) = world
        .metadata(&format!("{DEFAULT}/token?scopes=https://a,https://b"))
        .await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &body["token_type"], &body["expires_in"]),
        (200, &"Bearer".into(), &3600.into())
    );
    let narrow = body["access_token"].as_str().unwrap();
    let wanted = serde_json::json!({"audience": AUDIENCE});
    let (status, body) = world.generate(narrow, common::CALLER, &wanted).await;
    assert_eq!(status, 403);
    assert_eq!(
        body["error"]["message"],
        "Request had insufficient authentication scopes."
    );
}

#[tokio::test]
async fn identity_formats() {
    let world = start().await;
    let identity = async |query: &str| world.metadata(&format!("{DEFAULT}/identity?{query}")).await;

    let (status, standard) = identity("audience=https%3A%2F%2Fbilling-x.run.app").await;
    assert_eq!(status, 200);
    let claims = world.google.verify(&standard).unwrap();
    assert_eq!(claims["aud"], AUDIENCE);
    assert_eq!(claims["iss"], "https://accounts.google.com");
    assert_eq!(claims["azp"], claims["sub"]);
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        3600
    );
    assert!(claims.get("email").is_none() && claims.get("google").is_none());
    assert_eq!(decode(&standard).0["alg"], "RS256");
    assert_eq!(
        decode(&standard).0["kid"],
        world.google.signing_jwk().kid.unwrap()
    );

    let (_, full) = identity(&format!("audience={AUDIENCE}&format=full")).await;
    let claims = world.google.verify(&full).unwrap();
    assert_eq!(
        (&claims["email"], &claims["email_verified"]),
        (&OPERATOR.into(), &true.into())
    );
    assert_eq!(
        claims["google"]["compute_engine"]["project_id"],
        "emulated-project"
    );
    assert!(claims["google"]["compute_engine"].get("license_id").is_none());

    let (_, licensed) = identity(&format!("audience={AUDIENCE}&format=full&licenses=TRUE")).await;
    let claims = world.google.verify(&licensed).unwrap();
    assert!(claims["google"]["compute_engine"]["license_id"].is_array());

    let required = (400, "non-empty audience parameter required".to_owned());
    assert_eq!(identity("audience=").await, required);
    assert_eq!(identity("format=full").await, required);
    assert_eq!(
        identity(&format!("audience={AUDIENCE}&format=other")).await.0,
        400
    );
}

#[tokio::test]
async fn an_unencoded_audience_arrives_whole() {
    let world = start().await;
    let mut stream = tokio::net::TcpStream::connect(world.google.address())
        .await
        .unwrap();
    let request = "GET /computeMetadata/v1/instance/service-accounts/default/identity?audience=https://a.example/b?c=d:e&format=full \
                   HTTP/1.1\r\nHost: metadata\r\nMetadata-Flavor: Google\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let (head, token) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("text/html"));
    assert_eq!(
        world.google.verify(token).unwrap()["aud"],
        "https://a.example/b?c=d:e"
    );
}

#[tokio::test]
async fn the_same_identity_token_until_shortly_before_its_end() {
    let world = start().await;
    let identity = async |audience: &str| {
        let (status, token) = world
            .metadata(&format!("{DEFAULT}/identity?audience={audience}"))
            .await;
        assert_eq!(status, 200);
        token
    };
    let first = identity("https://a").await;
    assert_eq!(identity("https://a").await, first);
    assert_eq!(world.google.mint_count(), 1);
    identity("https://b").await;
    assert_eq!(world.google.mint_count(), 2);
    world.google.set_metadata_margin(Duration::from_secs(3600));
    identity("https://a").await;
    identity("https://a").await;
    assert_eq!(world.google.mint_count(), 4);
    assert_eq!(world.google.count(Endpoint::MetadataIdentity), 5);

    let short = start_with(
        Options {
            lifetime: Duration::from_secs(20),
            ..Options::default()
        },
        |_| {},
    )
    .await;
    let path = format!("{DEFAULT}/identity?audience=https://a");
    short.metadata(&path).await;
    short.metadata(&path).await;
    assert_eq!(
        short.google.mint_count(),
        2,
        "a token within the margin of its end is not served again"
    );
}

#[tokio::test]
async fn without_an_account() {
    let none = start_with(Options::default(), |policy| {
        policy.metadata_server.service_account = None
    })
    .await;
    let (status, body) = none
        .metadata(&format!("{DEFAULT}/identity?audience={AUDIENCE}"))
        .await;
    assert_eq!(status, 404);
    assert!(body.contains("Service account not enabled on this instance"));

    let gke = start_with(Options::default(), |policy| {
        policy.metadata_server.unannotated_kubernetes_service_account = Some("shop/billing".into());
    })
    .await;
    let (status, body) = gke
        .metadata(&format!("{DEFAULT}/identity?audience={AUDIENCE}"))
        .await;
    assert_eq!(status, 404);
    assert!(body.starts_with(
        "Your Kubernetes service account (shop/billing) is not annotated with a target Google service account"
    ));
}
