//! `generateIdToken`: tokens, rejections, transient failures, limits, logs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use idtoken_emulator::{Endpoint, Fault, FaultKind, RetryAfter, ServiceAccount, WrongToken};
use idtoken_operator::google::{CallRecord, ErrorClass, Impersonation};
use jiff::Timestamp;

use crate::support::*;

#[tokio::test]
async fn impersonates() {
    let records = Arc::new(Mutex::new(Vec::<CallRecord>::new()));
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|_| {}).await;
    let seen = Arc::clone(&records);
    let minter = minter.with_observer(Arc::new(move |record| {
        seen.lock().expect("no panic").push(record.clone())
    }));

    let token = minter.impersonate(&asking(CALLER)).await.expect("a token");
    token
        .verify(&expected(CALLER), Timestamp::now())
        .expect("the requested token");
    google.verify(token.expose()).expect("a signature of Google's");
    assert_eq!(minter.principal().await.as_deref(), Some(USER));

    let call = google
        .calls()
        .into_iter()
        .find(|call| call.endpoint == Endpoint::GenerateIdToken)
        .expect("a call");
    assert_eq!(call.request_reason.as_deref(), Some("shop/billing"));
    assert_eq!(call.account.as_deref(), Some(CALLER));
    let records = records.lock().expect("no panic");
    let recorded: Vec<_> = records
        .iter()
        .map(|record| (record.endpoint, record.code))
        .collect();
    assert_eq!(recorded, [("credentials", "200"), ("iamcredentials", "200")]);
}

#[tokio::test]
async fn unique_id_no_email_and_a_chain() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|_| {}).await;
    let id = google.policy().account(CALLER).expect("an account").unique_id();
    let token = minter.impersonate(&asking(&id)).await.expect("a token");
    token
        .verify(&expected(&id), Timestamp::now())
        .expect("the requested token");

    let token = minter
        .impersonate(&Impersonation {
            include_email: false,
            ..asking(CALLER)
        })
        .await
        .expect("a token");
    assert_eq!(token.claims().email, None);

    let delegates = [DELEGATE.to_owned()];
    let chained = Impersonation {
        delegates: &delegates,
        ..asking(CALLER)
    };
    minter.impersonate(&chained).await.expect("a token by a chain");
}

#[tokio::test]
async fn rejections_say_what_to_do() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|_| {}).await;
    let error = rejected(&minter, &asking(STRANGER)).await;
    assert_eq!(
        (error.reason().as_str(), error.class(), error.status()),
        ("PermissionDenied", ErrorClass::Rejected, Some(403))
    );
    let message = error.to_string();
    assert!(
        message.contains(&format!(
            "gcloud iam service-accounts add-iam-policy-binding {STRANGER} --member=user:{USER} \
             --role=roles/iam.serviceAccountOpenIdTokenCreator --project=p"
        )),
        "{message}"
    );

    let error = rejected(&minter, &asking("nobody@p.iam.gserviceaccount.com")).await;
    assert_eq!(
        (error.reason().as_str(), error.class()),
        ("ServiceAccountNotFound", ErrorClass::Rejected)
    );
    assert!(
        error
            .to_string()
            .contains("gcloud iam service-accounts describe nobody@"),
        "{error}"
    );

    google
        .fault(Fault::new(FaultKind::ApiDisabled).times(1))
        .expect("a fault");
    let error = rejected(&minter, &asking(CALLER)).await;
    assert_eq!(error.reason().as_str(), "ApiDisabled");
    assert!(
        error
            .to_string()
            .contains("gcloud services enable iamcredentials.googleapis.com"),
        "{error}"
    );

    let mut policy = google.policy();
    policy
        .service_accounts
        .push(ServiceAccount::new("late@p.iam.gserviceaccount.com").impersonated_by(format!("user:{USER}")));
    google.set_policy(policy).expect("a policy");
    minter
        .impersonate(&asking("late@p.iam.gserviceaccount.com"))
        .await
        .expect("works once it is there");
}

#[tokio::test]
async fn never_impersonates_itself() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|_| {}).await;
    let delegates = [USER.to_uppercase()];
    for request in [
        asking(USER),
        Impersonation {
            delegates: &delegates,
            ..asking(CALLER)
        },
    ] {
        let error = rejected(&minter, &request).await;
        assert_eq!(
            (error.reason().as_str(), error.class()),
            ("SelfImpersonation", ErrorClass::Rejected)
        );
    }
    assert_eq!(google.count(Endpoint::GenerateIdToken), 0);
}

