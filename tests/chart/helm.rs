//! Helm 3 and 4, and the chart.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use idtoken_testenv::{Progress, binaries};
use serde_json::Value;

/// The chart's folder.
pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/idtoken-operator");
/// The values that have to be set.
const REQUIRED: &str = concat!(
    "--values=",
    env!("CARGO_MANIFEST_DIR"),
    "/charts/idtoken-operator/ci/default-values.yaml"
);
/// Where tests install it.
pub(crate) const NAMESPACE: &str = "idtoken-system";

/// One version of Helm.
pub(crate) struct Helm {
    program: PathBuf,
    /// Folder and file that it keeps to.
    home: PathBuf,
    kubeconfig: PathBuf,
}

/// Both are built where they are not built yet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Version {
    /// Helm 3.
    Three,
    /// Helm 4.
    Four,
}

impl Helm {
    /// With no cluster.
    pub(crate) async fn offline(version: Version) -> Result<Self> {
        Self::new(version, Path::new("/nonexistent"), Path::new("/nonexistent")).await
    }

    /// With the cluster of `kubeconfig`; `dir` is for its own files.
    pub(crate) async fn new(version: Version, kubeconfig: &Path, dir: &Path) -> Result<Self> {
        let module = match version {
            Version::Three => binaries::HELM,
            Version::Four => binaries::HELM_4,
        };
        let built = tokio::task::spawn_blocking(move || module.build(&["helm"], Progress::Stderr)).await??;
        Ok(Self {
            program: built.join("helm"),
            home: dir.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
        })
    }

    /// Runs it in the release's namespace and gives its stdout.
    pub(crate) async fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Result<String> {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .args(["--namespace", NAMESPACE])
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HELM_CACHE_HOME", self.home.join("helm-cache"))
            .env("HELM_CONFIG_HOME", self.home.join("helm-config"))
            .env("HELM_DATA_HOME", self.home.join("helm-data"))
            .env("NO_PROXY", "*");
        let shown = format!("{command:?}");
        let output = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("cannot run {shown}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("{shown}\n{}{}", text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// Runs `install` or `upgrade` with what has to be set.
    pub(crate) async fn release(&self, args: &[&str]) -> Result<String> {
        self.run(args.iter().chain(&[REQUIRED])).await
    }

    /// What the chart renders with further arguments, such as `--set`, in the order of the templates.
    pub(crate) async fn template(&self, args: &[&str]) -> Result<String> {
        let fixed = ["template", "release", CHART, "--kube-version=1.30.0", REQUIRED];
        self.run(fixed.iter().chain(args)).await
    }

    /// The same, read.
    pub(crate) async fn objects(&self, args: &[&str]) -> Result<Vec<Value>> {
        read(&self.template(args).await?)
    }
}

/// The objects of a manifest.
pub(crate) fn read(manifest: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(manifest)?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

/// The files of values that the chart is tried with.
pub(crate) fn matrix() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(format!("{CHART}/ci"))? {
        files.push(entry?.path());
    }
    files.sort();
    anyhow::ensure!(files.len() >= 5, "where are the values? {files:?}");
    Ok(files)
}

/// The one object of this kind whose name ends so.
pub(crate) fn find<'a>(objects: &'a [Value], kind: &str, end: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        object["kind"] == kind && name.ends_with(end)
    });
    let first = found
        .next()
        .unwrap_or_else(|| panic!("no {kind} is called …{end}"));
    assert!(found.next().is_none(), "several {kind} are called …{end}");
    first
}

/// The pod that the Deployment makes.
pub(crate) fn pod(objects: &[Value]) -> &Value {
    &find(objects, "Deployment", "")["spec"]["template"]
}

/// The arguments of the operator.
pub(crate) fn args(objects: &[Value]) -> Vec<&str> {
    let args = pod(objects)["spec"]["containers"][0]["args"].as_array();
    args.into_iter().flatten().filter_map(Value::as_str).collect()
}
