//! The watch of namespaces: their labels, which grants select, and whether they are terminating.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::controller::watch::context::{WatchContext, collection};
use crate::controller::watch::stream::{self, Event, Watched};
use crate::controller::watch::sync_state::CacheKind;
use crate::grants::store::WatchKind;
use crate::kubernetes::list_watch::Collection;

/// What is read of a namespace.
#[derive(Debug)]
struct WatchedNamespace {
    name: String,
    /// None where they cannot be decoded: a grant that selects labels does not select the namespace then.
    labels: BTreeMap<String, String>,
    is_terminating: bool,
}

impl Watched for WatchedNamespace {
    const RESOURCE: &'static str = "namespaces";

    fn decode(json: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Wire<'a> {
            #[serde(borrow)]
            metadata: WireMetadata<'a>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct WireMetadata<'a> {
            name: String,
            #[serde(borrow, default)]
            labels: Option<&'a RawValue>,
            #[serde(default)]
            deletion_timestamp: Option<IgnoredAny>,
        }
        let Wire { metadata } = serde_json::from_str(json)?;
        let labels = metadata
            .labels
            .and_then(|labels| serde_json::from_str(labels.get()).ok());
        Ok(Self {
            name: metadata.name,
            labels: labels.unwrap_or_default(),
            is_terminating: metadata.deletion_timestamp.is_some(),
        })
    }
}

/// Watches all namespaces.
pub(super) async fn watch(ctx: WatchContext) {
    let namespaces = Collection {
        metadata_only: true,
        ..collection::<Namespace>("")
    };
    let mut listed = Vec::new();
    stream::watch(&ctx, &namespaces, |event| handle(&ctx, &mut listed, event)).await;
}

fn handle(ctx: &WatchContext, listed: &mut Vec<WatchedNamespace>, event: Event<WatchedNamespace>) {
    let (cache, grants) = (&ctx.cache, &ctx.grants);
    match event {
        Event::ListBegins => return *listed = Vec::new(),
        Event::Listed(namespace) => return listed.push(namespace),
        Event::WatchBegins | Event::Lost | Event::Refused(_) => return,
        Event::ListEnds => {
            let listed = std::mem::take(listed);
            cache.replace_namespaces(
                listed
                    .iter()
                    .map(|namespace| (namespace.name.as_str(), namespace.is_terminating)),
            );
            let labels = listed
                .into_iter()
                .map(|namespace| (namespace.name, namespace.labels));
            grants.set_namespaces(labels.collect());
            ctx.enqueuer.all();
        }
        Event::Applied(namespace) => {
            cache.set_terminating(&namespace.name, namespace.is_terminating);
            if grants.set_namespace(&namespace.name, Some(namespace.labels)) {
                ctx.enqueuer.namespace(namespace.name);
            }
        }
        Event::Deleted(namespace) => {
            cache.remove_namespace(&namespace.name);
            grants.set_namespace(&namespace.name, None);
        }
        Event::Bookmark => {}
    }
    grants.record_heartbeat(WatchKind::Namespaces, ctx.clock.now());
    ctx.mark_synced(CacheKind::Namespaces);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_namespace_that_is_deleted_or_not_listed_is_forgotten() {
        let (ctx, _) = WatchContext::empty();
        let mut listed = Vec::new();
        let namespace = |name: &str| {
            let json = format!(r#"{{"metadata": {{"name": "{name}", "deletionTimestamp": "now"}}}}"#);
            WatchedNamespace::decode(&json).unwrap()
        };
        let names = ["shop", "bank", "mall"];
        for name in names {
            handle(&ctx, &mut listed, Event::Applied(namespace(name)));
            ctx.cache.note_write(name, false);
        }
        handle(&ctx, &mut listed, Event::Deleted(namespace("shop")));
        assert!(!ctx.cache.fails_writes("shop") && ctx.cache.fails_writes("mall"));
        handle(&ctx, &mut listed, Event::ListBegins);
        handle(&ctx, &mut listed, Event::Listed(namespace("bank")));
        handle(&ctx, &mut listed, Event::ListEnds);
        assert_eq!(
            names.map(|name| ctx.cache.fails_writes(name)),
            [false, true, false]
        );
        assert_eq!(
            names.map(|name| ctx.cache.is_terminating(name)),
            [false, true, false]
        );
    }

    #[test]
    fn only_name_labels_and_deletion_are_decoded() {
        let json = r#"{"metadata": {"name": "shop", "labels": {"team": "a"}, "deletionTimestamp": "when?", "creationTimestamp": 7,
            "managedFields": [{"time": "9999-12-31T23:59:59Z"}], "annotations": "none"}}"#;
        let found = WatchedNamespace::decode(json).unwrap();
        assert_eq!(found.name, "shop");
        assert_eq!(found.labels["team"], "a");
        assert!(found.is_terminating);
        for labels in ["null", "{}", "7", r#"{"team": 7}"#] {
            let json = format!(r#"{{"metadata": {{"name": "shop", "labels": {labels}}}}}"#);
            let found = WatchedNamespace::decode(&json).unwrap();
            assert!(found.labels.is_empty() && !found.is_terminating, "{labels}");
        }
    }
}
