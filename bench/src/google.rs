//! The emulator of Google's endpoints, as a process of its own.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use idtoken_testenv::Process;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);
/// The account that tokens are asked for.
pub(crate) const ACCOUNT: &str = "caller@demo-project.iam.gserviceaccount.com";

/// The running emulator. Clones are clients of the same one.
#[derive(Clone)]
pub(crate) struct Google {
    process: Arc<Process>,
    http: reqwest::Client,
    answer: u64,
    /// Its URL.
    pub(crate) url: String,
}

impl Google {
    /// Starts it. Each answer that mints takes `answer` milliseconds.
    pub(crate) async fn start(program: &Path, policy: &Path, answer: u64, dir: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("--policy").arg(policy).args(["--log", "error"]);
        let process = Process::spawn("idtoken-emulator", &command, dir)?;
        let url = process.wait_for_line("http://", LIMIT).await?.trim().to_owned();
        let google = Self {
            process: Arc::new(process),
            http: reqwest::Client::builder().no_proxy().build()?,
            answer,
            url,
        };
        google.delay().await?;
        Ok(google)
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Ends it.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.process.terminate(LIMIT).await.map(drop)
    }

    fn control(&self, path: &str) -> String {
        format!("{}/_emulator/{path}", self.url)
    }

    /// Orders a fault.
    pub(crate) async fn fault(&self, fault: &Value) -> Result<()> {
        let answer = self
            .http
            .post(self.control("faults"))
            .body(fault.to_string())
            .send()
            .await?;
        answer
            .error_for_status()
            .context("the emulator refuses the fault")?;
        Ok(())
    }

    /// Takes back all faults but the time that answers take.
    pub(crate) async fn mend(&self) -> Result<()> {
        let answer = self.http.delete(self.control("faults")).send().await?;
        answer.error_for_status()?;
        self.delay().await
    }

    async fn delay(&self) -> Result<()> {
        let kind = json!({"type": "delay", "millis": self.answer});
        self.fault(&json!({"endpoint": "generateIdToken", "kind": kind}))
            .await
    }

    /// Has ID tokens live this long, in seconds.
    pub(crate) async fn lifetime(&self, seconds: u64) -> Result<()> {
        let settings = json!({ "lifetimeSeconds": seconds });
        let answer = self
            .http
            .put(self.control("settings"))
            .body(settings.to_string())
            .send()
            .await?;
        answer
            .error_for_status()
            .context("the emulator refuses the settings")?;
        Ok(())
    }

    /// How many ID tokens were made.
    pub(crate) async fn minted(&self) -> Result<u64> {
        Ok(self.asked_and_minted().await?.1)
    }

    /// How many ID tokens were asked for, and how many were made.
    pub(crate) async fn asked_and_minted(&self) -> Result<(u64, u64)> {
        let counts: Value = self.http.get(self.control("counts")).send().await?.json().await?;
        let asked = counts["calls"]["generateIdToken"].as_u64().unwrap_or_default();
        let minted = counts["minted"].as_u64().context("the emulator does not count")?;
        Ok((asked, minted))
    }

    /// Its port.
    pub(crate) fn port(&self) -> Result<u16> {
        let port = self.url.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.context("the emulator's URL has no port")
    }

    /// An access token of the operator's own account, as its metadata server gives it.
    pub(crate) async fn access_token(&self) -> Result<String> {
        let url = format!(
            "{}/computeMetadata/v1/instance/service-accounts/default/token",
            self.url
        );
        let request = self.http.get(url).header("Metadata-Flavor", "Google");
        let answer: Value = request.send().await?.error_for_status()?.json().await?;
        let token = answer["access_token"].as_str().context("no access token")?;
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
        let answer: Value = request.send().await?.error_for_status()?.json().await?;
        let token = answer["token"].as_str().context("no ID token")?;
        Ok(token.to_owned())
    }
}
