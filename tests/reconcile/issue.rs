//! Tokens that are issued, and those that are not.

use serde_json::json;
use tokio::sync::oneshot;

use crate::api_server::Override;
use crate::before::{Before, billing, request, secret};
use crate::scene::{LOCKED, play};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_issue() {
    let about =
        "A new request: one call of Google, the Secret is created, the status is written, and one event.";
    play("first_issue", about, Before::default(), async |scene| {
        scene.create(&billing(), request(json!({})));
        scene.until_call("POST", "/events", 1).await;
        let message = scene.message("Ready");
        assert!(
            message.starts_with("Secret billing holds a token for https://billing-x.run.app"),
            "{message}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal() {
    let about =
        "A token is due: one call of Google, the Secret is patched exactly as it was seen, without a read.";
    play("renewal", about, Before::due().await, async |scene| {
        scene.until_call("PATCH", "/status", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_with_everything_ready() {
    let about = "The operator starts and everything is as it should be: no call at all.";
    play("restart", about, Before::ready().await, async |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_gone() {
    let about = "Another client deletes the Secret: a read makes sure of it, then a new token is issued.";
    play("secret_gone", about, Before::ready().await, async |scene| {
        scene.delete(&secret());
        scene.until_call("PATCH", "/status", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_target() {
    let about = "The target gets another name: the new Secret is created, the old one is deleted exactly as it was seen, then the \
                 status is written.";
    play("renamed_target", about, Before::ready().await, async |scene| {
        scene.change(&billing(), |request| {
            request["spec"]["target"] = json!({"name": "invoices"})
        });
        scene.until_call("PATCH", "/status", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspended() {
    let about = "A suspended request whose token is due: the status is written, and no token is issued.";
    let mut before = Before::due().await;
    if let Some(request) = &mut before.request {
        request["spec"]["suspend"] = json!(true);
        request["metadata"]["generation"] = json!(2);
    }
    play("suspended", about, before, async |scene| {
        scene.until_call("PATCH", "/status", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_meanwhile() {
    let about = "The request is deleted while Google answers: neither the Secret nor the status is written.";
    play("deleted_meanwhile", about, Before::default(), async |scene| {
        let (answer, hold) = oneshot::channel();
        scene
            .server
            .script("POST", ":generateIdToken", Override::Hold(hold));
        scene.create(&billing(), request(json!({})));
        scene.until_arrival("POST", ":generateIdToken").await;
        scene.delete(&billing());
        scene.settle().await;
        answer.send(()).expect("Google is still being called");
        // The token is there; what is done with it comes before all that is yet to begin.
        scene
            .until_metric("idtoken_mint_total{source=\"Impersonation\",result=\"Issued\"} 1")
            .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_rejects() {
    let about = "Google rejects the call: the status is written, and an event; the next attempt follows after some seconds.";
    play("google_rejects", about, Before::default(), async |scene| {
        scene.create(&billing(), request(json!({"serviceAccount": LOCKED})));
        scene.until_call("POST", ":generateIdToken", 2).await;
        let message = scene.message("Ready");
        assert!(
            message.contains("gcloud iam service-accounts add-iam-policy-binding"),
            "{message}"
        );
        assert!(message.contains(LOCKED), "{message}");
        let calls = scene.calls();
        let calls: Vec<_> = calls
            .iter()
            .filter(|call| call.is("POST", ":generateIdToken"))
            .collect();
        let wait = calls[1].at.duration_since(calls[0].at).as_secs_f64();
        assert!(wait > 3.7, "tried again after {wait} s");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_does_not_answer() {
    let about = "Google does not answer within the reconcile's time: the status is written, and an event; the next attempt follows after a \
                 second.";
    let before = Before {
        flags: &["--reconcile-timeout=1"],
        ..Before::default()
    };
    play("google_does_not_answer", about, before, async |scene| {
        let (_answer, hold) = oneshot::channel();
        scene
            .server
            .script("POST", ":generateIdToken", Override::Hold(hold));
        scene.create(&billing(), request(json!({})));
        scene.until_call("POST", "/events", 2).await;
    })
    .await;
}
