//! The first token, and the next ones.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use idtoken_emulator::Endpoint;
use idtoken_testenv::until;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;

use crate::common::{AUDIENCE, CALLER, LIMIT, Setup, World, condition, has, of, token};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_token_is_written_once_and_told() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let start = world.mark().await?;
    let request = world.issued("shop", "billing", json!({})).await?;

    let secret = world.secret("shop", "billing").await?;
    let claims = world.google.verify(&token(&secret))?;
    assert_eq!(claims["aud"], AUDIENCE);
    assert_eq!(claims["email"], CALLER);
    assert_eq!(claims["email_verified"], true);
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    assert_eq!(secret.data.as_ref().map(|data| data.len()), Some(1));
    let labels = secret.metadata.labels.clone().unwrap_or_default();
    assert_eq!(labels["app.kubernetes.io/managed-by"], "idtoken-operator");

    // What the garbage collector looks at: the kind, and a UID that is the request's.
    let owners = secret.metadata.owner_references.clone().unwrap_or_default();
    assert_eq!(owners.len(), 1);
    assert_eq!(Some(&owners[0].uid), request.metadata.uid.as_ref());
    assert_eq!(
        (
            owners[0].api_version.as_str(),
            owners[0].kind.as_str(),
            owners[0].name.as_str()
        ),
        ("idtoken.dev/v1alpha1", "IdTokenRequest", "billing")
    );
    assert_eq!(owners[0].controller, Some(true));
    assert_eq!(owners[0].block_owner_deletion, None);

    let status = request.status.clone().context("a status")?;
    assert_eq!(status.observed_generation, request.metadata.generation);
    let reported = status.token.context("status.token")?;
    let seconds = |time: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.map(|time| time.0.as_second())
    };
    assert_eq!(seconds(reported.issue_time.clone()), claims["iat"].as_i64());
    assert_eq!(seconds(reported.expiration_time.clone()), claims["exp"].as_i64());
    assert_eq!(reported.audience.as_deref(), Some(AUDIENCE));
    assert_eq!(reported.email.as_deref(), Some(CALLER));
    assert_eq!(reported.subject.as_deref(), claims["sub"].as_str());
    // Half of an hour, less a jitter of up to a tenth.
    let renewal = seconds(status.renewal_time).context("status.renewalTime")?;
    let age = renewal - claims["iat"].as_i64().unwrap_or_default();
    assert!((1440..=1800).contains(&age), "renewed after {age} s");
    let reported = status.secret.context("status.secret")?;
    assert_eq!(reported.name, "billing");
    assert_eq!(reported.resource_version, secret.metadata.resource_version);
    assert_eq!(status.source.as_deref(), Some("Impersonation"));
    assert_eq!(status.grant.map(|grant| grant.name).as_deref(), Some("shop"));
    assert!(has(&request, "Ready", "True", "Issued"));
    assert_eq!(status.conditions.len(), 1, "{:?}", status.conditions);
    // To write the status takes nothing of the spec from its author.
    let managed = request.metadata.managed_fields.clone().unwrap_or_default();
    let authors = managed.iter().filter(|entry| entry.subresource.is_none());
    let mut owned = authors.filter_map(|entry| entry.fields_v1.as_ref()?.0.get("f:spec")?.get("f:audience"));
    assert!(owned.next().is_some(), "{managed:?}");
    let message = condition(&request, "Ready").map(|ready| ready.message.clone());
    assert!(message.is_some_and(|message| message.contains("billing") && message.contains(AUDIENCE)));

    assert_eq!((world.google.mint_count(), world.asked()), (1, 1));
    let call = world
        .google
        .calls()
        .into_iter()
        .find(|call| call.endpoint == Endpoint::GenerateIdToken);
    let reason = call.and_then(|call| call.request_reason);
    assert_eq!(reason.as_deref(), Some("shop/billing"));
    world.mark().await?;
    let writes = world.writes_since(start)?;
    assert_eq!(of(&writes, "create", "secrets").len(), 1);
    assert_eq!(of(&writes, "update", "idtokenrequests/status").len(), 1);
    assert_eq!(writes.len(), 2, "{writes:#?}");

    let metrics = world.scrape().await?;
    assert!(
        metrics.contains(r#"idtoken_requests{namespace="shop",ready="True",reason="Issued"} 1"#),
        "{metrics}"
    );
    let events = world
        .cluster
        .kubectl(["get", "events", "-n", "shop", "-o", "jsonpath={.items[*].reason}"])
        .await?;
    assert_eq!(events, "Issued");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_part_of_the_spec_reaches_the_token_and_the_secret() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let spec = json!({
        "includeEmail": false,
        "includeOrganizationNumber": true,
        "renewBefore": "59m59s",
        "target": {
            "name": "billing-token",
            "key": "jwt",
            "creationPolicy": "Orphan",
            "template": {
                "type": "servicebinding.io/http",
                "metadata": {"labels": {"team": "a"}, "annotations": {"example.com/note": "b"}},
                "data": {"header": "Authorization: Bearer $(token)", "about": "$(audience) $(expirationTime) $$(token)"},
            },
        },
    });
    let request = world.issued("shop", "billing", spec).await?;
    let secret = world.secret("shop", "billing-token").await?;
    let read = |key| crate::common::text(&secret, key);
    let jwt = read("jwt");
    let claims = world.google.verify(&jwt)?;
    assert_eq!(claims.get("email"), None);
    assert!(claims["google"].get("organization_number").is_some(), "{claims}");
    assert_eq!(read("header"), format!("Authorization: Bearer {jwt}"));
    let expires = Timestamp::from_second(claims["exp"].as_i64().context("exp")?)?;
    assert_eq!(read("about"), format!("{AUDIENCE} {expires} $(token)"));
    assert_eq!(secret.data.as_ref().map(|data| data.len()), Some(3));
    assert_eq!(secret.type_.as_deref(), Some("servicebinding.io/http"));
    assert_eq!(secret.metadata.owner_references, None);
    assert_eq!(
        secret
            .metadata
            .labels
            .as_ref()
            .map(|labels| labels["team"].as_str()),
        Some("a")
    );
    let notes = secret.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(notes["example.com/note"], "b");
    // A fifth of the lifetime is left between renewals, and that is said.
    let message = condition(&request, "Ready")
        .map(|ready| ready.message.clone())
        .unwrap_or_default();
    assert!(message.contains("renewBefore"), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_renewed_in_time_with_two_writes_each() -> Result<()> {
    let world = World::with(Setup::lifetime(30)).await?;
    world.granted("shop").await?;
    let first = world.issued("shop", "billing", json!({})).await?;
    let start = world.mark().await?;

    // Everybody who watches the Secret sees this.
    let (seen, mut versions) = unbounded_channel();
    let config = watcher::Config::default().fields("metadata.name=billing");
    let stream = watcher(world.secrets("shop"), config)
        .default_backoff()
        .applied_objects();
    let watching = tokio::spawn(async move {
        let mut stream = stream.boxed();
        while let Ok(Some(secret)) = stream.try_next().await {
            let _ = seen.send((Timestamp::now(), secret));
        }
    });
    let mut tokens: Vec<(Timestamp, String)> = Vec::new();
    while tokens.len() < 3 {
        let next = tokio::time::timeout(LIMIT, versions.recv()).await;
        let (at, secret): (Timestamp, Secret) =
            next.context("no further renewal")?.context("the watch ended")?;
        let token = token(&secret);
        if tokens.last().is_none_or(|(_, last)| *last != token) {
            tokens.push((at, token));
        }
    }
    watching.abort();

    for pair in tokens.windows(2) {
        // verify() refuses expired tokens, so read the claims of the one that is over from its own text.
        let claims = claims_of(&pair[0].1)?;
        let expires = Timestamp::from_second(claims["exp"].as_i64().context("exp")?)?;
        assert!(
            pair[1].0 < expires,
            "replaced at {}, after its end {expires}",
            pair[1].0
        );
    }
    world.google.verify(&tokens[2].1)?;

    let due = first
        .status
        .as_ref()
        .and_then(|status| status.renewal_time.as_ref())
        .context("renewalTime")?
        .0;
    let mints: Vec<_> = world
        .google
        .calls()
        .into_iter()
        .filter(|call| call.endpoint == Endpoint::GenerateIdToken)
        .collect();
    let late = mints[1].time_unix_ms - due.as_millisecond();
    assert!(
        (0..10_000).contains(&late),
        "renewed {late} ms after status.renewalTime"
    );

    let last = claims_of(&tokens[2].1)?["exp"].as_i64();
    world
        .until("shop", "billing", "status tells of the third token", |object| {
            let token = object.status.as_ref().and_then(|status| status.token.clone());
            token
                .and_then(|token| token.expiration_time)
                .map(|time| time.0.as_second())
                == last
        })
        .await?;
    until("the last write is in the audit log", LIMIT, async || {
        let writes = world.writes_since(start)?;
        Ok((of(&writes, "patch", "idtokenrequests/status").len() >= 2).then_some(()))
    })
    .await?;
    let writes = world.writes_since(start)?;
    assert_eq!(of(&writes, "patch", "secrets").len(), 2, "{writes:#?}");
    assert_eq!(
        of(&writes, "patch", "idtokenrequests/status").len(),
        2,
        "{writes:#?}"
    );
    // How many requests the grant allows is written once, beside the renewals.
    let counts = of(&writes, "patch", "idtokengrants/status").len();
    assert_eq!(writes.len() - counts, 4, "{writes:#?}");
    assert!(counts <= 1, "{writes:#?}");
    assert_eq!(world.google.mint_count(), 3);
    // A renewal is no event: only the first issue was one.
    let events = world
        .cluster
        .kubectl(["get", "events", "-n", "shop", "-o", "jsonpath={.items[*].reason}"])
        .await?;
    assert_eq!(events, "Issued");
    Ok(())
}

fn claims_of(token: &str) -> Result<serde_json::Value> {
    use base64::Engine as _;
    let payload = token.split('.').nth(1).context("a JWT")?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_tokens_are_shared_and_renewed() -> Result<()> {
    let world = World::new().await?;
    world.google.set_access_token_lifetime(Duration::from_secs(3600));
    world.granted("shop").await?;
    for name in ["a", "b", "c"] {
        world.issued("shop", name, json!({})).await?;
    }
    assert_eq!(world.google.mint_count(), 3);
    assert_eq!(world.google.count(Endpoint::MetadataToken), 1);
    Ok(())
}
