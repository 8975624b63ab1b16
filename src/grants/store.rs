//! The grants in force: from objects and from a file, resolved against the namespaces' labels, and how fresh they are.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::RwLock;

use jiff::{SignedDuration, Timestamp};

use crate::api::v1alpha1::{GrantRef, IdTokenGrantStatus};
use crate::grants::index::{Grant, GrantIndex, Namespaces};
use crate::grants::object::GrantObject;
use crate::grants::policy::{self, Denied, Remedy};
use crate::grants::selector::invalid_entries;
use crate::request::ValidRequest;
use crate::sync::{read, write};

/// How long a silent watch counts as fresh. The API server sends a bookmark about once a minute
/// (<https://kubernetes.io/docs/reference/using-api/api-concepts/#watch-bookmarks>).
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// A watch that authorization depends on.
#[derive(Clone, Copy, Debug)]
pub enum WatchKind {
    /// IdTokenGrants.
    Grants = 0,
    /// Namespaces.
    Namespaces = 1,
}

/// The grants file as it is now cannot be used, so its last good content is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileProblem {
    /// Since when.
    pub since: Timestamp,
    /// What is wrong, without the content of the file.
    pub kind: &'static str,
}

/// How many grants there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantCount {
    /// Decoded, so that what is valid of them is in force.
    pub in_force: usize,
    /// A part or all of them grants nothing, since it is invalid or cannot be decoded.
    pub invalid: usize,
}

#[derive(Debug, Default)]
struct State {
    index: GrantIndex,
    /// Keys of the file's grants in the index.
    file_keys: Vec<String>,
    file_problem: Option<FileProblem>,
    /// By name.
    /// In the order of their names, so that statuses are written in the same order each time.
    objects: BTreeMap<String, GrantObject>,
    /// Last sign of life of each [`WatchKind`]; none if there is no such watch.
    heartbeats: [Option<Timestamp>; 2],
}

/// All grants. A decision takes a read lock for a few map look-ups.
#[derive(Debug, Default)]
pub struct GrantStore(RwLock<State>);

impl GrantStore {
    /// Decides whether `request` may have its token. Returns the grant that allows it; none if the source needs no grant.
    ///
    /// # Errors
    /// No grant allows it, or the grants are stale at `now`.
    pub fn authorize(&self, request: &ValidRequest, now: Timestamp) -> Result<Option<GrantRef>, Denied> {
        self.authorize_account(request, None, now)
    }

    /// As [`Self::authorize_account`] and, if no grant allows the account, as [`Self::authorize`]: the source may know it by another name than
    /// its token.
    ///
    /// # Errors
    /// No grant allows it, or the grants are stale at `now`.
    pub fn authorize_known(
        &self,
        request: &ValidRequest,
        account: Option<&str>,
        now: Timestamp,
    ) -> Result<Option<GrantRef>, Denied> {
        let of_account = self.authorize_account(request, account, now);
        of_account.or_else(|_| self.authorize(request, now))
    }

    /// As [`Self::authorize`], with the `account` that the source returned if the spec names none.
    ///
    /// # Errors
    /// No grant allows it, or the grants are stale at `now`.
    pub fn authorize_account(
        &self,
        request: &ValidRequest,
        account: Option<&str>,
        now: Timestamp,
    ) -> Result<Option<GrantRef>, Denied> {
        if request.token.source.grant_source().is_none() {
            return Ok(None);
        }
        let mut token = Cow::Borrowed(&request.token);
        if token.service_account.is_none() && account.is_some() {
            token.to_mut().service_account = account.map(str::to_owned);
        }
        let state = read(&self.0);
        let remedy = match state.oldest_heartbeat() {
            Some(since) if now.duration_since(since) > STALE_AFTER => {
                return Err(Denied::Unavailable { since });
            }
            Some(_) => Remedy::ApplyGrant,
            None => Remedy::EditGrantsFile,
        };
        policy::authorize(&state.index, &request.namespace, &request.name, &token, remedy).map(Some)
    }

    /// Names of the IdTokenGrants that allow `request`.
    pub fn matching(&self, request: &ValidRequest) -> Vec<String> {
        let state = read(&self.0);
        let all = policy::matching(&state.index, &request.namespace, &request.token);
        let objects = all.into_iter().filter(|grant| grant.uid.is_some());
        objects.map(|grant| grant.name.clone()).collect()
    }

    /// Counts the IdTokenGrants; grants of the file do not count.
    pub fn object_count(&self) -> GrantCount {
        let state = read(&self.0);
        let objects = state.objects.values();
        GrantCount {
            in_force: objects.clone().filter(|object| object.spec.is_ok()).count(),
            invalid: objects.filter(|object| object.problem().is_some()).count(),
        }
    }

    /// The IdTokenGrants whose status is not what it should be at `now`: name, status and the status that it should have. `allowed` is how
    /// many requests each allows, 0 if it is not listed; without it, the numbers stay as they are.
    pub fn outdated_statuses(
        &self,
        allowed: Option<&HashMap<String, i64>>,
        now: Timestamp,
    ) -> Vec<(String, IdTokenGrantStatus, IdTokenGrantStatus)> {
        let state = read(&self.0);
        let outdated = state.objects.iter().filter_map(|(name, object)| {
            let count = allowed.map(|allowed| allowed.get(name).copied().unwrap_or(0));
            let next = object.outdated_status(count, now)?;
            Some((name.clone(), object.status.clone(), next))
        });
        outdated.collect()
    }

