//! Runs the blocks of a page in one shell.

use std::fmt::Debug;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use idtoken_emulator::{EmulatorHandle, MetadataServer, Policy, ServiceAccount};
use idtoken_testenv::{
    Assets, ControlPlane, Options, Port, Process, Progress, RunDir, binaries, clean_command,
};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::page::Block;
use crate::root;

const PRELUDE: &str = include_str!("prelude.sh");
const PARSE: &str = include_str!("parse.sh");
const RUN: &str = include_str!("run.sh");
/// How long a page may take.
const LIMIT: Duration = Duration::from_secs(300);

const OPERATOR: &str = "operator@my-project.iam.gserviceaccount.com";
const CALLER: &str = "caller@my-project.iam.gserviceaccount.com";
const USER: &str = "system:serviceaccount:idtoken-system:idtoken-operator";
const GROUPS: [&str; 2] = ["system:serviceaccounts", "system:serviceaccounts:idtoken-system"];

/// A call of a program that was not made.
pub(super) struct Call {
    /// The place of the block that made it.
    pub(super) block: String,
    /// The program and its arguments; at least the program.
    pub(super) words: Vec<String>,
}

/// The script of all blocks, in one shell.
fn script(blocks: &[Block]) -> String {
    let mut script = String::new();
    for block in blocks {
        let (place, text) = (&block.place, &block.text);
        script.push_str(&format!("BLOCK='{place}'\n"));
        match block.is_values {
            true => script.push_str(&format!(
                "cat >values.yaml <<'END OF VALUES'\n{text}END OF VALUES\n"
            )),
            false => script.push_str(text),
        }
    }
    script
}

fn calls(file: &Path) -> Vec<Call> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let records = text.split_terminator('\x1e');
    let words = records.map(|record| record.split_terminator('\x1f').map(str::to_owned));
    words
        .filter_map(|mut words| {
            let block = words.next()?;
            let words: Vec<_> = words.collect();
            (!words.is_empty()).then_some(Call { block, words })
        })
        .collect()
}

fn command(dir: &Path, script: &str) -> Result<tokio::process::Command> {
    let file = dir.join("script.sh");
    std::fs::write(&file, script)?;
    let mut command = clean_command(Path::new("/bin/bash"));
    command
        .arg(&file)
        .current_dir(dir)
        .stdin(Stdio::null())
        .env("HOME", dir)
        .env("BLOCK", "before the first block")
        .env("CALLS", dir.join("calls"));
    Ok(command.into())
}

