//! Which requests claim which Secret, and who wins it: the one that holds it. Age decides only for a Secret that nobody holds, so that no
//! request takes a Secret away from another that still wants it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::api::ObjectKey;
use crate::kubernetes::secret_summary::SecretSummary;

/// A request that claims a Secret. In order: those whose status records the Secret, then the oldest, then the one with the lowest UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// Whether the status of the request does not record that it wrote the Secret.
    pub(super) unrecorded: bool,
    /// When it was created, as Unix time in seconds; the least number if that is not known.
    pub(super) created: i64,
    /// UID of the request.
    pub uid: Arc<str>,
    /// The request.
    pub request: ObjectKey,
}

/// The request that a Secret names by our annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub(super) request: Option<&'a str>,
    pub(super) uid: Option<&'a str>,
}

impl<'a> From<&'a SecretSummary> for Named<'a> {
    fn from(secret: &'a SecretSummary) -> Self {
        Self {
            request: secret.request.as_deref(),
            uid: secret.request_uid.as_deref(),
        }
    }
}

/// The claimants of each Secret, in order.
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

    /// Removes the claim of `request` on the Secret `target`.
    pub(super) fn remove(&mut self, target: &ObjectKey, request: &ObjectKey) {
        let Some(claimants) = self.0.get_mut(target) else {
            return;
        };
        claimants.retain(|claimant| claimant.request != *request);
        if claimants.is_empty() {
            self.0.remove(target);
        }
    }

    /// Records whether the status of `request` records the Secret `target`.
    pub(super) fn set_recorded(&mut self, target: &ObjectKey, request: &ObjectKey, recorded: bool) {
        let Some(claimants) = self.0.get_mut(target) else {
            return;
        };
        if let Some(claimant) = claimants.iter_mut().find(|claimant| claimant.request == *request)
            && claimant.unrecorded == recorded
        {
            claimant.unrecorded = !recorded;
            claimants.sort();
        }
    }

    /// Whether several requests claim the Secret `target`.
    pub(super) fn is_contended(&self, target: &ObjectKey) -> bool {
        self.0.get(target).is_some_and(|claimants| claimants.len() > 1)
    }

    /// The winner of the Secret `target`. `named` is the request in the Secret's annotations, if the Secret exists. A status is proof; between
    /// equal statuses the annotations decide. A recreated request keeps the Secret that names it.
    pub(super) fn winner(&self, target: &ObjectKey, named: Option<Named<'_>>) -> Option<&Claimant> {
        let claimants = self.0.get(target)?;
        let first = claimants.first()?;
        let peers = || {
            claimants
                .iter()
                .take_while(|other| other.unrecorded == first.unrecorded)
        };
        let holder = named.and_then(|named| {
            let by_uid = peers().find(|other| named.uid == Some(&other.uid));
            by_uid.or_else(|| peers().find(|other| named.request == Some(other.request.name())))
        });
        Some(holder.unwrap_or(first))
    }

    /// The claimants of the Secret `target`, in order.
    pub(super) fn of(&self, target: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        let claimants = self.0.get(target).into_iter().flatten();
        claimants.map(|claimant| &claimant.request)
    }

    /// The key of a claimed Secret that equals `target`, whose text is then shared.
    pub(super) fn key(&self, target: &ObjectKey) -> Option<&ObjectKey> {
        self.0.get_key_value(target).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    fn claimant(name: &str, uid: &str, created: i64) -> Claimant {
        Claimant {
            unrecorded: true,
            created,
            uid: uid.into(),
            request: key(name),
        }
    }

    fn named<'a>(request: &'a str, uid: &'a str) -> Option<Named<'a>> {
        Some(Named {
            request: Some(request),
            uid: Some(uid),
        })
    }

    fn winner<'a>(claims: &'a Claims, named: Option<Named<'_>>) -> &'a str {
        claims.winner(&key("s"), named).unwrap().request.name()
    }

    #[test]
    fn the_oldest_wins_a_secret_that_nobody_holds_then_the_lowest_uid() {
        let mut claims = Claims::default();
        claims.add(key("s"), claimant("young", "1", 100));
        assert_eq!(winner(&claims, None), "young");
        assert!(!claims.is_contended(&key("s")));
        claims.add(key("s"), claimant("old-b", "3", 0));
        claims.add(key("s"), claimant("old-a", "2", 0));
        claims.add(key("t"), claimant("other", "0", 0));
        assert!(
            claims
                .of(&key("s"))
                .eq([&key("old-a"), &key("old-b"), &key("young")])
        );
        assert!(claims.is_contended(&key("s")));
        assert_eq!(winner(&claims, None), "old-a");
        assert_eq!(winner(&claims, named("stranger", "9")), "old-a");
        assert_eq!(claims.winner(&key("unclaimed"), None), None);
    }

    #[test]
    fn the_holder_wins_whatever_its_age() {
        let mut claims = Claims::default();
        for (name, uid, created) in [("old", "1", 0), ("middle", "2", 50), ("young", "3", 100)] {
            claims.add(key("s"), claimant(name, uid, created));
        }
        // As the Secret says, by UID; or by name, of a request that was recreated.
        assert_eq!(winner(&claims, named("old", "3")), "young");
        assert_eq!(winner(&claims, named("young", "gone")), "young");
        // A status is proof, and what the Secret says is none against it.
        claims.set_recorded(&key("s"), &key("middle"), true);
        for named in [
            None,
            named("young", "3"),
            named("old", "1"),
            named("young", "gone"),
        ] {
            assert_eq!(winner(&claims, named), "middle");
        }
        // Between two proofs the Secret decides, then age.
        claims.set_recorded(&key("s"), &key("young"), true);
        assert_eq!(winner(&claims, named("young", "3")), "young");
        assert_eq!(winner(&claims, named("old", "1")), "middle");
        claims.set_recorded(&key("s"), &key("middle"), false);
        claims.set_recorded(&key("s"), &key("absent"), true);
        claims.set_recorded(&key("unclaimed"), &key("old"), true);
        assert_eq!(winner(&claims, None), "young");
        claims.remove(&key("s"), &key("young"));
        assert_eq!(winner(&claims, None), "old");
    }

    #[test]
    fn a_removal_leaves_the_others_and_nothing_of_the_last() {
        let mut claims = Claims::default();
        claims.add(key("s"), claimant("a", "1", 0));
        claims.add(key("s"), claimant("b", "2", 0));
        for _ in 0..2 {
            claims.remove(&key("s"), &key("a"));
            assert!(claims.of(&key("s")).eq([&key("b")]));
        }
        for _ in 0..2 {
            claims.remove(&key("s"), &key("b"));
            assert_eq!(claims.key(&key("s")), None);
        }
    }
}
