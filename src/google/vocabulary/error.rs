//! What can go wrong between the operator and Google, in words that are safe to show to anyone.

use std::fmt;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;

use crate::google::endpoints::sts;
use crate::google::transport::error_body::GoogleError;
use crate::google::transport::http::Answer;
use crate::text;
use crate::token::TokenError;

/// The longest text of Google's that a message repeats, in characters.
pub(crate) const MAX_MESSAGE_CHARS: usize = 512;

/// The longest `Retry-After` that is honoured; a longer one is cut to this.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Where a call went; the label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// The IAM Service Account Credentials API.
    IamCredentials,
    /// Whatever Application Default Credentials call to get the operator's own access token.
    Credentials,
    /// The metadata server of the machine or cluster.
    Metadata,
    /// The Security Token Service.
    Sts,
}

impl Endpoint {
    /// A short lower-case name, for metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IamCredentials => "iamcredentials",
            Self::Credentials => "credentials",
            Self::Metadata => "metadata",
            Self::Sts => "sts",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::IamCredentials => "the IAM Service Account Credentials API",
            Self::Credentials => "the token endpoint of the operator's own credentials",
            Self::Metadata => "the metadata server",
            Self::Sts => "the Security Token Service",
        }
    }
}

/// Whether trying again soon can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Someone must change something (a binding, an account, a setting): retried slowly.
    Refused,
    /// It passes by itself: retried from a second on.
    Passing,
}

/// The closed list of what can go wrong; [`Reason::as_str`] is the word in conditions, events and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// 403: the operator's identity may not do this.
    PermissionDenied,
    /// 404: there is no such service account.
    ServiceAccountNotFound,
    /// 403: the API is not enabled in the operator's project.
    ApiDisabled,
    /// 400: Google did not understand or accept a value.
    InvalidArgument,
    /// 401: the operator's access token is not accepted.
    CredentialsRejected,
    /// The operator has no credentials, or they give no access token.
    CredentialsUnavailable,
    /// The operator's own identity was asked for.
    SelfImpersonation,
    /// The metadata server has no Google service account to give tokens of.
    IdentityNotAttached,
    /// The metadata server's account is not the one that was asked for.
    AccountMismatch,
    /// The operator's credentials are not those of a user, which the developer source needs.
    NotUserCredentials,
    /// STS: the provider is disabled, deleted or was never there.
    ProviderNotFound,
    /// STS: the provider's attribute condition rejects the workload.
    AttributeConditionRejected,
    /// STS: the provider wants another `aud` in the workload's token.
    SubjectTokenWrongAudience,
    /// STS: the provider is another cluster's.
    SubjectTokenWrongIssuer,
    /// STS: the workload's token is too old by Google's clock.
    SubjectTokenStale,
    /// STS: the provider does not know the key that signed the workload's token.
    SubjectTokenUnverified,
    /// STS: Google cannot fetch the keys of the cluster's issuer.
    IssuerUnreachable,
    /// `google.subject` would be longer than Google allows.
    SubjectTooLong,
    /// STS: any other refusal.
    ExchangeRefused,
    /// 429: a quota of Google's is used up.
    QuotaExceeded,
    /// The operator's own rate limit or in-flight cap held the call back for too long.
    LocallyLimited,
    /// Another replica of the operator is to make the call.
    NotLeading,
    /// 5xx.
    UpstreamUnavailable,
    /// No answer in time, or 408.
    UpstreamTimeout,
    /// No connection: DNS, TCP, TLS or a proxy failed, or the connection broke.
    UpstreamUnreachable,
    /// An answer that makes no sense here.
    UnexpectedResponse,
}

