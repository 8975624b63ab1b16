//! Acquires, renews and releases the Lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{GetParams, PostParams};
use kube::core::Request;
use kube::core::request::Error as BuildError;
use kube::{Client, Resource};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::{Decision, ElectionSettings, Fence, LeaseRecord, ObservedLease, decide};
use crate::clock::{BootTime, Clock};
use crate::kubernetes::answer::{text, within};
use crate::kubernetes::error::{problem, status_code};
use crate::metrics::Metrics;

/// Longest time for releasing the Lease.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// A Lease. Its metadata is written back as it was read, and never decoded: other clients may put there what they like.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct LeaseObject {
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    metadata: BTreeMap<String, Box<RawValue>>,
    spec: Option<LeaseSpec>,
}

/// A candidate in the election.
pub struct Elector {
    client: Client,
    calls: Request,
    settings: ElectionSettings,
    fence: Fence,
    /// The Lease as we last read or wrote it.
    lease: Option<LeaseObject>,
    observed: Option<ObservedLease>,
    /// When our last renewal was sent, plus `renew_deadline`.
    deadline: BootTime,
    /// The last logged error, so that one that repeats is logged once.
    last_logged: Option<String>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// Result of a write of the Lease.
enum WriteResult {
    Written,
    /// Another client wrote, created or deleted it first.
    Conflict,
}

impl Elector {
    /// `fence` must not fence the writes of `client`: the Lease is written while it is closed.
    pub fn new(
        client: Client,
        settings: ElectionSettings,
        fence: Fence,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        Self {
            client,
            calls: Request::new(Lease::url_path(&(), Some(&settings.namespace))),
            settings,
            fence,
            lease: None,
            observed: None,
            deadline: BootTime::new(Duration::ZERO),
            last_logged: None,
            metrics,
            clock,
        }
    }

    /// Returns once the Lease could be read. A replica that cannot read it could never take over, so it is not ready.
    pub async fn wait_readable(&mut self) {
        while let Err(error) = self.read(self.settings.renew_deadline).await {
            self.log_once(&error);
            tokio::time::sleep(self.settings.retry_period).await;
        }
    }

