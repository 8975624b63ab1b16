//! Google's endpoints through the proxy of the environment, which has a certificate authority of its own.

use std::path::PathBuf;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use idtoken_emulator::{EmulatorHandle, Endpoint, Fault};
use idtoken_operator::google::{Error, ErrorClass, GoogleConfig, Minter};
use serde_json::json;

use crate::support::*;

/// Google behind a proxy, and the proxy's CA in a file.
async fn proxied() -> (EmulatorHandle, File) {
    let mut policy = policy();
    policy.metadata_server.service_account = Some(OPERATOR.to_owned());
    behind_proxy(policy).await
}

/// A client configured by the environment that the parent has set; its endpoints are Google's own.
fn minter() -> Minter {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    Minter::new(GoogleConfig {
        ca_file: path("TEST_CA_FILE"),
        credentials_file: path("TEST_CREDENTIALS"),
        ..GoogleConfig::default()
    })
    .expect("a client")
}

/// A credential file of [`USER`] with Google's own token endpoint.
fn user_of_google(google: &EmulatorHandle) -> File {
    let mut file = acting_as(google, USER);
    file["token_uri"] = json!("https://oauth2.googleapis.com/token");
    File::with(&file)
}

/// The hosts that were called through the proxy and answered, each once, in order of the calls.
fn hosts(google: &EmulatorHandle, endpoint: Endpoint) -> Vec<(Option<String>, Option<u16>)> {
    let calls = google.calls().into_iter();
    let mut hosts: Vec<_> = calls
        .filter(|call| call.endpoint == endpoint)
        .map(|call| (call.host, call.status))
        .collect();
    hosts.dedup();
    hosts
}

fn answered(host: &str) -> Vec<(Option<String>, Option<u16>)> {
    vec![(Some(host.to_owned()), Some(200))]
}

const IAM_CREDENTIALS: &str = "iamcredentials.googleapis.com";

#[tokio::test]
async fn fixed_hosts_are_reached_with_the_extra_ca() {
    let (google, ca) = proxied().await;
    let key = File::with(&google.service_account_key(OPERATOR).expect("a key"));
    let proxy = google.proxy_url().expect("a proxy");
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        google.reset_counts();
        let variables = [
            (variable, proxy),
            ("TEST_CA_FILE", ca.path()),
            ("TEST_CREDENTIALS", key.path()),
        ];
        in_process("proxy::child_gets_a_token", &variables).await;
        assert_eq!(
            hosts(&google, Endpoint::GenerateIdToken),
            answered(IAM_CREDENTIALS),
            "{variable}"
        );
        assert_eq!(
            hosts(&google, Endpoint::Proxy),
            answered(IAM_CREDENTIALS),
            "{variable}"
        );
    }
}

#[tokio::test]
async fn credentials_go_through_the_proxy_too() {
    let (google, ca) = proxied().await;
    let file = user_of_google(&google);
    for trust in ["TEST_CA_FILE", "SSL_CERT_FILE"] {
        google.reset_counts();
        let variables = [
            ("HTTPS_PROXY", google.proxy_url().expect("a proxy")),
            (trust, ca.path()),
            ("TEST_CREDENTIALS", file.path()),
        ];
        in_process("proxy::child_gets_a_token", &variables).await;
        assert_eq!(
            hosts(&google, Endpoint::OauthToken),
            answered("oauth2.googleapis.com"),
            "{trust}"
        );
        assert_eq!(
            hosts(&google, Endpoint::GenerateIdToken),
            answered(IAM_CREDENTIALS),
            "{trust}"
        );
    }
}

#[tokio::test]
async fn an_untrusted_proxy_gets_nothing_and_the_error_says_what_to_do() {
    let (google, _ca) = proxied().await;
    let key = File::with(&google.service_account_key(OPERATOR).expect("a key"));
    let file = user_of_google(&google);
    let proxy = ("HTTPS_PROXY", google.proxy_url().expect("a proxy"));
    for credentials in [key.path(), file.path()] {
        let variables = [proxy, ("TEST_CREDENTIALS", credentials)];
        in_process("proxy::child_does_not_trust_the_proxy", &variables).await;
    }
    assert!(google.count(Endpoint::Proxy) >= 2);
    assert_eq!(
        google.count(Endpoint::GenerateIdToken) + google.count(Endpoint::OauthToken),
        0
    );
}

#[tokio::test]
async fn rotated_certificates_are_followed() {
    let (google, ca) = proxied().await;
    // As valid, and not the proxy's.
    let (_other, other) = proxied().await;
    let key = File::with(&google.service_account_key(OPERATOR).expect("a key"));
    for trust in ["TEST_CA_FILE", "SSL_CERT_FILE"] {
        let file = File::absent();
        std::fs::copy(&other.0, &file.0).expect("a file");
        let variables = [
            ("HTTPS_PROXY", google.proxy_url().expect("a proxy")),
            (trust, file.path()),
            ("TEST_CREDENTIALS", key.path()),
            ("TEST_FILE", file.path()),
            ("TEST_RIGHT_CA", ca.path()),
            ("TEST_WRONG_CA", other.path()),
        ];
        in_process("proxy::child_follows_its_certificates", &variables).await;
    }
}

