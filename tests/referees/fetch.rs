//! Google's libraries get tokens from the emulator, by every flow that they have: what they send, it understands, and what it
//! answers, they understand.

use anyhow::{Context, Result};
use idtoken_emulator::{
    EmulatorHandle, Endpoint, Fault, Options, Policy, ServiceAccount, SigningKey, TOKEN_CREATOR,
    WorkloadIdentityProvider,
};
use idtoken_operator::google::{CallPriority, GoogleConfig, Impersonation, Minter};
use serde_json::{Value, json};

use crate::common::{AUDIENCE, CALLER, LOCKED, OPERATOR};
use crate::referee::{Language, Referee, for_each_referee};

for_each_referee!(
    by_the_metadata_server,
    by_a_service_account_key,
    by_impersonation_from_the_metadata_server,
    by_impersonation_from_a_key,
    by_impersonation_along_a_chain,
    by_workload_identity_federation,
    refusals_are_understood,
    a_passing_failure_of_the_metadata_server_is_waited_out,
);

const MIDDLE: &str = "middle@p.iam.gserviceaccount.com";
const POOL: &str = "iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p";
const ISSUER: &str = "https://kubernetes.example";
const SUBJECT: &str = "system:serviceaccount:shop:billing";

/// Google with a proxy, and the issuer of a workload's own tokens.
async fn google() -> Result<(EmulatorHandle, SigningKey)> {
    let issuer = SigningKey::generate()?;
    let keys = json!({"keys": [issuer.jwk()]}).to_string();
    let operator = format!("serviceAccount:{OPERATOR}");
    let mut policy = Policy {
        service_accounts: vec![
            ServiceAccount::new(OPERATOR),
            ServiceAccount::new(LOCKED),
            ServiceAccount::new(MIDDLE).bind(TOKEN_CREATOR, &operator),
            ServiceAccount::new(CALLER)
                .impersonated_by(&operator)
                .impersonated_by(format!("principal://{POOL}/subject/{SUBJECT}"))
                .bind(TOKEN_CREATOR, format!("serviceAccount:{MIDDLE}")),
        ],
        workload_identity_providers: vec![WorkloadIdentityProvider::new(provider(), ISSUER, keys)],
        ..Policy::default()
    };
    policy.metadata_server.service_account = Some(OPERATOR.to_owned());
    Ok((
        EmulatorHandle::start(policy, Options::with_proxy()).await?,
        issuer,
    ))
}

fn provider() -> String {
    format!("//{POOL}/providers/q")
}

/// A key file of [`OPERATOR`] as Google's console gives it.
fn key(google: &EmulatorHandle) -> Result<Value> {
    let mut key = google.service_account_key(OPERATOR)?;
    key["token_uri"] = json!("https://oauth2.googleapis.com/token");
    Ok(key)
}

/// Checks the signature, the audience and the account of a token, and gives its claims.
fn checked(google: &EmulatorHandle, token: &str, account: &str) -> Result<Value> {
    let claims = google.verify(token)?;
    let policy = google.policy();
    let unique_id = policy.account(account).context("an account")?.unique_id();
    assert_eq!(claims["aud"], AUDIENCE);
    assert_eq!(claims["sub"], unique_id, "{claims}");
    Ok(claims)
}

/// The hosts of the calls to an endpoint that got an answer of success; none for a call without proxy.
fn hosts(google: &EmulatorHandle, endpoint: Endpoint) -> Vec<Option<String>> {
    let calls = google.calls().into_iter();
    let mut hosts: Vec<_> = calls
        .filter(|call| call.endpoint == endpoint && call.status == Some(200))
        .map(|call| call.host)
        .collect();
    hosts.dedup();
    hosts
}

fn at(host: &str) -> Vec<Option<String>> {
    vec![Some(host.to_owned())]
}

async fn by_the_metadata_server(referee: Referee) -> Result<()> {
    let (google, _) = google().await?;
    let referee = referee.with_metadata(&google);
    let token = referee.run(&["fetch", AUDIENCE], "").await?;
    checked(&google, &token, OPERATOR)?;
    assert_eq!(hosts(&google, Endpoint::MetadataIdentity), [None]);
    Ok(())
}

async fn by_a_service_account_key(referee: Referee) -> Result<()> {
    let (google, _) = google().await?;
    let referee = referee.with_credentials(&key(&google)?)?.with_proxy(&google)?;
    let token = referee.run(&["fetch", AUDIENCE], "").await?;
    let claims = checked(&google, &token, OPERATOR)?;
    assert_eq!(claims["email"], OPERATOR);
    assert_eq!(hosts(&google, Endpoint::OauthToken), at("oauth2.googleapis.com"));
    Ok(())
}

async fn by_impersonation_from_the_metadata_server(referee: Referee) -> Result<()> {
    let (google, _) = google().await?;
    let referee = referee.with_metadata(&google).with_proxy(&google)?;
    let token = referee.run(&["impersonate", AUDIENCE, CALLER], "").await?;
    checked(&google, &token, CALLER)?;
    assert_eq!(hosts(&google, Endpoint::MetadataToken), [None]);
    assert_eq!(
        hosts(&google, Endpoint::GenerateIdToken),
        at("iamcredentials.googleapis.com")
    );
    Ok(())
}