    /// Returns once this replica holds the Lease; the fence is open then.
    pub async fn acquire(&mut self) {
        loop {
            let pause = match self.try_acquire().await {
                Ok(None) => {
                    tracing::info!(
                        lease = self.settings.name,
                        identity = self.settings.identity,
                        "became the leader"
                    );
                    return;
                }
                Ok(Some(next)) => self.time_until(next),
                Err(error) => {
                    self.log_once(&error);
                    self.settings.retry_period
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Renews the Lease until this replica has lost it; the fence is closed then.
    pub async fn renew_until_lost(&mut self) {
        let why = loop {
            let left = self.time_until(self.deadline);
            tokio::time::sleep(left.min(self.settings.retry_period)).await;
            let left = self.time_until(self.deadline);
            // Even if a renewal might still succeed: while the process slept or was stopped, others may have acted.
            if left.is_zero() {
                break "the Lease could not be renewed in time".to_owned();
            }
            match self.renew(left).await {
                Ok(true) => {}
                Ok(false) => break format!("the Lease is held by {:?}", self.holder()),
                Err(error) => self.log_once(&error),
            }
        };
        self.fence.close();
        tracing::warn!(
            lease = self.settings.name,
            identity = self.settings.identity,
            "lost leadership: {why}; cancelling in-flight reconciles and standing by"
        );
    }

    /// Closes the fence and releases the Lease, so that another replica need not wait until it expires.
    pub async fn release(&mut self) {
        self.fence.close();
        let release = async {
            self.read(RELEASE_TIMEOUT).await?;
            if self.holder() != self.settings.identity {
                return Ok(false);
            }
            let written = self.write("", Duration::from_secs(1), RELEASE_TIMEOUT).await?;
            Ok::<_, kube::Error>(matches!(written, WriteResult::Written))
        };
        match release.await {
            Ok(true) => tracing::info!(lease = self.settings.name, "released the Lease"),
            Ok(false) => {}
            Err(error) => tracing::warn!(
                lease = self.settings.name,
                "the Lease could not be released: {}",
                problem(&error)
            ),
        }
    }

    fn time_until(&self, then: BootTime) -> Duration {
        then.saturating_duration_since(self.clock.boot())
    }

    fn holder(&self) -> &str {
        self.observed
            .as_ref()
            .map_or("", |seen| seen.record.holder.as_str())
    }

    /// None if the Lease is ours, else when to read it again.
    async fn try_acquire(&mut self) -> Result<Option<BootTime>, kube::Error> {
        let limit = self.settings.renew_deadline;
        self.read(limit).await?;
        match decide(&self.settings, self.observed.as_ref(), self.clock.boot()) {
            Decision::Wait(until) => Ok(Some(until)),
            Decision::Create | Decision::Take => match self.write_claim(limit).await? {
                WriteResult::Written => Ok(None),
                WriteResult::Conflict => Ok(Some(self.clock.boot() + self.settings.retry_period)),
            },
        }
    }

    /// Whether the Lease is still ours. A conflict may come from a change of its metadata, or from a write of ours whose response was lost.
    async fn renew(&mut self, limit: Duration) -> Result<bool, kube::Error> {
        let deadline = self.clock.boot() + limit;
        if let WriteResult::Written = self.write_claim(limit).await? {
            return Ok(true);
        }
        let left = self.time_until(deadline);
        self.read(left).await?;
        if self.holder() != self.settings.identity {
            return Ok(false);
        }
        let left = self.time_until(deadline);
        Ok(matches!(self.write_claim(left).await?, WriteResult::Written))
    }

    async fn write_claim(&mut self, limit: Duration) -> Result<WriteResult, kube::Error> {
        // Before the call: the others count from when they read the renewal, which is later.
        let sent = self.clock.boot();
        let identity = self.settings.identity.clone();
        let written = self.write(&identity, self.settings.lease_duration, limit).await?;
        if matches!(written, WriteResult::Written) {
            self.deadline = sent + self.settings.renew_deadline;
            self.fence.open_until(self.deadline);
            self.last_logged = None;
        }
        Ok(written)
    }

    async fn read(&mut self, limit: Duration) -> Result<(), kube::Error> {
        let call = self.calls.get(&self.settings.name, &GetParams::default());
        let lease = match self.send(call, limit).await {
            Err(error) if status_code(&error) == Some(404) => None,
            answer => Some(answer?),
        };
        // After the response: the holder may have renewed the Lease up to then.
        let now = self.clock.boot();
        self.observed = lease
            .as_ref()
            .map(|lease| ObservedLease::update(self.observed.take(), record(lease), now));
        self.lease = lease;
        self.record_transitions();
        Ok(())
    }

    async fn write(
        &mut self,
        holder: &str,
        duration: Duration,
        limit: Duration,
    ) -> Result<WriteResult, kube::Error> {
        let name = self.settings.name.clone();
        let (params, now) = (PostParams::default(), MicroTime(self.clock.now()));
        let result = match &self.lease {
            Some(lease) => {
                let mut lease = lease.clone();
                lease.spec = Some(next_spec(lease.spec.take(), holder, duration, now));
                let call = body(&lease).and_then(|body| self.calls.replace(&name, &params, body));
                self.send(call, limit).await
            }
            None => {
                let lease = json!({
                    "apiVersion": Lease::api_version(&()), "kind": Lease::kind(&()), "metadata": {"name": name},
                    "spec": next_spec(None, holder, duration, now),
                });
                let call = body(&lease).and_then(|body| self.calls.create(&params, body));
                self.send(call, limit).await
            }
        };
        match result {
            Ok(lease) => {
                let at = self.clock.boot();
                self.observed = Some(ObservedLease::update(self.observed.take(), record(&lease), at));
                self.lease = Some(lease);
                self.record_transitions();
                Ok(WriteResult::Written)
            }
            // 404: another client deleted it.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(WriteResult::Conflict),
            Err(error) => Err(error),
        }
    }

    /// Sends a call whose answer is the Lease.
    async fn send(
        &self,
        call: Result<http::Request<Vec<u8>>, BuildError>,
        limit: Duration,
    ) -> Result<LeaseObject, kube::Error> {
        let call = call.map_err(kube::Error::BuildRequest)?;
        let answer = within(limit, text(&self.client, call)).await?;
        let mut lease: LeaseObject = serde_json::from_str(&answer).map_err(kube::Error::SerdeError)?;
        lease.metadata.remove("managedFields");
        Ok(lease)
    }

    fn record_transitions(&self) {
        if let Some(seen) = &self.observed {
            self.metrics.set_lease_transitions(seen.record.transitions);
        }
    }

    fn log_once(&mut self, error: &kube::Error) {
        let text = match error {
            kube::Error::Api(status) if status.code == 403 => format!(
                "the Role needs the verbs get, create and update on leases in namespace {}: {}",
                self.settings.namespace,
                problem(error)
            ),
            other => problem(other),
        };
        if self.last_logged.as_ref() != Some(&text) {
            tracing::warn!(
                lease = self.settings.name,
                "the Lease cannot be read or renewed: {text}"
            );
            self.last_logged = Some(text);
        }
    }
}

fn body(lease: &impl Serialize) -> Result<Vec<u8>, BuildError> {
    serde_json::to_vec(lease).map_err(BuildError::SerializeBody)
}

/// The spec of the Lease as `holder` writes it; an empty holder releases it.
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

fn record(lease: &LeaseObject) -> LeaseRecord {
    let spec = lease.spec.clone().unwrap_or_default();
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
