//! What goes when its owner goes: by the cluster's own garbage collector.

use anyhow::Result;

use crate::suite::{Suite, namespace};

/// The Secret goes with its request.
pub(crate) async fn delete_request(suite: &Suite<'_>) -> Result<()> {
    let words = [("NAMESPACE", "shop"), ("NAME", "passing"), ("ACCOUNT", "caller")];
    suite
        .cluster
        .apply(&suite.manifest("request.yaml", &words)?)
        .await?;
    suite.wait_ready("shop", "passing", "True").await?;
    suite
        .cluster
        .kubectl("delete idtokenrequest -n shop passing")
        .await?;
    suite
        .wait("the Secret is gone", async || {
            Ok(suite
                .cluster
                .get("secret", "passing", "shop")
                .await?
                .is_null()
                .then_some(()))
        })
        .await
}

/// A namespace with requests, Secrets and pods that use them ends without help.
pub(crate) async fn delete_namespace(suite: &Suite<'_>) -> Result<()> {
    namespace(suite.cluster, "drill", "").await?;
    let words = [("NAMESPACE", "drill"), ("NAME", "one"), ("ACCOUNT", "drill")];
    suite
        .cluster
        .apply(&suite.manifest("request.yaml", &words)?)
        .await?;
    suite.wait_ready("drill", "one", "True").await?;
    suite
        .cluster
        .kubectl("delete namespace drill --timeout=300s")
        .await
        .map(drop)
}
