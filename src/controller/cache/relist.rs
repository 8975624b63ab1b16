//! The bookkeeping of relists, for each kind of object: the keys that a list has shown so far, and the scopes whose cached objects are stale.
//!
//! A scope is a namespace, or empty for all namespaces.

use std::collections::{HashMap, HashSet};

use crate::api::ObjectKey;

/// The relists of one kind.
#[derive(Debug, Default)]
pub(super) struct Relists {
    /// Those in progress: the listed keys by scope.
    in_progress: HashMap<String, HashSet<ObjectKey>>,
    stale_scopes: HashSet<String>,
}

/// A relist that ended.
#[derive(Debug)]
pub(super) struct Relist {
    scope: String,
    listed: HashSet<ObjectKey>,
}

impl Relists {
    /// Starts a relist of `scope`. One that was in progress is dropped: it failed halfway.
    pub(super) fn begin(&mut self, scope: &str) {
        self.in_progress.insert(scope.to_owned(), HashSet::new());
    }

    /// Whether a relist of `scope` is in progress.
    pub(super) fn is_in_progress(&self, scope: &str) -> bool {
        self.in_progress.contains_key(scope)
    }

    /// Records that `key` exists. Returns whether a relist of its scope is in progress.
    pub(super) fn record(&mut self, key: &ObjectKey) -> bool {
        let scope = match self.is_in_progress(key.namespace()) {
            true => key.namespace(),
            false => "",
        };
        let listed = self.in_progress.get_mut(scope);
        listed.map(|listed| listed.insert(key.clone())).is_some()
    }

    /// Ends the relist of `scope`, which is not stale any more; none if no relist of it is in progress.
    pub(super) fn end(&mut self, scope: &str) -> Option<Relist> {
        let (scope, listed) = self.in_progress.remove_entry(scope)?;
        self.stale_scopes.remove(&scope);
        Some(Relist { scope, listed })
    }

    /// Marks what is cached of `scope` as stale until its next relist ends.
    pub(super) fn mark_stale(&mut self, scope: &str) {
        self.stale_scopes.insert(scope.to_owned());
    }

    /// Whether `key` is in a stale scope.
    pub(super) fn is_stale(&self, key: &ObjectKey) -> bool {
        self.stale_scopes.iter().any(|scope| key.is_in(scope))
    }
}

impl Relist {
    /// Whether `key` is in the scope, and was not listed.
    pub(super) fn lacks(&self, key: &ObjectKey) -> bool {
        key.is_in(&self.scope) && !self.listed.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new(namespace, name)
    }

    #[test]
    fn only_keys_of_the_scope_that_were_not_listed_are_gone() {
        for (scope, other_namespace_is_gone) in [("shop", false), ("", true)] {
            let mut relists = Relists::default();
            relists.begin(scope);
            assert!(relists.record(&key("shop", "listed")));
            let relist = relists.end(scope).unwrap();
            assert!(!relist.lacks(&key("shop", "listed")));
            assert!(relist.lacks(&key("shop", "gone")));
            assert_eq!(relist.lacks(&key("bank", "listed")), other_namespace_is_gone);
        }
    }

    #[test]
    fn keys_count_for_the_relist_of_their_scope_while_it_is_in_progress() {
        let mut relists = Relists::default();
        assert!(!relists.record(&key("shop", "a")));
        assert!(relists.end("shop").is_none(), "an end without a start");
        relists.begin("shop");
        relists.begin("bank");
        assert!(relists.record(&key("shop", "a")) && !relists.record(&key("mall", "a")));
        assert!(!relists.end("shop").unwrap().lacks(&key("shop", "a")));
        assert!(!relists.record(&key("shop", "a")), "it has ended");
        assert!(relists.end("bank").unwrap().lacks(&key("bank", "a")));
    }

    #[test]
    fn a_relist_that_starts_again_forgets_what_the_failed_one_listed() {
        let mut relists = Relists::default();
        relists.begin("");
        relists.record(&key("shop", "a"));
        relists.begin("");
        assert!(relists.end("").unwrap().lacks(&key("shop", "a")));
    }

    #[test]
    fn a_scope_is_stale_until_its_relist_ends() {
        let mut relists = Relists::default();
        relists.mark_stale("shop");
        relists.begin("shop");
        relists.begin("bank");
        relists.end("bank").unwrap();
        assert!(relists.is_stale(&key("shop", "a")) && !relists.is_stale(&key("bank", "a")));
        relists.end("shop").unwrap();
        assert!(!relists.is_stale(&key("shop", "a")));
        relists.mark_stale("");
        assert!(relists.is_stale(&key("bank", "a")));
    }
}
