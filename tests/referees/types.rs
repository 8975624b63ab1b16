//! Credential files of types that gcloud writes: the same file works with Google's library and with ours, and both ask for the same.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use idtoken_emulator::{
    Aws, AwsAccessKey, EmulatorHandle, Endpoint, OauthClient, Options, Policy, RefreshToken, Secret,
    ServiceAccount, WorkloadIdentityProvider,
};
use idtoken_operator::google::{CallPriority, GoogleConfig, Impersonation, Minter};
use serde_json::{Value, json};

use crate::common::relay::Relay;
use crate::common::{AUDIENCE, CALLER, LIMIT};
use crate::pki::{Authority, Files};
use crate::referee::{Referee, for_each_referee};

for_each_referee!(
    a_workforce_user,
    an_aws_role_of_ec2,
    aws_keys_of_variables,
    a_certificate
);

const WORKFORCE: &str = "iam.googleapis.com/locations/global/workforcePools/staff";
const POOL: &str = "iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p";
const WORKLOAD: &str = "idtoken-operator";
const ARN: &str = "arn:aws:sts::123456789012:assumed-role/operator/i-0123456789";
const KEYS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "ASIAEXAMPLEEXAMPLE00"),
    ("AWS_SECRET_ACCESS_KEY", "aws-secret/EXAMPLE+key"),
    ("AWS_SESSION_TOKEN", "aws-session-token-EXAMPLE=="),
];

/// Google, and a relay that records what its token endpoints are sent.
struct World {
    google: EmulatorHandle,
    relay: Relay,
    /// Who issues the certificates of workloads.
    authority: Authority,
}

impl World {
    async fn new() -> Result<Self> {
        let user = format!("principal://{WORKFORCE}/subject/dev@corp.example");
        let authority = Authority::new();
        let mut policy = Policy {
            service_accounts: vec![
                ServiceAccount::new(CALLER)
                    .impersonated_by(&user)
                    .impersonated_by(format!("principal://{POOL}/subject/{ARN}"))
                    .impersonated_by(format!("principal://{POOL}/subject/{WORKLOAD}")),
            ],
            oauth_clients: vec![OauthClient {
                client_id: "client".to_owned(),
                client_secret: Secret("client-secret".to_owned()),
                refresh_tokens: vec![RefreshToken {
                    token: Secret("refresh-token".to_owned()),
                    user,
                    revoked: false,
                }],
            }],
            workload_identity_providers: vec![
                WorkloadIdentityProvider::aws(format!("//{POOL}/providers/aws"), "123456789012"),
                WorkloadIdentityProvider::x509(format!("//{POOL}/providers/x509"), authority.pem()),
            ],
            ..Policy::default()
        };
        policy.aws = Aws {
            access_keys: vec![AwsAccessKey {
                id: KEYS[0].1.to_owned(),
                secret: Secret(KEYS[1].1.to_owned()),
                session_token: Some(Secret(KEYS[2].1.to_owned())),
                arn: ARN.to_owned(),
            }],
            instance_access_key: Some(KEYS[0].1.to_owned()),
            ..Aws::default()
        };
        let google = EmulatorHandle::start(policy, Options::with_proxy()).await?;
        let relay = Relay::start(google.address()).await?;
        Ok(Self {
            google,
            relay,
            authority,
        })
    }

    fn aws(&self) -> Value {
        let ec2 = format!("{}/latest", self.google.url());
        json!({
            "universe_domain": "googleapis.com",
            "type": "external_account",
            "audience": format!("//{POOL}/providers/aws"),
            "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
            "token_url": format!("http://{}/v1/token", self.relay.address()),
            "credential_source": {
                "environment_id": "aws1",
                "region_url": format!("{ec2}/meta-data/placement/availability-zone"),
                "url": format!("{ec2}/meta-data/iam/security-credentials"),
                "regional_cred_verification_url":
                    "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
                "imdsv2_session_token_url": format!("{ec2}/api/token"),
            },
        })
    }

    /// Gets a token with the library, then one with our client. Returns what each sent to the token endpoint.
    async fn both(&self, referee: Referee, file: &Value, variables: &[(&str, &str)]) -> Result<(Sent, Sent)> {
        let path = referee.write("credentials.json", &file.to_string())?;
        let mut referee = referee
            .with("GOOGLE_APPLICATION_CREDENTIALS", &path)
            .with_proxy(&self.google)?;
        for (name, value) in variables {
            referee = referee.with(name, *value);
        }
        let theirs = referee.run(&["impersonate", AUDIENCE, CALLER], "").await?;
        self.google.verify(&theirs)?;
        self.ours(&path, variables).await?;
        assert_eq!(self.principals()?.len(), 2);
        self.sent()
    }