    /// Records that a watch is alive at `now`.
    pub fn record_heartbeat(&self, watch: WatchKind, now: Timestamp) {
        write(&self.0).heartbeats[watch as usize] = Some(now);
    }

    /// Replaces the grants of the file, and counts them.
    pub fn set_file(&self, grants: Vec<Grant>) -> GrantCount {
        let is_invalid = |grant: &&Grant| invalid_entries(&grant.spec).next().is_some();
        let count = GrantCount {
            in_force: grants.len(),
            invalid: grants.iter().filter(is_invalid).count(),
        };
        let mut state = write(&self.0);
        state.file_problem = None;
        for key in std::mem::take(&mut state.file_keys) {
            state.index.remove(&key);
        }
        for (position, grant) in grants.into_iter().enumerate() {
            // The name of an object has no colon. Two grants of the file may have the same name.
            let key = format!("file:{position}");
            state.index.insert(&key, grant);
            state.file_keys.push(key);
        }
        count
    }

    /// Records that the file cannot be used at `now`; its last good content stays in force. Returns since when.
    pub fn fail_file(&self, kind: &'static str, now: Timestamp) -> Timestamp {
        let mut state = write(&self.0);
        let since = state.file_problem.map_or(now, |problem| problem.since);
        state.file_problem = Some(FileProblem { since, kind });
        since
    }

    /// Why the file as it is now is not in force; none if it is, or if there is no file.
    pub fn file_problem(&self) -> Option<FileProblem> {
        read(&self.0).file_problem
    }

    /// Replaces all IdTokenGrants.
    pub fn set_objects(&self, objects: Vec<GrantObject>) {
        let mut state = write(&self.0);
        let listed: HashSet<&str> = objects.iter().map(|object| object.id.name.as_str()).collect();
        let deleted: Vec<String> = state
            .objects
            .keys()
            .filter(|name| !listed.contains(name.as_str()))
            .cloned()
            .collect();
        for name in deleted {
            state.delete(&name);
        }
        for object in objects {
            state.apply(object);
        }
    }

    /// Whether this IdTokenGrant is known, whatever its status is.
    pub fn has(&self, object: &GrantObject) -> bool {
        read(&self.0).has(object)
    }

    /// Adds or updates one IdTokenGrant. Returns whether more than its status changed.
    pub fn apply(&self, object: GrantObject) -> bool {
        write(&self.0).apply(object)
    }

    /// Removes one IdTokenGrant.
    pub fn delete(&self, name: &str) {
        write(&self.0).delete(name);
    }

    /// Replaces the labels of all namespaces.
    pub fn set_namespaces(&self, namespaces: Namespaces) {
        write(&self.0).index.set_namespaces(namespaces);
    }

    /// Sets the labels of one namespace, or removes the namespace. Returns whether anything changed.
    pub fn set_namespace(&self, name: &str, labels: Option<BTreeMap<String, String>>) -> bool {
        write(&self.0).index.set_namespace(name, labels)
    }
}

impl State {
    fn oldest_heartbeat(&self) -> Option<Timestamp> {
        self.heartbeats.iter().flatten().min().copied()
    }

    fn has(&self, object: &GrantObject) -> bool {
        let known = self.objects.get(&object.id.name);
        known.is_some_and(|known| known.id == object.id && known.spec == object.spec)
    }

    fn apply(&mut self, object: GrantObject) -> bool {
        let name = object.id.name.clone();
        let is_same = self.has(&object);
        if !is_same {
            match object.grant() {
                Some(grant) => self.index.insert(&name, grant),
                None => self.index.remove(&name),
            }
        }
        self.objects.insert(name, object);
        !is_same
    }

