//! Injected faults: what goes wrong, where, and how often.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::call_log::Endpoint;
use crate::quota::{Quota, Used};

/// A fault to inject. In JSON:
/// `{"endpoint": "generateIdToken", "times": 2, "kind": {"type": "status", "code": 429}}`.
///
/// All delays that match a call add up, the last matching lifetime and clock count, and of the other kinds the one that was
/// injected first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Only calls of this endpoint. Absent: calls of all of Google's endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Only calls about this account: the value of [`crate::CallRecord::account`], or the same service account by its
    /// e-mail or unique id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// How many calls fail. Absent: all calls until the fault is cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// What goes wrong.
    pub kind: FaultKind,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum FaultKind {
    /// Delays the response.
    Delay {
        /// Milliseconds.
        millis: u64,
    },
    /// An error response.
    Status {
        /// HTTP status, 400 to 599.
        code: u16,
        /// The body. Absent: one in the endpoint's own shape.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        /// A `Retry-After` header.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<RetryAfter>,
    },
    /// 403: the IAM Service Account Credentials API is not enabled in the caller's project.
    ApiDisabled,
    /// 403, for another reason than a permission that is missing. On the metadata server, in the words of GKE's.
    Denied {
        /// Who denies it.
        by: DeniedBy,
    },
    /// The call is accepted and gets no response.
    Hang,
    /// The connection is reset without a response.
    Reset,
    /// 429 for calls beyond a quota.
    Quota(Quota),
    /// The ID token in the response is wrong. Responses without an ID token stay as they are.
    Token {
        /// What is wrong.
        wrong: WrongToken,
    },
    /// Tokens have this lifetime.
    Lifetime {
        /// Seconds.
        seconds: u64,
    },
    /// `iat` and `exp` of ID tokens come from a clock that is ahead of this machine's.
    Clock {
        /// Seconds. Negative: the clock is behind.
        seconds: i64,
    },
}

/// Why a call is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeniedBy {
    /// A perimeter of VPC Service Controls.
    Perimeter,
    /// A constraint of the organization's policy.
    Constraint,
    /// A project without billing.
    Billing,
    /// Google does not say.
    Unknown,
}

/// The value of a `Retry-After` header (RFC 9110, 10.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RetryAfter {
    /// As seconds.
    Seconds(u64),
    /// As an HTTP date, this many seconds ahead.
    DateIn(u64),
}

/// What is wrong with an ID token. Only a claim is, or else the signature is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WrongToken {
    /// `aud` is another one.
    Audience,
    /// `aud` is a list that contains the right one.
    AudienceList,
    /// `sub` and `email` are another account's.
    Account,
    /// `exp` is a minute ago.
    Expired,
    /// There is no `exp`.
    NoExpiry,
    /// `iss` is not Google.
    Issuer,
    /// Not a JWT at all.
    Garbage,
    /// The token's second half is missing.
    Truncated,
    /// The signature belongs to another message.
    Signature,
    /// `alg` is `none`, and there is no signature.
    Unsigned,
    /// Another key signed it, whose id is in the header.
    ForeignKey,
}

impl Fault {
    /// A fault for all endpoints and accounts, until it is cleared.
    #[must_use]
    pub fn new(kind: FaultKind) -> Self {
        Self {
            endpoint: None,
            account: None,
            times: None,
            kind,
        }
    }

    /// An error response with a body in the endpoint's own shape.
    #[must_use]
    pub fn status(code: u16) -> Self {
        Self::new(FaultKind::Status {
            code,
            body: None,
            retry_after: None,
        })
    }

    /// An error response with a `Retry-After` header.
    #[must_use]
    pub fn status_retry_after(code: u16, retry_after: RetryAfter) -> Self {
        Self::new(FaultKind::Status {
            code,
            body: None,
            retry_after: Some(retry_after),
        })
    }

