//! One Lease as it is read and written.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, GetParams, ListParams, PostParams, Preconditions};
use kube::core::Request;
use kube::core::request::Error as BuildError;
use kube::{Client, Resource};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::{LeaseRecord, ObservedLease};
use crate::api::{ANNOTATION_SCOPE, LABEL_MANAGED_BY, MANAGED_BY};
use crate::clock::{BootTime, Clock};
use crate::kubernetes::answer::{text, within};
use crate::kubernetes::error::status_code;
use crate::shard::Shard;

/// A Lease. Its metadata is written back as it was read, and never decoded: other clients may put there what they like.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LeaseObject {
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    metadata: BTreeMap<String, Box<RawValue>>,
    spec: Option<LeaseSpec>,
}

impl LeaseObject {
    /// A text of the metadata, such as its name.
    pub(super) fn meta(&self, field: &str) -> Option<String> {
        serde_json::from_str(self.metadata.get(field)?.get()).ok()
    }

    /// What the release reconciles whose Lease it is.
    pub(super) fn scope(&self) -> Option<Shard> {
        let annotations: BTreeMap<String, String> =
            serde_json::from_str(self.metadata.get("annotations")?.get()).ok()?;
        Shard::from_scope(annotations.get(ANNOTATION_SCOPE)?)
    }

    /// Writes `scope` on it, and that it is an operator's, so that other releases find it.
    fn mark(&mut self, scope: &str) {
        for (field, key, value) in [
            ("labels", LABEL_MANAGED_BY, MANAGED_BY),
            ("annotations", ANNOTATION_SCOPE, scope),
        ] {
            let before = self.metadata.get(field).map_or("{}", |raw| raw.get());
            let Ok(mut all) = serde_json::from_str::<BTreeMap<String, String>>(before) else {
                continue;
            };
            all.insert(key.to_owned(), value.to_owned());
            if let Ok(all) = to_raw_value(&all) {
                self.metadata.insert(field.to_owned(), all);
            }
        }
    }

    pub(super) fn record(&self) -> LeaseRecord {
        let spec = self.spec.clone().unwrap_or_default();
        let seconds = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        LeaseRecord {
            holder: spec.holder_identity.unwrap_or_default(),
            duration: seconds.map(Duration::from_secs),
            renewed: spec.renew_time.map(|time| time.0.to_string()),
            transitions: spec.lease_transitions.unwrap_or_default(),
        }
    }
}

/// The Leases of a namespace, or of all.
pub(super) struct Leases {
    client: Client,
    calls: Request,
    clock: Clock,
}

/// Result of a write of a Lease.
pub(super) enum WriteResult {
    Written,
    /// Another client wrote, created or deleted it first.
    Conflict,
}

impl Leases {
    pub(super) fn new(client: Client, namespace: Option<&str>, clock: Clock) -> Self {
        let calls = Request::new(Lease::url_path(&(), namespace));
        Self { client, calls, clock }
    }

    /// The names of all Leases, each as it is now.
    pub(super) async fn list(&self, limit: Duration) -> Result<Vec<(String, LeaseObject)>, kube::Error> {
        let leases = self.list_with(&ListParams::default(), limit).await?;
        let named = leases
            .into_iter()
            .filter_map(|lease| Some((lease.meta("name")?, lease)));
        Ok(named.collect())
    }

    /// Those that operators have marked as theirs.
    pub(super) async fn list_of_releases(&self, limit: Duration) -> Result<Vec<LeaseObject>, kube::Error> {
        let ours = ListParams::default().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
        // As the API server remembers them: the nodes' Leases, among which they are, are not read from etcd.
        self.list_with(&ours.match_any(), limit).await
    }

    async fn list_with(&self, params: &ListParams, limit: Duration) -> Result<Vec<LeaseObject>, kube::Error> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Box<RawValue>>,
        }
        let answer = self.send(self.calls.list(params), limit).await?;
        let list: List = serde_json::from_str(&answer).map_err(kube::Error::SerdeError)?;
        let leases = list.items.iter().filter_map(|item| decoded(item.get()).ok());
        Ok(leases.collect())
    }

    async fn get(&self, name: &str, limit: Duration) -> Result<Option<LeaseObject>, kube::Error> {
        match self
            .send(self.calls.get(name, &GetParams::default()), limit)
            .await
        {
            Err(error) if status_code(&error) == Some(404) => Ok(None),
            answer => decoded(&answer?).map(Some).map_err(kube::Error::SerdeError),
        }
    }

    async fn send(
        &self,
        call: Result<http::Request<Vec<u8>>, BuildError>,
        limit: Duration,
    ) -> Result<String, kube::Error> {
        let call = call.map_err(kube::Error::BuildRequest)?;
        Ok(within(limit, text(&self.client, call)).await?.to_string())
    }
}

fn decoded(json: &str) -> Result<LeaseObject, serde_json::Error> {
    let mut lease: LeaseObject = serde_json::from_str(json)?;
    lease.metadata.remove("managedFields");
    Ok(lease)
}

/// A Lease by its name, as it was last read or written.
pub(super) struct Claim {
    pub(super) name: String,
    /// What is written on it; nothing on one under a former name.
    scope: Option<String>,
    lease: Option<LeaseObject>,
    observed: Option<ObservedLease>,
}

