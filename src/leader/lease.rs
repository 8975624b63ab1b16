//! Pure: who holds the Lease, by our own clock. As in client-go's leader election
//! (<https://pkg.go.dev/k8s.io/client-go/tools/leaderelection>), a Lease has expired when we have seen no change of it for its duration,
//! whatever times are written in it.

use std::time::Duration;

use crate::clock::BootTime;
use crate::shard::Shard;

/// The Lease, the candidate and the timings.
#[derive(Clone, Debug)]
pub struct ElectionSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// The name that `--lease-name` replaces: the default of an operator with the same flags. Earlier versions of the chart used it.
    pub former_name: Option<String>,
    /// The name of this candidate, which no other process may have.
    pub identity: String,
    /// What this operator reconciles, which is written on the Lease for other releases to compare.
    pub shard: Shard,
    /// How long the others wait for a renewal before they take the Lease.
    pub lease_duration: Duration,
    /// How long the holder acts after its last renewal. A call that it sent then has the rest of the Lease to finish.
    pub renew_deadline: Duration,
    /// Time between two renewals, and between two reads of a Lease that another holds.
    pub retry_period: Duration,
}

/// Timings that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--lease-duration must be longer than --renew-deadline, --renew-deadline at least twice --retry-period, and --retry-period more than zero"
)]
pub struct InvalidTimings;

impl ElectionSettings {
    /// Checks that the timings fit together.
    ///
    /// # Errors
    /// The timings do not fit together.
    pub fn check(&self) -> Result<(), InvalidTimings> {
        let fits = self.lease_duration > self.renew_deadline
            && self.renew_deadline >= self.retry_period * 2
            && !self.retry_period.is_zero();
        fits.then_some(()).ok_or(InvalidTimings)
    }
}

/// Whether the Lease `name`, held by `holder`, is one that this candidate's Deployment uses or used under another name.
pub(super) fn is_former(settings: &ElectionSettings, name: &str, holder: &str) -> bool {
    let own = deployment(&settings.identity);
    name != settings.name
        && (settings.former_name.as_deref() == Some(name) || own.is_some() && own == deployment(holder))
}

/// The Deployment of the pod with an identity of ours, `DEPLOYMENT-HASH-SUFFIX_PROCESS`. Hash and suffix have the letters that Kubernetes
/// takes for random ones
/// (<https://github.com/kubernetes/kubernetes/blob/v1.37.2/staging/src/k8s.io/apimachinery/pkg/util/rand/rand.go>), so that numbered hosts
/// are not taken for pods.
fn deployment(identity: &str) -> Option<&str> {
    let is_random = |text: &str| text.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b));
    let (pod, process) = identity.rsplit_once('_')?;
    let (rest, suffix) = pod.rsplit_once('-')?;
    let (deployment, hash) = rest.rsplit_once('-')?;
    let is_ours = process.len() == 16 && process.bytes().all(|b| b.is_ascii_hexdigit());
    let is_pod = suffix.len() == 5 && (5..=10).contains(&hash.len()) && is_random(suffix) && is_random(hash);
    (is_ours && is_pod).then_some(deployment)
}

/// The spec of a Lease (`coordination.k8s.io/v1`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseRecord {
    /// `spec.holderIdentity`; empty if the Lease is free.
    pub holder: String,
    /// `spec.leaseDurationSeconds`: how long the others wait.
    pub duration: Option<Duration>,
    /// `spec.renewTime` as written; only compared for equality.
    pub renewed: Option<String>,
    /// `spec.leaseTransitions`.
    pub transitions: i32,
}

/// A Lease as last read, and when we first read it so, by our clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLease {
    /// Its spec.
    pub record: LeaseRecord,
    /// When we first read this spec.
    pub since: BootTime,
}

impl ObservedLease {
    /// Records what was read at `now`. Only a changed record restarts the wait.
    pub fn update(before: Option<Self>, record: LeaseRecord, now: BootTime) -> Self {
        match before {
            Some(before) if before.record == record => before,
            _ => Self { record, since: now },
        }
    }
}

/// What a candidate does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is no Lease: create it.
    Create,
    /// The Lease is free, or has expired, or is ours by a write whose response was lost: take it.
    Take,
    /// Another holds the Lease: read it again at this time.
    Wait(BootTime),
}

/// Decides at `now` what to do about the observed Lease.
pub fn decide(settings: &ElectionSettings, observed: Option<&ObservedLease>, now: BootTime) -> Decision {
    let Some(ObservedLease { record, since }) = observed else {
        return Decision::Create;
    };
    if record.holder.is_empty() || record.holder == settings.identity {
        return Decision::Take;
    }
    let expiry = *since + record.duration.unwrap_or(settings.lease_duration);
    if expiry <= now {
        return Decision::Take;
    }
    // No later than the expiry, so that a takeover takes at most the duration and one period.
    Decision::Wait(expiry.min(now + settings.retry_period))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ElectionSettings {
        ElectionSettings {
            namespace: "n".into(),
            name: "l".into(),
            former_name: None,
            identity: "me".into(),
            shard: Shard::default(),
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

    fn at(seconds: u64) -> BootTime {
        BootTime::new(Duration::from_secs(seconds))
    }

    #[test]
    fn a_lease_of_the_same_deployment_is_known_by_its_holder() {
        let settings = |identity: &str| ElectionSettings {
            identity: identity.into(),
            former_name: Some("old".into()),
            ..settings()
        };
        let process = "_0123456789abcdef";
        let own = settings(&format!("shard-a-6d8f9c7b5d-x2k4q{process}"));
        let is = |name: &str, pod: &str| is_former(&own, name, &format!("{pod}{process}"));
        assert!(is("any", "shard-a-5b9d4f6c88-zzzzz"));
        assert!(!is("l", "shard-a-5b9d4f6c88-zzzzz"), "its own");
        assert!(is("old", "other") && is_former(&own, "old", ""));
        for pod in [
            "shard-5b9d4f6c88-zzzzz",
            "shard-a-b-5b9d4f6c88-zzzzz",
            "shard-a",
            "a-b-c",
            "",
        ] {
            assert!(!is("any", pod), "{pod}");
        }
        // A client of another program in a pod of the Deployment.
        let other = "shard-a-5b9d4f6c88-zzzzz_0b6f3a3e-7a3c-4a53-8c1b-0f4b6b8e6f0c";
        assert!(!is_former(&own, "any", other) && !is_former(&own, "any", ""));
        // Hosts with numbers.
        let host = settings(&format!("ip-10-0-0-1{process}"));
        assert!(!is_former(&host, "any", &format!("ip-10-0-0-2{process}")));
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
    fn anothers_lease_expires_when_it_did_not_change_for_its_own_duration_by_our_clock() {
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
    fn a_renewal_restarts_the_wait() {
        let seen = ObservedLease::update(None, record("other", "1"), at(100));
        let seen = ObservedLease::update(Some(seen), record("other", "2"), at(105));
        assert_eq!(decide(&settings(), Some(&seen), at(110)), Decision::Wait(at(111)));
        assert_eq!(decide(&settings(), Some(&seen), at(111)), Decision::Take);
        // Also a renewal by a third candidate between two reads.
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
    fn timings_must_fit_together() {
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
