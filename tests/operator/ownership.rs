//! Whose Secret it is: handed over, taken while Google answers, of another type, of another owner.

use std::time::Duration;

use anyhow::{Context, Result};
use idtoken_emulator::{Endpoint, Fault};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::common::{Setup, World, condition, has, is_ready, of, text, token};

fn foreign(name: &str) -> Result<Secret> {
    let object = json!({"metadata": {"name": name}, "stringData": {"token": "theirs"}});
    Ok(serde_json::from_value(object)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_in_the_way_is_watched() -> Result<()> {
    let world = World::with(Setup {
        flags: vec!["--log-format=json".into()],
        log: "info",
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    for name in ["handed", "freed", "left"] {
        world
            .secrets("shop")
            .create(&PostParams::default(), &foreign(name)?)
            .await?;
        world.request("shop", name, json!({})).await?;
    }
    let conflict = |object: &_| has(object, "Stalled", "True", "SecretConflict");
    for name in ["handed", "freed", "left"] {
        world
            .until("shop", name, "the conflict is reported", conflict)
            .await?;
    }
    let next = || Some([world.next_attempt("handed")?, world.next_attempt("freed")?]);
    world
        .wait("both are reconciled again only after a long wait", async || {
            let long = Timestamp::now() + SignedDuration::from_secs(12);
            Ok(next().is_some_and(|next| next.iter().all(|next| *next > long)))
        })
        .await?;
    let next = next().context("the next attempts")?;
    world
        .meddle(
            "shop",
            "handed",
            json!({"metadata": {"annotations": {"idtoken.dev/adopt": "handed"}}}),
        )
        .await?;
    world
        .secrets("shop")
        .delete("freed", &DeleteParams::default())
        .await?;
    for (name, next) in ["handed", "freed"].into_iter().zip(next) {
        world.ready("shop", name).await?;
        let (_, claims) = world.claims("shop", name).await?;
        let issued = claims["iat"].as_i64().context("iat")?;
        assert!(
            issued < next.as_second(),
            "{name} was issued at {issued}, its own wait ended at {next}"
        );
    }
    assert_eq!(text(&world.secret("shop", "left").await?, "token"), "theirs");
    // Each in the way costs a mint at first, when nobody could know of it.
    assert!(world.asked() <= 5, "{} calls", world.asked());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_while_google_answers_is_respected() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let slow = Fault::delay(Duration::from_secs(3)).on(Endpoint::GenerateIdToken);
    world.google.fault(slow.times(3))?;
    for name in ["taken", "deleted", "left"] {
        world.request("shop", name, json!({})).await?;
    }
    world
        .wait("Google was asked for all", async || Ok(world.asked() == 3))
        .await?;
    let theirs = world
        .secrets("shop")
        .create(&PostParams::default(), &foreign("taken")?)
        .await?;
    world
        .requests("shop")
        .delete("deleted", &DeleteParams::default())
        .await?;
    let object = world
        .until("shop", "taken", "the conflict is reported", |object| {
            has(object, "Stalled", "True", "SecretConflict")
        })
        .await?;
    assert!(!is_ready(&object));
    assert_eq!(theirs, world.secret("shop", "taken").await?);
    // Made after the others have been answered.
    world.issued("shop", "probe", json!({})).await?;
    assert!(world.secrets("shop").get_opt("deleted").await?.is_none());
    world.ready("shop", "left").await?;
    let metrics = world.scrape().await?;
    assert!(!metrics.contains("panicked"), "{metrics}");
    Ok(())
}

/// Somebody who may write Secrets puts our marks on those of others, and a request asks for each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_that_are_forged_make_no_secret_ours() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let label = json!({"app.kubernetes.io/managed-by": "idtoken-operator"});
    let certificate = json!([{
        "apiVersion": "cert-manager.io/v1", "kind": "Certificate", "name": "theirs",
        "uid": "7f3a5b1e-0000-4000-8000-000000000001", "controller": true,
    }]);
    let uid = async |name: &str| {
        let object = world.issued("shop", name, json!({})).await?;
        object.metadata.uid.context("a UID")
    };
    // The UID alone, the UID and the name, all marks on the Secret of another controller, and all marks on a Secret of another type: what
    // a type differs from cannot be changed, and must not be deleted.
    let (alone, unlabelled, controlled, typed) = (
        uid("alone").await?,
        uid("unlabelled").await?,
        uid("controlled").await?,
        uid("typed").await?,
    );
    let marks = |name: &str, uid: &str| json!({"idtoken.dev/request": name, "idtoken.dev/request-uid": uid});
    let http = json!({"type": "servicebinding.io/http"});
    let cases = [
        (
            "alone",
            "Opaque",
            json!({"annotations": {"idtoken.dev/request-uid": alone}}),
            json!({}),
        ),
        (
            "unlabelled",
            "Opaque",
            json!({"annotations": marks("unlabelled", &unlabelled)}),
            http.clone(),
        ),
        (
            "controlled",
            "kubernetes.io/tls",
            json!({"labels": label, "annotations": marks("controlled", &controlled), "ownerReferences": certificate}),
            http.clone(),
        ),
        (
            "typed",
            "Opaque",
            json!({"labels": label, "annotations": marks("typed", &typed)}),
            http,
        ),
    ];
    let mut before = Vec::new();
    for (name, type_, mut metadata, template) in cases {
        metadata["name"] = json!(format!("theirs-{name}"));
        let data = json!({"tls.crt": "theirs", "tls.key": "theirs", "token": "theirs"});
        let object =
            serde_json::from_value(json!({"metadata": metadata, "type": type_, "stringData": data}))?;
        before.push(
            world
                .secrets("shop")
                .create(&PostParams::default(), &object)
                .await?,
        );
        let target = json!({"name": format!("theirs-{name}"), "template": template});
        world
            .change("shop", name, json!({"spec": {"target": target}}))
            .await?;
    }
    for name in ["alone", "unlabelled", "controlled", "typed"] {
        let object = world
            .until("shop", name, "the conflict is reported", |object| {
                has(object, "Stalled", "True", "SecretConflict")
            })
            .await?;
        assert!(!is_ready(&object), "{name}");
    }
    // Nor when the operator restarts, or deletes the Secret of a former name.
    world.stop_operator(true).await?;
    world.start_operator().await?;
    for name in ["alone", "unlabelled", "controlled", "typed"] {
        let target = json!({"name": format!("moved-{name}"), "template": null});
        world
            .change("shop", name, json!({"spec": {"target": target}}))
            .await?;
        world.ready("shop", name).await?;
    }
    world
        .wait("the Secrets of the first names are gone", async || {
            Ok(world.secrets("shop").get_opt("alone").await?.is_none()
                && world.secrets("shop").get_opt("typed").await?.is_none())
        })
        .await?;
    for secret in before {
        let name = secret.metadata.name.clone().context("a name")?;
        assert_eq!(secret, world.secret("shop", &name).await?, "{name} was touched");
    }
    Ok(())
}

/// Another client takes the marks of a Secret away, and the watch loses sight of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_without_its_marks_is_put_right() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let first = world.secret("shop", "billing").await?;
    // As far as the admission policy of the operator's own writes lets it.
    let label = json!({"labels": {"app.kubernetes.io/managed-by": null}});
    let name = json!({
        "labels": {"app.kubernetes.io/managed-by": null}, "annotations": {"idtoken.dev/request": null},
    });
    let uid = json!({"annotations": {"idtoken.dev/request-uid": null}});
    for metadata in [label, name, uid] {
        world
            .meddle("shop", "billing", json!({"metadata": metadata}))
            .await?;
        world
            .wait("the marks are back", async || {
                let secret = world.secret("shop", "billing").await?;
                Ok(secret.metadata.labels == first.metadata.labels
                    && secret.metadata.annotations == first.metadata.annotations)
            })
            .await?;
        world.ready("shop", "billing").await?;
    }
    assert_eq!(
        world.secret("shop", "billing").await?.metadata.uid,
        first.metadata.uid
    );
    assert_eq!(token(&world.secret("shop", "billing").await?), token(&first));
    assert_eq!(world.google.mint_count(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_type_or_policy_costs_no_mint() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let first = world.secret("shop", "billing").await?;
    let start = world.mark().await?;

    // Kubernetes lets no type change: another Secret takes the place, with the same token.
    let patch = json!({"spec": {"target": {"template": {"type": "servicebinding.io/http"}}}});
    world.change("shop", "billing", patch).await?;
    world.ready("shop", "billing").await?;
    let second = world.secret("shop", "billing").await?;
    assert_eq!(second.type_.as_deref(), Some("servicebinding.io/http"));
    assert_ne!(second.metadata.uid, first.metadata.uid);
    assert_eq!(token(&second), token(&first));
    assert!(second.metadata.owner_references.is_some());

    for (policy, owned) in [("Orphan", false), ("Owner", true)] {
        let patch = json!({"spec": {"target": {"creationPolicy": policy}}});
        world.change("shop", "billing", patch).await?;
        world.ready("shop", "billing").await?;
        let secret = world.secret("shop", "billing").await?;
        let owners = secret.metadata.owner_references.clone().unwrap_or_default();
        assert_eq!(owners.len(), usize::from(owned), "{policy}");
        assert_eq!(secret.metadata.uid, second.metadata.uid, "{policy}");
        assert_eq!(token(&secret), token(&first), "{policy}");
    }
    assert_eq!(world.google.mint_count(), 1);
    world.mark().await?;
    let writes = world.writes_since(start)?;
    assert_eq!(of(&writes, "delete", "secrets").len(), 1, "{writes:#?}");
    assert_eq!(of(&writes, "create", "secrets").len(), 1, "{writes:#?}");
    assert_eq!(of(&writes, "patch", "secrets").len(), 2, "{writes:#?}");

    // An adopted one is not deleted for its type, which is reported before Google is asked.
    world
        .secrets("shop")
        .create(&PostParams::default(), &foreign("theirs")?)
        .await?;
    world
        .meddle(
            "shop",
            "theirs",
            json!({"metadata": {"annotations": {"idtoken.dev/adopt": "theirs"}}}),
        )
        .await?;
    let theirs = world.secret("shop", "theirs").await?;
    let spec = json!({"target": {"template": {"type": "servicebinding.io/http"}}});
    world.request("shop", "theirs", spec).await?;
    let object = world
        .until("shop", "theirs", "the conflict is reported", |object| {
            has(object, "Stalled", "True", "SecretConflict")
        })
        .await?;
    let message = condition(&object, "Ready").context("Ready")?.message.clone();
    assert!(message.contains("spec.target.template.type"), "{message}");
    assert_eq!(theirs, world.secret("shop", "theirs").await?);
    world
        .change(
            "shop",
            "theirs",
            json!({"spec": {"target": {"template": {"type": "Opaque"}}}}),
        )
        .await?;
    world.ready("shop", "theirs").await?;
    world.claims("shop", "theirs").await?;
    assert_eq!(
        world.secret("shop", "theirs").await?.metadata.uid,
        theirs.metadata.uid
    );
    Ok(())
}