#[tokio::test]
async fn retry_after_closes_the_endpoint() {
    for retry_after in [RetryAfter::Seconds(100), RetryAfter::DateIn(100)] {
        let Setup {
            google,
            minter,
            key: _key,
        } = setup(|_| {}).await;
        let fault = Fault::status_retry_after(429, retry_after)
            .on(Endpoint::GenerateIdToken)
            .times(1);
        google.fault(fault).expect("a fault");
        let error = rejected(&minter, &asking(CALLER)).await;
        assert_eq!(
            (error.reason().as_str(), error.class(), error.status()),
            ("QuotaExceeded", ErrorClass::Transient, Some(429))
        );
        assert!(
            error
                .retry_after()
                .is_some_and(|after| after > Duration::from_secs(90)),
            "{error:?}"
        );
        let error = rejected(&minter, &asking(CALLER)).await;
        assert_eq!(error.reason().as_str(), "QuotaExceeded");
        assert!(
            error
                .retry_after()
                .is_some_and(|after| after > Duration::from_secs(40)),
            "{error:?}"
        );
        assert_eq!(google.count(Endpoint::GenerateIdToken), 1);
    }
}

#[tokio::test]
async fn transient_failures_pass() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|config| config.timeout = Duration::from_secs(2)).await;
    minter.impersonate(&asking(CALLER)).await.expect("a token");
    for (fault, reason) in [
        (Fault::status(500), "UpstreamUnavailable"),
        (
            Fault::status_body(502, "<html>a proxy's page</html>"),
            "UpstreamUnavailable",
        ),
        (Fault::hang(), "UpstreamTimeout"),
        (Fault::reset(), "UpstreamUnreachable"),
    ] {
        google
            .fault(fault.on(Endpoint::GenerateIdToken).times(1))
            .expect("a fault");
        let error = rejected(&minter, &asking(CALLER)).await;
        assert_eq!(
            (error.reason().as_str(), error.class()),
            (reason, ErrorClass::Transient),
            "{error}"
        );
        assert!(!error.to_string().contains("html"), "{error}");
        minter
            .impersonate(&asking(CALLER))
            .await
            .expect("a token afterwards");
    }
}

#[tokio::test]
async fn wrong_tokens_are_reported() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|_| {}).await;
    for wrong in [
        WrongToken::Garbage,
        WrongToken::Truncated,
        WrongToken::NoExpiry,
        WrongToken::AudienceList,
    ] {
        google
            .fault(Fault::token(wrong).on(Endpoint::GenerateIdToken).times(1))
            .expect("a fault");
        let error = rejected(&minter, &asking(CALLER)).await;
        assert_eq!(error.reason().as_str(), "UnexpectedResponse", "{wrong:?}");
    }
    for (wrong, reason) in [
        (WrongToken::Audience, "TokenWrongAudience"),
        (WrongToken::Account, "TokenWrongAccount"),
        (WrongToken::Expired, "TokenExpired"),
        (WrongToken::Issuer, "TokenWrongIssuer"),
    ] {
        google
            .fault(Fault::token(wrong).on(Endpoint::GenerateIdToken).times(1))
            .expect("a fault");
        let token = minter.impersonate(&asking(CALLER)).await.expect("a JWT");
        let error = token
            .verify(&expected(CALLER), Timestamp::now())
            .expect_err("wrong");
        assert_eq!(error.reason(), reason, "{wrong:?}");
    }
}

#[tokio::test]
async fn the_in_flight_cap_is_kept() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|config| {
        config.max_in_flight = 1;
        config.max_wait = Duration::from_millis(100);
    })
    .await;
    let minter = Arc::new(minter);
    google
        .fault(Fault::hang().on(Endpoint::GenerateIdToken).times(1))
        .expect("a fault");
    let first = tokio::spawn({
        let minter = Arc::clone(&minter);
        async move { minter.impersonate(&asking(CALLER)).await.map(|_| ()) }
    });
    let under_way = async {
        while google.count(Endpoint::GenerateIdToken) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, under_way)
        .await
        .expect("the first call arrives");
    assert_eq!(
        rejected(&minter, &asking(CALLER)).await.reason().as_str(),
        "LocallyLimited"
    );
    first.abort();
    eventually(&minter, &asking(CALLER)).await;
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// In a process of its own, because `tracing` caches for all threads which call sites have a subscriber.
#[tokio::test]
async fn tokens_stay_out_of_the_logs() {
    crate::credentials::in_child("impersonation::child_logs_everything", &google().await).await;
}

#[tokio::test]
#[ignore = "run by tokens_stay_out_of_the_logs"]
async fn child_logs_everything() {
    let Setup {
        google,
        minter,
        key: _key,
    } = setup(|_| {}).await;
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let token = {
        let _guard = tracing::subscriber::set_default(subscriber);
        google
            .fault(Fault::status(403).on(Endpoint::OauthToken).times(1))
            .expect("a fault");
        google
            .fault(
                Fault::token(WrongToken::Truncated)
                    .on(Endpoint::GenerateIdToken)
                    .times(1),
            )
            .expect("a fault");
        eventually(&minter, &asking(CALLER)).await
    };
    let log = String::from_utf8_lossy(&captured.0.lock().expect("no panic")).into_owned();
    assert!(!log.is_empty());
    for part in token.expose().split('.') {
        assert!(!log.contains(part));
    }
    for mark in ["eyJ", "ya29.", "1//0", "client-secret", "Bearer "] {
        assert!(!log.contains(mark), "{mark} in {log}");
    }
}
