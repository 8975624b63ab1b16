//! A tenant's pod that answers to the name of Google's metadata server.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::release;
use crate::suite::{Suite, namespace};

/// A pod with Kubernetes' own DNS settings takes the tenant's pod for Google's metadata server. The operator, which has no identity but that
/// server's, does not call it.
pub(crate) async fn impostor(suite: &Suite<'_>) -> Result<()> {
    let cluster = suite.cluster;
    namespace(cluster, "internal", "").await?;
    let words = [("VERSION", env!("CARGO_PKG_VERSION"))];
    cluster.apply(&suite.manifest("metadata.yaml", &words)?).await?;
    suite
        .wait("a pod was misled", async || {
            let pod = cluster.get("pod", "misled", "shop").await?;
            Ok((pod["status"]["phase"] == "Succeeded").then_some(()))
        })
        .await?;
    let said = cluster.kubectl("logs -n shop misled").await?;
    ensure!(
        said.contains("evil@evil.iam.gserviceaccount.com"),
        "the pod got {said}"
    );
    let before = calls(suite).await?;
    ensure!(before > 0, "the impostor saw no call");

    release::upgrade_with(suite, "google.workloadIdentityFederation.provider=").await?;
    let words = [("NAMESPACE", "shop"), ("NAME", "late"), ("ACCOUNT", "caller")];
    cluster.apply(&suite.manifest("request.yaml", &words)?).await?;
    let reason = suite.wait_ready("shop", "late", "False").await?;
    let after = calls(suite).await?;
    ensure!(
        after == before,
        "the impostor was called {} times by the operator",
        after - before
    );
    suite.report.note(format!(
        "a request without a metadata server: {reason}, and no call of the pod that has its name"
    ));
    Ok(())
}

/// How many calls the impostor has seen.
async fn calls(suite: &Suite<'_>) -> Result<usize> {
    let path = "/api/v1/namespaces/internal/pods/metadata:80/proxy/_emulator/calls";
    let said = suite.cluster.kubectl_with(&["get", "--raw", path], "").await?;
    let calls: Vec<Value> = serde_json::from_str(&said)?;
    Ok(calls.len())
}
