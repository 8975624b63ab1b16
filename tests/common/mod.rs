//! A world to test the operator in: a real API server, Google's endpoints emulated in this process, and the operator as the
//! process that users run, with exactly the rights of `config/rbac.yaml` and under the admission policies.

mod objects;
pub(crate) mod relay;
mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use idtoken_emulator::{EmulatorHandle, Endpoint, Policy, ServiceAccount};
use idtoken_operator::api::{crds, v1alpha1::IdTokenRequest};
use idtoken_testenv::{AuditEvent, ControlPlane, Process, clean_command, until};
use jiff::Timestamp;
use kube::Client;
use serde_json::Value;

pub(crate) use objects::{condition, has, is_handled, is_ready, text, token};
pub(crate) use relay::Relay;
pub(crate) use wire::Wire;

/// The Google identity of the operator.
pub(crate) const OPERATOR: &str = "operator@p.iam.gserviceaccount.com";
/// An account that the operator may impersonate.
pub(crate) const CALLER: &str = "caller@p.iam.gserviceaccount.com";
/// An account that exists and that the operator may not impersonate.
pub(crate) const LOCKED: &str = "locked@p.iam.gserviceaccount.com";
/// An account that does not exist.
pub(crate) const GHOST: &str = "ghost@p.iam.gserviceaccount.com";
/// An audience that the grants of [`World::grant`] allow.
pub(crate) const AUDIENCE: &str = "https://billing-x.run.app";
/// How long a test waits for what should come soon: generous, since others may use the machine too.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How long a test goes on whose length is what it shows, where `IDTOKEN_TEST_SECONDS` says so; otherwise as long as the test itself
/// thinks enough for every day.
pub(crate) fn long() -> Option<Duration> {
    let seconds = std::env::var("IDTOKEN_TEST_SECONDS").ok()?;
    Some(Duration::from_secs(
        seconds.parse().expect("IDTOKEN_TEST_SECONDS is a number"),
    ))
}

/// The operator's user in the cluster.
pub(crate) const USER: &str = "system:serviceaccount:idtoken-system:idtoken-operator";
/// What an administrator applies besides the CustomResourceDefinitions.
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config");

/// What can be chosen about a world. The default is what most tests want.
pub(crate) struct Setup {
    /// Whether the operator runs from the start.
    pub(crate) operator: bool,
    /// Flags of the operator besides those that every world has.
    pub(crate) flags: Vec<String>,
    /// The operator's log filter.
    pub(crate) log: &'static str,
    /// Seconds between two renewals of a request by annotation.
    pub(crate) renew_interval: &'static str,
    /// Whether all that Google's endpoints answer is recorded.
    pub(crate) recorded: bool,
    /// How long ID tokens live.
    pub(crate) lifetime: Duration,
    /// Content of `--grants-file`; none where absent.
    pub(crate) grants_file: Option<String>,
    /// The operator's rights: a file of `config/`.
    pub(crate) rbac: &'static str,
    /// Further flags of the API server.
    pub(crate) apiserver_flags: &'static [&'static str],
    /// Namespaces that are there before the operator's rights.
    pub(crate) namespaces: &'static [&'static str],
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            operator: true,
            flags: Vec::new(),
            log: "all=trace",
            renew_interval: "0",
            recorded: false,
            lifetime: Duration::from_secs(3600),
            grants_file: None,
            rbac: "rbac.yaml",
            apiserver_flags: &[],
            namespaces: &[],
        }
    }
}

impl Setup {
    /// ID tokens that live so many seconds.
    pub(crate) fn lifetime(seconds: u64) -> Self {
        Self {
            lifetime: Duration::from_secs(seconds),
            ..Self::default()
        }
    }
}

/// One process of the operator.
pub(crate) struct Operator {
    /// The process.
    pub(crate) process: Process,
    /// Where it serves `/metrics`.
    pub(crate) address: String,
}

impl Operator {
    /// The text of `/metrics`.
    pub(crate) async fn scrape(&self) -> Result<String> {
        Ok(self.get("/metrics").await?.error_for_status()?.text().await?)
    }

