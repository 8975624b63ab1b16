//! The error of a call to Google. Its texts are safe to show to anyone.

use std::fmt;
use std::time::Duration;

use super::reason::Reason;
use crate::classify::ErrorClass;
use crate::text;
use crate::token::TokenError;

/// The longest text of Google's that a message quotes, in characters.
pub(crate) const MAX_MESSAGE_CHARS: usize = 512;

/// The longest `Retry-After` that is obeyed; a longer one is cut to this.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Where a call went; the label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// The IAM Service Account Credentials API.
    IamCredentials,
    /// The endpoints that Application Default Credentials call for the operator's own access token.
    Credentials,
    /// The metadata server of the machine or cluster.
    Metadata,
    /// The Security Token Service.
    Sts,
    /// The keys that Google publishes for the signatures of ID tokens.
    SigningKeys,
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
            Self::SigningKeys => "signingkeys",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::IamCredentials => "the IAM Service Account Credentials API",
            Self::Credentials => "the token endpoint of the operator's own credentials",
            Self::Metadata => "the metadata server",
            Self::Sts => "the Security Token Service",
            Self::SigningKeys => "the endpoint of Google's signing keys",
        }
    }
}

/// Why a call gave no token. `Display` and `Debug` contain no credential and no raw response, and are bounded.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    endpoint: Endpoint,
    reason: Reason,
    class: ErrorClass,
    status: Option<u16>,
    retry_after: Option<Duration>,
    deferred_for: Option<Duration>,
    message: String,
    permission: Option<String>,
    consumer: Option<String>,
    is_quota_project_denied: bool,
    is_unexplained: bool,
    remediation: Option<String>,
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(remediation) = &self.remediation {
            let stop = if self.message.ends_with(['.', '!', '?']) {
                ""
            } else {
                "."
            };
            write!(f, "{stop} {remediation}")?;
        }
        Ok(())
    }
}

impl Error {
    /// An error without a response. `message` may contain outside text: credentials in it are redacted here.
    pub fn new(endpoint: Endpoint, reason: Reason, message: &str) -> Self {
        Self(Box::new(Inner {
            endpoint,
            reason,
            class: reason.class(),
            status: None,
            retry_after: None,
            deferred_for: None,
            message: text::redacted(message, MAX_MESSAGE_CHARS),
            permission: None,
            consumer: None,
            is_quota_project_denied: false,
            is_unexplained: false,
            remediation: None,
        }))
    }

    /// The same failure, as one of the operator's own credentials: they give no access token.
    pub(crate) fn into_credentials_error(self) -> Self {
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

    /// The error of a successful response that contains no acceptable token.
    pub(crate) fn from_token(endpoint: Endpoint, error: &TokenError) -> Self {
        Self::new(
            endpoint,
            Reason::UnexpectedResponse,
            &format!("{} answered 200: {error}", endpoint.title()),
        )
    }

    /// Sets what to do about the error. Outside text in `remediation` must be quoted already.
    pub(crate) fn with_remediation(mut self, remediation: impl Into<String>) -> Self {
        self.0.remediation = Some(remediation.into());
        self
    }

    pub(crate) fn with_reason(mut self, reason: Reason) -> Self {
        self.0.reason = reason;
        self
    }

    pub(crate) fn with_class(mut self, class: ErrorClass) -> Self {
        self.0.class = class;
        self
    }

    /// Sets the IAM permission that Google names as missing.
    pub(crate) fn with_permission(mut self, permission: Option<String>) -> Self {
        self.0.permission = permission;
        self
    }

    /// Sets the project that Google counts the call for, where Google refuses for its sake.
    pub(crate) fn with_consumer(mut self, consumer: Option<String>, is_denied: bool) -> Self {
        self.0.consumer = consumer;
        self.0.is_quota_project_denied = is_denied;
        self
    }

    /// Sets whether Google names neither a permission nor another cause.
    pub(crate) fn with_unexplained(mut self, is_unexplained: bool) -> Self {
        self.0.is_unexplained = is_unexplained;
        self
    }

    /// Sets the HTTP status of the response.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.0.status = Some(status);
        self
    }

    /// Sets how long Google asks to wait, at most [`MAX_RETRY_AFTER`].
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after.min(MAX_RETRY_AFTER));
        self
    }

    pub(crate) fn with_deferral(mut self, by: Duration) -> Self {
        self.0.deferred_for = Some(by);
        self
    }

    /// How long the call is deferred though nothing is wrong: no attempt was made, and none failed.
    #[must_use]
    pub fn deferred_for(&self) -> Option<Duration> {
        self.0.deferred_for
    }

    /// Whether trying again soon can help.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.0.class
    }

    /// The HTTP status, if there was a response.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// How long Google asks to wait, at most [`MAX_RETRY_AFTER`].
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What went wrong.
    #[must_use]
    pub fn reason(&self) -> Reason {
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

    /// Whether an error of Google's names neither a permission nor another cause.
    pub(crate) fn is_unexplained(&self) -> bool {
        self.0.is_unexplained
    }

    /// The project that Google counts the call for, if Google refuses for its sake.
    pub(crate) fn consumer(&self) -> Option<&str> {
        self.0.consumer.as_deref()
    }

    /// Whether the caller may not let calls count for the project.
    pub(crate) fn is_quota_project_denied(&self) -> bool {
        self.0.is_quota_project_denied
    }

    /// The part of the message that says what to do about the error.
    #[must_use]
    pub fn remediation(&self) -> Option<&str> {
        self.0.remediation.as_deref()
    }
}
