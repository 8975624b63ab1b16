//! Acquires, renews and releases the Lease.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;

use super::claim::{Claim, Leases, WriteResult};
use super::lease::is_former;
use super::{Decision, ElectionSettings, Fence, decide};
use crate::clock::{BootTime, Clock};
use crate::kubernetes::error::{problem, status_code};
use crate::metrics::Metrics;

/// Longest time for releasing the Lease.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a Lease under another name is held before it is deleted: as long as a rollout may make no progress before it counts as failed
/// (`progressDeadlineSeconds` of a Deployment), so that no replica is left that would create it again.
const FORMER_HOLD: Duration = Duration::from_secs(600);
/// How often the leader lists the Leases to find those under other names.
const FORMER_CHECK: Duration = Duration::from_secs(30);

/// A candidate in the election.
pub struct Elector {
    leases: Leases,
    settings: ElectionSettings,
    fence: Fence,
    own: Claim,
    /// Leases under other names that replicas of the same Deployment hold or held: with other flags, or of an earlier version.
    formers: Vec<Claim>,
    /// Since when this replica holds the Leases under other names.
    holds_formers_since: Option<BootTime>,
    /// When this replica last listed the Leases; none if it is to list them at once.
    checked_formers: Option<BootTime>,
    /// When our last renewal was sent, plus `renew_deadline`.
    deadline: BootTime,
    /// The last logged error, so that one that repeats is logged once.
    last_logged: Option<String>,
    metrics: Arc<Metrics>,
    clock: Clock,
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
            leases: Leases::new(client, Some(&settings.namespace), clock.clone()),
            own: Claim::new(settings.name.clone()).with_scope(settings.shard.scope()),
            formers: Vec::new(),
            holds_formers_since: None,
            checked_formers: None,
            settings,
            fence,
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
                Ok(false) => {
                    let lost = self.not_ours().next().unwrap_or(&self.own);
                    break format!("the Lease {} is held by {:?}", lost.name, lost.holder());
                }
                Err(error) => self.log_once(&error),
            }
        };
        self.fence.close();
        self.holds_formers_since = None;
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
            if self.own.holder() != self.settings.identity {
                return Ok(false);
            }
            // To a replica that uses one, a Lease that does not exist is as free as one without a holder.
            if let Err(error) = self.delete_formers(RELEASE_TIMEOUT).await {
                self.log_once(&error);
            }
            let written = self
                .own
                .write(&self.leases, "", Duration::from_secs(1), RELEASE_TIMEOUT);
            Ok::<_, kube::Error>(matches!(written.await?, WriteResult::Written))
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

    /// The Leases that another holds.
    fn not_ours(&self) -> impl Iterator<Item = &Claim> {
        let all = self.formers.iter().chain([&self.own]);
        all.filter(|claim| claim.observed().is_some() && claim.holder() != self.settings.identity)
    }

    async fn read(&mut self, limit: Duration) -> Result<(), kube::Error> {
        self.own.read(&self.leases, limit).await?;
        self.record_transitions();
        Ok(())
    }

    /// None if the Lease is ours, else when to read it again.
    async fn try_acquire(&mut self) -> Result<Option<BootTime>, kube::Error> {
        let limit = self.settings.renew_deadline;
        self.read(limit).await?;
        let now = self.clock.boot();
        if let Decision::Wait(until) = decide(&self.settings, self.own.observed(), now) {
            return Ok(Some(until));
        }
        self.find_formers(limit).await?;
        let now = self.clock.boot();
        if let Some(until) = self.formers_wait(now) {
            return Ok(Some(until));
        }
        self.holds_formers_since = Some(now);
        // Again right after the write: another may have taken a Lease of which this candidate did not know.
        self.checked_formers = None;
        match self.write_claim(limit).await? {
            WriteResult::Written => Ok(None),
            WriteResult::Conflict => Ok(Some(self.clock.boot() + self.settings.retry_period)),
        }
    }

    /// When to read the Leases under other names again, if another holds one of them.
    fn formers_wait(&self, now: BootTime) -> Option<BootTime> {
        let decisions = self
            .formers
            .iter()
            .map(|former| decide(&self.settings, former.observed(), now));
        let waits = decisions.filter_map(|decision| match decision {
            Decision::Wait(until) => Some(until),
            Decision::Create | Decision::Take => None,
        });
        waits.min()
    }

    /// Finds the Leases of the same Deployment under other names. While a rollout changes the name, replicas with the old one and with the new
    /// one run side by side, and one of all of them is to lead.
    async fn find_formers(&mut self, limit: Duration) -> Result<(), kube::Error> {
        let found = match self.leases.list(limit).await {
            Err(error) if status_code(&error) == Some(403) => {
                // At the first check of a term only: each renewal clears what was logged last.
                if self.checked_formers.is_none() {
                    self.log_once(&error);
                }
                Vec::new()
            }
            found => found?,
        };
        let now = self.clock.boot();
        self.checked_formers = Some(now);
        let mut known = std::mem::take(&mut self.formers);
        for (name, lease) in found {
            let at = known.iter().position(|former| former.name == name);
            let mut former = at.map_or_else(|| Claim::new(name), |at| known.swap_remove(at));
            former.see(Some(lease), now);
            if at.is_none() {
                if !is_former(&self.settings, &former.name, former.holder()) {
                    continue;
                }
                tracing::info!(
                    lease = former.name,
                    holder = former.holder(),
                    "found a Lease of the same Deployment under another name"
                );
            }
            self.formers.push(former);
        }
        Ok(())
    }

    /// Whether the Lease is still ours. A conflict may come from a change of its metadata, or from a write of ours whose response was lost.
    async fn renew(&mut self, limit: Duration) -> Result<bool, kube::Error> {
        let now = self.clock.boot();
        let deadline = now + limit;
        if self.checked_formers.is_none_or(|then| then + FORMER_CHECK <= now) {
            // A list that fails is no reason not to renew: half of the time is left for the write.
            let limit = self.settings.retry_period.min(limit / 2);
            if let Err(error) = self.find_formers(limit).await {
                self.log_once(&error);
            }
            if self.formers_wait(now).is_some() {
                return Ok(false);
            }
        }
        if let WriteResult::Written = self.write_claim(self.time_until(deadline)).await? {
            if self
                .holds_formers_since
                .is_some_and(|since| since + FORMER_HOLD <= now)
            {
                self.delete_formers(self.time_until(deadline)).await?;
            }
            return Ok(true);
        }
        for claim in self.formers.iter_mut().chain([&mut self.own]) {
            let left = deadline.saturating_duration_since(self.clock.boot());
            claim.read(&self.leases, left).await?;
        }
        self.record_transitions();
        // Deleted by another client: what does not exist is nobody's.
        self.formers.retain(|former| former.observed().is_some());
        if self.not_ours().next().is_some() {
            return Ok(false);
        }
        let left = self.time_until(deadline);
        Ok(matches!(self.write_claim(left).await?, WriteResult::Written))
    }

    async fn delete_formers(&mut self, limit: Duration) -> Result<(), kube::Error> {
        while let Some(mut former) = self.formers.pop() {
            if former.holder() != self.settings.identity {
                continue;
            }
            if let WriteResult::Written = former.delete(&self.leases, limit).await? {
                tracing::info!(lease = former.name, "deleted the Lease under a former name");
            }
        }
        Ok(())
    }

    /// Writes all Leases: the fence opens only if all are ours. In the order of names, so that of two candidates that know of the same Leases one
    /// gets all.
    async fn write_claim(&mut self, limit: Duration) -> Result<WriteResult, kube::Error> {
        // Before the call: the others count from when they read the renewal, which is later.
        let sent = self.clock.boot();
        let mut claims: Vec<&mut Claim> = self.formers.iter_mut().chain([&mut self.own]).collect();
        claims.sort_by(|one, other| one.name.cmp(&other.name));
        for claim in claims {
            let left = (sent + limit).saturating_duration_since(self.clock.boot());
            let (identity, duration) = (&self.settings.identity, self.settings.lease_duration);
            let written = claim.write(&self.leases, identity, duration, left).await?;
            if matches!(written, WriteResult::Conflict) {
                return Ok(WriteResult::Conflict);
            }
        }
        self.deadline = sent + self.settings.renew_deadline;
        self.fence.open_until(self.deadline);
        self.last_logged = None;
        self.record_transitions();
        Ok(WriteResult::Written)
    }

    fn record_transitions(&self) {
        if let Some(seen) = self.own.observed() {
            self.metrics.set_lease_transitions(seen.record.transitions);
        }
    }

    fn log_once(&mut self, error: &kube::Error) {
        let text = match error {
            kube::Error::Api(status) if status.code == 403 => format!(
                "the Role needs the verbs get, list, create, update and delete on leases in namespace {}: {}",
                self.settings.namespace,
                problem(error)
            ),
            other => problem(other),
        };
        if self.last_logged.as_ref() != Some(&text) {
            tracing::warn!(
                lease = self.settings.name,
                "a call for the election failed: {text}"
            );
            self.last_logged = Some(text);
        }
    }
}

#[cfg(test)]
#[path = "elector_tests.rs"]
mod tests;
