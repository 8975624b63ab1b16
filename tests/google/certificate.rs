//! The operator as a workload with an X.509 certificate, by mutual TLS with the Security Token Service.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idtoken_emulator::{EmulatorHandle, Endpoint, TOKEN_CREATOR, WorkloadIdentityProvider};
use idtoken_operator::clock::VirtualClock;
use idtoken_operator::google::{Error, ErrorClass, GoogleConfig, Minter};
use jiff::Timestamp;
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
use serde_json::{Value, json};

use crate::pki::{Authority, Files};
use crate::support::*;

const PROVIDER: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/x509";
const WORKLOAD: &str = "idtoken-operator";

fn principal(name: &str) -> String {
    format!(
        "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/{name}"
    )
}

/// Google that trusts a certificate authority, behind a proxy, and the proxy's CA in a file.
struct World {
    google: EmulatorHandle,
    proxy_ca: File,
    authority: Authority,
}

impl World {
    async fn new() -> Self {
        let authority = Authority::new();
        let mut policy = policy();
        policy.workload_identity_providers = vec![WorkloadIdentityProvider::x509(PROVIDER, authority.pem())];
        for account in &mut policy.service_accounts {
            if account.email == CALLER {
                *account = account.clone().impersonated_by(principal(WORKLOAD));
            }
            if account.email == OPERATOR {
                *account = account.clone().bind(TOKEN_CREATOR, principal(WORKLOAD));
            }
        }
        let (google, proxy_ca) = behind_proxy(policy).await;
        Self {
            google,
            proxy_ca,
            authority,
        }
    }

    /// Runs a test of this file as a child behind the proxy, with credentials.
    async fn run(&self, test: &str, credentials: &Value, variables: &[(&str, &str)]) {
        let file = File::with(credentials);
        let mut all = vec![
            ("HTTPS_PROXY", self.google.proxy_url().expect("a proxy")),
            ("TEST_CA_FILE", self.proxy_ca.path()),
            ("TEST_CREDENTIALS", file.path()),
        ];
        all.extend(variables);
        in_process(&format!("certificate::{test}"), &all).await;
    }

    /// Who got the last ID token.
    fn last_principal(&self) -> Option<String> {
        let calls = self.google.calls();
        let call = calls
            .iter()
            .rfind(|call| call.endpoint == Endpoint::GenerateIdToken);
        call.and_then(|call| call.principal.clone())
    }
}

fn config_of_environment() -> GoogleConfig {
    let path = |name| Some(PathBuf::from(std::env::var_os(name).expect("set by the parent")));
    GoogleConfig {
        ca_file: path("TEST_CA_FILE"),
        credentials_file: path("TEST_CREDENTIALS"),
        ..GoogleConfig::default()
    }
}

fn with_chain(mut credentials: Value, path: PathBuf) -> Value {
    credentials["credential_source"]["certificate"]["trust_chain_path"] = json!(path);
    credentials
}

fn with_default_config(mut credentials: Value) -> Value {
    credentials["credential_source"]["certificate"] = json!({"use_default_certificate_config": true});
    credentials
}

fn impersonating(mut credentials: Value) -> Value {
    credentials["service_account_impersonation_url"] = json!(format!(
        "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{OPERATOR}:generateAccessToken"
    ));
    credentials
}

