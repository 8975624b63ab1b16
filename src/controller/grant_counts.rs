//! Tells in each IdTokenGrant's status how many requests it allows.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::api::FIELD_MANAGER;
use crate::api::v1alpha1::IdTokenGrant;
use crate::controller::Context;
use crate::kubernetes::error::{code, problem};
use crate::shard::Shard;

/// How often at most a grant's status is written.
const INTERVAL: Duration = Duration::from_secs(10);
/// Longest time for one write.
const ANSWER: Duration = Duration::from_secs(30);

/// Writes what changed, again and again; never ends. An operator for a part of the requests does not know the number and writes none.
pub(crate) async fn tell(ctx: &Context) {
    if ctx.settings.shard != Shard::default() {
        return std::future::pending().await;
    }
    let mut failing = false;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(allowed) = ctx.cache.allowed_request_counts() else {
            continue;
        };
        let mut fault = None;
        for (name, count) in ctx.grants.untold(&allowed) {
            fault = write(ctx, &name, count).await.err().or(fault);
        }
        if let Some(fault) = fault.as_ref().filter(|_| !failing) {
            tracing::warn!("the status of IdTokenGrants was not written: {}", problem(fault));
        }
        failing = fault.is_some();
    }
}

async fn write(ctx: &Context, name: &str, count: i64) -> Result<(), kube::Error> {
    let api: Api<IdTokenGrant> = Api::all(ctx.client.clone());
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(json!({"status": {"allowedRequests": count}}));
    let written = tokio::time::timeout(ANSWER, api.patch_status(name, &params, &patch)).await;
    let late = || kube::Error::Service("the API server did not answer in time".into());
    match written.unwrap_or_else(|_| Err(late())) {
        // What it says now comes by the watch.
        Ok(_) => Ok(()),
        Err(error) if code(&error) == Some(404) => Ok(()),
        Err(error) => Err(error),
    }
}
