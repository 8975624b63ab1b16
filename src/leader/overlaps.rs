//! Finds releases that serve some of the same requests. Each release writes its scope on its Lease, and the leader compares it with those of
//! the others.
//!
//! Whoever may write Leases can feign one, so what is found is reported and changes nothing else.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use kube::Client;

use super::claim::{LeaseObject, Leases};
use super::lease::is_former;
use super::{ElectionSettings, Fence, ObservedLease};
use crate::clock::{BootTime, Clock};
use crate::kubernetes::error::{problem, status_code};
use crate::metrics::Metrics;
use crate::sync::lock;

/// The most Leases of other releases that are compared, and shown.
const MAX_OTHERS: usize = 64;

/// Namespace and name of a Lease.
type Key = (String, String);

/// A release that serves some of the same requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The namespace of its Lease.
    pub namespace: String,
    /// The name of its Lease.
    pub name: String,
    /// Since when it is known.
    pub since: Timestamp,
}

/// The releases that serve some of the same requests. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Overlaps(Arc<Mutex<BTreeMap<Key, Timestamp>>>);

impl Overlaps {
    /// All, by namespace and name.
    pub fn all(&self) -> Vec<Overlap> {
        let all = lock(&self.0);
        let overlap = |((namespace, name), since): (&Key, &Timestamp)| Overlap {
            namespace: namespace.clone(),
            name: name.clone(),
            since: *since,
        };
        all.iter().map(overlap).collect()
    }

    /// Replaces them and says what has changed.
    fn set(&self, found: &[Key], now: Timestamp, metrics: &Metrics) {
        let mut all = lock(&self.0);
        all.retain(|key, _| {
            let is_found = found.contains(key);
            if !is_found {
                tracing::info!(
                    lease = key.1,
                    namespace = key.0,
                    "a release no longer overlaps with this one"
                );
            }
            is_found
        });
        for key in found {
            if !all.contains_key(key) {
                all.insert(key.clone(), now);
                tracing::warn!(
                    lease = key.1,
                    namespace = key.0,
                    "another release serves some of the same requests, so both issue tokens for them: give the releases namespaces \
                     (watchNamespaces) or selectors that do not overlap"
                );
            }
        }
        metrics.set_overlapping_releases(i64::try_from(all.len()).unwrap_or(i64::MAX));
    }
}

/// Leases of other releases as they were last seen.
#[derive(Default)]
struct Others(BTreeMap<Key, (ObservedLease, bool)>);

impl Others {
    /// The Leases of the releases that overlap. One counts once a renewal was seen, and until it expires: a Lease that nobody renews is what a
    /// release left behind.
    fn see(&mut self, settings: &ElectionSettings, leases: Vec<LeaseObject>, now: BootTime) -> Vec<Key> {
        let mut before = std::mem::take(&mut self.0);
        let mut found = Vec::new();
        for lease in leases {
            let record = lease.record();
            let (Some(namespace), Some(name)) = (lease.meta("namespace"), lease.meta("name")) else {
                continue;
            };
            let is_own = namespace == settings.namespace
                && (name == settings.name || is_former(settings, &name, &record.holder));
            let overlaps = lease.scope().is_some_and(|scope| scope.overlaps(&settings.shard));
            if is_own || !overlaps || record.holder.is_empty() || self.0.len() == MAX_OTHERS {
                continue;
            }
            let key = (namespace, name);
            let (known, was_renewed) = before.remove(&key).unzip();
            let is_changed = known
                .as_ref()
                .is_some_and(|known: &ObservedLease| known.record != record);
            let is_renewed = is_changed || was_renewed == Some(true);
            let seen = ObservedLease::update(known, record, now);
            // Each is listed once in our own duration.
            let duration = seen.record.duration.unwrap_or_default() + settings.lease_duration;
            if is_renewed && now < seen.since + duration {
                found.push(key.clone());
            }
            self.0.insert(key, (seen, is_renewed));
        }
        found
    }
}

