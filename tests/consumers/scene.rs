//! An example's request, served by the operator and mounted, and the service that it is for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use idtoken_testenv::{GoModule, Process, Progress, RunDir, until};
use serde_json::Value;

use crate::common::{World, token};
use crate::example::{self, MOUNT};
use crate::service::{Call, Service};
use crate::volume::Volume;

/// How long a program may take to use a new token.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// All that a program's test needs.
pub(crate) struct Scene {
    /// The operator and what it needs.
    pub(crate) world: World,
    /// The service that is called.
    pub(crate) service: Service,
    /// The Secret as files.
    pub(crate) volume: Volume,
    /// The example's documents.
    pub(crate) documents: Vec<Value>,
    /// A folder of the test's own.
    pub(crate) dir: RunDir,
    namespace: String,
    name: String,
    audience: String,
}

impl Scene {
    /// Applies the example's grant and request and mounts the Secret.
    pub(crate) async fn new(file: &str) -> Result<Self> {
        let documents = example::documents(file)?;
        let requests = example::of_kind(&documents, "IdTokenRequest");
        let request = requests.first().context("the example has no request")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = text(&request["metadata"]["namespace"]);
        let name = text(&request["metadata"]["name"]);
        let world = World::new().await?;
        world.namespace(&namespace).await?;
        let grant = example::documents("grant.yaml")?;
        let manifests: Vec<String> = [&grant[0], request].map(Value::to_string).into();
        world.cluster.apply(&manifests.join("\n---\n")).await?;
        world.ready(&namespace, &name).await?;
        let dir = RunDir::create("consumer")?;
        let mut scene = Self {
            audience: text(&request["spec"]["audience"]),
            volume: Volume::new(dir.path())?,
            service: Service::start().await?,
            world,
            documents,
            dir,
            namespace,
            name,
        };
        let first = scene.mount().await?;
        scene.service.accept(&first);
        Ok(scene)
    }

    /// Shows the Secret as it is now in the volume, and gives its token after a check against Google's key.
    async fn mount(&mut self) -> Result<String> {
        let secret = self.world.secret(&self.namespace, &self.name).await?;
        self.volume.write(&secret)?;
        let token = token(&secret);
        let claims = self.world.google.verify(&token)?;
        ensure!(claims["aud"] == self.audience, "a token for {}", claims["aud"]);
        Ok(token)
    }

    /// Has the token renewed and mounted; the service then accepts the new one only. Gives it.
    pub(crate) async fn rotate(&mut self) -> Result<String> {
        let before = self.token().await?;
        // Tokens of the same second are the same.
        let issued = self.world.google.verify(&before)?["iat"]
            .as_i64()
            .unwrap_or_default();
        let later = async || Ok(jiff::Timestamp::now().as_second() > issued);
        self.world.wait("the second is over", later).await?;
        self.world.renew(&self.namespace, &self.name, "now").await?;
        let changed = async || Ok(self.token().await? != before);
        self.world.wait("the token is renewed", changed).await?;
        let next = self.mount().await?;
        self.service.accept(&next);
        Ok(next)
    }

    /// The current token.
    pub(crate) async fn token(&self) -> Result<String> {
        Ok(token(&self.world.secret(&self.namespace, &self.name).await?))
    }

    /// `text` of the example with the service's address and the volume's path in place of those of a cluster.
    pub(crate) fn here(&self, text: &str) -> String {
        text.replace(&self.audience, &format!("http://{}", self.service.address()))
            .replace(MOUNT, &self.volume.path().display().to_string())
    }

    /// Waits until the service has answered 200 to this token twice: the first call may have begun before a change.
    pub(crate) async fn served(&self, token: &str, program: &Process) -> Result<()> {
        self.until_called(program, SOON, || self.service.served(token) >= 2)
            .await
    }

    /// Waits until the service has answered 200 to a call `what`, such as `GET /prices`, with this token.
    pub(crate) async fn served_at(
        &self,
        what: &str,
        token: &str,
        program: &Process,
        limit: Duration,
    ) -> Result<()> {
        let wanted = format!("Bearer {token}");
        let is_it = |call: &Call| call.what == what && call.status == 200 && call.authorization == wanted;
        self.until_called(program, limit, || self.service.calls().iter().any(is_it))
            .await
    }

    /// Waits until the calls of the program are as they should be.
    async fn until_called(
        &self,
        program: &Process,
        limit: Duration,
        is_called: impl Fn() -> bool,
    ) -> Result<()> {
        let what = format!("{} calls with the token that the Secret holds", program.name());
        let seen = until(&what, limit, async || {
            ensure!(program.try_wait()?.is_none(), "{} has ended", program.name());
            Ok(is_called().then_some(()))
        });
        seen.await.with_context(|| {
            let calls = self.service.calls();
            let last: Vec<_> = calls
                .iter()
                .rev()
                .take(5)
                .map(|call| (&call.what, call.status))
                .collect();
            format!(
                "the last calls were {last:?}; its log ends with\n{}",
                program.log_tail()
            )
        })
    }
}

/// A program that is built where it is not built yet.
pub(crate) async fn built(module: GoModule, name: &'static str) -> Result<std::path::PathBuf> {
    let dir = tokio::task::spawn_blocking(move || module.build(&[name], Progress::Stderr)).await??;
    Ok(dir.join(name))
}
