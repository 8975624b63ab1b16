//! Pure: whose the Lease is at a moment of our clock. As client-go's leader election does it, no clock but our own decides
//! (<https://pkg.go.dev/k8s.io/client-go/tools/leaderelection>): a Lease is over when it has not changed for its duration while we
//! looked on, whatever times are written in it.

use std::time::Duration;

use super::clock::Instant;

/// Name and times of a Lease and of who wants it.
#[derive(Clone, Debug)]
pub struct ElectionSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who we are: no other process may be called the same.
    pub identity: String,
    /// How long the others wait for a sign of life of the holder.
    pub lease_duration: Duration,
    /// How long the holder acts after its last renewal: what it began then has the rest of the Lease to end.
    pub renew_deadline: Duration,
    /// Between two renewals, and between two looks at another's Lease.
    pub retry_period: Duration,
}

/// Times that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--lease-duration must be longer than --renew-deadline, and that at least twice --retry-period, which must be more than zero"
)]
pub struct InvalidTimings;

impl ElectionSettings {
    /// Checks that the times fit together.
    ///
    /// # Errors
    /// They do not.
    pub fn check(&self) -> Result<(), InvalidTimings> {
        let fits = self.lease_duration > self.renew_deadline
            && self.renew_deadline >= self.retry_period * 2
            && !self.retry_period.is_zero();
        fits.then_some(()).ok_or(InvalidTimings)
    }
}

/// What a Lease says (`coordination.k8s.io/v1`), its metadata aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseRecord {
    /// `spec.holderIdentity`; empty when nobody holds it.
    pub holder: String,
    /// `spec.leaseDurationSeconds`, by which the others wait.
    pub duration: Option<Duration>,
    /// `spec.renewTime` as it is written, only compared for equality.
    pub renewed: Option<String>,
    /// `spec.leaseTransitions`.
    pub transitions: i32,
}

/// A Lease as last read, and when by our clock it was first seen so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLease {
    /// What it says.
    pub record: LeaseRecord,
    /// When it was first seen to say so.
    pub since: Instant,
}

impl ObservedLease {
    /// Takes in what was read at `now`: only another record starts the wait anew.
    pub fn update(before: Option<Self>, record: LeaseRecord, now: Instant) -> Self {
        match before {
            Some(before) if before.record == record => before,
            _ => Self { record, since: now },
        }
    }
}

/// What a process that does not hold the Lease does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is no Lease: create it.
    Create,
    /// Nobody holds it, or its holder has given no sign of life for its duration, or it is ours from a write whose answer was lost.
    Take,
    /// Look again at this time.
    Wait(Instant),
}

/// Decides what to do about the Lease as observed, at `now`.
pub fn decide(settings: &ElectionSettings, observed: Option<&ObservedLease>, now: Instant) -> Decision {
    let Some(ObservedLease { record, since }) = observed else {
        return Decision::Create;
    };
    if record.holder.is_empty() || record.holder == settings.identity {
        return Decision::Take;
    }
    let end = *since + record.duration.unwrap_or(settings.lease_duration);
    if end <= now {
        return Decision::Take;
    }
    // Not later than its end, so that a takeover takes no longer than the duration and one period.
    Decision::Wait(end.min(now + settings.retry_period))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ElectionSettings {
        ElectionSettings {
            namespace: "n".into(),
            name: "l".into(),
            identity: "me".into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    fn record(holder: &str, renewed: &str) -> LeaseRecord {
        LeaseRecord {
            holder: holder.into(),
            duration: Some(Duration::from_secs(6)),
            renewed: Some(renewed.into()),
            transitions: 0,
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn a_free_lease_is_taken_at_once() {
        assert_eq!(decide(&settings(), None, at(1)), Decision::Create);
        for holder in ["", "me"] {
            let seen = ObservedLease::update(None, record(holder, "1"), at(1));
            assert_eq!(
                decide(&settings(), Some(&seen), at(1)),
                Decision::Take,
                "{holder:?}"
            );
        }
    }

    #[test]
    fn anothers_lease_is_over_when_it_did_not_change_for_its_own_duration_by_our_clock() {
        // Whatever time it claims: the other's clock may be wrong by years.
        for claimed in ["1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z"] {
            let mut seen = ObservedLease::update(None, record("other", claimed), at(100));
            assert_eq!(decide(&settings(), Some(&seen), at(100)), Decision::Wait(at(102)));
            seen = ObservedLease::update(Some(seen), record("other", claimed), at(105));
            assert_eq!(decide(&settings(), Some(&seen), at(105)), Decision::Wait(at(106)));
            assert_eq!(decide(&settings(), Some(&seen), at(106)), Decision::Take);
        }
    }

    #[test]
    fn a_renewal_starts_the_wait_anew() {
        let seen = ObservedLease::update(None, record("other", "1"), at(100));
        let seen = ObservedLease::update(Some(seen), record("other", "2"), at(105));
        assert_eq!(decide(&settings(), Some(&seen), at(110)), Decision::Wait(at(111)));
        assert_eq!(decide(&settings(), Some(&seen), at(111)), Decision::Take);
        // Also one by a third, while we did not look.
        let seen = ObservedLease::update(Some(seen), record("third", "2"), at(112));
        assert_eq!(decide(&settings(), Some(&seen), at(117)), Decision::Wait(at(118)));
    }

    #[test]
    fn a_lease_without_a_duration_is_taken_after_ours() {
        let mut seen = ObservedLease::update(None, record("other", "1"), at(100));
        seen.record.duration = None;
        assert_eq!(decide(&settings(), Some(&seen), at(114)), Decision::Wait(at(115)));
        assert_eq!(decide(&settings(), Some(&seen), at(115)), Decision::Take);
    }

    #[test]
    fn times_must_fit_together() {
        let times = |lease, renew, retry| {
            let seconds = Duration::from_secs;
            ElectionSettings {
                lease_duration: seconds(lease),
                renew_deadline: seconds(renew),
                retry_period: seconds(retry),
                ..settings()
            }
            .check()
        };
        assert_eq!(times(15, 10, 2), Ok(()));
        assert_eq!(times(3, 2, 1), Ok(()));
        for (lease, renew, retry) in [(10, 10, 2), (9, 10, 2), (15, 3, 2), (15, 10, 0)] {
            assert_eq!(
                times(lease, renew, retry),
                Err(InvalidTimings),
                "{lease} {renew} {retry}"
            );
        }
    }
}
