//! What a Secret says of its token is not trusted: the status has a digest of the token, and Google's keys check one without.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::token::IdToken;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::common::{CALLER, Setup, World, is_ready, of, token};

/// The last second of the year 9892.
const FAR: i64 = 250_015_852_799;

/// A token that nobody signed, with the claims of the one in the Secret `shop/billing` but for `changes`.
async fn unsigned(world: &World, changes: Value) -> Result<IdToken> {
    let (_, mut claims) = world.claims("shop", "billing").await?;
    for (key, value) in changes.as_object().into_iter().flatten() {
        claims[key] = value.clone();
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": "forged"});
    let signature = URL_SAFE_NO_PAD.encode([7_u8; 256]);
    Ok(IdToken::parse(format!(
        "{}.{}.{signature}",
        part(&header),
        part(&claims)
    ))?)
}

/// Puts `forged` into the Secret `shop/billing`, with annotations to match.
async fn plant(world: &World, forged: &IdToken) -> Result<()> {
    let claims = forged.claims();
    let annotations = json!({
        "idtoken.dev/token-digest": forged.fingerprint(), "idtoken.dev/issue-time": claims.iat,
        "idtoken.dev/expiration-time": claims.exp, "idtoken.dev/renewal-time": claims.exp,
    });
    let patch = json!({"metadata": {"annotations": annotations}, "data": {"token": forged.expose()}});
    world.meddle("shop", "billing", patch).await?;
    Ok(())
}

/// Waits until the Secret holds another token, which is Google's, and the status says so. The account stays pinned to its own ID.
async fn replaced(world: &World, forged: &IdToken) -> Result<()> {
    let reported = async || {
        let object = world.get("shop", "billing").await?;
        let is_ready = is_ready(&object);
        let reported = object.status.and_then(|status| status.token);
        anyhow::Ok(reported.filter(|reported| is_ready && reported.digest.is_some()))
    };
    world
        .wait("the token is replaced, and the status says so", async || {
            let held = token(&world.secret("shop", "billing").await?);
            let digest = IdToken::parse(held.clone()).ok().map(|held| held.digest());
            let is_reported = reported()
                .await?
                .is_some_and(|reported| reported.digest == digest);
            Ok(is_reported && held != forged.expose() && world.google.verify(&held).is_ok())
        })
        .await?;
    let held = IdToken::parse(token(&world.secret("shop", "billing").await?))?;
    let reported = reported().await?.context("a token")?;
    assert_eq!(
        reported.expiration_time.map(|time| time.0),
        Some(held.claims().exp)
    );
    assert_eq!(reported.subject, Some(world.unique_id(CALLER)));
    Ok(())
}

/// Forgeries: one that never expires, one that is as a token should be, one of another account, and one from the future.
async fn forgeries(world: &World) -> Result<Vec<IdToken>> {
    Ok(vec![
        unsigned(world, json!({"exp": FAR})).await?,
        unsigned(world, json!({"forged": true})).await?,
        unsigned(world, json!({"sub": "666666666666666666666"})).await?,
        unsigned(world, json!({"iat": FAR - 3600, "exp": FAR})).await?,
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_google_did_not_sign_is_replaced() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    for forged in forgeries(&world).await? {
        plant(&world, &forged).await?;
        replaced(&world, &forged).await?;
    }
    // The same while nobody looks.
    for forged in forgeries(&world).await? {
        world.stop_operator(true).await?;
        plant(&world, &forged).await?;
        world.start_operator().await?;
        replaced(&world, &forged).await?;
    }
    // An old token of Google's own is none that was written last.
    let old = IdToken::parse(token(&world.secret("shop", "billing").await?))?;
    let object = world.get("shop", "billing").await?;
    world.another_second(&object).await?;
    world.renew("shop", "billing", "now").await?;
    replaced(&world, &old).await?;
    plant(&world, &old).await?;
    replaced(&world, &old).await
}

/// As after a restore from a backup that has no statuses: requests and Secrets are there, and the request is another one of the same name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_token_in_a_restored_secret_is_replaced() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let before = world.secret("shop", "billing").await?;
    for forged in forgeries(&world).await? {
        world.stop_operator(true).await?;
        world
            .requests("shop")
            .delete("billing", &DeleteParams::default())
            .await?;
        plant(&world, &forged).await?;
        world.request("shop", "billing", json!({})).await?;
        world.start_operator().await?;
        replaced(&world, &forged).await?;
        assert_eq!(
            world.secret("shop", "billing").await?.metadata.uid,
            before.metadata.uid
        );
    }
    // No forgery was taken for the account's ID: a renewal is not refused.
    let object = world.get("shop", "billing").await?;
    world.another_second(&object).await?;
    let mints = world.google.mint_count();
    world.renewed("shop", "billing", "now").await?;
    assert_eq!(world.google.mint_count(), mints + 1);
    Ok(())
}

/// Changes the status as no tenant may.
async fn restate(world: &World, change: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"status": change}));
    let requests = world.requests("shop");
    let _: IdTokenRequest = requests
        .patch_status("billing", &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_of_an_older_version_costs_nothing_unless_it_blessed_a_forged_token() -> Result<()> {
    let world = World::with(Setup::default()).await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let before = world.secret("shop", "billing").await?;
    world.stop_operator(false).await?;
    let unproven = json!({"token": {"digest": null}, "secret": {"uid": null}});
    restate(&world, unproven.clone()).await?;
    let start = world.mark().await?;
    world.start_operator().await?;
    world.issued("shop", "probe", json!({})).await?;
    world.mark().await?;
    let calls = world.calls_since(start)?;
    let of_billing = |verb| {
        let calls = calls.iter().filter(|call| call.verb == verb);
        calls.filter(|call| call.name == "billing").count()
    };
    assert_eq!(
        ["get", "patch", "update", "delete"].map(of_billing),
        [0; 4],
        "{calls:#?}"
    );
    assert_eq!(before, world.secret("shop", "billing").await?);
    assert_eq!(of(&calls, "create", "secrets").len(), 1, "the probe's");

    for changes in [json!({"exp": FAR}), json!({"iat": FAR - 3600, "exp": FAR})] {
        let forged = unsigned(&world, changes).await?;
        world.stop_operator(true).await?;
        plant(&world, &forged).await?;
        restate(&world, unproven.clone()).await?;
        let version = world.secret("shop", "billing").await?.metadata.resource_version;
        let blessed = json!({
            "secret": {"resourceVersion": version}, "token": {"expirationTime": forged.claims().exp},
            "renewalTime": forged.claims().exp,
        });
        restate(&world, blessed).await?;
        world.start_operator().await?;
        replaced(&world, &forged).await?;
    }
    Ok(())
}
