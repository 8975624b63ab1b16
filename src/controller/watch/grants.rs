//! The watch of IdTokenGrants.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Resource};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::v1alpha1::{GrantRef, IdTokenGrant};
use crate::controller::watch::context::WatchContext;
use crate::controller::watch::stream::{WatchSignal, watch_with_bookmarks};
use crate::controller::watch::sync_state::CacheKind;
use crate::grants::object::GrantObject;
use crate::grants::store::WatchKind;
use crate::metrics::GrantOrigin;

/// An IdTokenGrant as a list or watch shows it. Spec and status are decoded one by one: a grant that cannot be decoded has a status too.
#[derive(Clone, Debug, Deserialize)]
struct WatchedGrant {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<Box<RawValue>>,
    #[serde(default)]
    status: Option<Box<RawValue>>,
}

/// Watches all IdTokenGrants.
pub(super) async fn watch(ctx: WatchContext) {
    let api: Api<WatchedGrant> = Api::all(ctx.client.clone());
    let watch_metrics = ctx.metrics.watch("idtokengrants");
    let grants = &ctx.grants;
    let on_signal = |signal| {
        let changed = match signal {
            WatchSignal::Listed(objects) => {
                grants.set_objects(objects.into_iter().map(WatchedGrant::decode).collect());
                true
            }
            // False if only the status changed, which the operator writes itself.
            WatchSignal::Applied(object) => grants.apply(object.decode()),
            WatchSignal::Deleted(object) => {
                grants.delete(object.metadata.name.as_deref().unwrap_or_default());
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

impl WatchedGrant {
    fn decode(self) -> GrantObject {
        let spec = self.spec.as_deref().map_or("null", RawValue::get);
        // A status that cannot be decoded is written again.
        let status = self
            .status
            .and_then(|status| serde_json::from_str(status.get()).ok());
        let object = GrantObject::new(
            GrantRef {
                name: self.metadata.name.unwrap_or_default(),
                uid: self.metadata.uid,
            },
            self.metadata.generation,
            serde_json::from_str(spec).map_err(|error| error.to_string()),
            status.unwrap_or_default(),
        );
        if let Some(problem) = object.problem() {
            tracing::error!(
                name = object.id.name,
                reason = problem.reason,
                "invalid IdTokenGrant: {}",
                problem.message
            );
        }
        object
    }
}

impl Resource for WatchedGrant {
    type DynamicType = ();
    type Scope = <IdTokenGrant as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        IdTokenGrant::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        IdTokenGrant::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        IdTokenGrant::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        IdTokenGrant::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