impl Reason {
    /// The CamelCase word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PermissionDenied => "PermissionDenied",
            Self::ServiceAccountNotFound => "ServiceAccountNotFound",
            Self::ApiDisabled => "ApiDisabled",
            Self::InvalidArgument => "InvalidArgument",
            Self::CredentialsRejected => "CredentialsRejected",
            Self::CredentialsUnavailable => "CredentialsUnavailable",
            Self::SelfImpersonation => "SelfImpersonation",
            Self::IdentityNotAttached => "IdentityNotAttached",
            Self::AccountMismatch => "AccountMismatch",
            Self::NotUserCredentials => "NotUserCredentials",
            Self::ProviderNotFound => "ProviderNotFound",
            Self::AttributeConditionRejected => "AttributeConditionRejected",
            Self::SubjectTokenWrongAudience => "SubjectTokenWrongAudience",
            Self::SubjectTokenWrongIssuer => "SubjectTokenWrongIssuer",
            Self::SubjectTokenStale => "SubjectTokenStale",
            Self::SubjectTokenUnverified => "SubjectTokenUnverified",
            Self::IssuerUnreachable => "IssuerUnreachable",
            Self::SubjectTooLong => "SubjectTooLong",
            Self::ExchangeRefused => "ExchangeRefused",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::LocallyLimited => "LocallyLimited",
            Self::NotLeading => "NotLeading",
            Self::UpstreamUnavailable => "UpstreamUnavailable",
            Self::UpstreamTimeout => "UpstreamTimeout",
            Self::UpstreamUnreachable => "UpstreamUnreachable",
            Self::UnexpectedResponse => "UnexpectedResponse",
        }
    }

    fn class(self) -> Class {
        match self {
            Self::PermissionDenied
            | Self::ServiceAccountNotFound
            | Self::ApiDisabled
            | Self::InvalidArgument
            | Self::CredentialsRejected
            | Self::CredentialsUnavailable
            | Self::SelfImpersonation
            | Self::IdentityNotAttached
            | Self::AccountMismatch
            | Self::NotUserCredentials
            | Self::ProviderNotFound
            | Self::AttributeConditionRejected
            | Self::SubjectTokenWrongAudience
            | Self::SubjectTokenWrongIssuer
            | Self::SubjectTokenStale
            | Self::SubjectTokenUnverified
            | Self::IssuerUnreachable
            | Self::SubjectTooLong
            | Self::ExchangeRefused => Class::Refused,
            Self::QuotaExceeded
            | Self::LocallyLimited
            | Self::NotLeading
            | Self::UpstreamUnavailable
            | Self::UpstreamTimeout
            | Self::UpstreamUnreachable
            | Self::UnexpectedResponse => Class::Passing,
        }
    }
}

/// A call that gave no token. `Display` and `Debug` hold no credential and no raw answer, and are bounded.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    endpoint: Endpoint,
    reason: Reason,
    class: Class,
    status: Option<u16>,
    retry_after: Option<Duration>,
    postponed: Option<Duration>,
    message: String,
    permission: Option<String>,
    advice: Option<String>,
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(advice) = &self.advice {
            let stop = if self.message.ends_with(['.', '!', '?']) {
                ""
            } else {
                "."
            };
            write!(f, "{stop} {advice}")?;
        }
        Ok(())
    }
}

impl Error {
    /// An error without an answer. `message` may hold outside text: credentials in it are redacted here.
    pub fn new(endpoint: Endpoint, reason: Reason, message: &str) -> Self {
        Self(Box::new(Inner {
            endpoint,
            reason,
            class: reason.class(),
            status: None,
            retry_after: None,
            postponed: None,
            message: text::redacted(message, MAX_MESSAGE_CHARS),
            permission: None,
            advice: None,
        }))
    }

    /// Classifies an answer that is no success.
    pub(crate) fn from_answer(
        endpoint: Endpoint,
        status: StatusCode,
        retry_after: Option<Duration>,
        body: &[u8],
    ) -> Self {
        if let Some(refusal) = (endpoint == Endpoint::Sts)
            .then(|| sts::refusal(status, body))
            .flatten()
        {
            return refusal;
        }
        let google = GoogleError::parse(body);
        let (reason, class) = classify(endpoint, status, google.as_ref());
        let said = match &google {
            Some(google) => google.to_string(),
            None if status.is_redirection() => "a redirect, which is not followed".to_owned(),
            None => "no error message of Google's".to_owned(),
        };
        let mut error = Self::new(
            endpoint,
            reason,
            &format!("{} answered {}: {said}", endpoint.title(), status.as_u16()),
        );
        error.0.class = class;
        error.0.status = Some(status.as_u16());
        error.0.retry_after = retry_after;
        error.0.permission = google.and_then(|google| google.permission);
        error
    }