#[tokio::test]
#[ignore = "run by rotated_certificates_are_followed"]
async fn child_follows_its_certificates() {
    let path = |name| PathBuf::from(std::env::var_os(name).expect("set by the parent"));
    let (file, right, wrong) = (path("TEST_FILE"), path("TEST_RIGHT_CA"), path("TEST_WRONG_CA"));
    let minter = std::sync::Arc::new(minter());
    let following = minter.clone();
    tokio::spawn(async move { match following.follow_certificates().await {} });
    let refused = async || {
        let attempts = async {
            loop {
                let answer = minter.impersonate(&asking(CALLER)).await;
                if answer.is_err_and(|error| error.to_string().contains("--ca-file")) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, attempts)
            .await
            .expect("the proxy is not trusted");
    };
    refused().await;
    std::fs::copy(&right, &file).expect("a file");
    eventually(&minter, &asking(CALLER)).await;
    // A connection that was made by a certificate that is no longer trusted is not used any more.
    std::fs::copy(&wrong, &file).expect("a file");
    refused().await;
}

#[tokio::test]
async fn more_calls_are_in_flight_than_a_connection_takes() {
    let (google, ca) = proxied().await;
    let key = File::with(&google.service_account_key(OPERATOR).expect("a key"));
    let slow = Fault::delay(Duration::from_secs(1)).on(Endpoint::GenerateIdToken);
    google.fault(slow).expect("a fault");
    let variables = [
        ("HTTPS_PROXY", google.proxy_url().expect("a proxy")),
        ("TEST_CA_FILE", ca.path()),
        ("TEST_CREDENTIALS", key.path()),
    ];
    let most = async {
        let mut most = 0;
        // A connection takes 100 calls at once.
        while most <= 100 {
            let calls = google.calls();
            let in_flight = calls
                .iter()
                .filter(|call| call.endpoint == Endpoint::GenerateIdToken && call.status.is_none());
            most = most.max(in_flight.count());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = most => {}
        () = in_process("proxy::child_gets_many_tokens", &variables) => panic!("100 calls in flight at most"),
    }
}

#[tokio::test]
#[ignore = "run by more_calls_are_in_flight_than_a_connection_takes"]
async fn child_gets_many_tokens() {
    let minter = minter();
    let flows: Vec<String> = (0..10).map(|flow| format!("flow-{flow}")).collect();
    let tokens = flows.iter().cycle().take(1500).map(|flow| {
        let mut request = asking(CALLER);
        request.priority.flow = flow;
        let minter = &minter;
        async move { minter.impersonate(&request).await.map(drop) }
    });
    let tokens = futures::stream::iter(tokens).buffer_unordered(250);
    tokens.try_for_each(|()| async { Ok(()) }).await.expect("tokens");
}

#[tokio::test]
async fn the_metadata_server_is_never_called_through_a_proxy() {
    let (google, ca) = proxied().await;
    let (proxy, metadata) = (google.proxy_url().expect("a proxy"), google.address().to_string());
    let variables = [
        ("HTTP_PROXY", proxy),
        ("HTTPS_PROXY", proxy),
        ("ALL_PROXY", proxy),
        ("TEST_CA_FILE", ca.path()),
        ("GCE_METADATA_HOST", &metadata),
    ];
    in_process("proxy::child_gets_a_token", &variables).await;
    assert_eq!(hosts(&google, Endpoint::MetadataToken), [(None, Some(200))]);
    assert_eq!(hosts(&google, Endpoint::Proxy), answered(IAM_CREDENTIALS));
}

#[tokio::test]
async fn loopback_endpoints_are_never_called_through_a_proxy() {
    let (google, _ca) = proxied().await;
    let key = File::with(&google.service_account_key(OPERATOR).expect("a key"));
    let proxy = google.proxy_url().expect("a proxy");
    let variables = [
        ("HTTP_PROXY", proxy),
        ("ALL_PROXY", proxy),
        ("TEST_CREDENTIALS", key.path()),
        ("TEST_IAM_CREDENTIALS_URL", google.url()),
    ];
    in_process("proxy::child_gets_a_token_at_loopback", &variables).await;
    assert_eq!(hosts(&google, Endpoint::GenerateIdToken), [(None, Some(200))]);
    assert_eq!(google.count(Endpoint::Proxy), 0);
}

#[tokio::test]
#[ignore = "run by other tests, with an environment of their choice"]
async fn child_gets_a_token() {
    let token = minter().impersonate(&asking(CALLER)).await.expect("a token");
    assert_eq!(token.claims().email.as_deref(), Some(CALLER));
}

#[tokio::test]
#[ignore = "run by other tests, with an environment of their choice"]
async fn child_gets_a_token_at_loopback() {
    let url = std::env::var("TEST_IAM_CREDENTIALS_URL").expect("set by the parent");
    let minter = Minter::new(GoogleConfig {
        iam_credentials_url: Some(url.parse().expect("a URL")),
        credentials_file: std::env::var_os("TEST_CREDENTIALS").map(PathBuf::from),
        ..GoogleConfig::default()
    });
    minter
        .expect("a client")
        .impersonate(&asking(CALLER))
        .await
        .expect("a token");
}

async fn rejection() -> Error {
    rejected(&minter(), &asking(CALLER)).await
}

#[tokio::test]
#[ignore = "run by other tests, with an environment of their choice"]
async fn child_does_not_trust_the_proxy() {
    let error = rejection().await;
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    assert!(
        ["UpstreamUnreachable", "CredentialsUnavailable"].contains(&error.reason().as_str()),
        "{error}"
    );
    assert!(
        error
            .remediation()
            .is_some_and(|advice| advice.contains("--ca-file")),
        "{error}"
    );
}
