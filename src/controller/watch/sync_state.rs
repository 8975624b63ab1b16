//! Which caches are synced, and which of several namespaces cannot be served.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use tokio::sync::watch::Sender;

use crate::shard::Shard;

/// The caches that must be synced before the first decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum CacheKind {
    /// IdTokenRequests of a namespace, or of all if its name is empty.
    Requests(String),
    /// Secrets with our label, of a namespace, or of all if its name is empty.
    Secrets(String),
    /// IdTokenGrants.
    Grants,
    /// Namespaces.
    Namespaces,
}

impl CacheKind {
    /// The namespace, if the cache is of one of several.
    fn namespace(&self) -> Option<&str> {
        match self {
            Self::Requests(name) | Self::Secrets(name) => Some(name.as_str()).filter(|name| !name.is_empty()),
            Self::Grants | Self::Namespaces => None,
        }
    }
}

/// Why a namespace cannot be listed or watched, while others can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceProblem {
    /// The namespace.
    pub namespace: String,
    /// Since when.
    pub since: Timestamp,
    /// The API server's answer.
    pub problem: String,
}

/// Which caches are synced, and which of several namespaces cannot be served. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct SyncState(Sender<State>);

#[derive(Debug, Default)]
struct State {
    synced: HashSet<CacheKind>,
    /// The namespaces whose caches are both synced.
    served: HashSet<String>,
    failing: BTreeMap<CacheKind, NamespaceProblem>,
    is_ready: bool,
}

impl State {
    fn serves(&self, scope: &str) -> bool {
        self.served.contains(scope)
    }

    /// The first problem of a namespace.
    fn problem(&self, namespace: &str) -> Option<&NamespaceProblem> {
        let problems = self.failing.values();
        problems
            .filter(|problem| problem.namespace == namespace)
            .min_by_key(|problem| problem.since)
    }
}

impl SyncState {
    /// Marks a cache as synced. Returns the namespace if it is served from now on.
    pub(super) fn mark_synced(&self, cache: CacheKind) -> Option<String> {
        let mut served = None;
        self.0.send_if_modified(|state| {
            let scope = match &cache {
                CacheKind::Requests(scope) | CacheKind::Secrets(scope) => Some(scope.clone()),
                CacheKind::Grants | CacheKind::Namespaces => None,
            };
            let is_new = state.synced.insert(cache);
            if let Some(scope) = scope.filter(|_| is_new) {
                let both = [
                    CacheKind::Requests(scope.clone()),
                    CacheKind::Secrets(scope.clone()),
                ];
                if both.iter().all(|cache| state.synced.contains(cache)) {
                    state.served.insert(scope.clone());
                    served = Some(scope);
                }
            }
            is_new
        });
        served
    }

    /// Marks that the API server refuses to list or watch what fills a cache of one of several namespaces. Returns the namespace's first
    /// problem if it had none before.
    pub(super) fn mark_refused(
        &self,
        cache: CacheKind,
        since: Timestamp,
        problem: &str,
    ) -> Option<NamespaceProblem> {
        let problem = NamespaceProblem {
            namespace: cache.namespace()?.to_owned(),
            since,
            problem: problem.to_owned(),
        };
        let mut first = None;
        self.0.send_if_modified(|state| {
            if state.failing.contains_key(&cache) {
                return false;
            }
            if state.problem(&problem.namespace).is_none() {
                first = Some(problem.clone());
            }
            state.failing.insert(cache, problem);
            true
        });
        first
    }

    /// Marks that what fills a cache is watched. Returns the namespace if it had a problem and has none now.
    pub(super) fn mark_watched(&self, cache: &CacheKind) -> Option<String> {
        let mut recovered = None;
        self.0.send_if_modified(|state| {
            let ended = state.failing.remove(cache);
            recovered = ended
                .map(|problem| problem.namespace)
                .filter(|namespace| state.problem(namespace).is_none());
            // Nothing waits for it.
            false
        });
        recovered
    }

