//! The operator's own credentials: files that appear and change, credentials that fail, the metadata server.

use std::time::Duration;

use idtoken_emulator::{EmulatorHandle, Endpoint, Fault, Options, ServiceAccount};
use idtoken_operator::google::{ErrorClass, GoogleConfig, Impersonation, Minter};
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn starts_without_credentials_and_follows_the_file() {
    let google = google().await;
    let file = File::absent();
    let minter = Minter::new(config(&google, &file.0)).expect("a client");
    let error = rejected(&minter, &asking(CALLER)).await;
    assert_eq!(
        (error.reason().as_str(), error.class()),
        ("CredentialsUnavailable", ErrorClass::Rejected)
    );
    assert_eq!(minter.principal().await, None);

    file.write(&acting_as(&google, OTHER_USER));
    let followed = async {
        while rejected(&minter, &asking(CALLER)).await.reason().as_str() != "PermissionDenied" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, followed)
        .await
        .expect("the file is found in time");
    assert_eq!(minter.principal().await.as_deref(), Some(OTHER_USER));

    file.write(&acting_as(&google, USER));
    eventually(&minter, &asking(CALLER)).await;
    assert_eq!(minter.principal().await.as_deref(), Some(USER));

    file.write(&json!({"type": "external_account", "token_url": "https://evil.example/"}));
    eventually(&minter, &asking(CALLER)).await;
    assert_eq!(
        google
            .calls()
            .iter()
            .filter(|call| call.endpoint == Endpoint::Unknown)
            .count(),
        0
    );
}

#[tokio::test]
async fn impersonates_by_a_service_account_key() {
    let google = google().await;
    let file = File::with(&google.service_account_key(OPERATOR).expect("a key"));
    let minter = Minter::new(config(&google, &file.0)).expect("a client");
    let token = minter.impersonate(&asking(CALLER)).await.expect("a token");
    google.verify(token.expose()).expect("a good signature");
    assert_eq!(token.claims().email.as_deref(), Some(CALLER));
    assert_eq!(minter.principal().await.as_deref(), Some(OPERATOR));
    assert_eq!(
        rejected(&minter, &asking(OPERATOR)).await.reason().as_str(),
        "SelfImpersonation"
    );
}

#[tokio::test]
async fn impersonates_by_impersonated_credentials() {
    let google = google().await;
    let url = format!(
        "{}/v1/projects/-/serviceAccounts/{DELEGATE}:generateAccessToken",
        google.url()
    );
    let file = File::with(&json!({
        "type": "impersonated_service_account",
        "service_account_impersonation_url": url,
        "source_credentials": acting_as(&google, USER),
        "delegates": []
    }));
    let minter = Minter::new(config(&google, &file.0)).expect("a client");
    assert_eq!(minter.principal().await.as_deref(), Some(DELEGATE));
    let token = minter.impersonate(&asking(CALLER)).await.expect("a token");
    google.verify(token.expose()).expect("a good signature");
}

#[tokio::test]
async fn a_foreign_host_in_the_file_is_rejected() {
    let google = google().await;
    let mut key = acting_as(&google, USER);
    key["token_uri"] = json!("https://evil.example/token");
    let file = File::with(&key);
    let error = rejected(
        &Minter::new(config(&google, &file.0)).expect("a client"),
        &asking(CALLER),
    )
    .await;
    assert_eq!(error.reason().as_str(), "CredentialsUnavailable");
    assert!(error.to_string().contains("evil.example"), "{error}");
}

#[tokio::test]
async fn a_rejected_access_token_is_replaced() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|_| {}).await;
    google
        .fault(Fault::status(401).on(Endpoint::GenerateIdToken).times(1))
        .expect("a fault");
    let error = rejected(&minter, &asking(CALLER)).await;
    assert_eq!(
        (error.reason().as_str(), error.class()),
        ("CredentialsRejected", ErrorClass::Rejected)
    );
    eventually(&minter, &asking(CALLER)).await;
}

