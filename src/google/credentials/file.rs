//! The operator's credential file, parsed and checked before it is used.
//!
//! A credential file says where secrets are sent. A file from an untrusted source could send them anywhere, so the host of each URL in it
//! must be in the universe, loopback, or allowed by the operator's flags:
//! <https://cloud.google.com/docs/authentication/client-libraries#external-credentials>.

use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use super::allowed_hosts::checked_url;
use super::external_account::{ExternalAccount, RawExternalAccount, RawSource};
use super::file_error::CredentialFileError;
use super::service_account_key::ServiceAccountKey;
use super::source::MAX_FILE_BYTES;
use crate::google::endpoints::oauth2::{ClientAuthentication, UserCredentials};
use crate::google::vocabulary::{DEFAULT_UNIVERSE, GoogleConfig, Principal, QuotaProject};
use crate::text;

/// The lifetime of an impersonated account's access token, unless the file says another.
const IMPERSONATED_LIFETIME: Duration = Duration::from_secs(3600);

/// The operator's credentials. No `Debug`, because they are secret.
pub(crate) enum Credential {
    ServiceAccount(ServiceAccountKey),
    AuthorizedUser(UserCredentials),
    /// A user of a workforce pool.
    WorkforceUser(UserCredentials),
    ExternalAccount(Box<ExternalAccount>),
    /// Credentials that impersonate a service account.
    Impersonated(Box<ImpersonatedAccount>),
}

impl Credential {
    /// The pool's identity that it is, or that it impersonates with.
    pub(super) fn external_account(&self) -> Option<&ExternalAccount> {
        match self {
            Self::ExternalAccount(account) => Some(account),
            Self::Impersonated(account) => account.source.external_account(),
            Self::ServiceAccount(_) | Self::AuthorizedUser(_) | Self::WorkforceUser(_) => None,
        }
    }
}

/// How a service account is impersonated.
pub(crate) struct ImpersonatedAccount {
    pub(crate) source: Credential,
    /// The project whose quota the call that impersonates counts for: that of the source credentials.
    pub(crate) source_quota_project: Option<QuotaProject>,
    /// `…/serviceAccounts/ACCOUNT:generateAccessToken`.
    pub(crate) url: Url,
    pub(crate) delegates: Vec<String>,
    pub(crate) lifetime: Duration,
}

/// A checked credential file.
pub(crate) struct CredentialFile {
    pub(crate) credential: Credential,
    pub(crate) principal: Option<Principal>,
    pub(crate) quota_project: Option<QuotaProject>,
}

/// The file's fields, of all types in one.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "type")]
    kind: Option<String>,
    universe_domain: Option<String>,
    quota_project_id: Option<String>,
    account: Option<String>,
    client_email: Option<String>,
    client_id: Option<String>,
    client_secret: Option<Zeroizing<String>>,
    refresh_token: Option<Zeroizing<String>>,
    private_key: Option<Zeroizing<String>>,
    private_key_id: Option<String>,
    token_uri: Option<String>,
    service_account_impersonation_url: Option<String>,
    service_account_impersonation: Option<RawImpersonation>,
    #[serde(default)]
    delegates: Option<Vec<String>>,
    source_credentials: Option<Box<Raw>>,
    audience: Option<String>,
    subject_token_type: Option<String>,
    token_url: Option<String>,
    workforce_pool_user_project: Option<String>,
    credential_source: Option<RawSource>,
}

#[derive(Default, Deserialize)]
struct RawImpersonation {
    token_lifetime_seconds: Option<u64>,
}

impl CredentialFile {
    /// Parses and checks a file's content.
    pub(crate) fn parse(content: &[u8], config: &GoogleConfig) -> Result<Self, CredentialFileError> {
        if content.len() as u64 > MAX_FILE_BYTES {
            return Err(CredentialFileError::TooLong);
        }
        // The parser's message could quote a secret.
        let raw = serde_json::from_slice(content).map_err(|error| CredentialFileError::NotJson {
            line: error.line(),
            column: error.column(),
        })?;
        check(raw, config)
    }
}