    fn delete(&mut self, name: &str) {
        self.objects.remove(name);
        self.index.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1alpha1::IdTokenGrantSpec;
    use crate::classify::Classify;

    fn object(name: &str, audience: &str, allowed: Option<i64>) -> GrantObject {
        let spec = serde_json::json!({
            "from": [{"namespace": "shop"}], "to": [{"serviceAccounts": ["a@p.example"], "audiences": [audience]}],
        });
        with_spec(name, Ok(serde_json::from_value(spec).unwrap()), allowed)
    }

    fn with_spec(name: &str, spec: Result<IdTokenGrantSpec, String>, allowed: Option<i64>) -> GrantObject {
        let id = GrantRef {
            name: name.to_owned(),
            uid: Some(name.to_owned()),
        };
        let status = IdTokenGrantStatus {
            allowed_requests: allowed,
            conditions: Vec::new(),
        };
        GrantObject::new(id, Some(1), spec, status)
    }

    #[test]
    fn a_count_is_outdated_until_the_status_shows_it() {
        let grants = GrantStore::default();
        let outdated = |counts: Option<&HashMap<String, i64>>| -> Vec<(String, Option<i64>)> {
            let statuses = grants.outdated_statuses(counts, at(0)).into_iter();
            statuses
                .map(|(name, _, next)| (name, next.allowed_requests))
                .collect()
        };
        let counts: HashMap<String, i64> = [("a".to_owned(), 2), ("gone".to_owned(), 1)].into();
        grants.set_objects(vec![object("a", "aud", None), object("b", "aud", Some(0))]);
        assert_eq!(outdated(Some(&counts)), [("a".to_owned(), Some(2))]);
        assert_eq!(outdated(None), []);
        let told = object("a", "aud", Some(2));
        assert!(grants.has(&told), "only its status is new");
        assert!(!grants.apply(told));
        assert_eq!(outdated(Some(&counts)), []);
        assert!(!grants.has(&object("a", "other", Some(2))));
        assert!(grants.apply(object("a", "other", Some(2))));
        grants.set_objects(vec![object("b", "aud", Some(0))]);
        assert_eq!(outdated(Some(&HashMap::new())), []);
    }

    #[test]
    fn a_grant_that_cannot_be_decoded_any_more_grants_nothing() {
        let (grants, request) = granted();
        assert!(grants.authorize(&request, at(0)).is_ok());
        let mut broken = with_spec("a", Err("unknown field".to_owned()), None);
        assert!(grants.apply(broken.clone()));
        assert!(grants.authorize(&request, at(0)).is_err());
        assert_eq!(
            grants.object_count(),
            GrantCount {
                in_force: 0,
                invalid: 1
            }
        );
        // Its status is written as any other's, and does not make it valid.
        assert_eq!(grants.outdated_statuses(None, at(0))[0].2.conditions.len(), 1);
        broken.status = grants.outdated_statuses(None, at(0)).remove(0).2;
        assert!(!grants.apply(broken));
        assert_eq!(grants.outdated_statuses(None, at(1)), []);
    }

    #[test]
    fn a_file_that_fails_keeps_the_time_of_its_first_failure() {
        let grants = GrantStore::default();
        assert_eq!(grants.set_file(Vec::new()), GrantCount::default());
        assert_eq!(grants.file_problem(), None);
        assert_eq!(grants.fail_file("cannot be read", at(5)), at(5));
        assert_eq!(grants.fail_file("is invalid", at(9)), at(5));
        let (since, kind) = (at(5), "is invalid");
        assert_eq!(grants.file_problem(), Some(FileProblem { since, kind }));
        grants.set_file(Vec::new());
        assert_eq!(grants.file_problem(), None);
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    /// A store with a grant that allows the request.
    fn granted() -> (GrantStore, ValidRequest) {
        let grants = GrantStore::default();
        let request = crate::fixtures::request(serde_json::json!({}));
        let spec = &request.token;
        let mut allowed = object("a", &spec.audience, None)
            .grant()
            .unwrap()
            .spec
            .as_ref()
            .clone();
        allowed.from[0].namespace = Some(request.namespace.clone());
        allowed.to[0].service_accounts = spec.service_account.clone().into_iter().collect();
        grants.set_objects(vec![with_spec("a", Ok(allowed), None)]);
        (grants, request)
    }

    #[test]
    fn silent_watches_allow_nothing() {
        let (grants, request) = granted();
        grants.record_heartbeat(WatchKind::Grants, at(0));
        assert!(grants.authorize(&request, at(300)).is_ok());
        let denied = grants.authorize(&request, at(301)).unwrap_err();
        assert_eq!(denied, Denied::Unavailable { since: at(0) });
        assert_eq!(denied.reason(), "GrantsUnavailable");
        grants.record_heartbeat(WatchKind::Grants, at(301));
        assert!(grants.authorize(&request, at(302)).is_ok());
    }

    #[test]
    fn both_watches_must_be_alive() {
        let (grants, request) = granted();
        let decide = |now| {
            grants
                .authorize(&request, at(now))
                .map_err(|denied| denied.reason())
        };
        grants.record_heartbeat(WatchKind::Grants, at(0));
        grants.record_heartbeat(WatchKind::Namespaces, at(0));
        assert!(decide(300).is_ok());
        for (silent, other) in [
            (WatchKind::Grants, WatchKind::Namespaces),
            (WatchKind::Namespaces, WatchKind::Grants),
        ] {
            grants.record_heartbeat(silent, at(0));
            grants.record_heartbeat(other, at(1000));
            assert_eq!(decide(1001).unwrap_err(), "GrantsUnavailable");
            grants.record_heartbeat(silent, at(1000));
            assert!(decide(1001).is_ok());
        }
    }

    #[test]
    fn a_denial_says_where_a_grant_can_be_added() {
        let (grants, request) = granted();
        grants.delete("a");
        let message = || grants.authorize(&request, at(0)).unwrap_err().to_string();
        assert!(message().contains("--grants-file"), "{}", message());
        grants.record_heartbeat(WatchKind::Grants, at(0));
        assert!(
            message().ends_with("a cluster administrator applies it"),
            "{}",
            message()
        );
    }
}
