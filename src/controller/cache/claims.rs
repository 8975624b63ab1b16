//! Which requests claim which Secret.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::api::ObjectKey;

/// A request that claims a Secret. The least wins: the oldest, then the one with the lowest UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    pub(super) created: Option<Timestamp>,
    /// UID of the request.
    pub uid: Arc<str>,
    /// The request.
    pub request: ObjectKey,
}

/// The claimants of each Secret, the winner first.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<ObjectKey, Vec<Claimant>>);

impl Claims {
    /// Adds a claim on the Secret `target`.
    pub(super) fn add(&mut self, target: ObjectKey, claimant: Claimant) {
        // Nearly every Secret has one claimant.
        let claimants = self.0.entry(target).or_insert_with(|| Vec::with_capacity(1));
        let place = claimants.partition_point(|other| *other < claimant);
        claimants.insert(place, claimant);
    }

    /// Removes the claim of `request` on the Secret `target`. Returns the other claimants.
    pub(super) fn remove(&mut self, target: &ObjectKey, request: &ObjectKey) -> Vec<ObjectKey> {
        let Some(claimants) = self.0.get_mut(target) else {
            return Vec::new();
        };
        claimants.retain(|claimant| claimant.request != *request);
        if claimants.is_empty() {
            self.0.remove(target);
        }
        self.claimants(target)
    }

    /// The winner of the Secret `target`.
    pub(super) fn winner(&self, target: &ObjectKey) -> Option<&Claimant> {
        self.0.get(target)?.first()
    }

    /// The claimants of the Secret `target`, the winner first.
    pub(super) fn claimants(&self, target: &ObjectKey) -> Vec<ObjectKey> {
        let claimants = self.0.get(target).into_iter().flatten();
        claimants.map(|claimant| claimant.request.clone()).collect()
    }

    /// The key of a claimed Secret that equals `target`, whose text is then shared.
    pub(super) fn key(&self, target: &ObjectKey) -> Option<&ObjectKey> {
        self.0.get_key_value(target).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::at;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    fn claimant(name: &str, uid: &str, created: i64) -> Claimant {
        Claimant {
            created: Some(at(created)),
            uid: uid.into(),
            request: key(name),
        }
    }

    #[test]
    fn the_oldest_wins_then_the_lowest_uid() {
        let mut claims = Claims::default();
        claims.add(key("s"), claimant("young", "1", 100));
        assert_eq!(claims.winner(&key("s")).unwrap().request, key("young"));
        claims.add(key("s"), claimant("old-b", "3", 0));
        claims.add(key("s"), claimant("old-a", "2", 0));
        claims.add(key("t"), claimant("other", "0", 0));
        assert_eq!(
            claims.claimants(&key("s")),
            [key("old-a"), key("old-b"), key("young")]
        );
        assert_eq!(claims.winner(&key("s")), Some(&claimant("old-a", "2", 0)));
        assert_eq!(claims.winner(&key("unclaimed")), None);
    }

    #[test]
    fn a_removal_returns_the_others_and_leaves_nothing_of_the_last() {
        let mut claims = Claims::default();
        claims.add(key("s"), claimant("a", "1", 0));
        claims.add(key("s"), claimant("b", "2", 0));
        assert_eq!(claims.remove(&key("s"), &key("a")), [key("b")]);
        assert_eq!(claims.remove(&key("s"), &key("a")), [key("b")]);
        assert_eq!(claims.remove(&key("s"), &key("b")), []);
        assert_eq!(claims.key(&key("s")), None);
        assert_eq!(claims.remove(&key("s"), &key("b")), []);
    }
}
