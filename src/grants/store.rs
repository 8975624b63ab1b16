//! The grants in force: from objects and from a file, resolved against the namespaces' labels, and how fresh they are.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, RwLock};

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::api::v1alpha1::{GrantRef, IdTokenGrant};
use crate::grants::index::{Grant, GrantIndex, Namespaces};
use crate::grants::policy::{self, Denied, Remedy};
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

#[derive(Debug, Default)]
struct State {
    index: GrantIndex,
    /// Keys of the file's grants in the index.
    file_keys: Vec<String>,
    /// By name, each IdTokenGrant and the number of allowed requests in its status.
    objects: HashMap<String, (Grant, Option<i64>)>,
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

    /// The number of IdTokenGrants; grants of the file do not count.
    pub fn object_count(&self) -> usize {
        read(&self.0).objects.len()
    }

    /// The IdTokenGrants whose status does not show their number in `allowed`, with that number. A grant that is not in `allowed` allows 0
    /// requests.
    pub fn outdated_counts(&self, allowed: &HashMap<String, i64>) -> Vec<(String, i64)> {
        let state = read(&self.0);
        let count = |name: &String| allowed.get(name).copied().unwrap_or(0);
        let outdated = state
            .objects
            .iter()
            .filter(|(name, (_, shown))| *shown != Some(count(name)));
        outdated.map(|(name, _)| (name.clone(), count(name))).collect()
    }

    /// Records that a watch is alive at `now`.
    pub fn record_heartbeat(&self, watch: WatchKind, now: Timestamp) {
        write(&self.0).heartbeats[watch as usize] = Some(now);
    }

    /// Replaces the grants of the file.
    pub fn set_file(&self, grants: Vec<Grant>) {
        let mut state = write(&self.0);
        for key in std::mem::take(&mut state.file_keys) {
            state.index.remove(&key);
        }
        for (position, grant) in grants.into_iter().enumerate() {
            // The name of an object has no colon. Two grants of the file may have the same name.
            let key = format!("file:{position}");
            state.index.insert(&key, grant);
            state.file_keys.push(key);
        }
    }

    /// Replaces all IdTokenGrants.
    pub fn set_objects(&self, objects: Vec<IdTokenGrant>) {
        let mut state = write(&self.0);
        let listed: HashSet<String> = objects.iter().map(ResourceExt::name_any).collect();
        let deleted: Vec<String> = state
            .objects
            .keys()
            .filter(|name| !listed.contains(*name))
            .cloned()
            .collect();
        for name in deleted {
            state.delete(&name);
        }
        for object in objects {
            state.apply(object);
        }
    }

    /// Adds or updates one IdTokenGrant. Returns whether more than its status changed.
    pub fn apply(&self, object: IdTokenGrant) -> bool {
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

    fn apply(&mut self, object: IdTokenGrant) -> bool {
        let shown = object.status.as_ref().and_then(|status| status.allowed_requests);
        let (name, grant) = into_grant(object);
        let is_same = self
            .objects
            .get(&name)
            .is_some_and(|(known, _)| known.id == grant.id && known.spec == grant.spec);
        if !is_same {
            self.index.insert(&name, grant.clone());
        }
        self.objects.insert(name, (grant, shown));
        !is_same
    }

    fn delete(&mut self, name: &str) {
        self.objects.remove(name);
        self.index.remove(name);
    }
}

/// The name of `object` and its grant.
fn into_grant(object: IdTokenGrant) -> (String, Grant) {
    let name = object.metadata.name.unwrap_or_default();
    let id = GrantRef {
        name: name.clone(),
        uid: object.metadata.uid,
    };
    let spec = Arc::new(object.spec);
    (name, Grant { id, spec })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::Classify;

    fn object(name: &str, audience: &str, allowed: Option<i64>) -> IdTokenGrant {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant", "metadata": {"name": name, "uid": name},
            "spec": {"from": [{"namespace": "shop"}], "to": [{"serviceAccounts": ["a@p.example"], "audiences": [audience]}]},
            "status": {"allowedRequests": allowed},
        }))
        .unwrap()
    }

    #[test]
    fn a_count_is_outdated_until_the_status_shows_it() {
        let grants = GrantStore::default();
        let counts: HashMap<String, i64> = [("a".to_owned(), 2), ("gone".to_owned(), 1)].into();
        grants.set_objects(vec![object("a", "aud", None), object("b", "aud", Some(0))]);
        assert_eq!(grants.outdated_counts(&counts), [("a".to_owned(), 2)]);
        assert!(!grants.apply(object("a", "aud", Some(2))));
        assert_eq!(grants.outdated_counts(&counts), []);
        assert!(grants.apply(object("a", "other", Some(2))));
        grants.set_objects(vec![object("b", "aud", Some(0))]);
        assert_eq!(grants.outdated_counts(&HashMap::new()), []);
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    /// A store with a grant that allows the request.
    fn granted() -> (GrantStore, ValidRequest) {
        let grants = GrantStore::default();
        let request = crate::fixtures::request(serde_json::json!({}));
        let spec = &request.token;
        let mut grant = object("a", &spec.audience, None);
        grant.spec.from[0].namespace = Some(request.namespace.clone());
        grant.spec.to[0].service_accounts = spec.service_account.clone().into_iter().collect();
        grants.set_objects(vec![grant]);
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
