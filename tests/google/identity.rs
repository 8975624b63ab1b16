//! The operator's identity over time: it changes, the machine sleeps, the metadata server does not know its universe.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idtoken_emulator::{
    EmulatorHandle, Endpoint, Fault, Jwks, Options, SigningKey, WorkloadIdentityProvider,
};
use idtoken_operator::clock::VirtualClock;
use idtoken_operator::google::{GoogleConfig, Minter};
use jiff::Timestamp;
use serde_json::json;

use crate::support::*;

/// Google with a metadata server, and the operator on it, whose clock the test controls.
struct Attached {
    google: EmulatorHandle,
    time: VirtualClock,
    minter: Minter,
}

async fn attached(account: &str, change: impl FnOnce(&mut GoogleConfig)) -> Attached {
    let mut policy = policy();
    policy.metadata_server.service_account = Some(account.to_owned());
    let google = EmulatorHandle::start(policy, Options::default())
        .await
        .expect("the emulator starts");
    let time = VirtualClock::new(Timestamp::now());
    let mut config = GoogleConfig {
        iam_credentials_url: Some(google.url().parse().expect("a URL")),
        metadata_host: Some(google.address().to_string()),
        clock: time.clock(),
        ..GoogleConfig::default()
    };
    change(&mut config);
    let minter = Minter::new(config).expect("a client");
    Attached { google, time, minter }
}

impl Attached {
    /// Gets a token of [`CALLER`].
    async fn mint(&self) {
        self.minter.impersonate(&asking(CALLER)).await.expect("a token");
    }

    fn attach(&self, account: &str) {
        let mut policy = self.google.policy();
        policy.metadata_server.service_account = Some(account.to_owned());
        self.google.set_policy(policy).expect("a policy");
    }

    /// Who asked for ID tokens, and what was answered.
    fn asked(&self) -> Vec<(String, Option<u16>)> {
        let calls = self.google.calls().into_iter();
        calls
            .filter(|call| call.endpoint == Endpoint::GenerateIdToken)
            .map(|call| (call.principal.unwrap_or_default(), call.status))
            .collect()
    }
}

#[tokio::test]
async fn a_refusal_of_a_former_identity_is_no_answer_to_the_present_one() {
    in_process("identity::child_refused_as_its_former_identity", &[]).await;
}

#[tokio::test]
#[ignore = "run by a_refusal_of_a_former_identity_is_no_answer_to_the_present_one"]
async fn child_refused_as_its_former_identity() {
    let operator = attached(STRANGER, |_| {}).await;
    let error = rejected(&operator.minter, &asking(CALLER)).await;
    assert!(error.to_string().contains(STRANGER), "{error}");
    operator.attach(OPERATOR);
    operator.time.skip(Duration::from_secs(2));
    operator
        .minter
        .impersonate(&asking(CALLER))
        .await
        .expect("a token, by the present identity");
    assert_eq!(
        operator.asked(),
        [
            (member(STRANGER), Some(403)),
            (member(STRANGER), Some(403)),
            (member(OPERATOR), Some(200))
        ]
    );
    assert_eq!(operator.minter.principal().await.as_deref(), Some(OPERATOR));
    // A refusal that is the present identity's costs no second call.
    let error = rejected(&operator.minter, &asking(STRANGER)).await;
    assert!(error.to_string().contains(OPERATOR), "{error}");
    assert_eq!(operator.asked().len(), 4);
}

#[tokio::test]
async fn a_former_identity_is_used_for_a_minute_at_most() {
    in_process("identity::child_that_changes_its_identity", &[]).await;
}

#[tokio::test]
#[ignore = "run by a_former_identity_is_used_for_a_minute_at_most"]
async fn child_that_changes_its_identity() {
    let operator = attached(OPERATOR, |_| {}).await;
    operator.mint().await;
    operator.attach(STRANGER);
    operator.time.skip(Duration::from_secs(61));
    let error = rejected(&operator.minter, &asking(CALLER)).await;
    assert!(error.to_string().contains(STRANGER), "{error}");
    operator.attach(DELEGATE);
    operator.time.skip(Duration::from_secs(61));
    operator.mint().await;
    assert_eq!(
        operator.asked(),
        [
            (member(OPERATOR), Some(200)),
            (member(STRANGER), Some(403)),
            (member(DELEGATE), Some(200))
        ]
    );
    // The first identity is no change.
    assert_eq!(operator.minter.identity_changes(), 2);
}

#[tokio::test]
async fn the_token_is_of_the_identity_that_is_shown() {
    in_process("identity::child_whose_identity_changes_between_two_calls", &[]).await;
}

#[tokio::test]
#[ignore = "run by the_token_is_of_the_identity_that_is_shown"]
async fn child_whose_identity_changes_between_two_calls() {
    let operator = attached(STRANGER, |_| {}).await;
    // The e-mail was read, and the token not yet.
    assert_eq!(operator.minter.principal().await.as_deref(), Some(STRANGER));
    operator.attach(OPERATOR);
    operator.mint().await;
    assert_eq!(operator.minter.principal().await.as_deref(), Some(OPERATOR));
    // So the operator knows itself.
    let error = rejected(&operator.minter, &asking(OPERATOR)).await;
    assert_eq!(error.reason().as_str(), "SelfImpersonation");
}

