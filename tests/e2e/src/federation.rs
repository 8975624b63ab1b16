//! Tenants whose own Kubernetes ServiceAccounts Google knows.

use anyhow::{Result, ensure};

use crate::google::{Google, account};
use crate::suite::{Suite, namespace};

/// Each tenant gets the token of its own account, and is refused that of the other by Google.
pub(crate) async fn run(suite: &Suite<'_>, google: &Google) -> Result<()> {
    for (name, other) in [("a", "b"), ("b", "a")] {
        let tenant = format!("tenant-{name}");
        namespace(suite.cluster, &tenant, "").await?;
        let manifest = suite.manifest("tenant.yaml", &[("NAME", name), ("OTHER", other)])?;
        suite.cluster.apply(&manifest).await?;
    }
    for name in ["a", "b"] {
        let tenant = format!("tenant-{name}");
        suite.wait_ready(&tenant, "own", "True").await?;
        let reason = suite.wait_ready(&tenant, "foreign", "False").await?;
        ensure!(
            reason == "PermissionDenied",
            "{tenant} is refused the other's account by {reason}"
        );
        let secret = suite.cluster.get("secret", "foreign", &tenant).await?;
        ensure!(secret.is_null(), "{tenant} has a Secret for the other's account");
        suite
            .wait("the service has accepted the tenant's call", async || {
                let seen = google.seen(suite).await?;
                Ok(seen["accounts"][account(name)]["accepted"]
                    .as_u64()
                    .filter(|count| *count > 0)
                    .map(drop))
            })
            .await?;
    }
    Ok(())
}
