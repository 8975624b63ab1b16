//! What the tests share: a policy, credential files, a client.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idtoken_emulator::{
    EmulatorHandle, OauthClient, Options, Policy, RefreshToken, Secret, ServiceAccount, TOKEN_CREATOR,
};
use idtoken_operator::google::{CallPriority, Error, GoogleConfig, Impersonation, Minter};
use idtoken_operator::token::{Account, Expected, IdToken};
use serde_json::{Value, json};

pub(crate) const OPERATOR: &str = "operator@p.iam.gserviceaccount.com";
pub(crate) const CALLER: &str = "caller@p.iam.gserviceaccount.com";
pub(crate) const DELEGATE: &str = "delegate@p.iam.gserviceaccount.com";
pub(crate) const STRANGER: &str = "stranger@p.iam.gserviceaccount.com";
pub(crate) const USER: &str = "dev@example.com";
pub(crate) const OTHER_USER: &str = "other@example.com";
pub(crate) const AUDIENCE: &str = "https://billing-x.run.app";
/// A user of a workforce pool.
pub(crate) const WORKFORCE_USER: &str =
    "principal://iam.googleapis.com/locations/global/workforcePools/staff/subject/dev@corp.example";
/// How long a test waits for something that should happen soon.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn member(email: &str) -> String {
    format!("serviceAccount:{email}")
}

pub(crate) fn policy() -> Policy {
    let token = |user: &str| RefreshToken {
        token: Secret(refresh_token(user)),
        user: user.to_owned(),
        revoked: false,
    };
    Policy {
        service_accounts: vec![
            ServiceAccount::new(OPERATOR).impersonated_by(member(OPERATOR)),
            ServiceAccount::new(CALLER)
                .impersonated_by(format!("user:{USER}"))
                .impersonated_by(member(OPERATOR))
                .bind(TOKEN_CREATOR, member(DELEGATE)),
            ServiceAccount::new(DELEGATE).bind(TOKEN_CREATOR, format!("user:{USER}")),
            ServiceAccount::new(STRANGER),
        ],
        oauth_clients: vec![OauthClient {
            client_id: "client".to_owned(),
            client_secret: Secret("client-secret".to_owned()),
            refresh_tokens: vec![token(USER), token(OTHER_USER), token(WORKFORCE_USER)],
        }],
        ..Policy::default()
    }
}

pub(crate) fn refresh_token(user: &str) -> String {
    format!("1//0refresh-token-of-{user}")
}

/// Google behind a proxy, and the proxy's CA in a file.
pub(crate) async fn behind_proxy(policy: Policy) -> (EmulatorHandle, File) {
    let google = EmulatorHandle::start(policy, Options::with_proxy())
        .await
        .expect("the emulator starts");
    let ca = File::absent();
    std::fs::write(&ca.0, google.proxy_ca_pem().expect("a CA")).expect("the temporary folder can be written");
    (google, ca)
}

/// A credential file with which the operator is `user`.
pub(crate) fn acting_as(google: &EmulatorHandle, user: &str) -> Value {
    json!({
        "type": "authorized_user",
        "account": user,
        "client_id": "client",
        "client_secret": "client-secret",
        "refresh_token": refresh_token(user),
        "token_uri": format!("{}/token", google.url()),
    })
}

/// A credential file with which the operator is [`WORKFORCE_USER`], with all fields that gcloud writes.
pub(crate) fn acting_as_workforce_user(google: &EmulatorHandle) -> Value {
    json!({
        "type": "external_account_authorized_user",
        "universe_domain": "googleapis.com",
        "audience": "//iam.googleapis.com/locations/global/workforcePools/staff/providers/corp",
        "client_id": "client",
        "client_secret": "client-secret",
        "refresh_token": refresh_token(WORKFORCE_USER),
        "token_url": format!("{}/v1/oauthtoken", google.url()),
        "token_info_url": format!("{}/v1/introspect", google.url()),
    })
}

pub(crate) async fn google() -> EmulatorHandle {
    EmulatorHandle::start(policy(), Options::default())
        .await
        .expect("the emulator starts")
}

/// A file that is deleted with the test.
pub(crate) struct File(pub(crate) PathBuf);

impl File {
    pub(crate) fn absent() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "idtoken-google-{}-{}.json",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self(std::env::temp_dir().join(name))
    }

    pub(crate) fn with(content: &Value) -> Self {
        let file = Self::absent();
        file.write(content);
        file
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().expect("a path in UTF-8")
    }

    pub(crate) fn write(&self, content: &Value) {
        std::fs::write(&self.0, content.to_string()).expect("the temporary folder can be written");
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(crate) fn config(google: &EmulatorHandle, credentials: &Path) -> GoogleConfig {
    GoogleConfig {
        iam_credentials_url: Some(google.url().parse().expect("a URL")),
        credentials_file: Some(credentials.to_owned()),
        ..GoogleConfig::default()
    }
}

pub(crate) struct Setup {
    pub(crate) google: EmulatorHandle,
    pub(crate) minter: Minter,
    pub(crate) key: File,
}

pub(crate) async fn setup(change: impl FnOnce(&mut GoogleConfig)) -> Setup {
    let google = google().await;
    let key = File::with(&acting_as(&google, USER));
    let mut config = config(&google, &key.0);
    change(&mut config);
    let minter = Minter::new(config).expect("a client");
    Setup { google, minter, key }
}

pub(crate) fn asking(account: &str) -> Impersonation<'_> {
    Impersonation {
        service_account: account,
        audience: AUDIENCE,
        include_email: true,
        include_organization_number: false,
        delegates: &[],
        request_reason: "shop/billing",
        priority: CallPriority::OPERATOR,
    }
}

pub(crate) fn expected(account: &str) -> Expected<'_> {
    Expected {
        audience: AUDIENCE,
        account: Some(Account::from_name(account)),
        include_email: true,
        subject: None,
    }
}

pub(crate) async fn rejected(minter: &Minter, request: &Impersonation<'_>) -> Error {
    match minter.impersonate(request).await {
        Ok(token) => panic!("got a token: {token:?}"),
        Err(error) => {
            let shown = format!("{error} {error:?}");
            assert!(
                !shown.contains("eyJ")
                    && !shown.contains("ya29.")
                    && !shown.contains("1//0")
                    && !shown.contains("client-secret"),
                "{shown}"
            );
            error
        }
    }
}

/// All variables from which this library or Google's takes credentials, a proxy or certificates.
const VARIABLES: [&str; 20] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CLOUDSDK_CONFIG",
    "GCE_METADATA_HOST",
    "GOOGLE_API_CERTIFICATE_CONFIG",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CLOUD_QUOTA_PROJECT",
];

/// Runs an ignored test of this binary in a process of its own, whose environment has of [`VARIABLES`] only those given.
pub(crate) async fn in_process(test: &str, variables: &[(&str, &str)]) {
    let mut command = tokio::process::Command::new(std::env::current_exe().expect("this binary"));
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    let output = command
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("HOME", "/nonexistent")
        .envs(variables.iter().copied())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, output)
        .await
        .expect("exits in time")
        .expect("starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("1 passed"), "{said}");
}

/// Retries until there is a token.
pub(crate) async fn eventually(minter: &Minter, request: &Impersonation<'_>) -> IdToken {
    let attempts = async {
        loop {
            match minter.impersonate(request).await {
                Ok(token) => return token,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(LIMIT, attempts)
        .await
        .expect("a token in time")
}