    /// Answers a GET of a path.
    pub(crate) async fn get(&self, path: &str) -> Result<reqwest::Response> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(client
            .get(format!("http://{}{path}", self.address))
            .send()
            .await?)
    }

    /// The sum of all samples of `/metrics` whose line begins with `series`.
    pub(crate) async fn metric(&self, series: &str) -> Result<f64> {
        let text = self.scrape().await?;
        let samples = text.lines().filter(|line| line.starts_with(series));
        Ok(samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// Waits until its caches are filled.
    pub(crate) async fn ready(&self) -> Result<()> {
        self.process.wait_for_http(&self.address, "/readyz", LIMIT).await
    }
}

/// A control plane, Google, and the operator between them. All of it ends when this is dropped.
pub(crate) struct World {
    operator: Mutex<Option<Arc<Operator>>>,
    /// Names the log of each run.
    runs: Mutex<Vec<PathBuf>>,
    setup: Setup,
    /// The kubeconfig of the operator.
    pub(crate) kubeconfig: PathBuf,
    /// A client of the administrator.
    pub(crate) client: Client,
    /// Google's endpoints.
    pub(crate) google: EmulatorHandle,
    /// What the operator and Google's endpoints said to each other, where it is recorded.
    pub(crate) relay: Option<Relay>,
    /// The control plane.
    pub(crate) cluster: ControlPlane,
}

/// A file of `config/`.
pub(crate) fn config(file: &str) -> Result<String> {
    std::fs::read_to_string(format!("{CONFIG}/{file}"))
        .with_context(|| format!("cannot read {CONFIG}/{file}"))
}

/// Accounts of Google's as most tests want them.
pub(crate) fn policy() -> Policy {
    let mut policy = Policy {
        service_accounts: vec![
            ServiceAccount::new(OPERATOR),
            ServiceAccount::new(CALLER).impersonated_by(format!("serviceAccount:{OPERATOR}")),
            ServiceAccount::new(LOCKED),
        ],
        ..Policy::default()
    };
    policy.metadata_server.service_account = Some(OPERATOR.to_owned());
    policy
}

impl World {
    /// Starts a world with the default [`Setup`].
    pub(crate) async fn new() -> Result<Self> {
        Self::with(Setup::default()).await
    }

    /// Starts a world and waits until the operator is ready.
    pub(crate) async fn with(setup: Setup) -> Result<Self> {
        // An error means that another test was faster, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let options = idtoken_emulator::Options {
            lifetime: setup.lifetime,
            ..idtoken_emulator::Options::with_proxy()
        };
        let google = EmulatorHandle::start(policy(), options).await?;
        let relay = match setup.recorded {
            true => Some(Relay::start(google.address()).await?),
            false => None,
        };
        let cluster = ControlPlane::start(idtoken_testenv::Options {
            apiserver_flags: setup
                .apiserver_flags
                .iter()
                .map(|flag| (*flag).to_owned())
                .collect(),
            ..idtoken_testenv::Options::default()
        })
        .await?;
        let mut manifests =
            String::from("---\n{apiVersion: v1, kind: Namespace, metadata: {name: idtoken-system}}\n");
        for crd in crds() {
            manifests.push_str(&format!("---\n{}\n", serde_json::to_string(&crd)?));
        }
        for name in setup.namespaces {
            manifests.push_str(&format!(
                "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n"
            ));
        }
        cluster.apply(&manifests).await?;
        for file in [setup.rbac, "roles.yaml", "admission.yaml"] {
            cluster.apply(&config(file)?).await?;
        }
        cluster.wait_for_crds().await?;
        if let Some(grants) = &setup.grants_file {
            std::fs::write(cluster.dir().join("grants.yaml"), grants)?;
        }
        let world = Self {
            operator: Mutex::new(None),
            runs: Mutex::default(),
            kubeconfig: cluster.kubeconfig_for(
                USER,
                &["system:serviceaccounts", "system:serviceaccounts:idtoken-system"],
            )?,
            client: cluster.client().await?,
            setup,
            google,
            relay,
            cluster,
        };
        if world.setup.operator {
            world.start_operator().await?;
        }
        Ok(world)
    }

    /// Where `--grants-file` is.
    pub(crate) fn grants_file(&self) -> PathBuf {
        self.cluster.dir().join("grants.yaml")
    }

    /// Starts the operator and waits until its caches are filled.
    pub(crate) async fn start_operator(&self) -> Result<()> {
        let google = self.relay.as_ref().map_or(self.google.address(), Relay::address);
        let operator = self
            .replica(google, &self.kubeconfig, &self.setup.flags, &[])
            .await?;
        operator.ready().await?;
        *self.operator.lock().unwrap() = Some(Arc::new(operator));
        Ok(())
    }

    /// Starts a process of the operator, with Google's endpoints at `google`, the API server as `kubeconfig` says, and these flags and
    /// environment variables, and waits until it says where it listens.
    pub(crate) async fn replica(
        &self,
        google: SocketAddr,
        kubeconfig: &Path,
        flags: &[String],
        env: &[(&str, &str)],
    ) -> Result<Operator> {
        let home = self.cluster.dir().join("home");
        std::fs::create_dir_all(&home)?;
        let mut command = clean_command(Path::new(env!("CARGO_BIN_EXE_idtoken-operator")));
        command
            .args(["run", "--listen", "127.0.0.1:0"])
            .arg(format!("--iam-credentials-url=http://{google}"))
            .arg(format!("--sts-url=http://{google}"))
            .arg(format!("--google-keys-url=http://{google}/oauth2/v3/certs"))
            .args(flags)
            .env("KUBECONFIG", kubeconfig)
            .env("IDTOKEN_LOG", self.setup.log)
            // Tests ask for renewals one after the other.
            .env("IDTOKEN_MIN_RENEW_INTERVAL", self.setup.renew_interval)
            .env("GCE_METADATA_HOST", google.to_string())
            .env("RUST_BACKTRACE", "1")
            // No credential file of whoever runs the tests.
            .env("HOME", &home);
        if self.setup.grants_file.is_some() {
            command.arg("--grants-file").arg(self.grants_file());
        }
        command.envs(env.iter().cloned());
        let process = {
            let mut runs = self.runs.lock().unwrap();
            let name = format!("operator-{}", runs.len() + 1);
            let process = Process::spawn(&name, &command, self.cluster.dir())?;
            runs.push(process.log_path().to_owned());
            process
        };
        let line = process.wait_for_line("starting the operator", LIMIT).await?;
        let reported = line.split("listen=").nth(1);
        // In JSON.
        let reported = reported.or_else(|| line.split("\"listen\":\"").nth(1));
        let address = reported
            .and_then(|rest| rest.split([' ', '"']).next())
            .context("the first line of the log does not say where it listens")?
            .to_owned();
        Ok(Operator { process, address })
    }

    /// Ends the operator by SIGTERM, or by SIGKILL, and waits for its end.
    pub(crate) async fn stop_operator(&self, by_force: bool) -> Result<()> {
        let operator = self
            .operator
            .lock()
            .unwrap()
            .take()
            .context("the operator does not run")?;
        if by_force {
            operator.process.kill().await?;
        } else {
            operator.process.request_stop()?;
            let status = operator.process.wait(LIMIT).await?;
            ensure!(status.success(), "the operator ended with {status} after SIGTERM");
        }
        Ok(())
    }

    /// Everything that all runs of the operator have written.
    pub(crate) fn operator_log(&self) -> String {
        let runs = self.runs.lock().unwrap().clone();
        runs.iter()
            .map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned())
            .collect()
    }

    /// When the wait of a request ends, as the last line of the operator's log on it says. Needs `--log-format=json`.
    pub(crate) fn next_attempt(&self, name: &str) -> Option<Timestamp> {
        let log = self.operator_log();
        let lines = log.lines().rev();
        let mut lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let last = lines.find(|line| line["name"] == name && line["next"].is_string())?;
        last["next"].as_str()?.parse().ok()
    }

    /// Checks that the operator has never had more memory than the chart gives it.
    pub(crate) fn check_memory(&self) -> Result<()> {
        /// In KiB, as the kernel counts.
        const LIMIT: u64 = 256 << 10;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.operator_pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = line
            .and_then(|line| line.split_whitespace().next())
            .context("VmHWM")?;
        let peak: u64 = peak.parse()?;
        ensure!(peak < LIMIT, "the operator had {peak} KiB");
        Ok(())
    }

    /// The id of the operator's process.
    pub(crate) fn operator_pid(&self) -> Result<u32> {
        let operator = self.operator.lock().unwrap();
        Ok(operator
            .as_ref()
            .context("the operator does not run")?
            .process
            .pid())
    }

    /// The last lines that the operator itself wrote, for messages.
    pub(crate) fn log_tail(&self) -> String {
        let log = self.operator_log();
        let reported = |line: &&str| {
            [" INFO ", " WARN ", " ERROR ", "panicked"]
                .iter()
                .any(|level| line.contains(level))
                || line.contains("DEBUG idtoken_operator")
        };
        let lines: Vec<&str> = log.lines().filter(reported).collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The text of `/metrics`.
    pub(crate) async fn scrape(&self) -> Result<String> {
        self.running()?.scrape().await
    }

    /// The sum of all samples of `/metrics` whose line begins with `series`.
    pub(crate) async fn metric(&self, series: &str) -> Result<f64> {
        self.running()?.metric(series).await
    }

    /// The process that runs.
    pub(crate) fn running(&self) -> Result<Arc<Operator>> {
        let operator = self.operator.lock().unwrap().clone();
        operator.context("the operator does not run")
    }

    /// How many calls asked Google for an ID token, whatever came of them.
    pub(crate) fn asked(&self) -> u64 {
        self.google.count(Endpoint::GenerateIdToken)
    }

    /// Waits until `check` holds of the request; otherwise fails with its status and the operator's last words.
    pub(crate) async fn until(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        check: impl Fn(&IdTokenRequest) -> bool,
    ) -> Result<IdTokenRequest> {
        let result = until(what, LIMIT, async || {
            let object = self.get(namespace, name).await?;
            Ok(check(&object).then_some(object))
        });
        match result.await {
            Ok(object) => Ok(object),
            Err(error) => {
                let object = self.get(namespace, name).await.ok();
                let status =
                    object.map(|object| serde_json::to_string_pretty(&object.status).unwrap_or_default());
                let status = status.unwrap_or_default();
                let tail = self.log_tail();
                Err(error.context(format!(
                    "IdTokenRequest {namespace}/{name}, whose status is\n{status}\nand the operator's log ends with\n{tail}\n"
                )))
            }
        }
    }

    /// Waits until `check` holds; otherwise fails with the operator's last words.
    pub(crate) async fn wait(&self, what: &str, check: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let result = until(what, LIMIT, async || Ok(check().await?.then_some(()))).await;
        result.with_context(|| format!("the operator's log ends with\n{}\n", self.log_tail()))
    }

    /// Calls of the operator that the API server has answered since entry `from` of the audit log, oldest first. Leases are
    /// left out: they are renewed by the clock.
    pub(crate) fn calls_since(&self, from: usize) -> Result<Vec<AuditEvent>> {
        let events = self.cluster.audit()?.into_iter().skip(from);
        Ok(events
            .filter(|event| {
                event.user == USER && event.resource != "leases" && event.stage == "ResponseComplete"
            })
            .collect())
    }

    /// Writes of the operator since entry `from` of the audit log, events aside.
    pub(crate) fn writes_since(&self, from: usize) -> Result<Vec<AuditEvent>> {
        let calls = self.calls_since(from)?.into_iter();
        Ok(calls
            .filter(|call| ["create", "update", "patch", "delete"].contains(&call.verb.as_str()))
            .filter(|call| call.resource != "events")
            .collect())
    }

    /// The end of the audit log, for [`World::calls_since`]. All that was answered before is in the log then.
    pub(crate) async fn mark(&self) -> Result<usize> {
        // The API server logs a request after it has answered it: one of ours that is in the log comes after those.
        let name = format!("mark-{}", self.cluster.audit()?.len());
        let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> =
            kube::Api::all(self.client.clone());
        let _ = namespaces.get_opt(&name).await?;
        let logged = async || Ok(self.cluster.audit()?.iter().position(|event| event.name == name));
        let position = until("the audit log has caught up", LIMIT, logged).await?;
        Ok(position + 1)
    }
}

/// Those of `calls` with this verb and resource, the subresource after a slash.
pub(crate) fn of<'a>(calls: &'a [AuditEvent], verb: &str, resource: &str) -> Vec<&'a AuditEvent> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    calls
        .iter()
        .filter(|call| call.verb == verb && call.resource == resource && call.subresource == subresource)
        .collect()
}
