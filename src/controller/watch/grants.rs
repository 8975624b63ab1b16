//! The watch of IdTokenGrants.

use kube::core::DeserializeGuard;
use kube::{Api, ResourceExt};

use crate::api::v1alpha1::IdTokenGrant;
use crate::controller::watch::context::WatchContext;
use crate::controller::watch::stream::{WatchSignal, watch_with_bookmarks};
use crate::controller::watch::sync_state::CacheKind;
use crate::grants::store::WatchKind;
use crate::metrics::GrantOrigin;
use crate::text::redacted;

/// Watches all IdTokenGrants.
pub(super) async fn watch(ctx: WatchContext) {
    let api: Api<DeserializeGuard<IdTokenGrant>> = Api::all(ctx.client.clone());
    let watch_metrics = ctx.metrics.watch("idtokengrants");
    let grants = &ctx.grants;
    let on_signal = |signal| {
        let changed = match signal {
            WatchSignal::Listed(objects) => {
                grants.set_objects(objects.into_iter().filter_map(decoded).collect());
                true
            }
            WatchSignal::Applied(object) => {
                let name = object.name_any();
                match decoded(object) {
                    // False if only the status changed, which the operator writes itself.
                    Some(grant) => grants.apply(grant),
                    None => {
                        grants.delete(&name);
                        true
                    }
                }
            }
            WatchSignal::Deleted(object) => {
                grants.delete(&object.name_any());
                true
            }
            WatchSignal::Bookmark => false,
        };
        grants.record_heartbeat(WatchKind::Grants, ctx.clock.now());
        ctx.metrics.set_grants(GrantOrigin::Object, grants.object_count());
        ctx.sync_state.mark_synced(CacheKind::Grants);
        if changed {
            ctx.enqueuer.all();
        }
    };
    watch_with_bookmarks(api, "idtokengrants", watch_metrics, &ctx.clock, on_signal).await;
}

/// None if the grant cannot be decoded. It grants nothing then: a field that this version does not know may narrow it.
fn decoded(grant: DeserializeGuard<IdTokenGrant>) -> Option<IdTokenGrant> {
    grant
        .0
        .inspect_err(|error| {
            let name = error.metadata.name.as_deref().unwrap_or_default();
            let problem = redacted(&error.to_string(), 400);
            tracing::error!(name, "cannot decode IdTokenGrant, it grants nothing: {problem}");
        })
        .ok()
}
