//! The proxy: Google's hosts answered with a test CA, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{AUDIENCE, CALLER, PROVIDER, World, decode, start_with};
use idtoken_emulator::{CallRecord, Endpoint, Fault, Options};
use reqwest::{Certificate, Client, ClientBuilder, Proxy};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn proxied() -> World {
    start_with(Options::with_proxy(), |_| {}).await
}

fn by_proxy(world: &World) -> ClientBuilder {
    common::client_builder().proxy(Proxy::all(world.google.proxy_url().unwrap()).unwrap())
}

/// A client that trusts the test CA and nothing else.
fn trusting(world: &World) -> Client {
    let ca = Certificate::from_pem(world.google.proxy_ca_pem().unwrap().as_bytes()).unwrap();
    by_proxy(world).tls_certs_only([ca]).build().unwrap()
}

fn calls(world: &World, endpoint: Endpoint) -> Vec<CallRecord> {
    let calls = world.google.calls().into_iter();
    calls.filter(|call| call.endpoint == endpoint).collect()
}

#[tokio::test]
async fn each_service_answers_at_its_own_host() {
    let world = proxied().await;
    let client = trusting(&world);
    let token = world.subject_token(|_| {});
    let fields = common::exchange_fields(PROVIDER, &token);
    let exchange = client.post("https://sts.googleapis.com/v1/token").form(&fields);
    let answer: Value = exchange.send().await.unwrap().json().await.unwrap();
    let bearer = answer["access_token"].as_str().unwrap();
    let path = format!("v1/projects/-/serviceAccounts/{CALLER}:generateIdToken");
    let generate = |host: &str| {
        let request = client.post(format!("https://{host}/{path}")).bearer_auth(bearer);
        request.json(&json!({"audience": AUDIENCE})).send()
    };
    let answer: Value = generate("iamcredentials.googleapis.com")
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let claims = decode(answer["token"].as_str().unwrap()).1;
    assert_eq!(claims["aud"], AUDIENCE);

    let made = &calls(&world, Endpoint::GenerateIdToken)[0];
    assert_eq!(made.host.as_deref(), Some("iamcredentials.googleapis.com"));
    let tunnels: Vec<_> = calls(&world, Endpoint::Proxy)
        .into_iter()
        .map(|call| (call.host.unwrap(), call.status))
        .collect();
    let expected = ["sts.googleapis.com", "iamcredentials.googleapis.com"];
    assert_eq!(tunnels, expected.map(|host| (host.to_owned(), Some(200))));

    assert_eq!(generate("oauth2.googleapis.com").await.unwrap().status(), 404);
    let control = client
        .get("https://www.googleapis.com/_emulator/calls")
        .send()
        .await
        .unwrap();
    assert_eq!(control.status(), 404, "the controls are not Google's");
    let certs = client
        .get("https://www.googleapis.com/oauth2/v3/certs")
        .send()
        .await
        .unwrap();
    assert_eq!(certs.status(), 200);
    // google-auth asks it for the project of an external account, and reads whatever comes as JSON.
    let other = client
        .get("https://cloudresourcemanager.googleapis.com/v1/projects/1")
        .send()
        .await
        .unwrap();
    assert_eq!(other.status(), 404);
    assert_eq!(
        other.json::<Value>().await.unwrap()["error"]["status"],
        "NOT_FOUND"
    );
    assert_eq!(world.google.mint_count(), 1);
}

#[tokio::test]
async fn who_does_not_trust_the_ca_gets_no_answer() {
    let world = proxied().await;
    let stranger = by_proxy(&world).build().unwrap();
    let refused = stranger
        .get("https://www.googleapis.com/oauth2/v3/certs")
        .send()
        .await;
    let error = format!("{:?}", refused.unwrap_err());
    assert!(error.contains("UnknownIssuer"), "{error}");
    assert_eq!(world.google.count(Endpoint::Certs), 0);
}

#[tokio::test]
async fn the_ca_is_given_by_the_controls() {
    let world = proxied().await;
    let ask = async |world: &World| {
        let url = format!("{}/_emulator/proxy-ca", world.google.url());
        common::client_builder()
            .build()
            .unwrap()
            .get(url)
            .send()
            .await
            .unwrap()
    };
    let answer = ask(&world).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text().await.unwrap(), world.google.proxy_ca_pem().unwrap());
    let without = start_with(Options::default(), |_| {}).await;
    assert_eq!(ask(&without).await.status(), 404);
}

#[tokio::test]
async fn nothing_else_is_reached() {
    let world = proxied().await;
    let client = trusting(&world);
    let elsewhere = [
        "https://example.com/",
        "https://googleapis.com.example/",
        "https://www.googleapis.com:8443/",
    ];
    for url in elsewhere {
        assert!(client.get(url).send().await.unwrap_err().is_connect(), "{url}");
    }
    let metadata = client
        .get("http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token")
        .header("Metadata-Flavor", "Google");
    let refused = metadata.send().await.unwrap();
    assert_eq!(refused.status(), 403);
    assert!(refused.text().await.unwrap().contains("without a proxy"));
    let seen = calls(&world, Endpoint::Proxy);
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|call| call.status == Some(403)), "{seen:?}");
    assert_eq!(seen[3].host.as_deref(), Some("metadata.google.internal"));
    assert_eq!(world.google.count(Endpoint::MetadataToken), 0);
}

#[tokio::test]
async fn faults_reach_through_the_tunnel() {
    let world = proxied().await;
    let client = trusting(&world);
    let certs = || client.get("https://www.googleapis.com/oauth2/v1/certs").send();
    world.google.fault(Fault::status(503).times(1)).unwrap();
    assert_eq!(certs().await.unwrap().status(), 503);
    world.google.fault(Fault::reset().times(1)).unwrap();
    assert!(certs().await.is_err());
    assert_eq!(certs().await.unwrap().status(), 200);
}

#[tokio::test]
async fn stopping_ends_the_tunnels() {
    let world = proxied().await;
    let address = world
        .google
        .proxy_url()
        .unwrap()
        .trim_start_matches("http://")
        .to_owned();
    let mut tunnel = tokio::net::TcpStream::connect(&address).await.unwrap();
    tunnel
        .write_all(b"CONNECT sts.googleapis.com:443 HTTP/1.1\r\nHost: sts.googleapis.com:443\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 12];
    tunnel.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    world.google.stop().await;
    let mut rest = Vec::new();
    // Whether the end comes as FIN or as RST is the kernel's to say.
    let _ = tunnel.read_to_end(&mut rest).await;
    assert!(
        tokio::net::TcpListener::bind(&address).await.is_ok(),
        "the port is free"
    );
}