    /// Gets a token with our client.
    async fn ours(&self, credentials: &str, variables: &[(&str, &str)]) -> Result<()> {
        let mut ours = tokio::process::Command::new(std::env::current_exe()?);
        ours.args(["--exact", "types::child_gets_a_token", "--ignored", "--nocapture"])
            .env_clear()
            .env("TEST_CREDENTIALS", credentials)
            .env("TEST_GOOGLE", self.google.url())
            .envs(variables.iter().copied())
            .kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, ours.output()).await??;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && said.contains("1 passed"), "{said}");
        Ok(())
    }

    /// Who got ID tokens: always the same identity.
    fn principals(&self) -> Result<Vec<String>> {
        let calls = self.google.calls();
        let principals: Vec<_> = calls
            .iter()
            .filter(|call| call.endpoint == Endpoint::GenerateIdToken)
            .map(|call| call.principal.clone().context("a principal"))
            .collect::<Result<_>>()?;
        ensure!(
            principals.windows(2).all(|pair| pair[0] == pair[1]),
            "the library and the operator are the same identity: {principals:?}"
        );
        Ok(principals)
    }

    /// What the library has sent, and what our client has.
    fn sent(&self) -> Result<(Sent, Sent)> {
        let sent = self.relay.questions();
        // To impersonate, Python's library exchanges once more, for the scope of IAM alone.
        let [theirs, .., ours] = &sent[..] else {
            anyhow::bail!("{} connections", sent.len());
        };
        Ok((Sent::parse(theirs)?, Sent::parse(ours)?))
    }
}

#[tokio::test]
#[ignore = "run by the tests of each type"]
async fn child_gets_a_token() -> Result<()> {
    let minter = Minter::new(GoogleConfig {
        iam_credentials_url: Some(std::env::var("TEST_GOOGLE")?.parse()?),
        credentials_file: Some(std::env::var("TEST_CREDENTIALS")?.into()),
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
    minter.impersonate(&asked).await?;
    Ok(())
}

/// A request to a token endpoint.
#[derive(Debug, PartialEq)]
struct Sent {
    line: String,
    authorization: Option<String>,
    form: BTreeMap<String, String>,
}

impl Sent {
    fn parse(text: &str) -> Result<Self> {
        let (head, body) = text.split_once("\r\n\r\n").context("a request")?;
        let mut lines = head.lines();
        let headers = lines.clone().filter_map(|line| line.split_once(": "));
        let authorization = headers
            .filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))
            .map(|(_, value)| value.to_owned())
            .next();
        Ok(Self {
            line: lines.next().context("a request line")?.to_owned(),
            authorization,
            form: url::form_urlencoded::parse(body.as_bytes())
                .into_owned()
                .collect(),
        })
    }

    /// Takes the list of certificates out of the form.
    fn certificates(&mut self) -> Result<Vec<String>> {
        let token = self.form.remove("subject_token").context("a subject token")?;
        Ok(serde_json::from_str(&token)?)
    }

    /// Takes the signed request out of the form.
    fn signed_request(&mut self) -> Result<SignedRequest> {
        let token = self.form.remove("subject_token").context("a subject token")?;
        let json = url::form_urlencoded::parse(token.as_bytes())
            .next()
            .context("a text")?;
        let request: Value = serde_json::from_str(&json.0)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let headers = request["headers"].as_array().context("headers")?;
        let mut headers: BTreeMap<String, String> = headers
            .iter()
            .map(|header| (text(&header["key"]).to_ascii_lowercase(), text(&header["value"])))
            .collect();
        let authorization = headers.remove("authorization").context("a signature")?;
        let date = headers.remove("x-amz-date").context("a date")?;
        assert_eq!(date.len(), "20200811T065522Z".len());
        let credential = authorization.split(", ").next().context("a credential")?;
        Ok(SignedRequest {
            url: text(&request["url"]),
            method: text(&request["method"]),
            headers,
            credential: credential.replacen(&date[..8], "DATE", 1),
        })
    }
}

/// What both send alike. The signature itself, which contains the time, is verified by the emulator.
#[derive(Debug, PartialEq)]
struct SignedRequest {
    url: String,
    method: String,
    headers: BTreeMap<String, String>,
    credential: String,
}