/// Has a shell follow the blocks without running any program. What it says against them, or the calls that they would make.
pub(super) fn follow(blocks: &[Block]) -> Result<Result<Vec<Call>, String>> {
    let dir = RunDir::create("follow")?;
    let shells: Vec<_> = blocks.iter().filter(|block| !block.is_values).collect();
    let mut text = format!("{PRELUDE}{PARSE}");
    for block in shells {
        text.push_str(&format!("BLOCK='{}'\n{}", block.place, block.text));
    }
    let output = command(dir.path(), &text)?
        .into_std()
        .output()
        .context("bash cannot be run")?;
    match output.status.success() {
        true => Ok(Ok(calls(&dir.path().join("calls")))),
        false => Ok(Err(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

/// A folder with the programs that pages name and that are here: kubectl, Helm, and the project's own.
pub(super) fn tools() -> Result<PathBuf> {
    let built = Path::new(env!("CARGO_BIN_EXE_idtoken-operator"))
        .parent()
        .context("no folder")?;
    let kubectl = Assets::locate(Progress::Stderr)?.kubectl;
    let helm = binaries::HELM.build(&["helm"], Progress::Stderr)?.join("helm");
    let dir = idtoken_testenv::target_dir().join("testenv/tools-of-pages");
    std::fs::create_dir_all(&dir)?;
    let own = |name: &str| built.join(name);
    for program in [kubectl, helm, own("kubectl-idtoken"), own("idtoken-emulator")] {
        ensure!(
            program.is_file(),
            "there is no {}: run cargo build --workspace",
            program.display()
        );
        let link = dir.join(program.file_name().unwrap_or_default());
        if std::fs::read_link(&link).ok().as_deref() != Some(&program) {
            // Another thread or process may do the same: whichever is last, the link is whole.
            let new = dir.join(format!(
                ".{}.{:?}",
                std::process::id(),
                std::thread::current().id()
            ));
            symlink(&program, &new)?;
            std::fs::rename(&new, &link)?;
        }
    }
    Ok(dir)
}

/// Runs the blocks after `before`, with a cluster where they use one.
pub(super) async fn run(before: &str, blocks: &[Block]) -> Result<()> {
    let dir = RunDir::create("page")?;
    for entry in std::fs::read_dir(root())? {
        let entry = entry?;
        symlink(entry.path(), dir.path().join(entry.file_name()))?;
    }
    let ports = [Port::reserve()?, Port::reserve()?];
    let mut text = format!("{PRELUDE}{RUN}{before}\n{}", script(blocks));
    for (port, documented) in ports.iter().zip(["8090", "8091"]) {
        text = text.replace(
            &format!("127.0.0.1:{documented}"),
            &format!("127.0.0.1:{}", port.number()),
        );
    }
    drop(ports);
    let needs_cluster = text
        .lines()
        .any(|line| ["kubectl ", "helm "].iter().any(|start| line.contains(start)));
    let tools = tokio::task::spawn_blocking(tools).await??;
    let mut command = command(dir.path(), &text)?;
    command.env(
        "PATH",
        format!("{}:/usr/local/bin:/usr/bin:/bin", tools.display()),
    );
    command.kill_on_drop(true);
    let place = blocks.first().map_or("", |block| &block.place).to_owned();
    let done = if needs_cluster {
        let scene = Scene::start(dir.path()).await?;
        command.env("KUBECONFIG", scene.cluster.admin_kubeconfig());
        tokio::select! {
            output = command.output() => output,
            error = scene.play() => bail!("{place}: the cluster failed: {error:#}"),
            () = tokio::time::sleep(LIMIT) => bail!("{place}: this page takes too long"),
        }
    } else {
        tokio::time::timeout(LIMIT, command.output()).await?
    };
    let output = done.context("bash cannot be run")?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "{place}: {}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

/// An API server, Google, and what stands for the nodes.
struct Scene {
    client: Client,
    cluster: ControlPlane,
    google: EmulatorHandle,
    dir: PathBuf,
}

impl Scene {
    async fn start(dir: &Path) -> Result<Self> {
        let policy = Policy {
            service_accounts: vec![
                ServiceAccount::new(OPERATOR),
                ServiceAccount::new(CALLER).impersonated_by(format!("serviceAccount:{OPERATOR}")),
            ],
            metadata_server: MetadataServer {
                service_account: Some(OPERATOR.to_owned()),
                ..MetadataServer::default()
            },
            ..Policy::default()
        };
        let cluster = ControlPlane::start(Options::default()).await?;
        Ok(Self {
            client: cluster.client().await?,
            cluster,
            google: EmulatorHandle::start(policy, idtoken_emulator::Options::default()).await?,
            dir: dir.to_owned(),
        })
    }

    /// Plays the controllers, the kubelet and the operator's pod. Ends only with an error.
    async fn play(&self) -> anyhow::Error {
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        let mut operator = None;
        loop {
            ticks.tick().await;
            let played = async {
                if operator.is_none() {
                    operator = self.operator().await?;
                }
                self.roll_out().await?;
                self.end_pods().await
            };
            if let Err(error) = played.await {
                return error;
            }
        }
    }

    /// Starts the operator once its kinds are there.
    async fn operator(&self) -> Result<Option<Process>> {
        let kinds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let served = kinds.list(&ListParams::default()).await?;
        if served.items.len() < 2 {
            return Ok(None);
        }
        let google = self.google.address();
        let mut command = clean_command(Path::new(env!("CARGO_BIN_EXE_idtoken-operator")));
        command
            .args(["run", "--listen=127.0.0.1:0"])
            .arg(format!("--iam-credentials-url=http://{google}"))
            .env("GCE_METADATA_HOST", google.to_string())
            .env("KUBECONFIG", self.cluster.kubeconfig_for(USER, &GROUPS)?)
            .env("HOME", "/nonexistent");
        Process::spawn("operator", &command, &self.dir).map(Some)
    }

    async fn roll_out(&self) -> Result<()> {
        let all: Api<Deployment> = Api::all(self.client.clone());
        for deployment in all.list(&ListParams::default()).await? {
            let generation = deployment.metadata.generation;
            let observed = deployment
                .status
                .as_ref()
                .and_then(|status| status.observed_generation);
            if observed != generation {
                let replicas = deployment.spec.replicas;
                let status = json!({"observedGeneration": generation, "replicas": replicas,
                    "updatedReplicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas});
                self.patch(&deployment, &status).await?;
            }
        }
        Ok(())
    }

    async fn end_pods(&self) -> Result<()> {
        let all: Api<Pod> = Api::all(self.client.clone());
        for pod in all.list(&ListParams::default()).await? {
            if pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending") {
                self.patch(&pod, &json!({"phase": "Succeeded"})).await?;
            }
        }
        Ok(())
    }

    /// Changes the status of an object; what is gone meanwhile needs none.
    async fn patch<K>(&self, object: &K, status: &Value) -> Result<()>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        let patch = Patch::Merge(json!({ "status": status }));
        match api.patch_status(&name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
            done => Ok(done.map(drop)?),
        }
    }
}
