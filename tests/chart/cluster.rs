//! A cluster to install the chart in.

use std::time::Duration;

use anyhow::Result;
use idtoken_testenv::{ControlPlane, Options, Progress, consumers};
use serde_json::{Value, json};

use crate::helm::NAMESPACE;

/// How long a test waits for what should come soon.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Kinds that are not Kubernetes' own.
const FOREIGN: [&str; 3] = ["podmonitors", "prometheusrules", "servicemonitors"];

/// Starts an API server with namespace `shop`, and the release's, in which pods must pass Pod Security "restricted".
pub(crate) async fn start() -> Result<ControlPlane> {
    // An error means that another test was faster, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cluster = ControlPlane::start(Options::default()).await?;
    let restricted = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    for (name, labels) in [(NAMESPACE, restricted), ("shop", json!({}))] {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        cluster.apply(&namespace.to_string()).await?;
    }
    Ok(cluster)
}

/// The definitions of the kinds that are not Kubernetes' own, as one manifest.
pub(crate) async fn foreign_kinds() -> Result<String> {
    let kinds = consumers::foreign_crds(Progress::Stderr).await?;
    let wanted = |kind: &&String| {
        FOREIGN
            .iter()
            .any(|plural| kind.contains(&format!("plural: {plural}\n")))
    };
    let kinds: Vec<_> = kinds.iter().filter(wanted).map(String::as_str).collect();
    Ok(kinds.join("\n---\n"))
}

/// An object, such as `deployment/x` of the release's namespace; none where there is none.
pub(crate) async fn get(cluster: &ControlPlane, namespace: &str, object: &str) -> Result<Option<Value>> {
    let args = ["get", object, "-n", namespace, "-o", "json", "--ignore-not-found"];
    match cluster.kubectl(args).await?.as_str() {
        "" => Ok(None),
        text => Ok(Some(serde_json::from_str(text)?)),
    }
}
