//! The source `developer`: generic tokens of a developer's gcloud credentials.

use std::path::PathBuf;

use anyhow::{Context, Result};
use idtoken_emulator::{Endpoint, Fault, OauthClient, RefreshToken, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::common::{Setup, World, condition, has, is_ready, token};

const CLIENT: &str = "764086051850-test.apps.googleusercontent.com";
const CLIENT_SECRET: &str = "d-FL95Q19q7MQmFpd7hHD0Ty";
const REFRESH_TOKEN: &str = "1//0dx-refresh-token-of-the-developer-0123456789";
const USER: &str = "dev@example.com";

/// A credential file that goes with the test.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A world with a developer's credentials.
async fn world(name: &str, flags: &[&str]) -> Result<(World, File)> {
    let file = File(std::env::temp_dir().join(format!("idtoken-{name}-{}.json", std::process::id())));
    let mut flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    flags.push(format!("--credentials-file={}", file.0.display()));
    let world = World::with(Setup {
        operator: false,
        flags,
        ..Setup::default()
    })
    .await?;
    let mut policy = world.google.policy();
    policy.oauth_clients.push(OauthClient {
        client_id: CLIENT.to_owned(),
        client_secret: Secret(CLIENT_SECRET.to_owned()),
        refresh_tokens: vec![RefreshToken {
            token: Secret(REFRESH_TOKEN.to_owned()),
            user: USER.to_owned(),
            revoked: false,
        }],
    });
    world.google.set_policy(policy)?;
    let credentials = json!({
        "type": "authorized_user", "account": "", "client_id": CLIENT, "client_secret": CLIENT_SECRET,
        "refresh_token": REFRESH_TOKEN, "token_uri": format!("{}/token", world.google.url()),
    });
    std::fs::write(&file.0, credentials.to_string())?;
    world.start_operator().await?;
    world.namespace("shop").await?;
    world.grant_source("shop", USER, "Developer").await?;
    Ok((world, file))
}

fn developer() -> serde_json::Value {
    json!({"serviceAccount": null, "source": {"developer": {}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_off_by_default() -> Result<()> {
    let (world, _file) = world("developer-off", &[]).await?;
    world.request("shop", "dev", developer()).await?;
    let object = world
        .until("shop", "dev", "it is refused", |object| {
            has(object, "Stalled", "True", "SourceUnavailable")
        })
        .await?;
    let message = condition(&object, "Ready").map(|ready| ready.message.clone());
    assert!(message.is_some_and(|message| message.contains("--allow-developer-source")));
    assert_eq!(world.google.calls(), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_shows_the_audience_that_it_has() -> Result<()> {
    let (world, _file) = world("developer-on", &["--allow-developer-source"]).await?;
    let request = world.issued("shop", "dev", developer()).await?;
    let (_, claims) = world.claims("shop", "dev").await?;
    assert_eq!((&claims["aud"], &claims["email"]), (&json!(CLIENT), &json!(USER)));
    let status = request.status.clone().context("a status")?;
    assert_eq!(
        status.token.and_then(|token| token.audience).as_deref(),
        Some(CLIENT)
    );
    assert_eq!(status.source.as_deref(), Some("Developer"));
    let message = condition(&request, "Ready").map(|ready| ready.message.clone());
    assert!(message.is_some_and(|message| message.contains(CLIENT)));

    // Renewal, and the same without a mint after a restart.
    world.renewed("shop", "dev", "1").await?;
    assert_eq!(world.google.mint_count(), 2);
    world.stop_operator(false).await?;
    let minted = world.google.mint_count();
    world.start_operator().await?;
    // What somebody changes is put right from the token that is there.
    let meddled = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}});
    world.meddle("shop", "dev", meddled).await?;
    world
        .wait("the label is put back", async || {
            let labels = world
                .secret("shop", "dev")
                .await?
                .metadata
                .labels
                .unwrap_or_default();
            Ok(labels["app.kubernetes.io/managed-by"] == "idtoken-operator")
        })
        .await?;
    assert_eq!(world.google.mint_count(), minted);

    for (n, fault, reason, part) in [
        (2, Fault::status(503), "CredentialsUnavailable", "503"),
        (
            3,
            Fault::status_body(
                400,
                r#"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#,
            ),
            "CredentialsUnavailable",
            "gcloud auth application-default login",
        ),
    ] {
        world.google.fault(fault.on(Endpoint::OauthToken))?;
        world.renew("shop", "dev", &n.to_string()).await?;
        let object = world
            .until("shop", "dev", "the failure is reported", |object| {
                has(object, "RenewalFailing", "True", reason)
            })
            .await?;
        assert!(is_ready(&object));
        let reported = condition(&object, "RenewalFailing").map(|failing| failing.message.clone());
        assert!(
            reported.as_ref().is_some_and(|reported| reported.contains(part)),
            "{part} is missing in {reported:?}"
        );
        world.google.clear_faults();
        world.renew("shop", "dev", &format!("after {n}")).await?;
        world
            .until("shop", "dev", "it is well again", |object| {
                is_ready(object) && has(object, "RenewalFailing", "False", "")
            })
            .await?;
    }

    let events: Api<Event> = Api::namespaced(world.client.clone(), "shop");
    let events = events.list(&ListParams::default()).await?.items;
    let warnings: Vec<_> = events
        .iter()
        .filter(|event| event.reason.as_deref() == Some("DeveloperToken"))
        .collect();
    assert_eq!(warnings.len(), 1, "{events:#?}");
    assert_eq!(warnings[0].type_.as_deref(), Some("Warning"));
    assert!(
        warnings[0]
            .note
            .as_ref()
            .is_some_and(|note| note.contains("Cloud Functions"))
    );

    // Nothing of the credentials is anywhere.
    let requests = world.requests("shop").list(&ListParams::default()).await?;
    let last = token(&world.secret("shop", "dev").await?);
    let log = world.operator_log();
    assert!(log.contains("TRACE"));
    for (place, text) in [
        ("the log", log),
        ("the events", serde_json::to_string(&events)?),
        ("the requests", serde_json::to_string(&requests.items)?),
        ("the metrics", world.scrape().await?),
    ] {
        let signature = last.rsplit('.').next().unwrap_or_default();
        for secret in [CLIENT_SECRET, REFRESH_TOKEN, signature, "ya29."] {
            assert!(!text.contains(secret), "{place} holds {secret}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_credentials_and_other_grants_give_none() -> Result<()> {
    let (world, file) = world("developer-key", &["--allow-developer-source"]).await?;
    world.namespace("bank").await?;
    world
        .grant_source("bank", "other@example.com", "Developer")
        .await?;
    world.request("bank", "dev", developer()).await?;
    world
        .until("bank", "dev", "it is denied", |object| {
            has(object, "Ready", "False", "NotGranted")
        })
        .await?;
    assert!(world.secrets("bank").get_opt("dev").await?.is_none());

    let key = world.google.service_account_key(crate::common::OPERATOR)?;
    std::fs::write(&file.0, key.to_string())?;
    world.request("shop", "dev", developer()).await?;
    let refused = |object: &_| has(object, "Ready", "False", "NotUserCredentials");
    // The file is compared every few seconds.
    world
        .wait("the key is in use", async || {
            world
                .renew("shop", "dev", &jiff::Timestamp::now().to_string())
                .await?;
            Ok(refused(&world.get("shop", "dev").await?)
                || has(
                    &world.get("shop", "dev").await?,
                    "RenewalFailing",
                    "True",
                    "NotUserCredentials",
                ))
        })
        .await?;
    let log = world.operator_log();
    let key = key["private_key"].as_str().context("a key")?.lines().nth(1);
    assert!(!log.contains(key.context("PEM")?), "the log holds the key");
    Ok(())
}