    /// Classifies an answer that is no success and is written in another way than those of Google's APIs. `said` is safe to show.
    pub(crate) fn from_words(endpoint: Endpoint, answer: &Answer, said: &str) -> Self {
        let (reason, class) = classify(endpoint, answer.status, None);
        let message = format!("{} answered {}: {said}", endpoint.title(), answer.status.as_u16());
        let mut error = Self::new(endpoint, reason, &message);
        error.0.class = class;
        error.0.status = Some(answer.status.as_u16());
        error.0.retry_after = answer.retry_after(SystemTime::now());
        error
    }

    /// The same failure as one of the operator's own credentials: they gave no access token.
    pub(crate) fn of_credentials(self) -> Self {
        let mut inner = self.0;
        inner.message = text::redacted(
            &format!(
                "the operator's credentials give no access token: {}",
                inner.message
            ),
            MAX_MESSAGE_CHARS,
        );
        inner.endpoint = Endpoint::Credentials;
        inner.reason = Reason::CredentialsUnavailable;
        Self(inner)
    }

    /// Names what broke in transport. The address is left out: it can hold what was asked for.
    pub(crate) fn from_transport(endpoint: Endpoint, error: reqwest::Error) -> Self {
        let reason = if error.is_timeout() {
            Reason::UpstreamTimeout
        } else {
            Reason::UpstreamUnreachable
        };
        let verb = if error.is_timeout() {
            "did not answer in time"
        } else {
            "could not be reached"
        };
        let error = error.without_url();
        let made = Self::new(
            endpoint,
            reason,
            &format!("{} {verb}: {}", endpoint.title(), text::error_chain(&error)),
        );
        if is_unknown_issuer(&error) {
            return made.with_advice(
                "The certificate is of no authority that is trusted here. Where a proxy or a private endpoint has an \
                 authority of its own, give its certificates by --ca-file.",
            );
        }
        made
    }

    /// An answer of success that holds no acceptable token.
    pub(crate) fn from_token(endpoint: Endpoint, error: &TokenError) -> Self {
        Self::new(
            endpoint,
            Reason::UnexpectedResponse,
            &format!("{} answered 200: {error}", endpoint.title()),
        )
    }

    /// Sets what to do about it. The caller has quoted what needs quoting.
    pub(crate) fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    pub(crate) fn with_reason(mut self, reason: Reason) -> Self {
        self.0.reason = reason;
        self
    }

    pub(crate) fn with_class(mut self, class: Class) -> Self {
        self.0.class = class;
        self
    }

    /// Sets the HTTP status of the answer.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.0.status = Some(status);
        self
    }

    /// Sets how long Google asks to wait; more than [`MAX_RETRY_AFTER`] is taken for that.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after.min(MAX_RETRY_AFTER));
        self
    }

    pub(crate) fn with_postponed(mut self, by: Duration) -> Self {
        self.0.postponed = Some(by);
        self
    }

    /// How long the call is put off though nothing is wrong with it: no attempt was made, and none failed.
    #[must_use]
    pub fn postponed(&self) -> Option<Duration> {
        self.0.postponed
    }

    /// Whether trying again soon can help.
    #[must_use]
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// The HTTP status, if there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// How long Google asks to wait, at most [`MAX_RETRY_AFTER`].
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What went wrong, as a CamelCase word out of [`Reason`]'s closed list.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.0.reason.as_str()
    }

    /// What went wrong, to match on.
    #[must_use]
    pub fn kind(&self) -> Reason {
        self.0.reason
    }

    /// Where the call went.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.0.endpoint
    }

    /// The IAM permission that Google names as missing, if it names one.
    #[must_use]
    pub fn permission(&self) -> Option<&str> {
        self.0.permission.as_deref()
    }

    /// The part of the message that says what to do.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.0.advice.as_deref()
    }
}

/// Whether TLS failed because nobody trusted here has signed the server's certificate.
fn is_unknown_issuer(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error is transparent: its source is that of the error inside.
        let inside = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if inside
            .and_then(|error| error.downcast_ref())
            .or(error.downcast_ref())
            == Some(&rustls::Error::InvalidCertificate(
                rustls::CertificateError::UnknownIssuer,
            ))
        {
            return true;
        }
        next = error.source();
    }
    false
}

