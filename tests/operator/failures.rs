//! What happens when Google refuses, is away, or answers with the wrong token.

use anyhow::{Context, Result};
use idtoken_emulator::{Endpoint, Fault, RetryAfter, WrongToken};
use idtoken_testenv::until;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::common::{CALLER, GHOST, LIMIT, LOCKED, OPERATOR, Setup, World, condition, has, is_ready};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_a_former_identity_is_not_waited_for() -> Result<()> {
    let world = World::with(Setup {
        operator: false,
        ..Setup::default()
    })
    .await?;
    let mut policy = world.google.policy();
    policy.metadata_server.service_account = Some(LOCKED.to_owned());
    world.google.set_policy(policy)?;
    world.start_operator().await?;
    // Google asks for a wait that is longer than the test.
    let wait = Fault::status_retry_after(403, RetryAfter::Seconds(600));
    world.google.fault(wait.on(Endpoint::GenerateIdToken))?;
    world.granted("shop").await?;
    world.request("shop", "billing", json!({})).await?;
    world
        .until("shop", "billing", "it is refused", |object| {
            has(object, "Ready", "False", "PermissionDenied")
        })
        .await?;
    world.google.clear_faults();
    // The operator gets credentials of another account, as gcloud writes them.
    let folder = world.cluster.dir().join("home/.config/gcloud");
    std::fs::create_dir_all(&folder)?;
    let key = world.google.service_account_key(OPERATOR)?;
    std::fs::write(
        folder.join("application_default_credentials.json"),
        key.to_string(),
    )?;
    world
        .until("shop", "billing", "the new identity is used", is_ready)
        .await?;
    Ok(())
}

