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
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use regex::Regex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::page::Block;
use super::readers::STAND_INS;
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

/// The script of all blocks, in one shell. What is printed in a block with output goes to a file for each command, whose exit code is
/// not looked at: the output is.
fn script(blocks: &[Block]) -> String {
    let mut script = String::new();
    for (index, block) in blocks.iter().enumerate() {
        script.push_str(&format!("BLOCK='{}'\n", block.place));
        if block.is_values() {
            let text = &block.text;
            script.push_str(&format!(
                "cat >values.yaml <<'END OF VALUES'\n{text}END OF VALUES\n"
            ));
        } else if block.shown.is_empty() {
            script.push_str(&block.text);
        }
        for (number, (command, _)) in block.shown.iter().enumerate() {
            let file = shown_file(index, number);
            script.push_str(&format!("{{\n{command}}} >\"$HOME/{file}\" 2>&1 || true\n"));
        }
    }
    script
}

fn shown_file(block: usize, command: usize) -> String {
    format!("shown.{block}.{command}")
}

/// What is shown on the page and was not printed.
fn compare(dir: &Path, blocks: &[Block]) -> Result<()> {
    for (index, block) in blocks.iter().enumerate() {
        for (number, (command, shown)) in block.shown.iter().enumerate() {
            let file = dir.join(shown_file(index, number));
            let printed = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            ensure!(
                is_as_shown(shown, &printed),
                "{}: {command}prints\n{printed}but the page shows\n{shown}",
                block.place
            );
        }
    }
    Ok(())
}

/// Whether all of what was printed is on the page, where `…` stands for anything, a number for any number and a space for any number
/// of spaces and line breaks.
fn is_as_shown(shown: &str, printed: &str) -> bool {
    let plain = |text: &str| {
        let words: Vec<_> = text.split_whitespace().collect();
        let number = Regex::new("[0-9]+").unwrap();
        number.replace_all(&words.join(" "), "0").into_owned()
    };
    let (shown, printed) = (plain(shown), plain(printed));
    let parts: Vec<_> = shown.split('…').map(|part| regex::escape(part.trim())).collect();
    let whole = Regex::new(&format!("^{}$", parts.join(".*"))).unwrap();
    whole.is_match(&printed)
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

/// The functions that stand for programs, each of which only notes how it is called.
fn stand_ins() -> String {
    let programs = STAND_INS
        .iter()
        .map(|(program, _)| program)
        .filter(|program| !program.contains(' '));
    programs
        .map(|program| format!("{program}() {{ call {program} \"$@\"; }}\n"))
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
    let mut text = format!("{}{PRELUDE}{PARSE}", stand_ins());
    for block in blocks.iter().filter(|block| !block.is_values()) {
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
    let script = format!("{before}\n{}", script(blocks));
    let mut text = format!("{}{PRELUDE}{RUN}{script}", stand_ins());
    for (port, documented) in ports.iter().zip(["8090", "8091"]) {
        text = text.replace(
            &format!("127.0.0.1:{documented}"),
            &format!("127.0.0.1:{}", port.number()),
        );
    }
    drop(ports);
    let needs_cluster = script
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
        let google = scene.google.address();
        command
            .env("KUBECONFIG", scene.cluster.admin_kubeconfig())
            .env("IDTOKEN_IAM_CREDENTIALS_URL", format!("http://{google}"))
            .env("GCE_METADATA_HOST", google.to_string());
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
    compare(dir.path(), blocks)
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
                self.end_pods().await?;
                self.end_namespaces().await
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

    /// What is in a namespace stays, but no page reads it then.
    async fn end_namespaces(&self) -> Result<()> {
        let all: Api<Namespace> = Api::all(self.client.clone());
        for mut namespace in all.list(&ListParams::default()).await? {
            if namespace.metadata.deletion_timestamp.is_some() {
                let name = namespace.name_any();
                namespace.spec.get_or_insert_default().finalizers = None;
                let done = all
                    .replace_subresource("finalize", &name, &PostParams::default(), &namespace)
                    .await;
                match done {
                    // It is gone, or has just been changed: then the next tick ends it.
                    Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => {}
                    done => drop(done?),
                }
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

#[test]
fn output_is_compared_with_the_page() {
    let shown = "NAME   AGE\n…\nb 12s at 2026-11-23T12:44:23Z\n";
    for (printed, is_same) in [
        ("NAME AGE\na 1s\nb 345s at 2027-01-02T03:04:05Z\n", true),
        ("NAME AGE\na 1s\nb 345s at 2027-01-02T03:04:05Z\nc\n", false),
        ("NAME AGE\na 1s\n", false),
        ("error: no such kind\n", false),
        ("", false),
    ] {
        assert_eq!(is_as_shown(shown, printed), is_same, "{printed}");
    }
    assert!(is_as_shown("a.b…\n", "a.bc") && !is_as_shown("a.b…\n", "a-bc"));
}
