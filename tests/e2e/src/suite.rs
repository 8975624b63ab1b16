//! The order of the cases, and what they share.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use idtoken_testenv::Registry;
use idtoken_testenv::node::Node;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::released::Released;
use crate::report::Report;
use crate::{consumers, failures, federation, google, metadata, objects, release, tutorial};

/// How long the emulated Google's ID tokens live: three renewals of half of it fit into the suite's time, and the rest is
/// enough for a kubelet on a slow machine. Google's live for an hour.
pub(crate) const LIFETIME: Duration = Duration::from_secs(150);

/// What the cases share.
pub(crate) struct Suite<'a> {
    /// The cluster, by kubectl and helm.
    pub(crate) cluster: &'a Cluster,
    /// The node, where it is ours.
    pub(crate) own: Option<&'a OwnNode>,
    /// Prints how cases went.
    pub(crate) report: &'a Report,
}

/// A node of our own: to stop and start, and with a registry that pods and Helm pull from.
pub(crate) struct OwnNode {
    /// The node.
    pub(crate) node: Node,
    /// Where its images and the chart are.
    pub(crate) registry: Registry,
    /// The release that is tested, if it is one.
    pub(crate) released: Option<Released>,
}

impl Suite<'_> {
    /// Runs all cases in order, and ends with the first that fails.
    ///
    /// # Errors
    /// When a case fails: with its name and the state of the cluster.
    pub(crate) async fn run(&self) -> Result<()> {
        let result = self.cases().await;
        if result.is_err() {
            self.report.block("The cluster then", &self.state().await);
        }
        result
    }

    async fn cases(&self) -> Result<()> {
        self.prepare().await?;
        let google = self
            .case("Google is emulated in the cluster", google::start(self))
            .await?;
        self.case(
            "helm install oci://: two replicas, Pod Security restricted",
            release::install(self, &google),
        )
        .await?;
        self.case("helm test", release::test(self)).await?;
        self.case(
            "pods wait for their Secrets and then call the service",
            consumers::start(self, &google),
        )
        .await?;
        self.case(
            "federation: each tenant has its own account only",
            federation::run(self, &google),
        )
        .await?;
        self.case("helm upgrade with other values", release::upgrade(self))
            .await?;
        self.case(
            "a CA is added to the mounted bundle",
            release::rotate_bundle(self),
        )
        .await?;
        self.case(
            "a deleted request takes its Secret with it",
            objects::delete_request(self),
        )
        .await?;
        self.case(
            "a deleted namespace takes all with it",
            objects::delete_namespace(self),
        )
        .await?;
        self.case(
            "the operator's pod is deleted during a renewal",
            failures::kill_leader(self, &google),
        )
        .await?;
        self.case("a new image by rolling update", release::roll(self))
            .await?;
        match self.own {
            Some(own) => {
                let restart = failures::restart_node(self, &own.node);
                self.case("kubelet and containerd stop and start", restart)
                    .await?;
            }
            None => self
                .report
                .skipped("kubelet and containerd stop and start", "not our node"),
        }
        self.case(
            "three renewals reach the file, and no call failed",
            consumers::followed(self, &google),
        )
        .await?;
        self.case(
            "envFrom and subPath keep the first token",
            consumers::unfollowed(self),
        )
        .await?;
        self.case(
            "CronJob: curl with the header file",
            consumers::cronjob(self, &google),
        )
        .await?;
        self.case("Prometheus: no scrape failed", consumers::prometheus(self))
            .await?;
        self.case("no log of the operator holds a token", release::logs(self))
            .await?;
        self.case(
            "helm uninstall keeps the CRDs, and install takes them back",
            release::uninstall_and_keep(self),
        )
        .await?;
        match self.own {
            Some(_) => {
                self.case(
                    "a pod named metadata.google.internal is not taken for Google's metadata server",
                    metadata::impostor(self),
                )
                .await?;
            }
            None => self.report.skipped(
                "a pod named metadata.google.internal is not taken for Google's metadata server",
                "the node may have a metadata server",
            ),
        }
        self.case(
            "helm uninstall removes the CRDs where the values say so",
            release::uninstall(self),
        )
        .await?;
        if self.own.is_none() && self.cluster.registry.is_some() {
            self.report
                .skipped("docs/tutorial.md", "its images have no registry");
            return Ok(());
        }
        self.case("docs/tutorial.md, as written", tutorial::run(self))
            .await
    }

    /// What is asked of the cluster before anything is made in it.
    async fn prepare(&self) -> Result<()> {
        let asked = self
            .cluster
            .kubectl("get crd idtokenrequests.idtoken.dev --ignore-not-found -o name");
        if !asked
            .await
            .context("the cluster cannot be asked")?
            .trim()
            .is_empty()
        {
            bail!("this cluster has idtoken.dev's CRDs already: the tests want to install and remove them");
        }
        Ok(())
    }

    async fn case<T>(&self, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let case = self.report.begin(name);
        case.ended(work.await).with_context(|| name.to_owned())
    }

    /// A manifest of this suite, with words replaced.
    pub(crate) fn manifest(&self, name: &str, words: &[(&str, &str)]) -> Result<String> {
        self.file(&Path::new("tests/e2e/manifests").join(name), words)
    }

    /// A file of the workspace, with words replaced. Each of them must be there.
    pub(crate) fn file(&self, path: &Path, words: &[(&str, &str)]) -> Result<String> {
        let whole = self.cluster.workspace.join(path);
        let mut text =
            std::fs::read_to_string(&whole).with_context(|| format!("cannot read {}", whole.display()))?;
        for (word, replacement) in words {
            if !text.contains(word) {
                bail!("{} does not hold {word:?}", path.display());
            }
            text = text.replace(word, replacement);
        }
        Ok(text)
    }

    /// Waits until a request's condition Ready is `status` and gives its reason.
    pub(crate) async fn wait_ready(&self, namespace: &str, name: &str, status: &str) -> Result<String> {
        let what = format!("IdTokenRequest {namespace}/{name} is Ready {status}");
        self.wait(&what, async || {
            let request = self.cluster.get("idtokenrequest", name, namespace).await?;
            let ready = condition(&request, "Ready");
            Ok((ready["status"] == status).then(|| text(&ready["reason"])))
        })
        .await
    }

    /// Asks `check` every second until it gives a value.
    pub(crate) async fn wait<T>(&self, what: &str, check: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
        let started = std::time::Instant::now();
        loop {
            if let Some(value) = check().await? {
                return Ok(value);
            }
            if started.elapsed() >= crate::cluster::LIMIT {
                bail!("{what}: still not so after {} s", crate::cluster::LIMIT.as_secs());
            }
            self.report.progress(what);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// What helps to see why a case failed.
    async fn state(&self) -> String {
        let mut said = String::new();
        for arguments in [
            "get pods -A -o wide",
            "get idtokenrequests -A -o wide",
            "get events -A --sort-by=.lastTimestamp",
            "logs -n idtoken-system -l app.kubernetes.io/name=idtoken-operator --prefix --tail=30",
            "logs -n google -l app=emulator -c emulator --tail=30",
            "logs -n cloud-run -l app=billing --tail=20",
            "logs -n shop -l app=caller --tail=20",
        ] {
            let printed = self.cluster.kubectl(arguments).await;
            let printed = printed.unwrap_or_else(|error| format!("{error:#}"));
            let lines: Vec<_> = printed.lines().collect();
            let shown = lines[lines.len().saturating_sub(60)..].join("\n");
            said.push_str(&format!("$ kubectl {arguments}\n{shown}\n\n"));
        }
        said
    }
}

/// An object's condition; null where it has none of that type.
pub(crate) fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind);
    found.cloned().unwrap_or_default()
}

/// A JSON string's text; empty where it is none.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The release's namespace.
pub(crate) const NAMESPACE: &str = "idtoken-system";

/// Makes a namespace unless it is there, with labels.
pub(crate) async fn namespace(cluster: &Cluster, name: &str, labels: &str) -> Result<()> {
    let yaml = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n");
    cluster.apply(&yaml).await
}
