//! A policy and an HTTP client for the tests.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::time::Duration;

use idtoken_emulator::{
    EmulatorHandle, GkeCluster, IssuerKeys, Jwk, Jwks, OauthClient, Options, Policy, RefreshToken, Secret,
    ServiceAccount, SigningKey, TOKEN_CREATOR, WorkloadIdentityProvider,
};
use serde_json::{Value, json};

pub const CALLER: &str = "caller@p.iam.gserviceaccount.com";
pub const MIDDLE: &str = "middle@p.iam.gserviceaccount.com";
pub const OTHER: &str = "other@p.iam.gserviceaccount.com";
pub const GONE: &str = "gone@p.iam.gserviceaccount.com";
pub const OPERATOR: &str = "operator@p.iam.gserviceaccount.com";
pub const AUDIENCE: &str = "https://billing-x.run.app";
pub const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
pub const PROVIDER: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
pub const ISSUER: &str = "https://kubernetes.example";
pub const CLUSTER: &str = "https://container.googleapis.com/v1/projects/p/locations/l/clusters/c";
pub const POOL: &str = "p.svc.id.goog";

/// An emulator with its client.
pub struct World {
    pub google: EmulatorHandle,
    pub client: reqwest::Client,
    pub issuer: SigningKey,
}

pub fn jwks(keys: Vec<Jwk>) -> String {
    serde_json::to_string(&Jwks { keys }).unwrap()
}

pub fn policy(issuer: &SigningKey) -> Policy {
    let member = format!("serviceAccount:{OPERATOR}");
    let keys = jwks(vec![issuer.jwk()]);
    let mut gone = ServiceAccount::new(GONE).impersonated_by(&member);
    gone.disabled = true;
    let mut provider = WorkloadIdentityProvider::new(PROVIDER, ISSUER, &keys);
    provider.attribute_mapping.insert(
        "attribute.namespace".into(),
        "assertion['kubernetes.io'].namespace".into(),
    );
    Policy {
        organization_number: Some(987),
        service_accounts: vec![
            ServiceAccount::new(OPERATOR).bind(TOKEN_CREATOR, "user:dev@example.com"),
            ServiceAccount::new(CALLER)
                .impersonated_by(&member)
                .impersonated_by("principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/system:serviceaccount:shop:billing")
                .impersonated_by(format!("serviceAccount:{POOL}[shop/billing]")),
            ServiceAccount::new(MIDDLE).bind(TOKEN_CREATOR, &member),
            ServiceAccount::new(OTHER).impersonated_by(format!("serviceAccount:{MIDDLE}")).impersonated_by(
                "principalSet://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/attribute.namespace/shop",
            ),
            gone,
        ],
        metadata_server: idtoken_emulator::MetadataServer {
            service_account: Some(OPERATOR.into()),
            ..Default::default()
        },
        workload_identity_providers: vec![provider],
        gke_clusters: vec![GkeCluster {
            name: CLUSTER.into(),
            workload_pool: POOL.into(),
            issuer: None,
            keys: IssuerKeys { jwks_json: Some(keys), ..Default::default() },
        }],
        oauth_clients: vec![OauthClient {
            client_id: "client.apps.googleusercontent.com".into(),
            client_secret: Secret("sesame".into()),
            refresh_tokens: vec![
                RefreshToken { token: Secret("1//good".into()), user: "dev@example.com".into(), revoked: false },
                RefreshToken { token: Secret("1//bad".into()), user: "dev@example.com".into(), revoked: true },
            ],
        }],
        ..Policy::default()
    }
}

/// A client's beginnings, with a TLS provider.
pub fn client_builder() -> reqwest::ClientBuilder {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder()
}

pub fn client() -> reqwest::Client {
    client_builder()
        .no_proxy()
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Claims of a Kubernetes token for `shop/billing`.
pub fn subject_claims() -> Value {
    json!({
        "iss": ISSUER,
        "aud": [format!("https:{PROVIDER}")],
        "sub": "system:serviceaccount:shop:billing",
        "iat": now(),
        "nbf": now(),
        "exp": now() + 600,
        "kubernetes.io": {"namespace": "shop"},
    })
}

/// The header and payload of a JWT.
pub fn decode(token: &str) -> (Value, Value) {
    use base64::Engine;
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "three parts");
    let part = |index: usize| {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(parts[index])
            .unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    (part(0), part(1))
}

pub async fn start() -> World {
    start_with(Options::default(), |_| {}).await
}

pub async fn start_with(options: Options, change: impl FnOnce(&mut Policy)) -> World {
    let issuer = SigningKey::generate().unwrap();
    let mut policy = policy(&issuer);
    change(&mut policy);
    World {
        google: EmulatorHandle::start(policy, options).await.unwrap(),
        client: client(),
        issuer,
    }
}

impl World {
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.google.url())
    }

    /// A GET to the metadata server with its header: status and body.
    pub async fn metadata(&self, path: &str) -> (u16, String) {
        let url = self.url(&format!("/computeMetadata/v1/{path}"));
        let response = self
            .client
            .get(url)
            .header("Metadata-Flavor", "Google")
            .send()
            .await
            .unwrap();
        assert_eq!(response.headers()["metadata-flavor"], "Google");
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub async fn operator_bearer(&self) -> String {
        let (status, body) = self.metadata("instance/service-accounts/default/token").await;
        assert_eq!(status, 200, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        body["access_token"].as_str().unwrap().to_owned()
    }

    /// A POST with JSON: status and JSON body.
    pub async fn post(&self, path: &str, bearer: Option<&str>, body: &Value) -> (u16, Value) {
        let mut request = self.client.post(self.url(path)).json(body);
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub async fn generate(&self, bearer: &str, account: &str, body: &Value) -> (u16, Value) {
        let path = format!("/v1/projects/-/serviceAccounts/{account}:generateIdToken");
        self.post(&path, Some(bearer), body).await
    }

    /// A POST of a form: status and JSON body.
    pub async fn form(&self, path: &str, fields: &[(&str, &str)]) -> (u16, Value) {
        let response = self
            .client
            .post(self.url(path))
            .form(fields)
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub async fn exchange(&self, audience: &str, subject_token: &str) -> (u16, Value) {
        self.form("/v1/token", &exchange_fields(audience, subject_token))
            .await
    }

    pub fn subject_token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = subject_claims();
        change(&mut claims);
        self.issuer.sign(&claims).unwrap()
    }
}

pub fn exchange_fields<'a>(audience: &'a str, subject_token: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("audience", audience),
        (
            "requested_token_type",
            "urn:ietf:params:oauth:token-type:access_token",
        ),
        ("subject_token", subject_token),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("scope", SCOPE),
    ]
}