async fn a_workforce_user(referee: Referee) -> Result<()> {
    let world = World::new().await?;
    let file = json!({
        "universe_domain": "googleapis.com",
        "type": "external_account_authorized_user",
        "audience": format!("//{WORKFORCE}/providers/corp"),
        "client_id": "client",
        "client_secret": "client-secret",
        "refresh_token": "refresh-token",
        "token_url": format!("http://{}/v1/oauthtoken", world.relay.address()),
        "token_info_url": "https://sts.googleapis.com/v1/introspect",
    });
    let (theirs, ours) = world.both(referee, &file, &[]).await?;
    assert!(ours.authorization.is_some());
    assert_eq!(theirs, ours);
    Ok(())
}

async fn an_aws_role_of_ec2(referee: Referee) -> Result<()> {
    let world = World::new().await?;
    let (mut theirs, mut ours) = world.both(referee, &world.aws(), &[]).await?;
    assert_eq!(theirs.signed_request()?, ours.signed_request()?);
    assert_eq!(theirs, ours);
    let session = "/latest/api/token";
    let calls = world.google.calls();
    let sessions = calls
        .iter()
        .filter(|call| call.account.as_deref() == Some(session));
    assert!(sessions.count() >= 2, "both ask within a session");
    Ok(())
}

async fn aws_keys_of_variables(referee: Referee) -> Result<()> {
    let world = World::new().await?;
    let mut variables = KEYS.to_vec();
    variables.push(("AWS_REGION", "eu-west-1"));
    let (mut theirs, mut ours) = world.both(referee, &world.aws(), &variables).await?;
    let signed = ours.signed_request()?;
    assert!(signed.url.starts_with("https://sts.eu-west-1.amazonaws.com"));
    assert_eq!(theirs.signed_request()?, signed);
    assert_eq!(theirs, ours);
    assert_eq!(world.google.count(Endpoint::Ec2Metadata), 0);
    Ok(())
}

async fn a_certificate(referee: Referee) -> Result<()> {
    let world = World::new().await?;
    let files = Files::new();
    let intermediate = world.authority.intermediate();
    files.write_certificate(&intermediate, WORKLOAD);
    files.write("chain.pem", &intermediate.pem());
    let mut file = files.credentials(&format!("//{POOL}/providers/x509"));
    file["credential_source"]["certificate"]["trust_chain_path"] = json!(files.path("chain.pem"));
    let asked = ["impersonate", AUDIENCE, CALLER];
    let referee = referee.with_proxy(&world.google)?;

    // What both send is recorded without TLS, where no certificate can be shown: both are refused.
    let mut plain = file.clone();
    plain["token_url"] = json!(format!("http://{}/v1/token", world.relay.address()));
    let path = referee.write("plain.json", &plain.to_string())?;
    let referee = referee.with("GOOGLE_APPLICATION_CREDENTIALS", &path);
    let complaint = referee.refused(&asked, "").await?;
    ensure!(complaint.contains("client certificate"), "{complaint}");
    ensure!(world.ours(&path, &[]).await.is_err(), "nothing was shown");
    let (mut theirs, mut ours) = world.sent()?;
    let chain = ours.certificates()?;
    assert_eq!(chain.len(), 2);
    assert_eq!((theirs.certificates()?, theirs), (chain, ours));

    let path = referee.write("credentials.json", &file.to_string())?;
    let referee = referee.with("GOOGLE_APPLICATION_CREDENTIALS", &path);
    let theirs = referee.run(&asked, "").await?;
    world.google.verify(&theirs)?;
    let ca = referee.write("proxy-ca.pem", world.google.proxy_ca_pem().context("no proxy")?)?;
    let proxy = world.google.proxy_url().context("no proxy")?;
    world
        .ours(&path, &[("HTTPS_PROXY", proxy), ("SSL_CERT_FILE", &ca)])
        .await?;
    let workload = format!("principal://{POOL}/subject/{WORKLOAD}");
    assert_eq!(world.principals()?, [workload.clone(), workload]);
    let calls = world.google.calls();
    let exchanges = calls
        .iter()
        .filter(|call| call.endpoint == Endpoint::SecurityToken && call.status == Some(200));
    for call in exchanges {
        assert_eq!(call.host.as_deref(), Some("sts.mtls.googleapis.com"));
    }
    Ok(())
}
