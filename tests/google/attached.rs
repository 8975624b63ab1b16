//! The metadata server's identity, and a user's own ID token.

use idtoken_emulator::{EmulatorHandle, Endpoint, Fault, Options, WrongToken};
use idtoken_operator::google::{AttachedIdentity, CallPriority, GoogleConfig, Minter};
use jiff::Timestamp;

use crate::support::*;

async fn server() -> (EmulatorHandle, Minter) {
    let mut policy = policy();
    policy.metadata_server.service_account = Some(OPERATOR.to_owned());
    let google = EmulatorHandle::start(policy, Options::default())
        .await
        .expect("the emulator starts");
    let minter = Minter::new(GoogleConfig {
        metadata_host: Some(google.address().to_string()),
        keys_url: Some(
            format!("{}/oauth2/v3/certs", google.url())
                .parse()
                .expect("a URL"),
        ),
        ..GoogleConfig::default()
    })
    .expect("a client");
    (google, minter)
}

fn wanted(account: Option<&str>) -> AttachedIdentity<'_> {
    AttachedIdentity {
        service_account: account,
        audience: AUDIENCE,
        include_email: true,
        licenses: false,
        priority: CallPriority::default(),
    }
}

#[tokio::test]
async fn the_attached_identity() {
    let (google, minter) = server().await;
    assert_eq!(
        minter.attached_account().await.expect("an answer").as_deref(),
        Some(OPERATOR)
    );
    let token = minter
        .attached_identity(&wanted(Some(OPERATOR)))
        .await
        .expect("a token");
    token
        .verify(&expected(OPERATOR), Timestamp::now())
        .expect("the requested token");
    google.verify(token.expose()).expect("a good signature");
    let again = minter.attached_identity(&wanted(None)).await.expect("a token");
    assert_eq!(token.fingerprint(), again.fingerprint(), "served again");
    let audience = "https://x.example/a b?c=d&format=standard#ü";
    let odd = AttachedIdentity {
        audience,
        licenses: true,
        ..wanted(None)
    };
    let token = minter.attached_identity(&odd).await.expect("a token");
    let claims = google.verify(token.expose()).expect("a good signature");
    assert_eq!(claims["aud"], audience);
    assert!(
        claims["google"]["compute_engine"]["license_id"].is_array(),
        "{claims}"
    );
    let standard = AttachedIdentity {
        include_email: false,
        ..wanted(None)
    };
    let token = minter.attached_identity(&standard).await.expect("a token");
    assert_eq!(token.claims().email, None);
}

#[tokio::test]
async fn rejections() {
    let (google, minter) = server().await;
    let error = minter
        .attached_identity(&wanted(Some(CALLER)))
        .await
        .expect_err("another account");
    assert_eq!(error.reason().as_str(), "AccountMismatch");
    assert_eq!(google.count(Endpoint::MetadataIdentity), 0);
    for wrong in [WrongToken::Garbage, WrongToken::NoExpiry] {
        google
            .fault(Fault::token(wrong).on(Endpoint::MetadataIdentity).times(1))
            .expect("a fault");
        let error = minter.attached_identity(&wanted(None)).await.expect_err("wrong");
        assert_eq!(error.reason().as_str(), "UnexpectedResponse");
    }
    for wrong in [WrongToken::ForeignKey, WrongToken::Signature] {
        google
            .fault(Fault::token(wrong).on(Endpoint::MetadataIdentity).times(1))
            .expect("a fault");
        let error = minter.attached_identity(&wanted(None)).await.expect_err("wrong");
        assert_eq!(error.reason().as_str(), "TokenSignatureInvalid", "{error}");
    }
    let mut policy = google.policy();
    policy.metadata_server.service_account = None;
    google.set_policy(policy).expect("a policy");
    let error = minter.attached_identity(&wanted(None)).await.expect_err("none");
    assert_eq!(error.reason().as_str(), "IdentityNotAttached");
}

#[tokio::test]
async fn a_server_that_is_no_metadata_server_is_not_trusted() {
    let router = axum::Router::new().fallback(async || "eyJhbGciOiJSUzI1NiJ9.e30.c2ln");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let minter = Minter::new(GoogleConfig {
        metadata_host: Some(address.to_string()),
        ..GoogleConfig::default()
    })
    .expect("a client");
    let error = minter
        .attached_identity(&wanted(None))
        .await
        .expect_err("no flavor");
    assert_eq!(error.reason().as_str(), "UnexpectedResponse");
    assert!(error.to_string().contains("Metadata-Flavor"), "{error}");
    server.abort();
}

#[tokio::test]
async fn a_users_own_token() {
    let google = google().await;
    let file = File::with(&acting_as(&google, USER));
    let minter = Minter::new(config(&google, &file.0)).expect("a client");
    let got = minter
        .user_id_token(CallPriority::OPERATOR)
        .await
        .expect("a token");
    assert_eq!(
        (got.client_id.as_str(), got.token.claims().aud.as_str()),
        ("client", "client")
    );
    assert_eq!(got.token.claims().email.as_deref(), Some(USER));
    google.verify(got.token.expose()).expect("a good signature");

    let mut policy = google.policy();
    policy.oauth_clients[0].refresh_tokens[0].revoked = true;
    google.set_policy(policy).expect("a policy");
    let error = minter
        .user_id_token(CallPriority::OPERATOR)
        .await
        .expect_err("revoked");
    assert_eq!(error.reason().as_str(), "CredentialsUnavailable");
    let said = error.to_string();
    assert!(
        said.contains("expired or revoked") && said.contains("gcloud auth application-default login"),
        "{said}"
    );

    let key = File::with(&google.service_account_key(OPERATOR).expect("a key"));
    let minter = Minter::new(config(&google, &key.0)).expect("a client");
    let error = minter
        .user_id_token(CallPriority::OPERATOR)
        .await
        .expect_err("a key");
    assert_eq!(error.reason().as_str(), "NotUserCredentials");
}
