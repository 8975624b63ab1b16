//! The world in the emulator: the same accounts, bindings and providers that `google/` sets up on Google.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use idtoken_emulator::{
    Aws, AwsAccessKey, EmulatorHandle, GkeCluster, IssuerKeys, Jwks, MetadataServer, OauthClient, Options,
    Policy, RefreshToken, Secret, ServiceAccount, SigningKey, TOKEN_CREATOR, WorkloadIdentityProvider,
};
use serde_json::Value;

use crate::assertion::{Assertion, Service};
use crate::aws::AwsIdentity;
use crate::engine;
use crate::workload::Workload;
use crate::world::{ALLOWED_SUBJECTS, Endpoints, ISSUER, SUBJECT, Signer, World, http};

const PROJECT: &str = "idtoken-conformance";
const CLUSTER: &str =
    "https://container.googleapis.com/v1/projects/idtoken-conformance/locations/l/clusters/c";
const USER: &str = "developer@example.com";
const WORKFORCE_USER: &str =
    "principal://iam.googleapis.com/locations/global/workforcePools/staff/subject/developer";
const CLIENT: &str = "conformance.apps.googleusercontent.com";
const CLIENT_SECRET: &str = "conformance-client-secret";
const REFRESH_TOKEN: &str = "1//conformance-refresh-token";
const AWS_ACCOUNT: &str = "111122223333";
const AWS_KEY: &str = "ASIAEXAMPLEEXAMPLE00";
const AWS_SECRET: &str = "conformance-aws-secret";
const AWS_SESSION: &str = "conformance-aws-session-token";
const WORKFORCE_REFRESH_TOKEN: &str = "conformance-workforce-refresh-token";

/// The emulator, and what assertions call its accounts.
pub struct Emulated {
    google: Arc<EmulatorHandle>,
    world: World,
}

/// What an assertion got.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The answer in its normal form.
    pub answer: Value,
    /// How it differs from what the assertion expects.
    pub failures: Vec<String>,
}

