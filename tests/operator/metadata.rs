//! The source `metadataServer`: tokens of the identity that is attached to the operator.

use std::time::Duration;

use anyhow::{Context, Result};
use idtoken_emulator::{Endpoint, Fault, WrongToken};
use jiff::Timestamp;
use serde_json::json;

use crate::common::{AUDIENCE, CALLER, OPERATOR, Setup, World, condition, has, is_ready, of, token};

async fn granted(setup: Setup) -> Result<World> {
    let world = World::with(setup).await?;
    world.namespace("shop").await?;
    world
        .grant_source("shop", "*@p.iam.gserviceaccount.com", "MetadataServer")
        .await?;
    Ok(world)
}

fn attached() -> serde_json::Value {
    json!({"serviceAccount": null, "source": {"metadataServer": {}}})
}

fn message(object: &idtoken_operator::api::v1alpha1::IdTokenRequest) -> String {
    condition(object, "Ready").map_or_else(String::new, |ready| ready.message.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_attached_identity_is_issued_as_asked() -> Result<()> {
    let world = granted(Setup::default()).await?;
    let request = world.issued("shop", "any", attached()).await?;
    let (_, claims) = world.claims("shop", "any").await?;
    assert_eq!(
        (&claims["aud"], &claims["email"]),
        (&json!(AUDIENCE), &json!(OPERATOR))
    );
    assert_eq!(claims["google"]["compute_engine"].get("license_id"), None);
    let status = request.status.context("a status")?;
    assert_eq!(status.source.as_deref(), Some("MetadataServer"));
    assert_eq!(
        status.token.and_then(|token| token.email).as_deref(),
        Some(OPERATOR)
    );
    assert_eq!(status.grant.map(|grant| grant.name).as_deref(), Some("shop"));

    let spec = json!({"serviceAccount": OPERATOR, "source": {"metadataServer": {"licenses": true}}});
    world.issued("shop", "named", spec).await?;
    let (_, claims) = world.claims("shop", "named").await?;
    assert!(
        claims["google"]["compute_engine"].get("license_id").is_some(),
        "{claims}"
    );

    let spec = json!({"serviceAccount": null, "includeEmail": false, "source": {"metadataServer": {}}});
    world.issued("shop", "bare", spec).await?;
    let (_, claims) = world.claims("shop", "bare").await?;
    assert_eq!((claims.get("email"), claims.get("google")), (None, None));

    // A restart asks for nothing.
    let asked = world.google.count(Endpoint::MetadataIdentity);
    world.stop_operator(false).await?;
    world.start_operator().await?;
    world.issued("shop", "after", attached()).await?;
    assert_eq!(world.google.count(Endpoint::MetadataIdentity), asked + 1);
    assert_eq!(world.asked(), 0, "generateIdToken was called");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_not_attached_or_not_granted_is_refused_before_a_token_is_made() -> Result<()> {
    let world = granted(Setup::default()).await?;
    let spec = json!({"serviceAccount": CALLER, "source": {"metadataServer": {}}});
    world.request("shop", "other", spec).await?;
    let object = world
        .until("shop", "other", "it is refused", |object| {
            has(object, "Ready", "False", "AccountMismatch")
        })
        .await?;
    let text = message(&object);
    assert!(text.contains(OPERATOR) && text.contains(CALLER), "{text}");

    world.namespace("bank").await?;
    world.request("bank", "ungranted", attached()).await?;
    world
        .until("bank", "ungranted", "it is denied", |object| {
            has(object, "Ready", "False", "NotGranted")
        })
        .await?;
    // A grant of another source is none, and one of another account neither, once the server has named it.
    world.grant_source("bank", CALLER, "Impersonation").await?;
    world.namespace("mill").await?;
    world.grant_source("mill", CALLER, "MetadataServer").await?;
    world.request("mill", "another", attached()).await?;
    let object = world
        .until("mill", "another", "it is denied", |object| {
            has(object, "Ready", "False", "NotGranted") && message(object).contains(OPERATOR)
        })
        .await?;
    assert!(!is_ready(&object));
    assert!(has(
        &world.get("bank", "ungranted").await?,
        "Ready",
        "False",
        "NotGranted"
    ));
    assert_eq!(world.google.count(Endpoint::MetadataIdentity), 0);
    assert_eq!(world.google.mint_count(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_of_the_server_is_told_and_ends() -> Result<()> {
    let world = granted(Setup {
        flags: vec!["--google-timeout=2".into()],
        ..Setup::default()
    })
    .await?;
    world.issued("shop", "held", attached()).await?;
    let forbidden = "Unable to generate identity token; IAM returned 403 Forbidden: Permission denied";
    for (name, fault, reason, part) in [
        ("down", Fault::status(503), "UpstreamUnavailable", "maintenance"),
        ("busy", Fault::status(429), "QuotaExceeded", "limits"),
        ("gone", Fault::reset(), "UpstreamUnreachable", "169.254.169.254"),
        ("slow", Fault::hang(), "UpstreamTimeout", "169.254.169.254"),
        (
            "denied",
            Fault::status_body(500, forbidden),
            "PermissionDenied",
            "roles/iam.workloadIdentityUser",
        ),
    ] {
        let before = world.secret("shop", "held").await?;
        world.google.fault(fault.on(Endpoint::MetadataIdentity))?;
        world.request("shop", name, attached()).await?;
        world.renew("shop", "held", name).await?;
        let object = world
            .until("shop", name, "it is reported", |object| {
                has(object, "Ready", "False", reason)
            })
            .await?;
        assert!(message(&object).contains(part), "{}", message(&object));
        let held = world
            .until("shop", "held", "the renewal's failure is reported", |object| {
                has(object, "RenewalFailing", "True", reason)
            })
            .await?;
        assert!(is_ready(&held));
        assert_eq!(before, world.secret("shop", "held").await?);
        world.google.clear_faults();
        world.google.clear_caches();
        for name in [name, "held"] {
            world.renew("shop", name, &format!("after {reason}")).await?;
            world
                .until("shop", name, "it is well again", |object| {
                    is_ready(object) && has(object, "RenewalFailing", "False", "")
                })
                .await?;
        }
    }

    let mut policy = world.google.policy();
    policy.metadata_server.unannotated_kubernetes_service_account = Some("idtoken-system/op".to_owned());
    world.google.set_policy(policy)?;
    world
        .request(
            "shop",
            "unannotated",
            json!({"serviceAccount": OPERATOR, "source": {"metadataServer": {}}}),
        )
        .await?;
    let object = world
        .until("shop", "unannotated", "it is reported", |object| {
            has(object, "Ready", "False", "IdentityNotAttached")
        })
        .await?;
    let text = message(&object);
    for part in [
        "Your Kubernetes service account (idtoken-system/op) is not annotated",
        &format!(
            "kubectl annotate serviceaccount op -n idtoken-system iam.gke.io/gcp-service-account={OPERATOR}"
        ),
        "roles/iam.workloadIdentityUser",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_google_signed_is_written() -> Result<()> {
    let world = granted(Setup::default()).await?;
    let keys = || Fault::status(503).on(Endpoint::Certs);
    world.google.fault(keys())?;
    world.request("shop", "billing", attached()).await?;
    let object = world
        .until("shop", "billing", "it is reported", |object| {
            has(object, "Ready", "False", "SigningKeysUnavailable")
        })
        .await?;
    for part in [
        "503",
        "nothing is written",
        "--google-keys-url",
        "/oauth2/v3/certs",
    ] {
        let text = message(&object);
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(world.google.count(Endpoint::MetadataIdentity) > 0);
    assert!(
        world.secret("shop", "billing").await.is_err(),
        "a Secret was written"
    );

    world.google.clear_faults();
    world
        .until("shop", "billing", "the keys are there again", |object| {
            is_ready(object)
        })
        .await?;
    let before = world.secret("shop", "billing").await?;
    world.google.verify(&token(&before))?;

    // Whoever answers as the metadata server has no key of Google's.
    for (wrong, reason) in [
        (WrongToken::Unsigned, "UnexpectedResponse"),
        (WrongToken::ForeignKey, "TokenSignatureInvalid"),
        (WrongToken::Signature, "TokenSignatureInvalid"),
    ] {
        let fault = Fault::token(wrong).on(Endpoint::MetadataIdentity);
        world.google.fault(fault)?;
        world.renew("shop", "billing", &format!("{wrong:?}")).await?;
        let object = world
            .until("shop", "billing", "the forgery is reported", |object| {
                has(object, "RenewalFailing", "True", reason)
            })
            .await?;
        assert!(is_ready(&object), "the former token is valid");
        assert_eq!(before, world.secret("shop", "billing").await?, "{wrong:?}");
        let name = format!("first-{wrong:?}").to_lowercase();
        world.request("shop", &name, attached()).await?;
        world
            .until("shop", &name, "the forgery is reported", |object| {
                has(object, "Ready", "False", reason)
            })
            .await?;
        assert!(
            world.secret("shop", &name).await.is_err(),
            "{wrong:?} was written"
        );
        world.google.clear_faults();
        world
            .renew("shop", "billing", &format!("after {wrong:?}"))
            .await?;
        world
            .until("shop", "billing", "it is well again", |object| {
                has(object, "RenewalFailing", "False", "")
            })
            .await?;
    }

    // A new process has no keys yet. Without them the former token stays.
    world.stop_operator(false).await?;
    world.google.fault(keys())?;
    world.google.clear_caches();
    world.start_operator().await?;
    let before = world.secret("shop", "billing").await?;
    world.renew("shop", "billing", "without keys").await?;
    let object = world
        .until("shop", "billing", "the renewal's failure is reported", |object| {
            has(object, "RenewalFailing", "True", "SigningKeysUnavailable")
        })
        .await?;
    assert!(is_ready(&object));
    assert_eq!(before, world.secret("shop", "billing").await?);
    world.google.clear_faults();
    let old = token(&before);
    world
        .wait("a new token comes", async || {
            Ok(token(&world.secret("shop", "billing").await?) != old)
        })
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_token_is_no_renewal() -> Result<()> {
    let world = granted(Setup::lifetime(30)).await?;
    // As Google's server does with an hour and 5 minutes.
    world.google.set_metadata_margin(Duration::from_secs(8));
    let first = world.issued("shop", "billing", attached()).await?;
    let before = world.secret("shop", "billing").await?;
    let planned = first
        .status
        .and_then(|status| status.renewal_time)
        .context("renewalTime")?
        .0;
    let start = world.mark().await?;

    let object = world
        .until("shop", "billing", "the next attempt is planned", |object| {
            let status = object.status.as_ref();
            let next = status.and_then(|status| status.renewal_time.as_ref());
            next.is_some_and(|next| next.0 > planned)
        })
        .await?;
    assert!(is_ready(&object) && has(&object, "RenewalFailing", "False", ""));
    assert!(message(&object).contains("same token"), "{}", message(&object));
    assert_eq!(world.google.mint_count(), 1);
    assert!(world.google.count(Endpoint::MetadataIdentity) >= 2);
    assert_eq!(
        world.secret("shop", "billing").await?,
        before,
        "the Secret was written"
    );
    // Asked for by annotation, it is the same: honoured once, and no renewal.
    world.renewed("shop", "billing", "now").await?;
    assert_eq!(world.google.mint_count(), 1);

    let old = token(&before);
    world
        .wait("a new token comes", async || {
            Ok(token(&world.secret("shop", "billing").await?) != old)
        })
        .await?;
    let (_, claims) = world.claims("shop", "billing").await?;
    let ended = object
        .status
        .and_then(|status| status.token)
        .and_then(|token| token.expiration_time)
        .context("expirationTime")?
        .0;
    assert!(Timestamp::now() < ended, "the old token ended first");
    assert!(claims["exp"].as_i64() > Some(ended.as_second()));
    world
        .until("shop", "billing", "the renewal is reported", |object| {
            !message(object).contains("same token") && is_ready(object)
        })
        .await?;
    world.mark().await?;
    let writes = world.writes_since(start)?;
    assert_eq!(of(&writes, "patch", "secrets").len(), 1, "{writes:#?}");
    let unchanged = world
        .metric("idtoken_mint_total{source=\"MetadataServer\",result=\"Unchanged\"}")
        .await?;
    assert!(unchanged >= 2.0, "{}", world.scrape().await?);
    let log = world.operator_log();
    for token in [old, token(&world.secret("shop", "billing").await?)] {
        let signature = token.rsplit('.').next().unwrap_or_default();
        assert!(!log.contains(signature), "the log holds a token");
    }
    assert!(log.contains("TRACE"));
    Ok(())
}