async fn by_impersonation_from_a_key(referee: Referee) -> Result<()> {
    let (google, _) = google().await?;
    let key = key(&google)?;
    let ours = referee.write("ours.json", &key.to_string())?;
    let referee = referee.with_credentials(&key)?.with_proxy(&google)?;
    let token = referee.run(&["impersonate", AUDIENCE, CALLER], "").await?;
    let mut theirs = checked(&google, &token, CALLER)?;

    let minter = Minter::new(GoogleConfig {
        iam_credentials_url: Some(google.url().parse()?),
        credentials_file: Some(ours.into()),
        ..GoogleConfig::default()
    })?;
    let asked = Impersonation {
        service_account: CALLER,
        audience: AUDIENCE,
        include_email: true,
        include_organization_number: false,
        delegates: &[],
        request_reason: "shop/billing",
        priority: CallPriority::OPERATOR,
    };
    let token = minter.impersonate(&asked).await?;
    let mut ours = google.verify(token.expose())?;
    for claims in [&mut theirs, &mut ours] {
        let claims = claims.as_object_mut().context("claims")?;
        assert!(claims.remove("iat").is_some() && claims.remove("exp").is_some());
    }
    assert_eq!(theirs, ours, "the library and the operator ask for the same");
    Ok(())
}

async fn by_impersonation_along_a_chain(referee: Referee) -> Result<()> {
    let (google, _) = google().await?;
    let mut policy = google.policy();
    let caller = policy
        .service_accounts
        .iter_mut()
        .find(|account| account.email == CALLER);
    let bindings = &mut caller.context("an account")?.bindings;
    bindings.retain(|binding| binding.role == TOKEN_CREATOR);
    google.set_policy(policy)?;
    let referee = referee.with_metadata(&google).with_proxy(&google)?;
    referee.refused(&["impersonate", AUDIENCE, CALLER], "").await?;
    let token = referee
        .run(&["impersonate", AUDIENCE, CALLER, MIDDLE], "")
        .await?;
    checked(&google, &token, CALLER)?;
    Ok(())
}

/// An `external_account` file whose subject token is in a file, as a Kubernetes token is.
fn external_account(referee: &Referee, issuer: &SigningKey) -> Result<Value> {
    let now = jiff::Timestamp::now().as_second();
    let subject_token = issuer.sign(&json!({
        "iss": ISSUER, "aud": [format!("https:{}", provider())], "sub": SUBJECT, "iat": now, "nbf": now, "exp": now + 600,
    }))?;
    Ok(json!({
        "type": "external_account",
        "audience": provider(),
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"file": referee.write("subject-token", &subject_token)?},
    }))
}

async fn by_workload_identity_federation(referee: Referee) -> Result<()> {
    let (google, issuer) = google().await?;
    let file = external_account(&referee, &issuer)?;
    let referee = referee.with_credentials(&file)?.with_proxy(&google)?;
    let token = referee.run(&["impersonate", AUDIENCE, CALLER], "").await?;
    let claims = checked(&google, &token, CALLER)?;
    assert_eq!(claims["email"], CALLER);
    assert_eq!(hosts(&google, Endpoint::SecurityToken), at("sts.googleapis.com"));
    assert_eq!(
        hosts(&google, Endpoint::GenerateIdToken),
        at("iamcredentials.googleapis.com")
    );
    let calls = google.calls();
    let call = calls
        .iter()
        .find(|call| call.endpoint == Endpoint::GenerateIdToken);
    let principal = call.and_then(|call| call.principal.clone());
    assert_eq!(principal, Some(format!("principal://{POOL}/subject/{SUBJECT}")));
    Ok(())
}

async fn refusals_are_understood(referee: Referee) -> Result<()> {
    let (google, issuer) = google().await?;
    let file = external_account(&referee, &issuer)?;
    let referee = referee.with_credentials(&file)?.with_proxy(&google)?;
    let denied = referee.refused(&["impersonate", AUDIENCE, LOCKED], "").await?;
    let text = "Permission 'iam.serviceAccounts.getOpenIdToken' denied";
    assert!(denied.contains(text), "{denied}");

    let mut policy = google.policy();
    policy.workload_identity_providers[0].attribute_condition =
        Some("assertion.sub == \"another\"".to_owned());
    google.set_policy(policy)?;
    let denied = referee.refused(&["impersonate", AUDIENCE, CALLER], "").await?;
    assert!(denied.contains("rejected by the attribute condition"), "{denied}");
    assert_eq!(google.mint_count(), 0);
    Ok(())
}

async fn a_passing_failure_of_the_metadata_server_is_waited_out(referee: Referee) -> Result<()> {
    let (google, _) = google().await?;
    google.fault(Fault::status(503).on(Endpoint::MetadataIdentity).times(1))?;
    let referee = referee.with_metadata(&google);
    let token = referee.run(&["fetch", AUDIENCE], "").await?;
    checked(&google, &token, OPERATOR)?;
    assert_eq!(google.count(Endpoint::MetadataIdentity), 2);
    Ok(())
}

/// Go's library does the whole chain by itself, of a file that names the account.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_fetches_by_workload_identity_federation() -> Result<()> {
    let Some(referee) = Referee::new(Language::Go).await? else {
        return Ok(());
    };
    let (google, issuer) = google().await?;
    let mut file = external_account(&referee, &issuer)?;
    let url = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts";
    file["service_account_impersonation_url"] = json!(format!("{url}/{CALLER}:generateAccessToken"));
    let referee = referee.with_credentials(&file)?.with_proxy(&google)?;
    let token = referee.run(&["fetch", AUDIENCE], "").await?;
    checked(&google, &token, CALLER)?;
    assert_eq!(google.count(Endpoint::GenerateAccessToken), 0);
    Ok(())
}
