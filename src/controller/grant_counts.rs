//! Publishes in the status of each IdTokenGrant how many requests it allows, and what is wrong with it.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::core::Request;
use kube::{Client, Resource};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::api::FIELD_MANAGER;
use crate::api::v1alpha1::{IdTokenGrant, IdTokenGrantStatus};
use crate::clock::Clock;
use crate::controller::cache::Cache;
use crate::grants::store::GrantStore;
use crate::kubernetes::answer::{text, within};
use crate::kubernetes::error::{problem, status_code};
use crate::kubernetes::partial_metadata::for_metadata;
use crate::kubernetes::status::merge_patch;
use crate::shard::Shard;

/// How often the statuses of grants are compared with the counts.
const INTERVAL: Duration = Duration::from_secs(10);
/// Longest time for one write.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Counts the requests that each grant allows.
pub(crate) struct GrantCounts {
    pub(crate) client: Client,
    pub(crate) clock: Clock,
    pub(crate) cache: Arc<Cache>,
    pub(crate) grants: Arc<GrantStore>,
}

impl GrantCounts {
    /// Writes the statuses that changed, again and again; never returns. An operator for a part of the requests does not know the counts
    /// and writes none.
    pub(crate) async fn publish(&self, shard: &Shard) {
        let counts = *shard == Shard::default();
        let mut failing = false;
        loop {
            sleep(INTERVAL).await;
            let allowed = match counts {
                true => self.cache.allowed_request_counts(),
                false => None,
            };
            let mut failure = None;
            let outdated = self.grants.outdated_statuses(allowed.as_ref(), self.clock.now());
            for (name, shown, next) in outdated {
                failure = self.write(&name, &shown, &next).await.err().or(failure);
            }
            if let Some(error) = failure.as_ref().filter(|_| !failing) {
                tracing::warn!("the status of IdTokenGrants was not written: {}", problem(error));
            }
            failing = failure.is_some();
        }
    }

    async fn write(
        &self,
        name: &str,
        shown: &IdTokenGrantStatus,
        next: &IdTokenGrantStatus,
    ) -> Result<(), kube::Error> {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let json = |status| serde_json::to_value(status).unwrap_or_default();
        let changes: Option<Value> = merge_patch(&json(shown), &json(next));
        let patch = Patch::Merge(json!({"status": changes}));
        let mut call = Request::new(IdTokenGrant::url_path(&(), None))
            .patch_subresource("status", name, &params, &patch)
            .map_err(kube::Error::BuildRequest)?;
        for_metadata(&mut call);
        match within(RESPONSE_TIMEOUT, text(&self.client, call)).await {
            // The watch of grants brings the new status to the store.
            Ok(_) => Ok(()),
            Err(error) if status_code(&error) == Some(404) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
