//! Gets the token from Google and checks what came back.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::MintError;
use super::federation as federate;
use super::federation::TokenSources;
use crate::api::annotations::ACCEPT_SUBJECT;
use crate::api::v1alpha1::{IdTokenRequestStatus, TokenStatus};
use crate::controller::queue::permit::Permit;
use crate::google::{self, AttachedIdentity, CallPriority, Impersonation};
use crate::kubernetes::secret_summary::SecretSummary;
use crate::request::{TokenSource, ValidRequest};
use crate::shell::quote;
use crate::token::{Account, Expected, IdToken, TokenError};

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
    /// The unique ID that the author of the request accepts instead, unless that was used already.
    pub accepted: Option<&'a str>,
}

impl<'a> PreviousToken<'a> {
    /// The token in the status, which pins the account's unique ID.
    pub fn of(
        request: &'a ValidRequest,
        secret: Option<&SecretSummary>,
        status: &'a IdTokenRequestStatus,
    ) -> Option<Self> {
        let token = status.token.as_ref()?;
        let accepted = request.accept_subject.as_deref();
        Some(Self {
            token,
            same_spec: secret.and_then(|secret| secret.token_hash.as_ref()) == Some(&request.token_hash),
            accepted: accepted.filter(|subject| token.accepted_subject.as_deref() != Some(*subject)),
        })
    }

    /// The pinned unique ID of `account`; none if nothing is pinned, or if the author accepted `got`. `is_named` says whether the spec names
    /// the account.
    fn subject(&self, account: &str, is_named: bool, got: &str) -> Option<&str> {
        let same_account = self.token.email.as_deref() == Some(account);
        let same = same_account || (self.same_spec && is_named);
        let pinned = self.token.subject.as_deref();
        pinned.filter(|_| same && self.accepted != Some(got))
    }
}

/// The command by which the author of `request` accepts that the account now has the unique ID `subject`.
pub fn accept_command(request: &ValidRequest, subject: &str) -> String {
    let (name, namespace) = (quote(&request.name), quote(&request.namespace));
    let subject = quote(subject);
    format!("kubectl annotate idtokenrequest {name} -n {namespace} {ACCEPT_SUBJECT}={subject} --overwrite")
}

/// Gets the token that `request` asks for. `remaining` is the remaining lifetime of the current token, if there is one. The permit is released
/// while Google answers, and held for each call of the API server.
///
/// # Errors
/// Google refused or did not answer, or what came back is not what was asked for.
pub(crate) async fn mint(
    sources: &TokenSources<'_>,
    request: &ValidRequest,
    previous: Option<PreviousToken<'_>>,
    remaining: Option<Duration>,
    permit: &mut Permit,
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
            let request_reason = format!("{}/{}", request.namespace, request.name);
            let call = Impersonation {
                service_account,
                audience: &spec.audience,
                include_email: spec.include_email,
                include_organization_number: spec.include_organization_number,
                delegates,
                request_reason: &request_reason,
                priority,
            };
            // Boxed, as the other calls: what waits for its turn holds its own call only, and once.
            permit
                .released_while(Box::pin(sources.minter.impersonate(&call)))
                .await?
        }
        (TokenSource::Federation(federation), _) => {
            let federated =
                Box::pin(federate::federate(sources, request, federation, priority, permit)).await?;
            requested = Some(federated.account);
            federated.token
        }
        (TokenSource::MetadataServer { licenses }, service_account) => {
            if service_account.is_none() {
                attached = permit
                    .released_while(Box::pin(sources.minter.attached_account()))
                    .await?;
                sources
                    .grants
                    .authorize_account(request, attached.as_deref(), sources.clock.now())?;
            }
            let call = AttachedIdentity {
                service_account,
                audience: &spec.audience,
                include_email: spec.include_email,
                licenses: *licenses,
                priority,
            };
            permit
                .released_while(Box::pin(sources.minter.attached_identity(&call)))
                .await?
        }
        (TokenSource::Developer, _) => {
            let google::UserIdToken { token, client_id } = permit
                .released_while(Box::pin(sources.minter.user_id_token(priority)))
                .await?;
            audience = client_id;
            token
        }
        (source, _) => return Err(MintError::Unavailable(source.name())),
    };
    let now = sources.clock.now();
    let requested = requested.as_deref();
    let subject = previous.as_ref().zip(requested).and_then(|(previous, account)| {
        previous.subject(account, spec.service_account.is_some(), &token.claims().sub)
    });
    let wanted = Expected {
        audience: &audience,
        account: requested.map(Account::from_name),
        ..expected(request, subject)
    };
    token.verify(&wanted, now).map_err(|error| match &error {
        TokenError::SubjectChanged { got, .. } => MintError::SubjectChanged {
            command: accept_command(request, got),
            error,
        },
        _ => error.into(),
    })?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::request;

    #[test]
    fn another_account_of_the_same_email_is_accepted_by_its_id_and_once() {
        let mut request = request(json!({}));
        let account = request.token.service_account.clone().unwrap();
        let mut status = IdTokenRequestStatus {
            token: Some(TokenStatus {
                email: Some(account.clone()),
                subject: Some("1".to_owned()),
                ..TokenStatus::default()
            }),
            ..IdTokenRequestStatus::default()
        };
        let pinned = |request: &ValidRequest, status: &IdTokenRequestStatus, got: &str| {
            let previous = PreviousToken::of(request, None, status).unwrap();
            previous.subject(&account, true, got).map(str::to_owned)
        };
        let first = Some("1".to_owned());
        assert_eq!(pinned(&request, &status, "2"), first);
        request.accept_subject = Some("2".to_owned());
        assert_eq!(pinned(&request, &status, "2"), None);
        assert_eq!(pinned(&request, &status, "3"), first, "this one and no other");
        assert_eq!(
            accept_command(&request, "2"),
            "kubectl annotate idtokenrequest billing -n shop idtoken.dev/accept-subject=2 --overwrite"
        );
        // It was used, and the account was created again since.
        let token = status.token.as_mut().unwrap();
        token.accepted_subject = Some("2".to_owned());
        token.subject = Some("3".to_owned());
        assert_eq!(pinned(&request, &status, "2"), Some("3".to_owned()));
    }
}
