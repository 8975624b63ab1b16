//! The requests as the watches show them, each as the compressed JSON of what a phase reads. Decoding costs microseconds when one is
//! worked on; kube's types in its place would take ten times the memory all the time.

use std::collections::{HashMap, HashSet};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};

use crate::api::v1alpha1::IdTokenRequest;
use crate::api::{LABEL_SHARD, annotations};
use crate::controller::cache::ObjectKey;
use crate::sync::{read, write};

/// What most requests say alike, so that each holds only in what it differs: LZ4's dictionary, whose end is cheapest to refer to
/// (<https://github.com/lz4/lz4/blob/v1.10.0/doc/lz4_Block_format.md>).
const USUAL: &[u8] = include_bytes!("lz4-dictionary.json");

/// The requests that are cached.
#[derive(Debug, Default)]
pub struct RequestCache(RwLock<HashMap<ObjectKey, Box<[u8]>>>);

impl RequestCache {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<ObjectKey, Box<[u8]>>> {
        read(&self.0)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<ObjectKey, Box<[u8]>>> {
        write(&self.0)
    }

    /// Takes in a request as a list or watch shows it; gives back its key as it is held and what is kept of it.
    pub fn put(&self, key: ObjectKey, mut object: IdTokenRequest) -> (ObjectKey, IdTokenRequest) {
        object.metadata = kept(object.metadata);
        match serde_json::to_vec(&object) {
            Ok(json) => {
                let packed = compress_prepend_size_with_dict(&json, USUAL);
                let mut all = self.write();
                let key = all.get_key_value(&key).map_or(key, |(held, _)| held.clone());
                all.insert(key.clone(), packed.into());
                (key, object)
            }
            // What was decoded from JSON can be written as JSON; were it not so, it must not be taken for what it was before.
            Err(error) => {
                tracing::error!(
                    namespace = key.namespace(),
                    name = key.name(),
                    "the request cannot be kept: {error}"
                );
                self.remove(&key);
                (key, object)
            }
        }
    }

    /// Drops a request.
    pub fn remove(&self, key: &ObjectKey) {
        self.write().remove(key);
    }

    /// Drops every request of `scope`, a namespace or all where empty, that `alive` does not hold.
    pub fn keep_only(&self, scope: &str, alive: &HashSet<ObjectKey>) {
        let mut all = self.write();
        all.retain(|key, _| !key.is_in(scope) || alive.contains(key));
        all.shrink_to_fit();
    }

    /// The request `key`, as last shown.
    pub fn get(&self, key: &ObjectKey) -> Option<IdTokenRequest> {
        let json = decompress_size_prepended_with_dict(self.read().get(key)?, USUAL).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// Whether there is a request `key`.
    pub fn holds(&self, key: &ObjectKey) -> bool {
        self.read().contains_key(key)
    }

    /// The requests of `namespace`, or all where none is named.
    pub fn keys(&self, namespace: Option<&str>) -> Vec<ObjectKey> {
        let all = self.read();
        let within = all
            .keys()
            .filter(|key| namespace.is_none_or(|name| key.namespace() == name));
        within.cloned().collect()
    }
}

/// The metadata that a phase or an event reads.
fn kept(metadata: ObjectMeta) -> ObjectMeta {
    let only = |all: Option<std::collections::BTreeMap<String, String>>, key: &str| {
        let value = all?.remove(key)?;
        Some([(key.to_owned(), value)].into())
    };
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        generation: metadata.generation,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        annotations: only(metadata.annotations, annotations::RENEW),
        labels: only(metadata.labels, LABEL_SHARD),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new(namespace, name)
    }

    fn object(name: &str) -> IdTokenRequest {
        serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {
                "name": name, "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 3,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app": "billing"},
                "annotations": {(annotations::RENEW): "1", "other": "2"},
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {"audience": "https://a.run.app", "target": {"template": {"data": {"header": "$(token)"}}}},
            "status": {"observedGeneration": 3, "renewalTime": "2026-01-01T00:30:00Z"},
        }))
        .unwrap()
    }

    #[test]
    fn what_a_phase_reads_comes_back_and_the_rest_does_not() {
        let store = RequestCache::default();
        store.put(key("shop", "a"), object("a"));
        let found = store.get(&key("shop", "a")).unwrap();
        let mut expected = object("a");
        expected.metadata.managed_fields = None;
        expected.metadata.labels = None;
        expected.metadata.annotations.as_mut().unwrap().remove("other");
        assert_eq!(
            serde_json::to_value(&found).unwrap(),
            serde_json::to_value(&expected).unwrap()
        );
        assert_eq!(store.get(&key("shop", "b")).map(|_| ()), None);
    }

    #[test]
    fn what_most_requests_say_alike_is_held_once() {
        let store = RequestCache::default();
        let whole = serde_json::to_vec(&object("a")).unwrap().len();
        store.put(key("shop", "a"), object("a"));
        let held = store.read()[&key("shop", "a")].len();
        assert!(held * 2 < whole, "{held} of {whole} bytes");
    }

    #[test]
    fn a_list_drops_what_it_lacks_in_its_scope_only() {
        let store = RequestCache::default();
        for place in [key("shop", "a"), key("shop", "b"), key("bank", "a")] {
            store.put(place, object("a"));
        }
        store.keep_only("shop", &[key("shop", "b")].into());
        assert!(!store.holds(&key("shop", "a")));
        assert_eq!(store.keys(Some("bank")), [key("bank", "a")]);
        store.keep_only("", &[key("bank", "a")].into());
        assert_eq!(store.keys(None), [key("bank", "a")]);
        store.remove(&key("bank", "a"));
        assert!(store.keys(None).is_empty());
    }
}