#[tokio::test]
async fn credentials_that_failed_are_fetched_again() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|_| {}).await;
    google
        .fault(Fault::status(403).on(Endpoint::OauthToken).times(1))
        .expect("a fault");
    let error = rejected(&minter, &asking(CALLER)).await;
    assert_eq!(
        (error.reason().as_str(), error.class()),
        ("CredentialsUnavailable", ErrorClass::Rejected),
        "{error}"
    );
    assert_eq!(error.endpoint().as_str(), "credentials");
    eventually(&minter, &asking(CALLER)).await;
    assert_eq!(minter.principal().await.as_deref(), Some(USER));
}

#[tokio::test]
async fn credentials_that_hang_are_fetched_again() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|config| config.timeout = Duration::from_secs(2)).await;
    google
        .fault(Fault::hang().on(Endpoint::OauthToken).times(1))
        .expect("a fault");
    let error = rejected(&minter, &asking(CALLER)).await;
    assert_eq!(
        (error.reason().as_str(), error.class()),
        ("CredentialsUnavailable", ErrorClass::Transient),
        "{error}"
    );
    eventually(&minter, &asking(CALLER)).await;
}

/// Runs a test of this binary in a process of its own, whose environment points to the emulator's metadata server.
pub(crate) async fn in_child(test: &str, google: &EmulatorHandle) {
    let host = google.address().to_string();
    let variables = [
        ("GCE_METADATA_HOST", host.as_str()),
        ("HTTP_PROXY", "http://127.0.0.1:9"),
    ];
    in_process(test, &variables).await;
}

#[tokio::test]
async fn impersonates_by_the_metadata_server() {
    let mut policy = policy();
    policy.metadata_server.service_account = Some(OPERATOR.to_owned());
    let google = EmulatorHandle::start(policy, Options::default())
        .await
        .expect("the emulator starts");
    in_child("credentials::child_with_metadata_server", &google).await;
    // One for the account, and one by unique id, whose response shows that it is the operator's own.
    assert_eq!(google.count(Endpoint::GenerateIdToken), 2);
}

#[tokio::test]
#[ignore = "run by impersonates_by_the_metadata_server"]
async fn child_with_metadata_server() {
    let host = std::env::var("GCE_METADATA_HOST").expect("set by the parent");
    let iam_credentials_url = Some(format!("http://{host}/").parse().expect("a URL"));
    let minter = Minter::new(GoogleConfig {
        iam_credentials_url,
        ..GoogleConfig::default()
    })
    .expect("a client");
    assert_eq!(minter.principal().await.as_deref(), Some(OPERATOR));
    minter.impersonate(&asking(CALLER)).await.expect("a token");
    assert_eq!(
        rejected(&minter, &asking(OPERATOR)).await.reason().as_str(),
        "SelfImpersonation"
    );
    let id = ServiceAccount::new(OPERATOR).unique_id();
    assert_eq!(
        rejected(&minter, &asking(&id)).await.reason().as_str(),
        "SelfImpersonation"
    );
    let hidden = Impersonation {
        include_email: false,
        ..asking(&id)
    };
    assert_eq!(
        rejected(&minter, &hidden).await.reason().as_str(),
        "SelfImpersonation"
    );
    let delegates = [id.clone()];
    let by_way_of = Impersonation {
        delegates: &delegates,
        ..asking(CALLER)
    };
    assert_eq!(
        rejected(&minter, &by_way_of).await.reason().as_str(),
        "SelfImpersonation"
    );
}

#[tokio::test]
async fn no_request_passes_while_the_metadata_server_is_down() {
    let google = google().await;
    google
        .fault(Fault::status(503).on(Endpoint::Metadata))
        .expect("a fault");
    in_child("credentials::child_with_metadata_server_down", &google).await;
    assert_eq!(google.count(Endpoint::GenerateIdToken), 0);
}

#[tokio::test]
#[ignore = "run by no_request_passes_while_the_metadata_server_is_down"]
async fn child_with_metadata_server_down() {
    let host = std::env::var("GCE_METADATA_HOST").expect("set by the parent");
    let iam_credentials_url = Some(format!("http://{host}/").parse().expect("a URL"));
    let minter = Minter::new(GoogleConfig {
        iam_credentials_url,
        ..GoogleConfig::default()
    })
    .expect("a client");
    let error = rejected(&minter, &asking(CALLER)).await;
    assert_eq!(
        (error.reason().as_str(), error.class()),
        ("UpstreamUnavailable", ErrorClass::Transient)
    );
    assert_eq!(error.endpoint().as_str(), "metadata");
}
