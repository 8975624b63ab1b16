//! Each assertion against the emulator.

use idtoken_conformance::{Emulated, Service, all};

use crate::front::Front;

#[tokio::test]
async fn each_assertion_holds_for_the_emulator() {
    let emulated = Emulated::start().await.unwrap();
    let mut failures = Vec::new();
    for assertion in all().unwrap() {
        match emulated.check(&assertion).await {
            Ok(checked) => {
                let lines = checked.failures.into_iter();
                failures.extend(lines.map(|line| format!("{}: {line}", assertion.name)));
            }
            Err(error) => failures.push(format!("{}: {error:#}", assertion.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn a_wrong_expectation_fails() {
    let emulated = Emulated::start().await.unwrap();
    let mut assertion = all().unwrap().swap_remove(0);
    assertion.answer.body["token"]["claims"]["azp"] = "${caller.id}".into();
    assertion.answer.body["token"]["claims"]["more"] = 1.into();
    assertion.answer.status = 201;
    let failures = emulated.check(&assertion).await.unwrap().failures;
    assert_eq!(failures.len(), 3, "{failures:?}");
}

#[tokio::test]
async fn no_token_and_no_secret_is_in_a_transcript() {
    let emulated = Emulated::start().await.unwrap();
    let mut shown = String::new();
    for assertion in all().unwrap() {
        let checked = emulated.check(&assertion).await.unwrap();
        shown.push_str(&checked.answer.to_string());
        shown.push_str(&checked.failures.join(" "));
    }
    let secrets = emulated.secrets();
    assert!(secrets.len() > 50, "{} secrets", secrets.len());
    for secret in secrets {
        assert!(!shown.contains(&secret), "a secret is in a transcript");
    }
    assert!(!shown.contains("ya29.") && !shown.contains("eyJ"));
    emulated.get(Service::Www, "/oauth2/v3/certs").await.unwrap();
}

/// Where a request is defined, only what the definition has is answered, and the answer is what it says; so is each error.
#[tokio::test]
async fn requests_and_answers_are_as_googles_discovery_documents_define_them() {
    let mut emulated = Emulated::start().await.unwrap();
    let front = Front::start(emulated.url()).await;
    emulated.go_through(&front.url());
    for assertion in all().unwrap() {
        let failures = emulated.check(&assertion).await.unwrap().failures;
        assert!(failures.is_empty(), "{}: {failures:?}", assertion.name);
    }
    let wrong = front.wrong();
    // An unknown field of the form changes nothing, which is what that assertion says.
    let unknown = "/v1/token: the body.nonsense is no field";
    assert_eq!(wrong, [unknown], "{wrong:#?}");
    let methods = [
        "iamcredentials.projects.serviceAccounts.generateAccessToken",
        "iamcredentials.projects.serviceAccounts.generateIdToken",
        "iamcredentials.projects.serviceAccounts.getAllowedLocations",
        "sts.token",
    ];
    assert!(front.seen().iter().eq(methods), "{:?}", front.seen());
}
