//! Secrets that others change, own or write at the same moment.

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::api_server::Override;
use crate::before::{Before, billing, grant, request, secret};
use crate::objects::{MARKERS, failure};
use crate::scene::{Scene, play};

/// A Secret that the operator did not write.
fn foreign() -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"password": "c2VjcmV0"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_template() {
    let about = "The template changes: the Secret is read and patched with the token that it holds. Google is not called.";
    play("changed_template", about, Before::ready().await, async |scene| {
        scene.change(&billing(), |request| {
            request["spec"]["target"] = json!({"template": {
                "metadata": {"labels": {"team": "a"}}, "data": {"header": "Authorization: Bearer $(token)"}}});
        });
        scene.until_call("PATCH", "/status", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_annotation() {
    let about = "Another client changes an annotation of ours: the Secret is read and repaired with the token that it holds.";
    play(
        "changed_annotation",
        about,
        Before::ready().await,
        async |scene| {
            scene.change(&secret(), |secret| {
                secret["metadata"]["annotations"]["idtoken.dev/renewal-time"] = json!("2036-01-01T00:00:00Z");
            });
            scene.until_call("PATCH", "/status", 1).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_token() {
    let about = "Another client changes the token: the Secret is read, and a new token is issued.";
    play("changed_token", about, Before::ready().await, async |scene| {
        scene.change(&secret(), |secret| {
            secret["data"]["token"] = json!("bm90IGEgdG9rZW4=")
        });
        scene.until_call("PATCH", "/status", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_secret() {
    let about = "The target is a Secret that the operator did not write: it is read, and stays as it is.";
    let before = Before {
        secret: Some(foreign()),
        ..Before::default()
    };
    play("foreign_secret", about, before, async |scene| {
        scene.create(&billing(), request(json!({})));
        scene.until_call("POST", "/events", 1).await;
        let message = scene.message("Stalled");
        assert!(
            message.contains("kubectl annotate secret billing -n shop idtoken.dev/adopt=billing"),
            "{message}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_secret() {
    let about = "A foreign Secret is handed over by annotation: it is read again, and gets a token; what else it holds stays.";
    let before = Before {
        secret: Some(foreign()),
        ..Before::default()
    };
    play("adopted_secret", about, before, async |scene| {
        scene.issue_a_minute_ago();
        scene.create(&billing(), request(json!({})));
        scene.until_call("POST", "/events", 1).await;
        scene.change(&secret(), |secret| {
            secret["metadata"]["annotations"] = json!({"idtoken.dev/adopt": "billing"});
        });
        scene.until_call("POST", "/events", 2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict() {
    let about = "A renewal is requested, and another client changes the Secret just before the write: 409, a read, and a patch of what was \
                 read, with the same token.";
    play("conflict", about, Before::ready().await, async |scene| {
        let change = Override::After(Box::new(|objects| {
            objects.change(&secret(), |secret| {
                secret["metadata"]["labels"]["team"] = json!("a")
            });
        }));
        scene.server.script("PATCH", "/secrets/billing", change);
        scene.change(&billing(), |request| {
            request["metadata"]["annotations"] = json!({"idtoken.dev/renew": "now"});
        });
        scene.until_call("PATCH", "/status", 1).await;
    })
    .await;
}

/// Bytes of the cached Secrets, which grow when a watch shows another one.
const CACHED: &str = "idtoken_cache_bytes{kind=\"secrets\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_the_watch_shows_first() {
    let scene = Scene::start(&Before::default()).await;
    let before = scene.metric(CACHED).await;
    let (answer, hold) = oneshot::channel();
    scene
        .server
        .script("POST", "/secrets", Override::HoldAnswer(hold));
    scene.create(&billing(), request(json!({})));
    scene.until_other(CACHED, before).await;
    answer.send(()).expect("the Secret is being created");
    scene.until_call("POST", "/events", 1).await;
    scene.settle().await;
    // A marker is reconciled when it is created, and once more when its Secret is.
    let markers = scene
        .server
        .contents()
        .objects
        .names("idtokenrequests", MARKERS)
        .len();
    let expected = 1 + 2 * u64::try_from(markers).expect("few markers");
    let reconciles = "idtoken_reconcile_total{result=\"Reconciled\"}";
    let mut count = scene.metric(reconciles).await;
    while count < expected {
        count = scene.until_other(reconciles, count).await;
    }
    assert_eq!(count, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_before_the_answer_of_the_write() {
    let about = "Another client changes the new Secret before the answer to its creation arrives: the Secret is read and repaired.";
    play("changed_meanwhile", about, Before::default(), async |scene| {
        let before = scene.metric(CACHED).await;
        let (answer, hold) = oneshot::channel();
        scene
            .server
            .script("POST", "/secrets", Override::HoldAnswer(hold));
        scene.create(&billing(), request(json!({})));
        let created = scene.until_other(CACHED, before).await;
        scene.change(&secret(), |secret| {
            secret["metadata"]["annotations"]["idtoken.dev/render-hash"] = json!("theirs");
        });
        scene.until_other(CACHED, created).await;
        answer.send(()).expect("the Secret is being created");
        scene.until_call("PATCH", "/secrets", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails() {
    let about = "The API server fails when the Secret is written: the write is repeated with the same token.";
    play("failed_write", about, Before::default(), async |scene| {
        let answer = failure(500, "InternalError", "etcdserver: request timed out");
        scene.server.script("POST", "/secrets", Override::Reject(answer));
        scene.create(&billing(), request(json!({})));
        scene.until_call("POST", "/events", 1).await;
    })
    .await;
}

/// Makes `change` after the first write has failed and before it is repeated.
async fn while_the_write_fails(scene: &Scene, change: impl Fn(&Scene)) {
    let answer = failure(500, "InternalError", "etcdserver: request timed out");
    scene.server.script("POST", "/secrets", Override::Reject(answer));
    let (answer, hold) = oneshot::channel();
    scene
        .server
        .script("GET", "/secrets/billing", Override::Hold(hold));
    scene.create(&billing(), request(json!({})));
    scene.until_arrival("GET", "/secrets/billing").await;
    change(scene);
    scene.settle().await;
    answer.send(()).expect("the Secret is still being read");
    scene.until_call("PUT", "/status", 1).await;
}

/// Others are reconciled while the Secret is being read.
fn two_at_once() -> Before {
    Before {
        flags: &["--concurrency=2"],
        ..Before::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspended_while_the_write_fails() {
    let about = "The API server fails when the Secret is written, and the request is suspended before the write is repeated: it is not.";
    play("failed_write_suspended", about, two_at_once(), async |scene| {
        let suspend = |scene: &Scene| {
            scene.change(&billing(), |request| request["spec"]["suspend"] = json!(true));
        };
        while_the_write_fails(scene, suspend).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_while_the_write_fails() {
    let about = "The API server fails when the Secret is written, and the grant is deleted before the write is repeated: it is not.";
    play("failed_write_denied", about, two_at_once(), async |scene| {
        while_the_write_fails(scene, |scene| scene.delete(&grant())).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost() {
    let about = "The Secret is written and the answer cannot be decoded: it is read, and written with the same token.";
    play("lost_answer", about, Before::default(), async |scene| {
        scene.server.script("POST", "/secrets", Override::Garbled);
        scene.create(&billing(), request(json!({})));
        scene.until_call("POST", "/events", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_without_dry_run() {
    let about = "A webhook rejects the Secret, and does not support a dry run. When the spec changes, the token is issued: only the write \
                 itself shows what the webhook says.";
    play(
        "webhook_without_dry_run",
        about,
        Before::default(),
        async |scene| {
            for (code, reason, message) in [
                (
                    403,
                    "Forbidden",
                    "admission webhook \"w.example.com\" denied the request",
                ),
                (
                    400,
                    "BadRequest",
                    "admission webhook \"w.example.com\" does not support dry run",
                ),
            ] {
                scene.server.script(
                    "POST",
                    "/secrets",
                    Override::Reject(failure(code, reason, message)),
                );
            }
            scene.issue_a_minute_ago();
            scene.create(&billing(), request(json!({})));
            scene.until_call("POST", "/events", 1).await;
            let change = |request: &mut Value| request["spec"]["renewBefore"] = json!("20m");
            scene.change(&billing(), change);
            scene.until_condition("Ready", "True").await;
            scene.until_call("POST", "/events", 2).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_rejected() {
    let about = "A quota rejects the Secret. When the spec changes, the write is tried without an effect first, and no token is issued \
                 while it would be rejected.";
    play("rejected_write", about, Before::default(), async |scene| {
        for _ in 0..2 {
            let answer = failure(
                403,
                "Forbidden",
                "secrets \"billing\" is forbidden: exceeded quota: secrets",
            );
            scene.server.script("POST", "/secrets", Override::Reject(answer));
        }
        scene.issue_a_minute_ago();
        scene.create(&billing(), request(json!({})));
        scene.until_call("POST", "/events", 1).await;
        let change = |request: &mut Value| request["spec"]["renewBefore"] = json!("20m");
        scene.change(&billing(), change);
        scene.until_call("PATCH", "/status", 1).await;
        scene.change(&billing(), |request| {
            request["spec"]["renewBefore"] = json!("25m")
        });
        scene.until_condition("Ready", "True").await;
        scene.until_call("POST", "/events", 2).await;
    })
    .await;
}