    /// An error response with this body.
    #[must_use]
    pub fn status_body(code: u16, body: impl Into<String>) -> Self {
        Self::new(FaultKind::Status {
            code,
            body: Some(body.into()),
            retry_after: None,
        })
    }

    /// Responses that are delayed by this duration.
    #[must_use]
    pub fn delay(duration: Duration) -> Self {
        Self::new(FaultKind::Delay {
            millis: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Calls that get no response.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(FaultKind::Hang)
    }

    /// Connections that are reset.
    #[must_use]
    pub fn reset() -> Self {
        Self::new(FaultKind::Reset)
    }

    /// 429 for calls beyond `quota`.
    #[must_use]
    pub fn quota(quota: Quota) -> Self {
        Self::new(FaultKind::Quota(quota))
    }

    /// ID tokens from a clock that is `seconds` ahead, or behind if negative.
    #[must_use]
    pub fn clock(seconds: i64) -> Self {
        Self::new(FaultKind::Clock { seconds })
    }

    /// Wrong ID tokens.
    #[must_use]
    pub fn token(wrong: WrongToken) -> Self {
        Self::new(FaultKind::Token { wrong })
    }

    /// Limits the fault to one endpoint.
    #[must_use]
    pub fn on(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Limits the fault to one account.
    #[must_use]
    pub fn for_account(mut self, account: impl Into<String>) -> Self {
        self.account = Some(account.into());
        self
    }

    /// Limits the fault to this number of calls.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Checks that the fault can be injected.
    ///
    /// # Errors
    /// When the status is not an error, a quota admits nothing or `times` is 0.
    pub fn validate(&self) -> anyhow::Result<()> {
        if let FaultKind::Status { code, .. } = self.kind {
            anyhow::ensure!(
                (400..600).contains(&code),
                "a fault's status is 400 to 599, not {code}"
            );
        }
        if let FaultKind::Quota(quota) = self.kind {
            anyhow::ensure!(
                quota.calls > 0 && quota.seconds > 0,
                "a quota has at least 1 call in at least 1 second"
            );
        }
        anyhow::ensure!(
            self.times != Some(0),
            "`times` is at least 1; leave it out for \"until cleared\""
        );
        Ok(())
    }

    fn matches(&self, endpoint: Endpoint, names: &[&str]) -> bool {
        self.endpoint.is_none_or(|only| only == endpoint)
            && self.account.as_deref().is_none_or(|only| names.contains(&only))
    }
}

/// The sum of the faults that match one call.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MatchedFault {
    /// Wait this long first.
    pub(crate) delay: Duration,
    /// The lifetime of tokens.
    pub(crate) lifetime: Option<Duration>,
    /// How many seconds the clock of ID tokens is ahead.
    pub(crate) clock: i64,
    /// What goes wrong otherwise.
    pub(crate) kind: Option<FaultKind>,
}

/// The injected faults that still apply, each with what is used of its quota.
#[derive(Default)]
pub(crate) struct Faults(Mutex<Vec<(Fault, Used)>>);

impl Faults {
    fn faults(&self) -> MutexGuard<'_, Vec<(Fault, Used)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn inject(&self, fault: Fault) {
        self.faults().push((fault, Used::nothing(Instant::now())));
    }

    pub(crate) fn clear(&self) {
        self.faults().clear();
    }

    pub(crate) fn pending(&self) -> Vec<Fault> {
        self.faults().iter().map(|(fault, _)| fault.clone()).collect()
    }

    /// The faults that match a call about an account with these `names`. Counts the call against their `times`.
    pub(crate) fn take_matching(&self, endpoint: Endpoint, names: &[&str]) -> MatchedFault {
        let mut matched = MatchedFault::default();
        let mut faults = self.faults();
        for (fault, used) in faults
            .iter_mut()
            .filter(|(fault, _)| fault.matches(endpoint, names))
        {
            match &fault.kind {
                FaultKind::Quota(quota) if used.admit(*quota, Instant::now()) => continue,
                FaultKind::Delay { millis } => matched.delay += Duration::from_millis(*millis),
                FaultKind::Lifetime { seconds } => matched.lifetime = Some(Duration::from_secs(*seconds)),
                FaultKind::Clock { seconds } => matched.clock = *seconds,
                _ if matched.kind.is_some() => continue,
                kind => matched.kind = Some(kind.clone()),
            }
            fault.times = fault.times.map(|times| times - 1);
        }
        faults.retain(|(fault, _)| fault.times != Some(0));
        matched
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Enforcement;

    #[test]
    fn delays_add_up_and_the_first_error_wins() {
        let faults = Faults::default();
        faults.inject(Fault::delay(Duration::from_millis(2)));
        faults.inject(Fault::delay(Duration::from_millis(3)).times(1));
        faults.inject(Fault::status(500).on(Endpoint::SecurityToken).times(1));
        faults.inject(Fault::hang().times(1));
        let matched = faults.take_matching(Endpoint::SecurityToken, &[]);
        assert_eq!(matched.delay, Duration::from_millis(5));
        assert!(matches!(matched.kind, Some(FaultKind::Status { code: 500, .. })));
        let matched = faults.take_matching(Endpoint::SecurityToken, &[]);
        assert_eq!(
            (matched.delay, matched.kind),
            (Duration::from_millis(2), Some(FaultKind::Hang))
        );
        assert_eq!(faults.take_matching(Endpoint::SecurityToken, &[]).kind, None);
    }

    #[test]
    fn an_account_has_two_names() {
        let faults = Faults::default();
        faults.inject(Fault::reset().for_account("12"));
        assert_eq!(faults.take_matching(Endpoint::Metadata, &["b@x"]).kind, None);
        assert_eq!(
            faults.take_matching(Endpoint::Metadata, &["a@x", "12"]).kind,
            Some(FaultKind::Reset)
        );
    }

    #[test]
    fn beyond_a_quota_calls_fail_and_within_it_other_faults_decide() {
        let faults = Faults::default();
        let quota = Quota {
            calls: 2,
            seconds: 3600,
            by: Enforcement::Windows,
        };
        faults.inject(Fault::quota(quota).on(Endpoint::GenerateIdToken));
        faults.inject(Fault::delay(Duration::from_millis(2)));
        faults.inject(Fault::hang().times(1));
        let kind = |endpoint| {
            let matched = faults.take_matching(endpoint, &[]);
            assert_eq!(matched.delay, Duration::from_millis(2), "all calls take as long");
            matched.kind
        };
        assert_eq!(kind(Endpoint::GenerateIdToken), Some(FaultKind::Hang));
        assert_eq!(kind(Endpoint::GenerateIdToken), None);
        assert_eq!(kind(Endpoint::GenerateIdToken), Some(FaultKind::Quota(quota)));
        assert_eq!(kind(Endpoint::GenerateAccessToken), None);
        let json = r#"{"kind":{"type":"quota","calls":2,"seconds":3600,"by":"windows"},"endpoint":"generateIdToken"}"#;
        let fault: Fault = serde_json::from_str(json).unwrap();
        assert_eq!(fault, Fault::quota(quota).on(Endpoint::GenerateIdToken));
        assert!(Fault::quota(Quota { calls: 0, ..quota }).validate().is_err());
    }

    #[test]
    fn json_shape() {
        let fault: Fault = serde_json::from_str(
            r#"{"endpoint":"generateIdToken","times":2,"kind":{"type":"status","code":429,"retryAfter":{"seconds":3}}}"#,
        )
        .unwrap();
        assert_eq!(
            fault,
            Fault::status_retry_after(429, RetryAfter::Seconds(3))
                .on(Endpoint::GenerateIdToken)
                .times(2)
        );
        assert!(serde_json::from_str::<Fault>(r#"{"kind":{"type":"hang"},"nonsense":1}"#).is_err());
        assert!(Fault::status(200).validate().is_err());
    }
}