#[tokio::test]
async fn a_subject_token_of_another_workload_is_another_identity() {
    const PROVIDER: &str =
        "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
    let google = google().await;
    let issuer = SigningKey::generate().expect("a key");
    let keys = serde_json::to_string(&Jwks {
        keys: vec![issuer.jwk()],
    })
    .expect("JSON");
    let member = |subject: &str| {
        format!(
            "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/{subject}"
        )
    };
    let mut policy = google.policy();
    policy.workload_identity_providers = vec![WorkloadIdentityProvider::new(
        PROVIDER,
        "https://kubernetes.example",
        keys,
    )];
    for account in &mut policy.service_accounts {
        if account.email == CALLER {
            *account = account.clone().impersonated_by(member("right"));
        }
    }
    google.set_policy(policy).expect("a policy");
    let subject_token = |subject: &str, serial: u32| {
        let now = Timestamp::now().as_second();
        let claims = json!({"iss": "https://kubernetes.example", "aud": format!("https:{PROVIDER}"), "sub": subject,
            "iat": now, "exp": now + 600, "jti": serial});
        issuer.sign(&claims).expect("a token")
    };
    let token = File::absent();
    let write = |content: String| std::fs::write(&token.0, content).expect("a file");
    write(subject_token("wrong", 1));
    let file = File::with(&json!({
        "type": "external_account",
        "audience": PROVIDER,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{}/v1/token", google.url()),
        "credential_source": {"file": token.path()},
    }));
    let time = VirtualClock::new(Timestamp::now());
    let mut config = config(&google, &file.0);
    config.clock = time.clock();
    let minter = Minter::new(config).expect("a client");
    let error = rejected(&minter, &asking(CALLER)).await;
    assert_eq!(error.reason().as_str(), "PermissionDenied");
    write(subject_token("right", 2));
    time.skip(Duration::from_secs(5));
    minter.impersonate(&asking(CALLER)).await.expect("a token");
    // A rotated token of the same workload is the same identity.
    let exchanges = google.count(Endpoint::SecurityToken);
    write(subject_token("right", 3));
    time.skip(Duration::from_secs(5));
    minter.impersonate(&asking(CALLER)).await.expect("a token");
    assert_eq!(google.count(Endpoint::SecurityToken), exchanges);
}

#[tokio::test]
async fn an_access_token_does_not_outlive_the_sleep_of_the_machine() {
    let google = google().await;
    let file = File::with(&acting_as(&google, USER));
    let time = VirtualClock::new(Timestamp::now());
    let mut config = config(&google, &file.0);
    config.clock = time.clock();
    let minter = Minter::new(config).expect("a client");
    minter.impersonate(&asking(CALLER)).await.expect("a token");
    time.sleep_machine(Duration::from_secs(2 * 3600));
    google.clear_caches();
    minter
        .impersonate(&asking(CALLER))
        .await
        .expect("no call with the token that expired");
    assert_eq!(google.count(Endpoint::OauthToken), 2);
    let refused = google
        .calls()
        .iter()
        .filter(|call| call.status == Some(401))
        .count();
    assert_eq!(refused, 0);
}

/// What is logged in this process.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_unknown_universe_is_the_default_one() {
    in_process("identity::child_whose_universe_is_unknown", &[]).await;
}

#[tokio::test]
#[ignore = "run by an_unknown_universe_is_the_default_one"]
async fn child_whose_universe_is_unknown() {
    let logged = Logged::default();
    let log = logged.clone();
    tracing_subscriber::fmt().with_writer(move || log.clone()).init();
    let warnings = || {
        let log = logged.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&log)
            .matches("does not say its universe")
            .count()
    };
    let universe = |fault: Fault| fault.for_account("/universe/universe-domain");
    for (number, fault) in [
        Fault::status(403),
        Fault::status(500),
        Fault::hang(),
        Fault::reset(),
    ]
    .into_iter()
    .enumerate()
    {
        let before = warnings();
        let operator = attached(OPERATOR, |_| {}).await;
        operator.google.fault(universe(fault.clone())).expect("a fault");
        operator
            .minter
            .impersonate(&asking(CALLER))
            .await
            .unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(warnings(), before + 1, "{number}");
        operator.time.skip(Duration::from_secs(3600));
        operator.mint().await;
        assert_eq!(warnings(), before + 1, "{number}: said once");
        // As soon as the server says that it is in another one, nothing works.
        let mut policy = operator.google.policy();
        policy.universe_domain = "cloud.example".to_owned();
        operator.google.set_policy(policy).expect("a policy");
        operator.google.clear_faults();
        operator.time.skip(Duration::from_secs(3600));
        let error = rejected(&operator.minter, &asking(CALLER)).await;
        assert!(error.to_string().contains("cloud.example"), "{error}");
    }
    // In another universe than the default one, an unknown universe is an error.
    let operator = attached(OPERATOR, |config| {
        config.universe_domain = "cloud.example".to_owned()
    })
    .await;
    operator
        .google
        .fault(universe(Fault::status(403)))
        .expect("a fault");
    let error = rejected(&operator.minter, &asking(CALLER)).await;
    assert_eq!(error.reason().as_str(), "CredentialsUnavailable");
}