impl Emulated {
    /// Starts an emulator.
    ///
    /// # Errors
    /// When it cannot be started, or does not answer.
    pub async fn start() -> Result<Self> {
        let issuer = SigningKey::generate()?;
        let jwks = serde_json::to_string(&Jwks {
            keys: vec![issuer.jwk()],
        })?;
        let workload = Workload::generate()?;
        let aws = AwsIdentity {
            provider: provider(Policy::default().project.number, "aws"),
            key: AWS_KEY.to_owned(),
            secret: AWS_SECRET.to_owned(),
            session: AWS_SESSION.to_owned(),
        };
        let policy = policy(&jwks, &workload, &aws);
        let google = Arc::new(EmulatorHandle::start(policy, Options::with_proxy()).await?);
        let endpoints = Endpoints::all_at(google.url());
        let http = http(false)?;
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", CLIENT),
            ("client_secret", CLIENT_SECRET),
            ("refresh_token", REFRESH_TOKEN),
        ];
        let url = format!("{}/token", google.url());
        let response = http.post(url).form(&form).send().await?.error_for_status()?;
        let answer: Value = response.json().await?;
        let runner = answer["access_token"].as_str().unwrap_or_default().to_owned();
        let signer = Signer::Emulator(google.clone(), Mutex::new(BTreeMap::new()));
        let mut world = World::new(endpoints, http, signer, runner, issuer).await?;
        let (proxy, ca) = (google.proxy_url(), google.proxy_ca_pem());
        let (proxy, ca) = proxy.zip(ca).context("the emulator has no proxy")?;
        let client = workload.client(proxy, ca)?;
        world.workload = Some((workload, client));
        world.aws = Some(aws);
        for name in [
            "caller", "target", "stranger", "disabled", "delegate", "far", "attached",
        ] {
            let account = ServiceAccount::new(email(name));
            world.name_account(name, &account.email, &account.unique_id());
        }
        let policy = google.policy();
        for (name, value) in [
            ("nobody", email("nobody")),
            ("project", PROJECT.to_owned()),
            ("projectNumber", policy.project.number.to_string()),
            ("provider", provider(policy.project.number, "main")),
            ("unreachable", provider(policy.project.number, "unreachable")),
            ("awsProvider", provider(policy.project.number, "aws")),
            ("otherAwsProvider", provider(policy.project.number, "other-aws")),
            ("x509Provider", provider(policy.project.number, "x509")),
            ("awsKey", AWS_KEY.to_owned()),
            ("issuer", ISSUER.to_owned()),
            ("cluster", CLUSTER.to_owned()),
            ("workloadPool", format!("{PROJECT}.svc.id.goog")),
            ("client", CLIENT.to_owned()),
            ("user", USER.to_owned()),
        ] {
            world.name(name, value);
        }
        let basic = STANDARD.encode(format!("{CLIENT}:{CLIENT_SECRET}"));
        for (name, secret) in [
            ("awsSecret", AWS_SECRET),
            ("awsSession", AWS_SESSION),
            ("clientSecret", CLIENT_SECRET),
            ("refreshToken", REFRESH_TOKEN),
            ("workforceClient", &basic),
            ("workforceRefreshToken", WORKFORCE_REFRESH_TOKEN),
        ] {
            world.name_secret(name, secret);
        }
        // It is the same in each session, so that no transcript may show it from now on.
        world.resolve("${ec2Session}").await?;
        Ok(Self { google, world })
    }

    /// The emulator's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        self.google.url()
    }

    /// Sends requests to this base URL instead, in which `{service}` stands for the service: a server in front of the emulator.
    pub fn go_through(&mut self, base: &str) {
        self.world.endpoints.base = base.to_owned();
    }

    /// Asks an assertion.
    ///
    /// # Errors
    /// When the assertion is malformed, or there is no answer.
    pub async fn check(&self, assertion: &Assertion) -> Result<Checked> {
        let policy = self.google.policy();
        if let Some(patch) = &assertion.policy {
            let mut changed = serde_json::to_value(&policy)?;
            merge(&mut changed, patch);
            self.google.set_policy(serde_json::from_value(changed)?)?;
        }
        if let Some(fault) = &assertion.fault {
            self.google.fault(fault.clone())?;
        }
        let answer = engine::ask(&self.world, assertion).await;
        self.google.clear_faults();
        self.google.set_policy(policy)?;
        let answer = answer?;
        Ok(Checked {
            failures: engine::failures(assertion, &answer),
            answer,
        })
    }

    /// The emulator's endpoints that were called, as it writes their names.
    #[must_use]
    pub fn endpoints(&self) -> BTreeSet<String> {
        let names = self.google.counts().into_keys();
        names
            .filter_map(|endpoint| Some(serde_json::to_value(endpoint).ok()?.as_str()?.to_owned()))
            .collect()
    }

    /// A key file of the account `caller`, whose token endpoint is the emulator.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn key_file(&self) -> Result<Value> {
        self.google.service_account_key(&email("caller"))
    }

    /// A text with the values of its variables.
    ///
    /// # Errors
    /// When a variable has no value.
    pub async fn resolve(&self, text: &str) -> Result<String> {
        self.world.resolve(text).await
    }

    /// What the run used and must not show: tokens, keys and secrets.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        self.world.secrets().into_iter().collect()
    }

    /// Asks a service of the emulator for a text.
    ///
    /// # Errors
    /// When it answers an error.
    pub async fn get(&self, service: Service, path: &str) -> Result<String> {
        self.world.get(service, path).await
    }
}

fn email(name: &str) -> String {
    format!("idtoken-conf-emulated-{name}@{PROJECT}.iam.gserviceaccount.com")
}

fn pool(number: u64) -> String {
    format!(
        "iam.googleapis.com/projects/{number}/locations/global/workloadIdentityPools/idtoken-conf-emulated"
    )
}