#[tokio::test]
async fn a_certificate_gets_tokens() {
    let world = World::new().await;
    let files = Files::new();
    files.write_certificate(&world.authority, WORKLOAD);
    let credentials = files.credentials(PROVIDER);
    let default = with_default_config(credentials.clone());
    let intermediate = world.authority.intermediate();
    let below = Files::new();
    below.write_certificate(&intermediate, WORKLOAD);
    below.write("chain.pem", &intermediate.pem());
    let leaf = std::fs::read_to_string(below.path("tls.crt")).expect("a certificate");
    below.write("whole-chain.pem", &(leaf + &intermediate.pem()));
    let home = Files::new();
    let gcloud = home.path(".config/gcloud");
    std::fs::create_dir_all(&gcloud).expect("a folder");
    std::fs::copy(
        files.path("certificate_config.json"),
        gcloud.join("certificate_config.json"),
    )
    .expect("a file");
    let text = |path: PathBuf| path.to_str().expect("a path in UTF-8").to_owned();
    let config = text(files.path("certificate_config.json"));
    let [folder, home] = [files.folder(), home.folder()].map(|path| text(path.to_owned()));
    let source = json!({"type": "impersonated_service_account", "source_credentials": credentials});
    for (what, credentials, variable, expected) in [
        ("named", credentials.clone(), None, principal(WORKLOAD)),
        (
            "by the variable",
            default.clone(),
            Some(("GOOGLE_API_CERTIFICATE_CONFIG", config.as_str())),
            principal(WORKLOAD),
        ),
        (
            "in gcloud's folder",
            default.clone(),
            Some(("CLOUDSDK_CONFIG", folder.as_str())),
            principal(WORKLOAD),
        ),
        (
            "in the home folder",
            default,
            Some(("HOME", home.as_str())),
            principal(WORKLOAD),
        ),
        (
            "with a chain",
            with_chain(below.credentials(PROVIDER), below.path("chain.pem")),
            None,
            principal(WORKLOAD),
        ),
        (
            "with a chain that begins with the workload's own",
            with_chain(below.credentials(PROVIDER), below.path("whole-chain.pem")),
            None,
            principal(WORKLOAD),
        ),
        (
            "impersonating",
            impersonating(credentials.clone()),
            None,
            member(OPERATOR),
        ),
        ("as a source", impersonating(source), None, member(OPERATOR)),
    ] {
        world.google.reset_counts();
        world
            .run("child_gets_a_token", &credentials, variable.as_slice())
            .await;
        assert_eq!(world.last_principal(), Some(expected), "{what}");
        assert_eq!(world.google.count(Endpoint::SecurityToken), 1, "{what}: cached");
    }
}