impl Claim {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            scope: None,
            lease: None,
            observed: None,
        }
    }

    /// Has `scope` written on it.
    pub(super) fn with_scope(self, scope: String) -> Self {
        Self {
            scope: Some(scope),
            ..self
        }
    }

    /// None if it does not exist.
    pub(super) fn observed(&self) -> Option<&ObservedLease> {
        self.observed.as_ref()
    }

    /// Empty if the Lease is free.
    pub(super) fn holder(&self) -> &str {
        self.observed
            .as_ref()
            .map_or("", |seen| seen.record.holder.as_str())
    }

    /// Records what was read or written by `now`.
    pub(super) fn see(&mut self, lease: Option<LeaseObject>, now: BootTime) {
        self.observed = lease
            .as_ref()
            .map(|lease| ObservedLease::update(self.observed.take(), lease.record(), now));
        self.lease = lease;
    }

    pub(super) async fn read(&mut self, leases: &Leases, limit: Duration) -> Result<(), kube::Error> {
        let lease = leases.get(&self.name, limit).await?;
        // After the response: the holder may have renewed the Lease up to then.
        self.see(lease, leases.clock.boot());
        Ok(())
    }

    /// Writes that `holder` has it for `duration`; an empty holder releases it.
    pub(super) async fn write(
        &mut self,
        leases: &Leases,
        holder: &str,
        duration: Duration,
        limit: Duration,
    ) -> Result<WriteResult, kube::Error> {
        let (params, now) = (PostParams::default(), MicroTime(leases.clock.now()));
        let mut lease = match &self.lease {
            Some(lease) => lease.clone(),
            None => LeaseObject {
                api_version: Some(Lease::api_version(&()).into_owned()),
                kind: Some(Lease::kind(&()).into_owned()),
                metadata: BTreeMap::from([(
                    "name".to_owned(),
                    to_raw_value(&self.name).map_err(kube::Error::SerdeError)?,
                )]),
                spec: None,
            },
        };
        lease.spec = Some(next_spec(lease.spec.take(), holder, duration, now));
        if let Some(scope) = &self.scope {
            lease.mark(scope);
        }
        let call = body(&lease).and_then(|body| match &self.lease {
            Some(_) => leases.calls.replace(&self.name, &params, body),
            None => leases.calls.create(&params, body),
        });
        match leases.send(call, limit).await {
            Ok(answer) => {
                let lease = decoded(&answer).map_err(kube::Error::SerdeError)?;
                self.see(Some(lease), leases.clock.boot());
                Ok(WriteResult::Written)
            }
            // 404: another client deleted it.
            Err(error) if matches!(status_code(&error), Some(404 | 409)) => Ok(WriteResult::Conflict),
            Err(error) => Err(error),
        }
    }

    /// Deletes it as it was last read or written. Does nothing if another client has written or deleted it since.
    pub(super) async fn delete(
        &mut self,
        leases: &Leases,
        limit: Duration,
    ) -> Result<WriteResult, kube::Error> {
        let Some(lease) = &self.lease else {
            return Ok(WriteResult::Conflict);
        };
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: lease.meta("uid"),
                resource_version: lease.meta("resourceVersion"),
            }),
            ..DeleteParams::default()
        };
        match leases.send(leases.calls.delete(&self.name, &params), limit).await {
            Ok(_) => Ok(WriteResult::Written),
            Err(error) if matches!(status_code(&error), Some(404 | 409)) => Ok(WriteResult::Conflict),
            Err(error) => Err(error),
        }
    }
}

fn body(lease: &impl Serialize) -> Result<Vec<u8>, BuildError> {
    serde_json::to_vec(lease).map_err(BuildError::SerializeBody)
}

/// The spec of a Lease as `holder` writes it; an empty holder releases it.
fn next_spec(before: Option<LeaseSpec>, holder: &str, duration: Duration, now: MicroTime) -> LeaseSpec {
    let before = before.unwrap_or_default();
    let same = before.holder_identity.as_deref() == Some(holder);
    let transitions = before.lease_transitions.unwrap_or_default();
    let is_handover = !same && !holder.is_empty() && before.renew_time.is_some();
    LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: before.acquire_time.filter(|_| same).or(Some(now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(transitions.saturating_add(i32::from(is_handover))),
        ..before
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn the_spec_has_the_holder_since_when_and_how_often_the_lease_changed_hands() {
        let at = |second| MicroTime(Timestamp::from_second(second).unwrap());
        let long = Duration::from_secs(15);
        let first = next_spec(None, "a", long, at(10));
        assert_eq!(first.holder_identity.as_deref(), Some("a"));
        assert_eq!(first.lease_duration_seconds, Some(15));
        assert_eq!(
            (first.acquire_time.clone(), first.renew_time.clone()),
            (Some(at(10)), Some(at(10)))
        );
        assert_eq!(first.lease_transitions, Some(0));
        let renewed = next_spec(Some(first), "a", long, at(12));
        assert_eq!(
            (renewed.acquire_time.clone(), renewed.renew_time.clone()),
            (Some(at(10)), Some(at(12)))
        );
        assert_eq!(renewed.lease_transitions, Some(0));
        let mut free = next_spec(Some(renewed), "", Duration::from_secs(1), at(13));
        assert_eq!(
            (free.holder_identity.as_deref(), free.lease_transitions),
            (Some(""), Some(0))
        );
        // Fields of other writers stay.
        free.strategy = Some("OldestEmulationVersion".into());
        let taken = next_spec(Some(free), "b", long, at(14));
        assert_eq!(
            (taken.acquire_time.clone(), taken.lease_transitions),
            (Some(at(14)), Some(1))
        );
        assert!(taken.strategy.is_some());
    }
}