fn provider(number: u64, name: &str) -> String {
    format!("//{}/providers/{name}", pool(number))
}

fn policy(jwks: &str, workload: &Workload, aws: &AwsIdentity) -> Policy {
    let mut policy = Policy::default();
    policy.project.id = PROJECT.to_owned();
    let number = policy.project.number;
    let member = |name: &str| format!("serviceAccount:{}", email(name));
    let subject = format!("principal://{}/subject/{SUBJECT}", pool(number));
    policy.service_accounts = vec![
        ServiceAccount::new(email("caller")).bind(TOKEN_CREATOR, format!("user:{USER}")),
        ServiceAccount::new(email("target"))
            .impersonated_by(member("caller"))
            .impersonated_by(subject),
        ServiceAccount::new(email("stranger")),
        ServiceAccount {
            disabled: true,
            ..ServiceAccount::new(email("disabled")).impersonated_by(member("caller"))
        },
        ServiceAccount::new(email("delegate")).bind(TOKEN_CREATOR, member("caller")),
        ServiceAccount::new(email("far")).impersonated_by(member("delegate")),
        ServiceAccount::new(email("attached")),
    ];
    policy.metadata_server = MetadataServer {
        service_account: Some(email("attached")),
        ..MetadataServer::default()
    };
    let mut main = WorkloadIdentityProvider::new(provider(number, "main"), ISSUER, jwks);
    main.attribute_condition = Some(format!("assertion.sub.startsWith(\"{ALLOWED_SUBJECTS}\")"));
    let mut unreachable = WorkloadIdentityProvider::new(provider(number, "unreachable"), ISSUER, jwks);
    // Nothing listens there: the same as a host that does not exist, without a look-up that takes its time.
    unreachable.keys = IssuerKeys {
        jwks_url: Some("http://127.0.0.1:1/".to_owned()),
        ..IssuerKeys::default()
    };
    policy.workload_identity_providers = vec![
        main,
        unreachable,
        WorkloadIdentityProvider::aws(provider(number, "aws"), AWS_ACCOUNT),
        WorkloadIdentityProvider::aws(provider(number, "other-aws"), "444455556666"),
        WorkloadIdentityProvider::x509(provider(number, "x509"), &workload.trust_anchor),
    ];
    policy.aws = Aws {
        access_keys: vec![AwsAccessKey {
            id: aws.key.clone(),
            secret: Secret(aws.secret.clone()),
            session_token: Some(Secret(aws.session.clone())),
            arn: format!("arn:aws:sts::{AWS_ACCOUNT}:assumed-role/conformance/i-0123456789"),
        }],
        instance_access_key: Some(aws.key.clone()),
        ..Aws::default()
    };
    // Nobody has a role on a project.
    policy.user_projects = Some(Vec::new());
    policy.gke_clusters = vec![GkeCluster {
        name: CLUSTER.to_owned(),
        workload_pool: format!("{PROJECT}.svc.id.goog"),
        issuer: None,
        keys: IssuerKeys {
            jwks_json: Some(jwks.to_owned()),
            ..IssuerKeys::default()
        },
    }];
    let token = |token: &str, user: &str| RefreshToken {
        token: Secret(token.to_owned()),
        user: user.to_owned(),
        revoked: false,
    };
    policy.oauth_clients = vec![OauthClient {
        client_id: CLIENT.to_owned(),
        client_secret: Secret(CLIENT_SECRET.to_owned()),
        refresh_tokens: vec![
            token(REFRESH_TOKEN, USER),
            token(WORKFORCE_REFRESH_TOKEN, WORKFORCE_USER),
        ],
    }];
    policy
}

/// A JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let (Value::Object(fields), Value::Object(patch)) = (&mut *target, patch) else {
        *target = patch.clone();
        return;
    };
    for (name, value) in patch {
        match value {
            Value::Null => {
                fields.remove(name);
            }
            value => merge(fields.entry(name.clone()).or_insert(Value::Null), value),
        }
    }
}
