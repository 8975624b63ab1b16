//! The emulator of Google's endpoints, as a process of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use idtoken_testenv::{Port, Process};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(30);
/// The account of the requested tokens.
pub(crate) const ACCOUNT: &str = "caller@demo-project.iam.gserviceaccount.com";

/// The running emulator. Clones are clients of the same process.
#[derive(Clone)]
pub(crate) struct Emulator {
    process: Arc<Process>,
    http: reqwest::Client,
    /// The latency of its responses with a token, in milliseconds.
    latency: u64,
    /// Its URL.
    pub(crate) url: String,
    /// Where it responds as Google's hosts do, by TLS and HTTP/2.
    proxy: Arc<Port>,
    /// The CA of those hosts.
    proxy_ca: PathBuf,
}

impl Emulator {
    /// Starts it. Each response with an ID token takes `latency` milliseconds.
    pub(crate) async fn start(program: &Path, policy: &Path, latency: u64, dir: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        let proxy = Port::reserve()?;
        let proxy_ca = dir.join("google-ca.pem");
        command.arg("--policy").arg(policy).args(["--log", "error"]);
        command.args(["--proxy", &format!("127.0.0.1:{}", proxy.number())]);
        command.arg("--proxy-ca").arg(&proxy_ca);
        let process = Process::spawn("idtoken-emulator", &command, dir)?;
        let url = process.wait_for_line("http://", TIMEOUT).await?.trim().to_owned();
        let google = Self {
            process: Arc::new(process),
            http: reqwest::Client::builder().no_proxy().build()?,
            latency,
            url,
            proxy: Arc::new(proxy),
            proxy_ca,
        };
        google.inject_latency().await?;
        Ok(google)
    }

    /// Stops it.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.process.terminate(TIMEOUT).await.map(drop)
    }

    fn control(&self, path: &str) -> String {
        format!("{}/_emulator/{path}", self.url)
    }

    /// Injects a fault.
    pub(crate) async fn fault(&self, fault: &Value) -> Result<()> {
        let response = self
            .http
            .post(self.control("faults"))
            .body(fault.to_string())
            .send()
            .await?;
        response
            .error_for_status()
            .context("the emulator rejects the fault")?;
        Ok(())
    }

    /// Clears all faults except the latency.
    pub(crate) async fn clear_faults(&self) -> Result<()> {
        let response = self.http.delete(self.control("faults")).send().await?;
        response.error_for_status()?;
        self.inject_latency().await
    }

    async fn inject_latency(&self) -> Result<()> {
        let kind = json!({"type": "delay", "millis": self.latency});
        self.fault(&json!({"endpoint": "generateIdToken", "kind": kind}))
            .await
    }

    /// Sets the lifetime of ID tokens, in seconds.
    pub(crate) async fn set_lifetime(&self, seconds: u64) -> Result<()> {
        let settings = json!({ "lifetimeSeconds": seconds });
        let response = self
            .http
            .put(self.control("settings"))
            .body(settings.to_string())
            .send()
            .await?;
        response
            .error_for_status()
            .context("the emulator rejects the settings")?;
        Ok(())
    }

    /// How many ID tokens were issued.
    pub(crate) async fn minted(&self) -> Result<u64> {
        Ok(self.requested_and_minted().await?.1)
    }

    /// How many ID tokens were requested, and how many were issued.
    pub(crate) async fn requested_and_minted(&self) -> Result<(u64, u64)> {
        let counts: Value = self.http.get(self.control("counts")).send().await?.json().await?;
        let requested = counts["calls"]["generateIdToken"].as_u64().unwrap_or_default();
        let minted = counts["minted"]
            .as_u64()
            .context("the emulator reports no count")?;
        Ok((requested, minted))
    }

    /// The port of the connections that come from programs with [`Self::environment`].
    pub(crate) fn port(&self) -> u16 {
        self.proxy.number()
    }

    /// Environment variables by which a program takes it for Google.
    pub(crate) fn environment(&self) -> [(&'static str, OsString); 4] {
        [
            ("HTTPS_PROXY", format!("http://127.0.0.1:{}", self.port()).into()),
            ("NO_PROXY", "127.0.0.1".into()),
            ("SSL_CERT_FILE", self.proxy_ca.clone().into()),
            ("GCE_METADATA_HOST", self.url.trim_start_matches("http://").into()),
        ]
    }

    /// An access token of the operator's own account, from the metadata server.
    pub(crate) async fn access_token(&self) -> Result<String> {
        let url = format!(
            "{}/computeMetadata/v1/instance/service-accounts/default/token",
            self.url
        );
        let request = self.http.get(url).header("Metadata-Flavor", "Google");
        let response: Value = request.send().await?.error_for_status()?.json().await?;
        let token = response["access_token"].as_str().context("no access token")?;
        Ok(token.to_owned())
    }

    /// An ID token for `audience`.
    pub(crate) async fn id_token(&self, access_token: &str, audience: &str) -> Result<String> {
        let url = format!(
            "{}/v1/projects/-/serviceAccounts/{ACCOUNT}:generateIdToken",
            self.url
        );
        let request = self
            .http
            .post(url)
            .bearer_auth(access_token)
            .json(&json!({"audience": audience, "includeEmail": true}));
        let response: Value = request.send().await?.error_for_status()?.json().await?;
        let token = response["token"].as_str().context("no ID token")?;
        Ok(token.to_owned())
    }
}
