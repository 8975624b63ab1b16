//! What breaks around the operator while tokens are being renewed.

use anyhow::{Context, Result, ensure};
use idtoken_testenv::node::Node;

use crate::google::{Google, account};
use crate::suite::{NAMESPACE, Suite, namespace, text};

/// The pod that holds the Lease is killed while Google works on its call; the other one takes over and renews.
pub(crate) async fn kill_leader(suite: &Suite<'_>, google: &Google) -> Result<()> {
    let cluster = suite.cluster;
    namespace(cluster, "drill", "").await?;
    let words = [("NAMESPACE", "drill"), ("NAME", "renewed"), ("ACCOUNT", "drill")];
    cluster.apply(&suite.manifest("request.yaml", &words)?).await?;
    suite.wait_ready("drill", "renewed", "True").await?;
    let before = cluster.get("idtokenrequest", "renewed", "drill").await?;
    let calls = google.calls(suite, &account("drill")).await?.len();

    google.delay(suite, &account("drill"), 15_000).await?;
    cluster
        .kubectl("annotate idtokenrequest -n drill renewed --overwrite idtoken.dev/renew=drill")
        .await?;
    suite
        .wait("Google works on the renewal", async || {
            Ok((google.calls(suite, &account("drill")).await?.len() > calls).then_some(()))
        })
        .await?;
    let leader = leader(suite).await?;
    cluster
        .kubectl(&format!(
            "delete pod -n {NAMESPACE} {leader} --grace-period=0 --force"
        ))
        .await?;
    google.heal(suite).await?;

    suite
        .wait("another pod has renewed the token", async || {
            let now = cluster.get("idtokenrequest", "renewed", "drill").await?;
            let handled = now["status"]["lastHandledRenewRequest"] == "drill";
            let newer = now["status"]["token"]["issueTime"] != before["status"]["token"]["issueTime"];
            Ok((handled && newer).then_some(()))
        })
        .await?;
    let next = self::leader(suite).await?;
    ensure!(next != leader, "the pod that was killed still leads");
    cluster
        .kubectl(&format!(
            "rollout status -n {NAMESPACE} deployment/idtoken-operator --timeout=300s"
        ))
        .await?;
    cluster
        .kubectl("delete namespace drill --timeout=300s")
        .await
        .map(drop)
}

/// The name of the pod that holds the Lease.
async fn leader(suite: &Suite<'_>) -> Result<String> {
    let lease = suite.cluster.get("lease", "idtoken-operator", NAMESPACE).await?;
    let holder = text(&lease["spec"]["holderIdentity"]);
    let pods = crate::release::pods(suite).await?;
    let names = pods.iter().map(|pod| text(&pod["metadata"]["name"]));
    names
        .into_iter()
        .find(|name| holder.contains(name.as_str()))
        .with_context(|| format!("the Lease is held by {holder:?}, which is no pod"))
}

/// kubelet and containerd stop; tokens are renewed meanwhile, and reach the pods, which have gone on, once both are back.
pub(crate) async fn restart_node(suite: &Suite<'_>, node: &Node) -> Result<()> {
    let cluster = suite.cluster;
    let issued = async || {
        let request = cluster.get("idtokenrequest", "billing", "shop").await?;
        anyhow::Ok(text(&request["status"]["token"]["issueTime"]))
    };
    node.stop_runtime().await?;
    let before = issued().await?;
    cluster
        .kubectl(
            "annotate idtokenrequest -n shop billing --overwrite idtoken.dev/renew=while-the-node-is-down",
        )
        .await?;
    let renewed = suite
        .wait(
            "the token is renewed while the node's software is down",
            async || {
                let now = issued().await?;
                Ok((now != before).then_some(now))
            },
        )
        .await?;
    node.start_runtime().await?;
    let renewed: jiff::Timestamp = renewed.parse()?;
    suite
        .wait(
            "the pod has the token that was issued meanwhile, or a later one",
            async || {
                let log = cluster.kubectl("logs -n shop deployment/caller").await;
                let Ok(log) = log else { return Ok(None) };
                let last = log.lines().rev().find(|line| line.contains(r#""event":"token""#));
                let line: serde_json::Value = serde_json::from_str(last.context("the caller said nothing")?)?;
                Ok((line["issued"].as_i64() >= Some(renewed.as_second())).then_some(()))
            },
        )
        .await
}
