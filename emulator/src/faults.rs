//! Faults that can be ordered: what goes wrong, where, and how often.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::call_log::Endpoint;

/// An order that calls go wrong. In JSON:
/// `{"endpoint": "generateIdToken", "times": 2, "kind": {"type": "status", "code": 429}}`.
///
/// Delays and lifetimes that match a call all hold; of the other kinds, the one ordered first does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Only calls of this endpoint; all of Google's endpoints where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Only calls about this account: what [`crate::CallRecord::account`] shows, or the same service account by its
    /// other name (e-mail or unique id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// How many calls it hits; until cleared where absent.
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
    /// The answer comes this much later.
    Delay {
        /// Milliseconds.
        millis: u64,
    },
    /// An error answer.
    Status {
        /// HTTP status, 400 to 599.
        code: u16,
        /// The answer's body; one in the endpoint's own shape where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        /// A `Retry-After` header.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<RetryAfter>,
    },
    /// 403: the IAM Service Account Credentials API is not enabled in the caller's project.
    ApiDisabled,
    /// The call is accepted and never answered.
    Hang,
    /// The connection is reset without an answer.
    Reset,
    /// The ID token in the answer is wrong. Without effect on answers that hold none.
    Token {
        /// In what way.
        wrong: WrongToken,
    },
    /// Tokens live this long.
    Lifetime {
        /// Seconds.
        seconds: u64,
    },
    /// ID tokens are dated by a clock that is this much ahead of this machine's.
    Clock {
        /// Seconds; behind where negative.
        seconds: i64,
    },
}

/// How a `Retry-After` header is written (RFC 9110, 10.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RetryAfter {
    /// As seconds.
    Seconds(u64),
    /// As an HTTP date, this many seconds ahead.
    DateIn(u64),
}

/// In what way an ID token is wrong. All but the garbage, the truncated and the badly signed one carry a valid signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WrongToken {
    /// `aud` is another one.
    Audience,
    /// `aud` is a list that holds the right one.
    AudienceList,
    /// `sub` and `email` are another account's.
    Account,
    /// `exp` was a minute ago.
    Expired,
    /// There is no `exp`.
    NoExpiry,
    /// `iss` is not Google.
    Issuer,
    /// Not a JWT at all.
    Garbage,
    /// The token's second half is missing.
    Truncated,
    /// The signature is of another message.
    Signature,
}

impl Fault {
    /// A fault of all endpoints and accounts, until cleared.
    #[must_use]
    pub fn new(kind: FaultKind) -> Self {
        Self {
            endpoint: None,
            account: None,
            times: None,
            kind,
        }
    }

    /// An error answer with the endpoint's own body.
    #[must_use]
    pub fn status(code: u16) -> Self {
        Self::new(FaultKind::Status {
            code,
            body: None,
            retry_after: None,
        })
    }

    /// An error answer with a `Retry-After` header.
    #[must_use]
    pub fn status_retry_after(code: u16, retry_after: RetryAfter) -> Self {
        Self::new(FaultKind::Status {
            code,
            body: None,
            retry_after: Some(retry_after),
        })
    }

    /// An error answer with this body.
    #[must_use]
    pub fn status_body(code: u16, body: impl Into<String>) -> Self {
        Self::new(FaultKind::Status {
            code,
            body: Some(body.into()),
            retry_after: None,
        })
    }

    /// Answers that come `by` later.
    #[must_use]
    pub fn delay(by: Duration) -> Self {
        Self::new(FaultKind::Delay {
            millis: u64::try_from(by.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Calls that are never answered.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(FaultKind::Hang)
    }

    /// Connections that are reset.
    #[must_use]
    pub fn reset() -> Self {
        Self::new(FaultKind::Reset)
    }

    /// ID tokens dated by a clock that is so many seconds ahead, or behind where negative.
    #[must_use]
    pub fn clock(seconds: i64) -> Self {
        Self::new(FaultKind::Clock { seconds })
    }

    /// Wrong ID tokens.
    #[must_use]
    pub fn token(wrong: WrongToken) -> Self {
        Self::new(FaultKind::Token { wrong })
    }

    /// The same, of one endpoint only.
    #[must_use]
    pub fn on(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// The same, of one account only.
    #[must_use]
    pub fn for_account(mut self, account: impl Into<String>) -> Self {
        self.account = Some(account.into());
        self
    }

    /// The same, so many times only.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Says why the fault cannot be ordered, where it cannot.
    ///
    /// # Errors
    /// When a status is not an error's or `times` is 0.
    pub fn validate(&self) -> anyhow::Result<()> {
        if let FaultKind::Status { code, .. } = self.kind {
            anyhow::ensure!(
                (400..600).contains(&code),
                "a fault's status is 400 to 599, not {code}"
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

/// What the faults that hit one call amount to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MatchedFault {
    /// Wait so long first.
    pub(crate) delay: Duration,
    /// Mint for so long.
    pub(crate) lifetime: Option<Duration>,
    /// Date ID tokens by a clock that is so many seconds ahead.
    pub(crate) clock: i64,
    /// What goes wrong besides.
    pub(crate) kind: Option<FaultKind>,
}

/// The faults ordered and not yet used up.
#[derive(Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    fn faults(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn order(&self, fault: Fault) {
        self.faults().push(fault);
    }

    pub(crate) fn clear(&self) {
        self.faults().clear();
    }

    pub(crate) fn pending(&self) -> Vec<Fault> {
        self.faults().clone()
    }

    /// Uses up, once, the faults that match a call about an account with these `names`.
    pub(crate) fn hit(&self, endpoint: Endpoint, names: &[&str]) -> MatchedFault {
        let mut hit = MatchedFault::default();
        let mut faults = self.faults();
        for fault in faults.iter_mut().filter(|fault| fault.matches(endpoint, names)) {
            match &fault.kind {
                FaultKind::Delay { millis } => hit.delay += Duration::from_millis(*millis),
                FaultKind::Lifetime { seconds } => hit.lifetime = Some(Duration::from_secs(*seconds)),
                FaultKind::Clock { seconds } => hit.clock = *seconds,
                _ if hit.kind.is_some() => continue,
                kind => hit.kind = Some(kind.clone()),
            }
            fault.times = fault.times.map(|times| times - 1);
        }
        faults.retain(|fault| fault.times != Some(0));
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_add_up_and_the_first_error_wins() {
        let faults = Faults::default();
        faults.order(Fault::delay(Duration::from_millis(2)));
        faults.order(Fault::delay(Duration::from_millis(3)).times(1));
        faults.order(Fault::status(500).on(Endpoint::SecurityToken).times(1));
        faults.order(Fault::hang().times(1));
        let hit = faults.hit(Endpoint::SecurityToken, &[]);
        assert_eq!(hit.delay, Duration::from_millis(5));
        assert!(matches!(hit.kind, Some(FaultKind::Status { code: 500, .. })));
        let hit = faults.hit(Endpoint::SecurityToken, &[]);
        assert_eq!(
            (hit.delay, hit.kind),
            (Duration::from_millis(2), Some(FaultKind::Hang))
        );
        assert_eq!(faults.hit(Endpoint::SecurityToken, &[]).kind, None);
    }

    #[test]
    fn an_account_has_two_names() {
        let faults = Faults::default();
        faults.order(Fault::reset().for_account("12"));
        assert_eq!(faults.hit(Endpoint::Metadata, &["b@x"]).kind, None);
        assert_eq!(
            faults.hit(Endpoint::Metadata, &["a@x", "12"]).kind,
            Some(FaultKind::Reset)
        );
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