fn classify(endpoint: Endpoint, status: StatusCode, google: Option<&GoogleError>) -> (Reason, Class) {
    let reason = match status.as_u16() {
        400 => Reason::InvalidArgument,
        401 => Reason::CredentialsRejected,
        403 if google.is_some_and(GoogleError::is_api_disabled) => Reason::ApiDisabled,
        403 => Reason::PermissionDenied,
        // Without Google's own body a 404 says that the address is wrong, not the account.
        404 if endpoint == Endpoint::IamCredentials && google.is_some() => Reason::ServiceAccountNotFound,
        408 => Reason::UpstreamTimeout,
        429 => Reason::QuotaExceeded,
        500..=599 => Reason::UpstreamUnavailable,
        _ => Reason::UnexpectedResponse,
    };
    let class = match status.as_u16() {
        408 | 429 => Class::Passing,
        400..=499 => Class::Refused,
        _ => reason.class(),
    };
    (reason, class)
}

/// Reads a `Retry-After` (RFC 9110, 10.2.3): seconds or an HTTP date, at most [`MAX_RETRY_AFTER`]; a date in the past is
/// zero; anything else is none.
#[must_use]
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let after = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit is longer than any bound.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(value)
            .ok()?
            .duration_since(now)
            .unwrap_or(Duration::ZERO)
    };
    Some(after.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Error {
        Error::from_answer(
            Endpoint::IamCredentials,
            StatusCode::from_u16(status).expect("a status"),
            None,
            body.as_bytes(),
        )
    }

    #[test]
    fn classes_and_reasons() {
        let body = r#"{"error":{"code":1,"message":"m","status":"S"}}"#;
        for (status, reason, class) in [
            (302, "UnexpectedResponse", Class::Passing),
            (400, "InvalidArgument", Class::Refused),
            (401, "CredentialsRejected", Class::Refused),
            (403, "PermissionDenied", Class::Refused),
            (404, "ServiceAccountNotFound", Class::Refused),
            (405, "UnexpectedResponse", Class::Refused),
            (408, "UpstreamTimeout", Class::Passing),
            (429, "QuotaExceeded", Class::Passing),
            (500, "UpstreamUnavailable", Class::Passing),
            (503, "UpstreamUnavailable", Class::Passing),
        ] {
            let error = answer(status, body);
            assert_eq!((error.reason(), error.class()), (reason, class), "{status}");
            assert_eq!(error.status(), Some(status));
        }
        assert_eq!(
            answer(404, "<html>nothing here</html>").reason(),
            "UnexpectedResponse"
        );
    }

    #[test]
    fn api_disabled_in_words_and_in_details() {
        let in_words = answer(
            403,
            r#"{"error":{"code":403,"status":"PERMISSION_DENIED","message":"IAM Service Account Credentials API has not been used in project 12 before or it is disabled."}}"#,
        );
        assert_eq!(in_words.reason(), "ApiDisabled");
        let in_details = answer(
            403,
            r#"{"error":{"code":403,"message":"no","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"SERVICE_DISABLED"}]}}"#,
        );
        assert_eq!(in_details.reason(), "ApiDisabled");
    }

    #[test]
    fn raw_bodies_and_tokens_stay_out() {
        let error = answer(502, "<html>secret page ya29.abcdefghijkl</html>");
        assert!(!error.to_string().contains("secret page"), "{error}");
        let error = answer(
            400,
            r#"{"error":{"code":400,"message":"bad token eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2ln\u001b[31m"}}"#,
        );
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("eyJ") && !shown.contains('\u{1b}'), "{shown}");
        let error = answer(
            400,
            &format!(r#"{{"error":{{"message":"{}"}}}}"#, "long ".repeat(1000)),
        );
        assert!(error.to_string().chars().count() <= MAX_MESSAGE_CHARS + 1);
    }

    #[test]
    fn retry_after() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |value| parse_retry_after(value, now).map(|after| after.as_secs());
        assert_eq!(read("7"), Some(7));
        assert_eq!(read(" 7 "), Some(7));
        assert_eq!(read("999999999999999999999999"), Some(3600));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:47 GMT"), Some(10));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:07 GMT"), Some(0));
        assert_eq!(read("Sat, 06 Nov 2094 08:49:47 GMT"), Some(3600));
        assert_eq!(read("-1"), None);
        assert_eq!(read("1.5"), None);
        assert_eq!(read(""), None);
    }
}
