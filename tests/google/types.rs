//! Application Default Credentials of each type: tokens, rotation on disk, failures, and no impersonation of the operator's own account.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idtoken_emulator::{
    EmulatorHandle, Endpoint, Fault, Jwks, Policy, ServiceAccount, SigningKey, TOKEN_CREATOR,
    WorkloadIdentityProvider,
};
use idtoken_operator::google::{ErrorClass, GoogleConfig, Impersonation, Minter};
use serde_json::{Value, json};

use crate::support::*;

pub(crate) const PROVIDER: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
pub(crate) const ISSUER: &str = "https://kubernetes.example";
pub(crate) const SUBJECT: &str = "system:serviceaccount:idtoken-system:operator";

/// Google, and an identity provider that it trusts.
pub(crate) struct World {
    pub(crate) google: EmulatorHandle,
    issuer: SigningKey,
}

/// A folder that is deleted with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("idtoken-types-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the temporary folder can be written");
        Self(path)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("the temporary folder can be written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let google = google().await;
        let issuer = SigningKey::generate().expect("a key");
        let keys = serde_json::to_string(&Jwks {
            keys: vec![issuer.jwk()],
        })
        .expect("JSON");
        let member = format!(
            "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/{SUBJECT}"
        );
        let mut policy: Policy = google.policy();
        policy.workload_identity_providers = vec![WorkloadIdentityProvider::new(PROVIDER, ISSUER, keys)];
        for account in &mut policy.service_accounts {
            if account.email == CALLER {
                *account = account
                    .clone()
                    .impersonated_by(&member)
                    .impersonated_by(WORKFORCE_USER);
            }
            if account.email == OPERATOR {
                let account_of = account.clone().bind(TOKEN_CREATOR, &member);
                *account = account_of.bind(TOKEN_CREATOR, WORKFORCE_USER);
            }
        }
        google.set_policy(policy).expect("a policy");
        Self { google, issuer }
    }

    pub(crate) fn subject_token(&self) -> String {
        let now = jiff::Timestamp::now().as_second();
        let claims = json!({"iss": ISSUER, "aud": format!("https:{PROVIDER}"), "sub": SUBJECT, "iat": now, "exp": now + 600});
        self.issuer.sign(&claims).expect("a token")
    }

    fn external(&self, source: Value) -> Value {
        json!({
            "type": "external_account",
            "audience": PROVIDER,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("{}/v1/token", self.google.url()),
            "credential_source": source,
        })
    }

    pub(crate) fn impersonating(&self, mut credentials: Value, account: &str) -> Value {
        credentials["service_account_impersonation_url"] = json!(format!(
            "{}/v1/projects/-/serviceAccounts/{account}:generateAccessToken",
            self.google.url()
        ));
        credentials
    }

    /// The principal of the last call for an ID token.
    fn last_principal(&self) -> String {
        let calls = self.google.calls();
        let call = calls
            .iter()
            .rev()
            .find(|call| call.endpoint == Endpoint::GenerateIdToken);
        call.and_then(|call| call.principal.clone()).unwrap_or_default()
    }
}

fn minter(config: GoogleConfig) -> Minter {
    Minter::new(config).expect("a client")
}