/// Compares the scopes of other releases with ours while this replica leads. An operator for all namespaces sees the Leases of all; one for
/// some namespaces sees those beside its own.
pub async fn follow_overlaps(
    client: Client,
    settings: ElectionSettings,
    fence: Fence,
    overlaps: Overlaps,
    metrics: Arc<Metrics>,
    clock: Clock,
) -> Infallible {
    let beside = Leases::new(client.clone(), Some(&settings.namespace), clock.clone());
    let everywhere = Leases::new(client, None, clock.clone());
    let mut others = Others::default();
    let mut last_logged: Option<String> = None;
    loop {
        let limit = settings.renew_deadline;
        let mut failed = None;
        let leases = match (fence.is_open(), settings.shard.is_namespaced()) {
            (false, _) => {
                others = Others::default();
                Ok(Vec::new())
            }
            (true, true) => beside.list_of_releases(limit).await,
            (true, false) => match everywhere.list_of_releases(limit).await {
                Err(error) if status_code(&error) == Some(403) => {
                    failed = Some(problem(&error));
                    beside.list_of_releases(limit).await
                }
                answer => answer,
            },
        };
        match leases {
            Ok(leases) => overlaps.set(
                &others.see(&settings, leases, clock.boot()),
                clock.now(),
                &metrics,
            ),
            Err(error) => failed = failed.or_else(|| Some(problem(&error))),
        }
        if let Some(failed) = failed.as_ref().filter(|_| failed != last_logged) {
            tracing::warn!(
                "not all Leases of other releases can be listed, so an overlap may not be reported: {failed}"
            );
        }
        last_logged = failed;
        tokio::time::sleep(settings.lease_duration).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::shard::Shard;

    fn shard(namespaces: &[&str], selector: Option<&str>) -> Shard {
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        Shard::new(namespaces, selector.map(str::to_owned))
    }

    fn lease(namespace: &str, name: &str, holder: &str, renewed: u32, scope: &str) -> LeaseObject {
        let lease = json!({
            "metadata": {"namespace": namespace, "name": name, "annotations": {"idtoken.dev/scope": scope}},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": format!("2026-01-01T00:00:{renewed:02}.000000Z")},
        });
        serde_json::from_value(lease).expect("a Lease")
    }

    #[test]
    fn a_release_counts_while_it_renews_its_lease() {
        let settings = ElectionSettings {
            namespace: "own".into(),
            name: "tokens".into(),
            former_name: None,
            identity: "tokens-5b9d4f6c88-zzzzz_0123456789abcdef".into(),
            shard: shard(&[], Some("shard=a")),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        };
        let mut others = Others::default();
        let same = settings.shard.scope();
        let disjoint = shard(&[], Some("shard=b")).scope();
        let mut see = |second: u64, renewed: u32| {
            let leases = vec![
                lease("own", "tokens", "me", renewed, &same),
                lease(
                    "own",
                    "former",
                    "tokens-6d8f9c7b5d-x2k4q_0123456789abcdef",
                    renewed,
                    &same,
                ),
                lease("own", "beside", "x", renewed, &same),
                lease("other", "tokens", "y", renewed, &same),
                lease("other", "left", "z", 1, &same),
                lease("other", "free", "", renewed, &same),
                lease("other", "shard-b", "x", renewed, &disjoint),
                lease("other", "no-scope", "x", renewed, "no JSON"),
            ];
            let found = others.see(&settings, leases, BootTime::new(Duration::from_secs(second)));
            found
                .into_iter()
                .map(|(namespace, name)| format!("{namespace}/{name}"))
                .collect::<Vec<_>>()
        };
        assert!(see(0, 1).is_empty());
        assert_eq!(see(15, 2), ["own/beside", "other/tokens"]);
        assert_eq!(see(30, 2), ["own/beside", "other/tokens"]);
        assert!(see(45, 2).is_empty(), "expired");
        assert_eq!(see(60, 3), ["own/beside", "other/tokens"]);
    }
}
