//! Which requests claim which Secret, and who wins it: the one that holds it. Age decides only for a Secret that nobody holds, so that no
//! request takes a Secret away from another that still wants it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
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

/// The claimants of each Secret.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<ObjectKey, Claimants>);

/// Nearly every Secret has one claimant. A tenant can have tens of thousands of requests claim one, so no search goes through all of them.
#[derive(Debug)]
enum Claimants {
    One(Box<Claimant>),
    Many(Box<Many>),
}

#[derive(Debug, Default)]
struct Many {
    order: BTreeSet<Claimant>,
    requests: HashMap<ObjectKey, Claimant>,
    uids: HashMap<Arc<str>, ObjectKey>,
}

impl Many {
    fn add(&mut self, claimant: Claimant) {
        self.uids.insert(claimant.uid.clone(), claimant.request.clone());
        self.requests.insert(claimant.request.clone(), claimant.clone());
        self.order.insert(claimant);
    }

    fn remove(&mut self, request: &ObjectKey) -> Option<Claimant> {
        let removed = self.requests.remove(request)?;
        self.uids.remove(&removed.uid);
        self.order.remove(&removed);
        Some(removed)
    }

    /// The claimant that a Secret of `namespace` names.
    fn named(
        &self,
        named: Named<'_>,
        namespace: &str,
        is_peer: impl Fn(&Claimant) -> bool,
    ) -> Option<&Claimant> {
        let by_uid = named.uid.and_then(|uid| self.requests.get(self.uids.get(uid)?));
        by_uid.filter(|found| is_peer(found)).or_else(|| {
            let found = self.requests.get(&ObjectKey::new(namespace, named.request?));
            found.filter(|found| is_peer(found))
        })
    }
}

impl Claimants {
    fn add(&mut self, claimant: Claimant) {
        if let Self::One(one) = self {
            let mut many = Box::<Many>::default();
            many.add((**one).clone());
            *self = Self::Many(many);
        }
        if let Self::Many(many) = self {
            many.add(claimant);
        }
    }

    /// In order.
    fn iter(&self) -> impl Iterator<Item = &Claimant> {
        let (one, many) = match self {
            Self::One(one) => (Some(&**one), None),
            Self::Many(many) => (None, Some(&many.order)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

impl Claims {
    /// Adds a claim on the Secret `target`.
    pub(super) fn add(&mut self, target: ObjectKey, claimant: Claimant) {
        match self.0.entry(target) {
            Entry::Vacant(entry) => {
                entry.insert(Claimants::One(Box::new(claimant)));
            }
            Entry::Occupied(mut entry) => entry.get_mut().add(claimant),
        }
    }

    /// Removes the claim of `request` on the Secret `target`.
    pub(super) fn remove(&mut self, target: &ObjectKey, request: &ObjectKey) {
        match self.0.get_mut(target) {
            Some(Claimants::One(one)) if one.request == *request => {
                self.0.remove(target);
            }
            Some(Claimants::Many(many)) => {
                many.remove(request);
                if many.order.len() <= 1
                    && let Some(last) = many.order.pop_first()
                {
                    self.0.insert(target.clone(), Claimants::One(Box::new(last)));
                }
            }
            Some(Claimants::One(_)) | None => {}
        }
    }

    /// Records whether the status of `request` records the Secret `target`.
    pub(super) fn set_recorded(&mut self, target: &ObjectKey, request: &ObjectKey, recorded: bool) {
        match self.0.get_mut(target) {
            Some(Claimants::One(one)) if one.request == *request => one.unrecorded = !recorded,
            Some(Claimants::Many(many)) => {
                if let Some(claimant) = many.remove(request) {
                    many.add(Claimant {
                        unrecorded: !recorded,
                        ..claimant
                    });
                }
            }
            Some(Claimants::One(_)) | None => {}
        }
    }

    /// Whether several requests claim the Secret `target`.
    pub(super) fn is_contended(&self, target: &ObjectKey) -> bool {
        matches!(self.0.get(target), Some(Claimants::Many(_)))
    }

    /// The winner of the Secret `target`. `named` is the request in the Secret's annotations, if the Secret exists. A status is proof; between
    /// equal statuses the annotations decide. A recreated request keeps the Secret that names it.
    pub(super) fn winner(&self, target: &ObjectKey, named: Option<Named<'_>>) -> Option<&Claimant> {
        match self.0.get(target)? {
            Claimants::One(one) => Some(one),
            Claimants::Many(many) => {
                let first = many.order.first()?;
                let is_peer = |other: &Claimant| other.unrecorded == first.unrecorded;
                let holder = named.and_then(|named| many.named(named, target.namespace(), is_peer));
                Some(holder.unwrap_or(first))
            }
        }
    }

    /// The claimants of the Secret `target`, in order.
    pub(super) fn of(&self, target: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        let claimants = self.0.get(target).map(Claimants::iter);
        claimants.into_iter().flatten().map(|claimant| &claimant.request)
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
