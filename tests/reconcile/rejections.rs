//! Requests that the operator rejects, and statuses that are hard to write.

use serde_json::json;

use crate::api_server::Override;
use crate::before::{Before, billing, grant, request, secret};
use crate::objects::failure;
use crate::scene::play;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied() {
    let about = "No grant allows the request: the status is written, and an event. Neither Google nor the Secret is touched.";
    play("denied", about, Before::default(), async |scene| {
        scene.create(&billing(), request(json!({"audience": "https://other.example"})));
        scene.until_call("POST", "/events", 1).await;
        let message = scene.message("Ready");
        assert!(message.contains("IdTokenGrant"), "{message}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_with_a_secret() {
    let about = "The grant is deleted while the Secret holds a valid token: the status is written, and an event. The Secret stays.";
    play(
        "denied_with_a_secret",
        about,
        Before::ready().await,
        async |scene| {
            scene.delete(&grant());
            scene.until_call("POST", "/events", 1).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_with_a_changed_secret() {
    let about = "The grant is deleted, then another client changes the Secret: it is read, and not repaired.";
    let before = Before {
        reads_once: true,
        ..Before::ready().await
    };
    play("denied_with_a_changed_secret", about, before, async |scene| {
        scene.delete(&grant());
        scene.until_call("POST", "/events", 1).await;
        scene.change(&secret(), |secret| {
            secret["metadata"]["annotations"]["idtoken.dev/renewal-time"] = json!("2036-01-01T00:00:00Z");
        });
        scene.until_call("GET", "/secrets/billing", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_with_a_changed_template() {
    let about = "The grant is deleted, then the template changes: the Secret is read, and not written.";
    play(
        "denied_with_a_changed_template",
        about,
        Before::ready().await,
        async |scene| {
            scene.delete(&grant());
            scene.until_call("POST", "/events", 1).await;
            scene.change(&billing(), |request| {
                request["spec"]["target"] = json!({"template": {"data": {"header": "Bearer $(token)"}}});
            });
            scene.until_call("PATCH", "/status", 2).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_spec() {
    let about = "The spec is invalid: the status is written, and an event.";
    play("invalid_spec", about, Before::default(), async |scene| {
        scene.create(&billing(), request(json!({"renewBefore": "soon"})));
        scene.until_call("POST", "/events", 1).await;
        let message = scene.message("Stalled");
        assert!(message.contains("spec.renewBefore"), "{message}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undecodable_request() {
    let about = "The request cannot be decoded: the status is written once, and one event, also where the request changes again.";
    play("undecodable", about, Before::default(), async |scene| {
        scene.create(
            &billing(),
            request(json!({"target": {"creationPolicy": "Merge"}})),
        );
        scene.until_call("POST", "/events", 1).await;
        let message = scene.message("Stalled");
        assert!(message.contains("Merge"), "{message}");
        scene.change(&billing(), |request| {
            request["metadata"]["labels"] = json!({"team": "a"})
        });
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undecodable_request_whose_status_cannot_be_written() {
    let about = "The request cannot be decoded, and the API server fails when the status is written: the write is repeated, and the event \
                 follows it.";
    play(
        "undecodable_failed_write",
        about,
        Before::default(),
        async |scene| {
            let answer = failure(500, "InternalError", "etcdserver: request timed out");
            scene.server.script("PUT", "/status", Override::Reject(answer));
            scene.create(
                &billing(),
                request(json!({"target": {"creationPolicy": "Merge"}})),
            );
            scene.until_call("POST", "/events", 1).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_of_the_status() {
    let about = "Another client changes the request just before its status is written: 409; the Secret is read, and the status is \
                 written a second later. No second token is issued.";
    play("status_conflict", about, Before::default(), async |scene| {
        let change = Override::After(Box::new(|objects| {
            objects.change(&billing(), |request| {
                request["metadata"]["labels"] = json!({"team": "a"})
            });
        }));
        scene.server.script("PUT", "/status", change);
        scene.create(&billing(), request(json!({})));
        scene.until_call("POST", "/events", 1).await;
    })
    .await;
}