#[tokio::test]
async fn keys_of_each_format_can_be_used() {
    let world = World::new().await;
    let files = Files::new();
    let generated = |algorithm| KeyPair::generate_for(algorithm).expect("a key");
    let (rsa, ec) = (
        generated(&PKCS_RSA_SHA256),
        KeyPair::generate().expect("a key of P-256"),
    );
    let (p384, ed25519) = (generated(&PKCS_ECDSA_P384_SHA384), generated(&PKCS_ED25519));
    // What is in PKCS#8 is the key of the former formats; OpenSSL writes the name of the curve into it.
    let pkcs1 = pem("RSA PRIVATE KEY", &rsa.serialized_der()[26..]);
    let inner = &ec.serialized_der()[ec.serialized_der().len() - 109..];
    let curve = [
        0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ];
    let sec1 = [&[0x30, 0x77], &inner[2..39], &curve, &inner[39..]].concat();
    for (what, key, pem) in [
        ("RSA", &rsa, rsa.serialize_pem()),
        ("RSA of PKCS#1", &rsa, pkcs1),
        ("P-256 of SEC 1", &ec, pem("EC PRIVATE KEY", &sec1)),
        ("P-384", &p384, p384.serialize_pem()),
        ("Ed25519", &ed25519, ed25519.serialize_pem()),
    ] {
        world.google.reset_counts();
        files.write("tls.crt", &world.authority.issue(WORKLOAD, key, (-60, 3600)));
        files.write("tls.key", &pem);
        world
            .run("child_gets_a_token", &files.credentials(PROVIDER), &[])
            .await;
        assert_eq!(world.last_principal(), Some(principal(WORKLOAD)), "{what}");
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

#[tokio::test]
#[ignore = "run by other tests, with an environment of their choice"]
async fn child_gets_a_token() {
    let minter = Minter::new(config_of_environment()).expect("a client");
    for _ in 0..2 {
        minter.impersonate(&asking(CALLER)).await.expect("a token");
    }
}

#[tokio::test]
async fn a_rotated_certificate_is_followed() {
    let world = World::new().await;
    let files = Files::new();
    files.write_certificate(&world.authority, "another-workload");
    let next = Files::new();
    next.write_certificate(&world.authority, WORKLOAD);
    let variables = [
        ("TEST_FOLDER", files.folder().to_str().expect("UTF-8")),
        ("TEST_NEXT", next.folder().to_str().expect("UTF-8")),
    ];
    world
        .run(
            "child_follows_its_certificate",
            &files.credentials(PROVIDER),
            &variables,
        )
        .await;
    // One exchange for each certificate, and none for the halves of a change.
    assert_eq!(world.google.count(Endpoint::SecurityToken), 2);
}

#[tokio::test]
#[ignore = "run by a_rotated_certificate_is_followed"]
async fn child_follows_its_certificate() {
    let path = |name| PathBuf::from(std::env::var_os(name).expect("set by the parent"));
    let (folder, next) = (path("TEST_FOLDER"), path("TEST_NEXT"));
    let time = VirtualClock::new(Timestamp::now());
    let minter = Minter::new(GoogleConfig {
        clock: time.clock(),
        ..config_of_environment()
    })
    .expect("a client");
    let refused = async || {
        let error = rejected(&minter, &asking(CALLER)).await;
        assert_eq!(error.reason().as_str(), "PermissionDenied", "{error}");
    };
    refused().await;
    // The certificate comes first, so that it does not belong to the key: the access token stays in use.
    std::fs::copy(next.join("tls.crt"), folder.join("tls.crt")).expect("a file");
    time.skip(Duration::from_secs(5));
    refused().await;
    std::fs::copy(next.join("tls.key"), folder.join("tls.key")).expect("a file");
    time.skip(Duration::from_secs(5));
    minter.impersonate(&asking(CALLER)).await.expect("a token");
}

#[tokio::test]
async fn what_a_certificate_lacks_is_said() {
    let world = World::new().await;
    let files = Files::new();
    let credentials = files.credentials(PROVIDER);
    let config = std::fs::read_to_string(files.path("certificate_config.json")).expect("a file");
    let key = KeyPair::generate().expect("a key");
    let issue = |valid| world.authority.issue(WORKLOAD, &key, valid);
    let good = issue((-60, 3600));
    let chain = with_chain(credentials.clone(), files.path("chain.pem"));
    let mut at_plain_tls = credentials.clone();
    at_plain_tls["token_url"] = json!("https://sts.googleapis.com/v1/token");
    let stranger = KeyPair::generate().expect("a key");
    let foreign = Authority::new().issue(WORKLOAD, &key, (-60, 3600));
    let behind = world.authority.intermediate().pem() + &good;
    let encrypted = pem("ENCRYPTED PRIVATE KEY", b"unreadable");
    for (credentials, name, content, said, advice) in [
        (
            &credentials,
            "certificate_config.json",
            None,
            "cannot be read",
            "create-cred-config",
        ),
        (
            &credentials,
            "certificate_config.json",
            Some(r#"{"cert_configs": {"pkcs11": {}}}"#.to_owned()),
            "cert_configs.workload",
            "create-cred-config",
        ),
        (&credentials, "tls.crt", None, "tls.crt cannot be read", "Mount"),
        (&credentials, "tls.key", None, "tls.key cannot be read", "Mount"),
        (&chain, "chain.pem", None, "chain.pem cannot be read", "Mount"),
        (
            &credentials,
            "tls.crt",
            Some("none".to_owned()),
            "tls.crt is not the PEM",
            "PEM",
        ),
        (
            &credentials,
            "tls.key",
            Some(encrypted),
            "tls.key is not the PEM",
            "PEM",
        ),
        (
            &credentials,
            "tls.key",
            Some(stranger.serialize_pem()),
            "is not that of the certificate",
            "together",
        ),
        (
            &credentials,
            "tls.crt",
            Some(issue((-7200, -3600))),
            "expired at",
            "Renew",
        ),
        (
            &credentials,
            "tls.crt",
            Some(issue((3600, 7200))),
            "not valid before",
            "clock",
        ),
        (&chain, "chain.pem", Some(behind), "behind another one", "first"),
        (&credentials, "tls.crt", Some(foreign), "invalid_grant", ""),
        (&at_plain_tls, "tls.crt", Some(good.clone()), "invalid_grant", ""),
    ] {
        files.write("certificate_config.json", &config);
        files.write("tls.crt", &good);
        files.write("tls.key", &key.serialize_pem());
        match content {
            Some(content) => files.write(name, &content),
            None => drop(std::fs::remove_file(files.path(name))),
        }
        let variables = [("TEST_SAID", said), ("TEST_ADVICE", advice)];
        world.run("child_is_refused", credentials, &variables).await;
    }
    assert_eq!(world.google.count(Endpoint::GenerateIdToken), 0);
}

#[tokio::test]
#[ignore = "run by what_a_certificate_lacks_is_said"]
async fn child_is_refused() {
    let minter = Minter::new(config_of_environment()).expect("a client");
    let error: Error = rejected(&minter, &asking(CALLER)).await;
    let variable = |name| std::env::var(name).expect("set by the parent");
    assert_eq!(
        (error.reason().as_str(), error.class()),
        ("CredentialsUnavailable", ErrorClass::Rejected),
        "{error}"
    );
    let said = variable("TEST_SAID");
    assert!(error.to_string().contains(&said), "{said}: {error}");
    let advice = variable("TEST_ADVICE");
    assert!(
        advice.is_empty() || error.remediation().is_some_and(|said| said.contains(&advice)),
        "{advice}: {error}"
    );
    assert!(!format!("{error} {error:?}").contains("PRIVATE KEY-"), "{error}");
}
