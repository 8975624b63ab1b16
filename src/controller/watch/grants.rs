//! The watch of IdTokenGrants.

use std::sync::Arc;

use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::{Api, ResourceExt};

use crate::api::v1alpha1::IdTokenGrant;
use crate::controller::Context;
use crate::controller::watch::stream::{Live, live};
use crate::controller::watch::{CacheKind, Enqueuer, SyncState, fill};
use crate::grants::store::Watched;
use crate::metrics::GrantOrigin;
use crate::text::redacted;

/// Watches IdTokenGrants.
pub(crate) async fn grants(ctx: Arc<Context>, triggers: Enqueuer, filled: SyncState) {
    // A grant that cannot be read grants nothing: what this version does not know may be what narrows it.
    let read = |grant: DeserializeGuard<IdTokenGrant>| {
        grant
            .0
            .inspect_err(|error| {
                let name = error.metadata.name.as_deref().unwrap_or_default();
                let problem = redacted(&error.to_string(), 400);
                tracing::error!(
                    name,
                    "an IdTokenGrant cannot be read and grants nothing: {problem}"
                );
            })
            .ok()
    };
    let api: Api<DeserializeGuard<IdTokenGrant>> = Api::all(ctx.client.clone());
    let telling = ctx.metrics.watch("idtokengrants");
    live(api, "idtokengrants", telling, |event| {
        let changed = match event {
            Live::Listed(grants) => {
                ctx.grants
                    .set_objects(grants.into_iter().filter_map(read).collect());
                true
            }
            Live::Applied(grant) => {
                let name = grant.name_any();
                match read(grant) {
                    // Not for the status, which is our own.
                    Some(grant) => ctx.grants.apply(grant),
                    None => {
                        ctx.grants.delete(&name);
                        true
                    }
                }
            }
            Live::Deleted(grant) => {
                ctx.grants.delete(&grant.name_any());
                true
            }
            Live::Alive => false,
        };
        ctx.grants.seen(Watched::Grants, Timestamp::now());
        ctx.metrics.set_grants(GrantOrigin::Object, ctx.grants.objects());
        fill(&filled, CacheKind::Grants);
        if changed {
            triggers.everything();
        }
    })
    .await;
}