fn check(raw: Raw, config: &GoogleConfig) -> Result<CredentialFile, CredentialFileError> {
    let kind = raw.kind.clone().ok_or(CredentialFileError::Missing("type"))?;
    check_universe(raw.universe_domain.as_deref(), config)?;
    let quota_project = quota_project(&raw)?;
    let file = match kind.as_str() {
        "service_account" => service_account(raw, config),
        "authorized_user" => authorized_user(raw, config),
        "impersonated_service_account" => impersonated_service_account(raw, config),
        "external_account" => external_account(raw, config),
        "external_account_authorized_user" => workforce_user(raw, config),
        "gdch_service_account" => Err(CredentialFileError::Unsupported(
            "the type gdch_service_account, which is of Google Distributed Cloud and has no Google service accounts to impersonate",
        )),
        other => Err(CredentialFileError::UnknownType(shown_type(other).to_owned())),
    }?;
    Ok(CredentialFile {
        quota_project,
        ..file
    })
}

fn quota_project(raw: &Raw) -> Result<Option<QuotaProject>, CredentialFileError> {
    match raw.quota_project_id.as_deref() {
        None | Some("") => Ok(None),
        Some(name) => QuotaProject::parse(name)
            .map(Some)
            .ok_or(CredentialFileError::NotProject),
    }
}

/// A type that a message may show: a word like Google's. Another text is hidden, because a secret may stand in the wrong field.
fn shown_type(other: &str) -> &str {
    let is_word = other.len() <= 48 && other.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if is_word { other } else { "unknown" }
}

fn required<T: AsRef<str>>(value: Option<T>, field: &'static str) -> Result<T, CredentialFileError> {
    value
        .filter(|value| !value.as_ref().is_empty())
        .ok_or(CredentialFileError::Missing(field))
}

fn service_account(raw: Raw, config: &GoogleConfig) -> Result<CredentialFile, CredentialFileError> {
    // The key signs its own tokens, so that this URL is not used. If it leads elsewhere, the file was tampered with.
    checked_url("token_uri", raw.token_uri.as_deref(), config)?;
    let email = required(raw.client_email, "client_email")?;
    let key = required(raw.private_key.as_ref().map(|key| key.as_str()), "private_key")?;
    Ok(CredentialFile {
        credential: Credential::ServiceAccount(ServiceAccountKey::new(
            email.clone(),
            raw.private_key_id,
            key,
        )?),
        principal: Some(Principal::ServiceAccount {
            email,
            unique_id: raw.client_id.filter(|id| !id.is_empty()),
        }),
        quota_project: None,
    })
}

fn authorized_user(mut raw: Raw, config: &GoogleConfig) -> Result<CredentialFile, CredentialFileError> {
    let token_uri = match checked_url("token_uri", raw.token_uri.as_deref(), config)? {
        Some(url) => url,
        None => config
            .endpoint("oauth2", None)
            .ok()
            .and_then(|base| base.join("token").ok())
            .ok_or(CredentialFileError::NotUrl { field: "token_uri" })?,
    };
    let principal = raw.account.take().filter(|account| account.contains('@'));
    Ok(CredentialFile {
        credential: Credential::AuthorizedUser(user_credentials(raw, token_uri, ClientAuthentication::Form)?),
        principal: principal.map(|email| Principal::User { email }),
        quota_project: None,
    })
}

/// What gcloud writes after the login of a workforce pool's user: <https://cloud.google.com/iam/docs/workforce-log-in-gcloud>.
fn workforce_user(mut raw: Raw, config: &GoogleConfig) -> Result<CredentialFile, CredentialFileError> {
    let token_url = checked_url("token_url", raw.token_url.as_deref(), config)?
        .ok_or(CredentialFileError::Missing("token_url"))?;
    let principal = raw
        .audience
        .take()
        .and_then(|audience| Principal::from_audience(&audience));
    Ok(CredentialFile {
        credential: Credential::WorkforceUser(user_credentials(
            raw,
            token_url,
            ClientAuthentication::Header,
        )?),
        principal,
        quota_project: None,
    })
}

fn user_credentials(
    raw: Raw,
    token_uri: Url,
    client_authentication: ClientAuthentication,
) -> Result<UserCredentials, CredentialFileError> {
    let secret = |value: Option<Zeroizing<String>>, field| {
        value
            .filter(|value| !value.is_empty())
            .ok_or(CredentialFileError::Missing(field))
    };
    Ok(UserCredentials {
        client_id: required(raw.client_id, "client_id")?,
        client_secret: secret(raw.client_secret, "client_secret")?,
        refresh_token: Mutex::new(secret(raw.refresh_token, "refresh_token")?),
        token_uri,
        client_authentication,
    })
}