#[tokio::test]
async fn every_type_gets_a_token() {
    let world = World::new().await;
    let folder = Folder::new("all");
    let text = folder.write("token", &format!("{}\n", world.subject_token()));
    let answer = json!({"access": {"token": "no"}, "subject": world.subject_token()}).to_string();
    let router = axum::Router::new().route(
        "/token",
        axum::routing::get(move |headers: axum::http::HeaderMap| async move {
            match headers.get("metadata").is_some_and(|value| value == "true") {
                true => Ok(answer),
                false => Err(axum::http::StatusCode::FORBIDDEN),
            }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move { axum::serve(listener, router).await });

    let file = world.external(json!({"file": text}));
    let pool = format!(
        "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/{SUBJECT}"
    );
    let url = world.external(json!({
        "url": format!("http://{address}/token"), "headers": {"Metadata": "true"},
        "format": {"type": "json", "subject_token_field_name": "subject"},
    }));
    let key = world.google.service_account_key(OPERATOR).expect("a key");
    let workforce = acting_as_workforce_user(&world.google);
    let chained =
        json!({"type": "impersonated_service_account", "source_credentials": acting_as(&world.google, USER)});
    for (what, credentials, principal) in [
        ("user", acting_as(&world.google, USER), format!("user:{USER}")),
        ("key", key.clone(), member(OPERATOR)),
        ("key of PKCS#1", with_pkcs1(key), member(OPERATOR)),
        (
            "impersonated",
            world.impersonating(chained, DELEGATE),
            member(DELEGATE),
        ),
        ("workforce user", workforce.clone(), WORKFORCE_USER.to_owned()),
        (
            "workforce user, impersonating",
            world.impersonating(
                json!({"type": "impersonated_service_account", "source_credentials": workforce}),
                OPERATOR,
            ),
            member(OPERATOR),
        ),
        ("external by file", file.clone(), pool.clone()),
        ("external by URL", url, pool),
        (
            "external, impersonating",
            world.impersonating(file, OPERATOR),
            member(OPERATOR),
        ),
    ] {
        let file = File::with(&credentials);
        let minter = minter(config(&world.google, &file.0));
        let token = minter
            .impersonate(&asking(CALLER))
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        world.google.verify(token.expose()).expect("a good signature");
        assert_eq!(world.last_principal(), principal, "{what}");
        // The access token is cached.
        let before = world.google.calls().len();
        minter.impersonate(&asking(CALLER)).await.expect("a token");
        assert_eq!(world.google.calls().len(), before + 1, "{what}");
    }
    server.abort();
}

/// The same key in the former format of OpenSSL, which is the content of PKCS#8.
fn with_pkcs1(mut credentials: Value) -> Value {
    let pem = credentials["private_key"].as_str().expect("a key");
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body).expect("base64");
    let lines: Vec<String> = STANDARD
        .encode(&der[26..])
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    credentials["private_key"] = json!(format!(
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----\n",
        lines.join("\n")
    ));
    credentials
}

#[tokio::test]
async fn no_executable_is_run() {
    let world = World::new().await;
    let folder = Folder::new("executable");
    let trace = folder.0.join("ran");
    let command = format!("/usr/bin/touch {}", trace.display());
    let file = File::with(&world.external(json!({"executable": {"command": command}})));
    let error = rejected(&minter(config(&world.google, &file.0)), &asking(CALLER)).await;
    assert_eq!(
        (error.reason().as_str(), error.class()),
        ("CredentialsUnavailable", ErrorClass::Rejected)
    );
    for part in [
        "executable",
        "credential_source.file",
        "credential_source.url",
        "projected",
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(!trace.exists(), "the executable ran");
}

#[tokio::test]
async fn failures_of_the_identity_provider_are_reported_and_pass() {
    let world = World::new().await;
    let folder = Folder::new("external");
    let path = folder.0.join("token");
    let file = File::with(&world.external(json!({"file": path})));
    let minter = minter(config(&world.google, &file.0));
    let error = rejected(&minter, &asking(CALLER)).await;
    assert_eq!(
        (error.reason().as_str(), error.class()),
        ("CredentialsUnavailable", ErrorClass::Rejected)
    );
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");

    let stranger = SigningKey::generate().expect("a key");
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({"iss": ISSUER, "aud": format!("https:{PROVIDER}"), "sub": SUBJECT, "iat": now, "exp": now + 600});
    folder.write("token", &stranger.sign(&claims).expect("a token"));
    let error = until_reported(&minter, "invalid_grant").await;
    assert_eq!(
        (error.reason().as_str(), error.class()),
        ("CredentialsUnavailable", ErrorClass::Rejected)
    );

    folder.write("token", &world.subject_token());
    for code in [403, 503] {
        world
            .google
            .fault(Fault::status(code).on(Endpoint::SecurityToken).times(1))
            .expect("a fault");
        let error = until_reported(&minter, &code.to_string()).await;
        assert_eq!(error.class() == ErrorClass::Transient, code == 503, "{error}");
        // Without a restart, and with the file's current content.
        eventually(&minter, &asking(CALLER)).await;
        world.google.clear_caches();
        let error = rejected(&minter, &asking(CALLER)).await;
        assert_eq!(error.reason().as_str(), "CredentialsRejected");
    }
}

/// Retries until the error contains `part`.
async fn until_reported(minter: &Minter, part: &str) -> idtoken_operator::google::Error {
    let attempts = async {
        loop {
            let error = rejected(minter, &asking(CALLER)).await;
            if error.to_string().contains(part) {
                return error;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, attempts)
        .await
        .expect("it is reported in time")
}

#[tokio::test]
async fn a_rotated_file_is_followed() {
    let google = google().await;
    let folder = Folder::new("rotated");
    // As the kubelet mounts a Secret: the file is a link into a link that is swapped.
    let version = |name: &str, content: &Value| {
        let path = folder.0.join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        std::fs::write(path.join("key.json"), content.to_string()).expect("a file");
        symlink(name, folder.0.join("..tmp")).expect("a link");
        std::fs::rename(folder.0.join("..tmp"), folder.0.join("..data")).expect("a swap");
    };
    version("..1", &google.service_account_key(STRANGER).expect("a key"));
    symlink("..data/key.json", folder.0.join("key.json")).expect("a link");
    let minter = minter(config(&google, &folder.0.join("key.json")));
    let error = rejected(&minter, &asking(CALLER)).await;
    assert_eq!(error.reason().as_str(), "PermissionDenied");
    version("..2", &google.service_account_key(OPERATOR).expect("a key"));
    eventually(&minter, &asking(CALLER)).await;
    assert_eq!(minter.principal().await.as_deref(), Some(OPERATOR));
    // And a write in place, of another type.
    std::fs::write(
        folder.0.join("..2/key.json"),
        acting_as(&google, USER).to_string(),
    )
    .expect("a file");
    let followed = async {
        while minter.principal().await.as_deref() != Some(USER) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, followed)
        .await
        .expect("followed in time");
    minter.impersonate(&asking(CALLER)).await.expect("a token");
}

#[tokio::test]
async fn no_type_impersonates_itself() {
    let world = World::new().await;
    let folder = Folder::new("self");
    let text = folder.write("token", &world.subject_token());
    let id = ServiceAccount::new(OPERATOR).unique_id();
    let external = world.external(json!({"file": text}));
    let source =
        json!({"type": "impersonated_service_account", "source_credentials": acting_as(&world.google, USER)});
    let mut policy = world.google.policy();
    for account in &mut policy.service_accounts {
        if account.email == OPERATOR {
            *account = account.clone().bind(TOKEN_CREATOR, format!("user:{USER}"));
        }
    }
    world.google.set_policy(policy).expect("a policy");
    let key = world.google.service_account_key(OPERATOR).expect("a key");
    let mut no_id = key.clone();
    no_id["client_id"] = Value::Null;
    for (what, credentials) in [
        ("key", key),
        ("key without an id", no_id),
        ("impersonated", world.impersonating(source.clone(), OPERATOR)),
        ("impersonated by id", world.impersonating(source, &id)),
        ("external", world.impersonating(external, OPERATOR)),
    ] {
        let file = File::with(&credentials);
        let minter = minter(config(&world.google, &file.0));
        for name in [OPERATOR, &id] {
            let delegates = [name.to_owned()];
            let bare = Impersonation {
                include_email: false,
                ..asking(name)
            };
            let by_way_of = Impersonation {
                delegates: &delegates,
                ..asking(CALLER)
            };
            for request in [asking(name), bare, by_way_of] {
                let error = rejected(&minter, &request).await;
                assert_eq!(
                    error.reason().as_str(),
                    "SelfImpersonation",
                    "{what}: {request:?}"
                );
            }
        }
        minter
            .impersonate(&asking(CALLER))
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

#[tokio::test]
async fn another_universe_and_other_endpoints() {
    let world = World::new().await;
    let mut policy = world.google.policy();
    policy.universe_domain = "cloud.example".to_owned();
    policy.organization_number = Some(987);
    world.google.set_policy(policy).expect("a policy");
    let key = world.google.service_account_key(OPERATOR).expect("a key");
    let file = File::with(&key);
    let in_universe = |universe: &str| GoogleConfig {
        universe_domain: universe.to_owned(),
        ..config(&world.google, &file.0)
    };
    let request = Impersonation {
        include_organization_number: true,
        ..asking(CALLER)
    };
    let token = minter(in_universe("cloud.example"))
        .impersonate(&request)
        .await
        .expect("a token");
    let claims = world.google.verify(token.expose()).expect("a good signature");
    assert_eq!(claims["google"]["organization_number"], 987);
    let error = rejected(&minter(in_universe("googleapis.com")), &asking(CALLER)).await;
    assert_eq!(error.reason().as_str(), "CredentialsUnavailable");
    assert!(error.to_string().contains("cloud.example"), "{error}");
}