    /// Returns once every cache of `shard` is synced. Of several namespaces, those that the API server refuses are not waited for, unless
    /// it refuses all: then it is no problem of a namespace.
    pub(crate) async fn wait_for_sync(&self, shard: &Shard) {
        let scopes = shard.namespaces();
        let others = match shard.is_namespaced() {
            true => &[][..],
            false => &[CacheKind::Grants, CacheKind::Namespaces],
        };
        let mut state = self.0.subscribe();
        let is_synced = |state: &State| {
            let settled = |scope: &String| state.serves(scope) || state.problem(scope).is_some();
            others.iter().all(|cache| state.synced.contains(cache))
                && scopes.iter().all(settled)
                && scopes.iter().any(|scope| state.serves(scope))
        };
        // Fails only without a sender, and `self` is one.
        let _ = state.wait_for(is_synced).await;
    }

    /// Whether the requests and Secrets of `namespace` have been listed. Before that nothing is decided about its requests.
    pub(crate) fn serves(&self, shard: &Shard, namespace: &str) -> bool {
        let scope = if shard.is_namespaced() { namespace } else { "" };
        self.0.borrow().serves(scope)
    }

    /// The namespaces that cannot be listed or watched, by name.
    pub fn problems(&self) -> Vec<NamespaceProblem> {
        let state = self.0.borrow();
        let names: std::collections::BTreeSet<_> =
            state.failing.values().map(|problem| &problem.namespace).collect();
        let first = names.into_iter().filter_map(|name| state.problem(name));
        first.cloned().collect()
    }

    /// Marks the process as ready, which it stays.
    pub(crate) fn set_ready(&self) {
        self.0.send_modify(|state| state.is_ready = true);
    }

    /// Whether the process is ready.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_ready
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn shard(namespaces: &[&str]) -> Shard {
        Shard::new(namespaces.iter().map(|name| (*name).to_owned()).collect(), None)
    }

    fn requests(scope: &str) -> CacheKind {
        CacheKind::Requests(scope.to_owned())
    }

    fn secrets(scope: &str) -> CacheKind {
        CacheKind::Secrets(scope.to_owned())
    }

    fn is_synced(state: &SyncState, shard: &Shard) -> bool {
        state.wait_for_sync(shard).now_or_never().is_some()
    }

    #[test]
    fn a_namespace_that_is_refused_is_not_waited_for_if_another_is_served() {
        let (state, shard) = (SyncState::default(), shard(&["shop", "yard", "farm"]));
        assert!(state.mark_refused(requests("farm"), NOW, "403").is_some());
        assert!(state.mark_refused(secrets("farm"), NOW, "403").is_none());
        assert_eq!(state.mark_synced(requests("yard")), None);
        state.mark_refused(secrets("yard"), NOW, "403");
        state.mark_refused(requests("shop"), NOW, "403");
        assert!(!is_synced(&state, &shard), "none is served");
        assert_eq!(state.mark_watched(&requests("shop")).as_deref(), Some("shop"));
        assert!(!is_synced(&state, &shard), "shop is neither listed nor refused");
        state.mark_synced(secrets("shop"));
        assert_eq!(state.mark_synced(requests("shop")).as_deref(), Some("shop"));
        assert_eq!(state.mark_synced(requests("shop")), None);
        assert!(is_synced(&state, &shard));
        let served = ["shop", "yard", "farm"].map(|name| state.serves(&shard, name));
        assert_eq!(served, [true, false, false]);
        let names = |state: &SyncState| -> Vec<String> {
            let problems = state.problems();
            problems.into_iter().map(|problem| problem.namespace).collect()
        };
        assert_eq!(names(&state), ["farm", "yard"]);
        assert_eq!(state.mark_watched(&secrets("farm")), None);
        assert_eq!(state.mark_watched(&requests("farm")).as_deref(), Some("farm"));
        assert_eq!(names(&state), ["yard"]);
    }

    #[test]
    fn for_the_whole_cluster_every_cache_is_waited_for() {
        let (state, shard) = (SyncState::default(), shard(&[]));
        for cache in [requests(""), CacheKind::Grants, CacheKind::Namespaces] {
            state.mark_synced(cache);
        }
        assert_eq!(state.mark_refused(secrets(""), NOW, "403"), None);
        assert!(!is_synced(&state, &shard) && !state.serves(&shard, "shop"));
        state.mark_synced(secrets(""));
        assert!(is_synced(&state, &shard) && state.serves(&shard, "shop"));
        assert_eq!(state.problems(), []);
    }
}
