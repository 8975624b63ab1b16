//! Gets the token from Google and checks what came back.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::MintError;
use super::federation as federate;
use super::federation::TokenSources;
use crate::api::v1alpha1::TokenStatus;
use crate::google::{self, AttachedIdentity, CallPriority, Impersonation};
use crate::request::{TokenSource, ValidRequest};
use crate::token::{Account, Expected, IdToken};

/// A token that was checked.
#[derive(Debug)]
pub struct VerifiedToken {
    /// The token.
    pub token: IdToken,
    /// Its account as the source names it: by e-mail if known, else by unique ID.
    pub account: String,
}

/// The token that the request had before, as its status tells.
#[derive(Clone, Copy, Debug)]
pub struct PreviousToken<'a> {
    /// Its claims.
    pub token: &'a TokenStatus,
    /// Whether it was minted for the same spec.
    pub same_spec: bool,
}

impl PreviousToken<'_> {
    /// The unique ID that `account` had, if the token was of that account. `is_spelled` says whether the spec itself names it.
    fn subject(&self, account: &str, is_spelled: bool) -> Option<&str> {
        let same_account = self.token.email.as_deref() == Some(account);
        let same = same_account || (self.same_spec && is_spelled);
        self.token.subject.as_deref().filter(|_| same)
    }
}

/// Gets the token that `request` asks for. `remaining` is the remaining lifetime of the current token, if there is one.
///
/// # Errors
/// Google refused or did not answer, or what came back is not what was asked for.
pub async fn mint(
    sources: &TokenSources<'_>,
    request: &ValidRequest,
    before: Option<PreviousToken<'_>>,
    remaining: Option<Duration>,
) -> Result<VerifiedToken, MintError> {
    let spec = &request.token;
    let mut audience = spec.audience.clone();
    let mut attached = None;
    let mut requested = spec.service_account.clone();
    let priority = CallPriority {
        flow: &request.namespace,
        remaining_lifetime: remaining,
    };
    let token = match (&spec.source, spec.service_account.as_deref()) {
        (TokenSource::Impersonation { delegates }, Some(service_account)) => {
            sources
                .minter
                .impersonate(&Impersonation {
                    service_account,
                    audience: &spec.audience,
                    include_email: spec.include_email,
                    include_organization_number: spec.include_organization_number,
                    delegates,
                    request_reason: &format!("{}/{}", request.namespace, request.name),
                    priority,
                })
                .await?
        }
        (TokenSource::Federation(federation), _) => {
            let federated = Box::pin(federate::federate(sources, request, federation, priority)).await?;
            requested = Some(federated.account);
            federated.token
        }
        (TokenSource::MetadataServer { licenses }, service_account) => {
            if service_account.is_none() {
                attached = sources.minter.attached_account().await?;
                sources
                    .grants
                    .authorize_account(request, attached.as_deref(), sources.clock.now())?;
            }
            sources
                .minter
                .attached_identity(&AttachedIdentity {
                    service_account,
                    audience: &spec.audience,
                    include_email: spec.include_email,
                    licenses: *licenses,
                    priority,
                })
                .await?
        }
        (TokenSource::Developer, _) => {
            let google::UserIdToken { token, client_id } = sources.minter.user_id_token(priority).await?;
            audience = client_id;
            token
        }
        (source, _) => return Err(MintError::Unavailable(source.name())),
    };
    let now = sources.clock.now();
    let requested = requested.as_deref();
    let subject = before
        .as_ref()
        .zip(requested)
        .and_then(|(before, account)| before.subject(account, spec.service_account.is_some()));
    token.verify(
        &Expected {
            audience: &audience,
            account: requested.map(Account::from_name),
            ..expected(request, subject)
        },
        now,
    )?;
    let claims = token.claims();
    let account = claims
        .email
        .clone()
        .or(attached)
        .unwrap_or_else(|| claims.sub.clone());
    Ok(VerifiedToken { token, account })
}

/// What looks like a token of `request`, without a signature: for a write that is only tried.
pub fn dry_run_token(request: &ValidRequest, now: Timestamp) -> Option<IdToken> {
    let mut claims = json!({
        "iss": "https://accounts.google.com", "aud": request.token.audience, "sub": "0".repeat(21),
        "iat": now.as_second(), "exp": now.as_second().saturating_add(3600),
    });
    if request.token.include_email {
        claims["email"] = request
            .token
            .service_account
            .as_deref()
            .unwrap_or_default()
            .into();
        claims["email_verified"] = true.into();
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    // As long as an RS256 signature.
    let signature = URL_SAFE_NO_PAD.encode([0_u8; 256]);
    let raw = format!("{}.{}.{signature}", part(&json!({"alg": "RS256"})), part(&claims));
    IdToken::parse(raw).ok()
}

/// What the token of `request` must say, but for a developer's, whose audience is the OAuth client.
pub fn expected<'a>(request: &'a ValidRequest, subject: Option<&'a str>) -> Expected<'a> {
    Expected {
        audience: &request.token.audience,
        account: request.token.service_account.as_deref().map(Account::from_name),
        include_email: request.token.include_email,
        subject,
    }
}