fn impersonated_service_account(
    mut raw: Raw,
    config: &GoogleConfig,
) -> Result<CredentialFile, CredentialFileError> {
    let source = raw.source_credentials.take();
    let source = source.ok_or(CredentialFileError::Missing("source_credentials"))?;
    let CredentialFile {
        credential,
        quota_project,
        ..
    } = check(*source, config)?;
    if matches!(credential, Credential::Impersonated(_)) {
        return Err(CredentialFileError::Unsupported(
            "source_credentials that impersonate a service account too",
        ));
    }
    let field = "service_account_impersonation_url";
    impersonation(&raw, credential, quota_project, config)?.ok_or(CredentialFileError::Missing(field))
}

fn external_account(mut raw: Raw, config: &GoogleConfig) -> Result<CredentialFile, CredentialFileError> {
    if raw
        .client_secret
        .as_ref()
        .is_some_and(|secret| !secret.is_empty())
    {
        return Err(CredentialFileError::Unsupported(
            "a client_secret for the Security Token Service",
        ));
    }
    let external = RawExternalAccount {
        audience: required(raw.audience.take(), "audience")?,
        subject_token_type: required(raw.subject_token_type.take(), "subject_token_type")?,
        token_url: raw.token_url.take(),
        user_project: raw.workforce_pool_user_project.take(),
        source: raw
            .credential_source
            .take()
            .ok_or(CredentialFileError::Missing("credential_source"))?,
    };
    let url = raw.service_account_impersonation_url.as_deref();
    let external = ExternalAccount::new(external, config)?;
    let principal = Principal::from_audience(&external.audience);
    let credential = Credential::ExternalAccount(Box::new(external));
    if url.is_none_or(str::is_empty) {
        return Ok(CredentialFile {
            credential,
            principal,
            quota_project: None,
        });
    }
    let field = "service_account_impersonation_url";
    let quota_project = quota_project(&raw)?;
    impersonation(&raw, credential, quota_project, config)?.ok_or(CredentialFileError::NotUrl { field })
}

/// The impersonation that the file asks of its credentials; none if it names no account.
fn impersonation(
    raw: &Raw,
    source: Credential,
    source_quota_project: Option<QuotaProject>,
    config: &GoogleConfig,
) -> Result<Option<CredentialFile>, CredentialFileError> {
    let unchecked = raw.service_account_impersonation_url.as_deref();
    let url = checked_url("service_account_impersonation_url", unchecked, config)?;
    let (Some(url), Some(principal)) = (url, unchecked.and_then(impersonated_account)) else {
        return Ok(None);
    };
    let lifetime = raw
        .service_account_impersonation
        .as_ref()
        .and_then(|raw| raw.token_lifetime_seconds);
    let account = ImpersonatedAccount {
        source,
        source_quota_project,
        url,
        delegates: raw.delegates.clone().unwrap_or_default(),
        lifetime: lifetime.map_or(IMPERSONATED_LIFETIME, Duration::from_secs),
    };
    Ok(Some(CredentialFile {
        credential: Credential::Impersonated(Box::new(account)),
        principal: Some(principal),
        quota_project: None,
    }))
}

fn check_universe(universe: Option<&str>, config: &GoogleConfig) -> Result<(), CredentialFileError> {
    let file = universe
        .filter(|universe| !universe.is_empty())
        .unwrap_or(DEFAULT_UNIVERSE);
    if file == config.universe_domain {
        return Ok(());
    }
    Err(CredentialFileError::OtherUniverse {
        file: text::redacted(file, 128),
        operator: config.universe_domain.clone(),
    })
}

/// The account in `…/serviceAccounts/ACCOUNT:generateAccessToken`.
fn impersonated_account(url: &str) -> Option<Principal> {
    let (_, rest) = url.rsplit_once("/serviceAccounts/")?;
    let account = rest.strip_suffix(":generateAccessToken")?.replace("%40", "@");
    (!account.is_empty() && !account.contains('/')).then(|| Principal::from_account(&account))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