async fn impatient() -> Result<World> {
    World::with(Setup {
        flags: vec!["--google-timeout=2".into()],
        ..Setup::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_who_needs_what_and_how() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let bind = format!(
        "gcloud iam service-accounts add-iam-policy-binding {LOCKED} --member=serviceAccount:{OPERATOR} \
         --role=roles/iam.serviceAccountOpenIdTokenCreator --project=p"
    );
    let describe = format!("gcloud iam service-accounts describe {GHOST} --project=p");
    for (name, account, reason, parts) in [
        (
            "locked",
            LOCKED,
            "PermissionDenied",
            vec![LOCKED, OPERATOR, "iam.serviceAccounts.getOpenIdToken", &bind],
        ),
        ("ghost", GHOST, "ServiceAccountNotFound", vec![GHOST, &describe]),
    ] {
        world
            .request("shop", name, json!({"serviceAccount": account}))
            .await?;
        let object = world
            .until("shop", name, "it is refused", |object| {
                has(object, "Ready", "False", reason)
            })
            .await?;
        let message = condition(&object, "Ready")
            .map(|ready| ready.message.clone())
            .unwrap_or_default();
        for part in parts {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
        assert!(
            has(&object, "Reconciling", "True", "Retrying"),
            "a new binding takes minutes: it is tried again"
        );
        assert!(has(&object, "Stalled", "False", ""));
        assert!(world.secrets("shop").get_opt(name).await?.is_none());
    }
    // The binding is made: the retry finds it.
    let mut policy = world.google.policy();
    for account in &mut policy.service_accounts {
        if account.email == LOCKED {
            *account = account
                .clone()
                .impersonated_by(format!("serviceAccount:{OPERATOR}"));
        }
    }
    world.google.set_policy(policy)?;
    world.ready("shop", "locked").await?;
    let events = world
        .cluster
        .kubectl(["get", "events", "-n", "shop", "-o", "jsonpath={.items[*].reason}"])
        .await?;
    let mut events: Vec<&str> = events.split_whitespace().collect();
    events.sort_unstable();
    assert_eq!(
        events,
        ["PermissionDenied", "Recovered", "ServiceAccountNotFound"]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_valid_token_is_kept_while_google_is_away() -> Result<()> {
    let world = impatient().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    for (n, fault, reason) in [
        (1, Fault::status(503), "UpstreamUnavailable"),
        (2, Fault::hang(), "UpstreamTimeout"),
        (3, Fault::reset(), "UpstreamUnreachable"),
        (
            4,
            Fault::status_body(502, "<html>not what was expected</html>"),
            "UpstreamUnavailable",
        ),
    ] {
        let before = world.secret("shop", "billing").await?;
        let fault = fault.on(Endpoint::GenerateIdToken);
        world.google.fault(fault.clone())?;
        world.renew("shop", "billing", &format!("{n}")).await?;
        let what = format!("{fault:?} is reported");
        let object = world
            .until("shop", "billing", &what, |object| {
                has(object, "RenewalFailing", "True", reason)
            })
            .await?;
        assert!(is_ready(&object), "{:?}", object.status);
        assert!(has(&object, "Reconciling", "False", ""));
        assert_eq!(before, world.secret("shop", "billing").await?);
        world.google.clear_faults();
        // By itself, and soon.
        let object = world
            .until("shop", "billing", "it has recovered", |object| {
                has(object, "RenewalFailing", "False", "")
            })
            .await?;
        assert!(is_ready(&object));
        assert!(has(&object, "Reconciling", "False", ""));
        let (token, _) = world.claims("shop", "billing").await?;
        assert_ne!(token, crate::common::token(&before));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_ends_with_the_token() -> Result<()> {
    let world = World::with(Setup::lifetime(12)).await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let (_, claims) = world.claims("shop", "billing").await?;
    world
        .google
        .fault(Fault::status(503).on(Endpoint::GenerateIdToken))?;
    let object = world
        .until("shop", "billing", "it is not ready", |object| {
            has(object, "Ready", "False", "")
        })
        .await?;
    let reported = condition(&object, "Ready")
        .context("Ready")?
        .last_transition_time
        .0
        .as_second();
    let expires = claims["exp"].as_i64().context("exp")?;
    assert!(
        (expires..expires + 15).contains(&reported),
        "the token ended at {expires}, Ready at {reported}"
    );
    assert!(
        has(&object, "RenewalFailing", "True", "UpstreamUnavailable"),
        "{:?}",
        object.status
    );
    let expired = "idtoken_served_expired_seconds_total";
    let open = r#"idtoken_upstream_circuits_open{endpoint="iamcredentials",scope="namespace"}"#;
    world
        .wait("what is in use is reported as expired", async || {
            Ok(world.metric(expired).await? > 1.0 && world.metric(open).await? == 1.0)
        })
        .await?;
    let overdue = r#"idtoken_earliest_overdue_expiration_timestamp_seconds{namespace="shop"}"#;
    assert_eq!(world.metric(overdue).await?, expires as f64);
    world.google.clear_faults();
    world.ready("shop", "billing").await?;
    world.claims("shop", "billing").await?;
    let in_use = Timestamp::now().as_second() - expires;
    let counted = world.metric(expired).await?;
    assert!(
        (1.0..=in_use as f64 + 1.0).contains(&counted),
        "{counted} s of {in_use}"
    );
    assert_eq!(world.metric(open).await?, 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_expired_come_back_when_google_does_and_not_when_their_own_wait_ends() -> Result<()> {
    let world = World::with(Setup {
        flags: vec!["--log-format=json".into()],
        log: "info",
        ..Setup::lifetime(12)
    })
    .await?;
    world.granted("shop").await?;
    for name in ["billing", "orders"] {
        world.issued("shop", name, json!({})).await?;
    }
    world
        .google
        .fault(Fault::status(503).on(Endpoint::GenerateIdToken))?;
    let next = || world.next_attempt("billing");
    world
        .wait("a request without a valid token waits for long", async || {
            let long = SignedDuration::from_secs(40);
            Ok(next().is_some_and(|next| next.duration_since(Timestamp::now()) > long))
        })
        .await?;
    let next = next().context("the next attempt")?;
    let held = world.get("shop", "billing").await?;
    assert!(
        has(&held, "Ready", "False", "UpstreamUnavailable"),
        "{:?}",
        held.status
    );
    world.google.clear_faults();
    // An attempt of another request finds out.
    world.renew("shop", "orders", "1").await?;
    world.ready("shop", "billing").await?;
    let (_, claims) = world.claims("shop", "billing").await?;
    let issued = claims["iat"].as_i64().context("iat")?;
    assert!(
        issued < next.as_second(),
        "issued at {issued}, its own wait ended at {next}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_hang_take_no_more_of_a_token_than_a_quarter_of_what_is_left() -> Result<()> {
    // The time limit of a call is longer than what a token has left when it is renewed.
    let world = World::with(Setup::lifetime(60)).await?;
    world.granted("shop").await?;
    let names: Vec<String> = (0..5).map(|n| format!("r-{n}")).collect();
    for name in &names {
        world.issued("shop", name, json!({})).await?;
    }
    let expired = "idtoken_served_expired_seconds_total";
    assert_eq!(world.metric(expired).await?, 0.0);
    world.google.fault(Fault::hang().on(Endpoint::GenerateIdToken))?;
    for name in &names {
        let object = world
            .until("shop", name, "its renewal fails", |object| {
                has(object, "RenewalFailing", "True", "UpstreamTimeout")
            })
            .await?;
        assert!(is_ready(&object), "{:?}", object.status);
    }
    world.google.clear_faults();
    for name in &names {
        let object = world
            .until("shop", name, "it is renewed", |object| {
                has(object, "RenewalFailing", "False", "")
            })
            .await?;
        assert!(is_ready(&object), "{:?}", object.status);
    }
    assert_eq!(world.metric(expired).await?, 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_is_obeyed() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    for (name, retry_after) in [
        ("seconds", RetryAfter::Seconds(5)),
        ("date", RetryAfter::DateIn(6)),
    ] {
        world.google.reset_counts();
        world.google.fault(
            Fault::status_retry_after(429, retry_after)
                .on(Endpoint::GenerateIdToken)
                .times(1),
        )?;
        world.request("shop", name, json!({})).await?;
        world
            .until("shop", name, "it is reported", |object| {
                has(object, "Ready", "False", "QuotaExceeded")
            })
            .await?;
        // Another request does not get round it either.
        world.request("shop", &format!("{name}-2"), json!({})).await?;
        world.ready("shop", name).await?;
        world.ready("shop", &format!("{name}-2")).await?;
        let calls: Vec<_> = world
            .google
            .calls()
            .into_iter()
            .filter(|call| call.endpoint == Endpoint::GenerateIdToken)
            .collect();
        let statuses: Vec<_> = calls.iter().map(|call| call.status).collect();
        assert_eq!(statuses, [Some(429), Some(200), Some(200)]);
        let waited = calls[1].time_unix_ms - calls[0].time_unix_ms;
        assert!((5000..15_000).contains(&waited), "waited {waited} ms");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_was_created_again_is_accepted_by_its_id_and_once() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let first = world.unique_id(CALLER);
    let recreate = |id: &str| {
        let mut policy = world.google.policy();
        let mut accounts = policy.service_accounts.iter_mut();
        let account = accounts.find(|account| account.email == CALLER);
        account.context("the account")?.unique_id = Some(id.to_owned());
        world.google.set_policy(policy)
    };
    let refused = async |value: &str| {
        world.renew("shop", "billing", value).await?;
        let object = world
            .until("shop", "billing", "it is refused", |object| {
                has(object, "RenewalFailing", "True", "TokenSubjectChanged")
            })
            .await?;
        let failing = condition(&object, "RenewalFailing").context("a condition")?;
        anyhow::Ok((object.clone(), failing.message.clone()))
    };
    let before = world.secret("shop", "billing").await?;
    let second = "200000000000000000002";
    recreate(second)?;
    let (object, message) = refused("1").await?;
    assert!(has(&object, "Ready", "True", "Issued"), "the token is valid");
    assert_eq!(world.secret("shop", "billing").await?, before, "it stays");
    for part in [second, first.as_str()] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // The command of the message, as it is printed.
    let (_, command) = message.split_once("kubectl ").context("a command")?;
    world.cluster.kubectl(command.split(' ')).await?;
    let object = world
        .until("shop", "billing", "it is accepted", |object| {
            has(object, "RenewalFailing", "False", "Renewed")
        })
        .await?;
    let token = object.status.and_then(|status| status.token).context("a token")?;
    assert_eq!(token.subject.as_deref(), Some(second));
    assert_eq!(token.accepted_subject.as_deref(), Some(second));
    let after = world.secret("shop", "billing").await?;
    assert_eq!(
        after.metadata.uid, before.metadata.uid,
        "consumers keep their Secret"
    );
    assert_ne!(after.data, before.data);

    // The annotation is still there, and accepts no third account.
    recreate("300000000000000000003")?;
    let (_, message) = refused("2").await?;
    assert!(
        message.contains("accept-subject=300000000000000000003"),
        "{message}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_tokens_are_never_written() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "held", json!({})).await?;
    world
        .issued(
            "shop",
            "by-id",
            json!({"serviceAccount": world.unique_id(CALLER)}),
        )
        .await?;
    for (name, wrong, reason) in [
        ("audience", WrongToken::Audience, "TokenWrongAudience"),
        ("list", WrongToken::AudienceList, "UnexpectedResponse"),
        ("account", WrongToken::Account, "TokenWrongAccount"),
        ("expired", WrongToken::Expired, "TokenExpired"),
        ("endless", WrongToken::NoExpiry, "UnexpectedResponse"),
        ("issuer", WrongToken::Issuer, "TokenWrongIssuer"),
        ("garbage", WrongToken::Garbage, "UnexpectedResponse"),
        ("truncated", WrongToken::Truncated, "UnexpectedResponse"),
    ] {
        let before = world.secret("shop", "held").await?;
        let by_id = world.secret("shop", "by-id").await?;
        world
            .google
            .fault(Fault::token(wrong).on(Endpoint::GenerateIdToken))?;
        world.request("shop", name, json!({})).await?;
        world.renew("shop", "held", name).await?;
        world.renew("shop", "by-id", name).await?;
        let object = world
            .until("shop", name, "it is reported", |object| {
                has(object, "Ready", "False", reason)
            })
            .await?;
        let status = object.status.clone().context("a status")?;
        assert!(status.token.is_none() && status.secret.is_none(), "{status:?}");
        for held in ["held", "by-id"] {
            let object = world
                .until("shop", held, &format!("{wrong:?} is reported"), |object| {
                    has(object, "RenewalFailing", "True", reason)
                })
                .await?;
            assert!(is_ready(&object));
        }
        assert!(
            world.secrets("shop").get_opt(name).await?.is_none(),
            "{wrong:?} was written"
        );
        assert_eq!(before, world.secret("shop", "held").await?, "{wrong:?}");
        assert_eq!(by_id, world.secret("shop", "by-id").await?, "{wrong:?}");
        world.google.clear_faults();
        for name in [name, "held", "by-id"] {
            world.renew("shop", name, &format!("after {wrong:?}")).await?;
            let well = |object: &_| is_ready(object) && has(object, "RenewalFailing", "False", "");
            world.until("shop", name, "it is well again", well).await?;
        }
        world.claims("shop", "held").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_ca_file_needs_no_restart() -> Result<()> {
    let options = idtoken_emulator::Options::with_proxy();
    let other = idtoken_emulator::EmulatorHandle::start(idtoken_emulator::Policy::default(), options).await?;
    let pem = other.proxy_ca_pem().context("no CA")?.to_owned();
    let path = std::env::temp_dir().join(format!("idtoken-operator-ca-{}.pem", std::process::id()));
    std::fs::write(&path, &pem)?;
    let world = World::with(Setup {
        flags: vec![format!("--ca-file={}", path.display())],
        ..Setup::default()
    })
    .await?;
    let logs = async |what: &str| {
        until(what, LIMIT, async || {
            Ok(world.operator_log().contains(what).then_some(()))
        })
        .await
    };
    std::fs::write(&path, "none")?;
    logs("keeping the previous certificates").await?;
    std::fs::write(&path, [pem.as_str(), &pem].concat())?;
    logs("CA file reloaded").await?;
    std::fs::remove_file(&path)?;
    Ok(())
}
