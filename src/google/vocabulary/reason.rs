//! What can go wrong with a call to Google, and whether trying again soon can help.

use crate::classify::ErrorClass;

/// The closed list of what can go wrong. [`Reason::as_str`] is the word in conditions, events and metrics.
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
    /// The request names the operator's own identity.
    SelfImpersonation,
    /// No Google service account is attached, so the metadata server has no tokens to give.
    IdentityNotAttached,
    /// The attached account is not the requested one.
    AccountMismatch,
    /// The operator's credentials are not those of a user, which the developer source needs.
    NotUserCredentials,
    /// STS: the provider is disabled, deleted or never existed.
    ProviderNotFound,
    /// STS: the provider's attribute condition rejects the workload.
    AttributeConditionRejected,
    /// STS: the provider expects another `aud` in the workload's token.
    SubjectTokenWrongAudience,
    /// STS: the provider expects another `iss` in the workload's token: it belongs to another cluster.
    SubjectTokenWrongIssuer,
    /// STS: the workload's token is too old by Google's clock.
    SubjectTokenStale,
    /// STS: the provider does not know the key that signed the workload's token.
    SubjectTokenUnverified,
    /// STS: Google cannot fetch the keys of the cluster's issuer.
    IssuerUnreachable,
    /// `google.subject` would be longer than Google allows.
    SubjectTooLong,
    /// STS: any other rejection.
    ExchangeRefused,
    /// A token that came over plain http is not signed by Google.
    TokenSignatureInvalid,
    /// Google's signing keys could not be fetched, so that a signature cannot be checked.
    SigningKeysUnavailable,
    /// 429: a quota of Google's is exhausted.
    QuotaExceeded,
    /// The operator's own rate limit or in-flight cap held the call back for too long, or the call is deferred.
    LocallyLimited,
    /// Another replica of the operator is to make the call.
    NotLeading,
    /// 5xx.
    UpstreamUnavailable,
    /// No response in time, or 408.
    UpstreamTimeout,
    /// No connection: DNS, TCP, TLS or a proxy failed, or the connection broke.
    UpstreamUnreachable,
    /// A response that makes no sense here.
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
            Self::TokenSignatureInvalid => "TokenSignatureInvalid",
            Self::SigningKeysUnavailable => "SigningKeysUnavailable",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::LocallyLimited => "LocallyLimited",
            Self::NotLeading => "NotLeading",
            Self::UpstreamUnavailable => "UpstreamUnavailable",
            Self::UpstreamTimeout => "UpstreamTimeout",
            Self::UpstreamUnreachable => "UpstreamUnreachable",
            Self::UnexpectedResponse => "UnexpectedResponse",
        }
    }

    /// Whether trying again soon can help, unless the HTTP status says otherwise.
    pub(crate) fn class(self) -> ErrorClass {
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
            | Self::ExchangeRefused
            | Self::TokenSignatureInvalid => ErrorClass::Rejected,
            Self::SigningKeysUnavailable
            | Self::QuotaExceeded
            | Self::LocallyLimited
            | Self::NotLeading
            | Self::UpstreamUnavailable
            | Self::UpstreamTimeout
            | Self::UpstreamUnreachable
            | Self::UnexpectedResponse => ErrorClass::Transient,
        }
    }
}
