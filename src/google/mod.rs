//! The client of Google's token endpoints. It knows nothing of Kubernetes.
//!
//! [`Minter`] picks the flow. Imports go down this list only:
//!
//! 1. `credentials`: the operator's own access token; `federation`: a tenant's.
//! 2. `endpoints`: one file for each of Google's APIs.
//! 3. `remediation`: what to do about an error.
//! 4. `transport`: admission, HTTP, responses.
//! 5. `vocabulary`: settings, [`Error`] (whose messages are safe to show), identities and tokens.

mod credentials;
mod endpoints;
mod federation;
mod remediation;
mod transport;
mod vocabulary;

use std::fmt;

pub use self::credentials::adc::UserIdToken;
pub use self::endpoints::iam_credentials::Impersonation;
pub use self::endpoints::metadata_server::AttachedIdentity;
pub use self::endpoints::sts::{FEDERATED_SCOPE, FederatedToken};
pub use self::federation::is_rejected;
pub use self::remediation::federation::check_subject;
pub use self::transport::endpoint_client::{CallRecord, Observer};
pub use self::transport::limiter::{EndpointLoad, MAX_WAITING};
pub use self::transport::response::parse_retry_after;
pub use self::vocabulary::{
    CallGate, CallPriority, ConfigError, DEFAULT_UNIVERSE, Endpoint, Error, ErrorClass, GoogleConfig,
    IdentityProvider, MAX_RETRY_AFTER, MAX_SUBJECT_BYTES, ParseProviderError, Reason, SubjectToken, Workload,
    check_endpoint, is_gke_pool,
};
pub use crate::shell;

use self::credentials::adc::Adc;
use self::endpoints::iam_credentials::IamCredentials;
use self::endpoints::metadata_server::MetadataServer;
use self::federation::Federation;
use self::remediation::impersonation as advice;
use self::remediation::metadata_server as metadata_advice;
use self::transport::endpoint_client::EndpointClient;
use self::transport::http::Http;
use self::vocabulary::Principal;
use crate::token::{Account, IdToken};

/// Gets ID tokens from Google. One is enough for a process; share it in an `Arc`.
pub struct Minter {
    adc: Adc,
    metadata: MetadataServer,
    iam_credentials: IamCredentials,
    federation: Federation,
}

impl Minter {
    /// Sets up the client. No credential is read and no call made yet, so the operator starts without either.
    ///
    /// # Errors
    /// A setting that cannot be used, an unreadable CA file, or no TLS roots at all.
    pub fn new(config: GoogleConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let http = Http::new(&config)?;
        let base = config.endpoint("iamcredentials", config.iam_credentials_url.as_ref())?;
        let upstream = EndpointClient::new(Endpoint::IamCredentials, base, http.clone(), &config);
        Ok(Self {
            adc: Adc::new(&config, http.clone())?,
            metadata: MetadataServer::new(&config, http.clone())?,
            federation: Federation::new(&config, http)?,
            iam_credentials: IamCredentials::new(upstream),
        })
    }

    /// Has `observer` hear of every call.
    #[must_use]
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.adc.set_observer(observer.clone());
        self.metadata.set_observer(observer.clone());
        self.federation.set_observer(observer.clone());
        self.iam_credentials.upstream_mut().set_observer(observer);
        self
    }

    /// How much goes on at each endpoint; one may be there more than once, since each provider of federation has its own limits.
    #[must_use]
    pub fn loads(&self) -> Vec<EndpointLoad> {
        let own = [
            self.adc.upstream_load(),
            self.metadata.load(),
            self.iam_credentials.load(),
        ];
        own.into_iter().chain(self.federation.loads()).collect()
    }

    /// Impersonates a service account with the operator's own identity. The token is parsed; compare it with what was asked
    /// for by [`IdToken::verify`].
    ///
    /// # Errors
    /// [`Reason::SelfImpersonation`] without any call to the API when the account or a delegate is the operator's own
    /// identity; otherwise what the credentials, the limits or Google said, with what to do about it.
    pub async fn impersonate(&self, asked: &Impersonation<'_>) -> Result<IdToken, Error> {
        // Unknown because nothing tells is one thing; unknown because the metadata server is down must not let it pass.
        let principal = self.adc.principal(&self.metadata).await?;
        let delegates = asked.delegates.iter().map(String::as_str);
        refuse_own(
            principal.as_ref(),
            std::iter::once(asked.service_account).chain(delegates),
        )?;
        refuse_unknowable(principal.as_ref(), asked)?;
        // Mostly there already: what fetches one is large, and each of many waits.
        let bearer = Box::pin(self.adc.bearer(&self.metadata)).await?;
        match self
            .iam_credentials
            .generate_id_token(bearer.expose(), asked)
            .await
        {
            Ok(token) => {
                // An account asked for by unique id shows its e-mail only now.
                let claims = token.claims();
                refuse_own(
                    principal.as_ref(),
                    claims.email.as_deref().into_iter().chain([claims.sub.as_str()]),
                )?;
                Ok(token)
            }
            Err(error) => {
                let error = advice::for_impersonation(
                    error,
                    principal.as_ref(),
                    asked.service_account,
                    asked.delegates,
                );
                if error.reason() == Reason::CredentialsRejected {
                    self.adc.reject(&bearer, &error);
                }
                Err(error)
            }
        }
    }

    /// A token of the account that is attached to the operator's pod, node or instance. Where an account is asked for by e-mail, it is
    /// compared before any token is made. The token is parsed; compare it with what was asked for by [`IdToken::verify`].
    ///
    /// # Errors
    /// [`Reason::AccountMismatch`] where another account is attached, [`Reason::IdentityNotAttached`] where none is; otherwise what
    /// the metadata server said, with what to do about it.
    pub async fn attached_identity(&self, asked: &AttachedIdentity<'_>) -> Result<IdToken, Error> {
        if let Some(account) = asked.service_account
            && let Account::Email(email) = Account::from_name(account)
            && let Some(attached) = self.metadata.principal().await?
            // A GKE pool is nobody whose token could be had: the server says why when it is asked for one.
            && !matches!(attached, Principal::GkePool { .. })
            && !attached.is(email)
        {
            let message = metadata_advice::account_mismatch(&attached, email);
            return Err(Error::new(Endpoint::Metadata, Reason::AccountMismatch, &message));
        }
        self.metadata.identity(asked).await
    }

    /// The e-mail of the account that is attached to the operator's pod, node or instance; none where there is none.
    ///
    /// # Errors
    /// The metadata server refused or did not answer.
    pub async fn attached_account(&self) -> Result<Option<String>, Error> {
        Ok(match self.metadata.principal().await? {
            Some(Principal::ServiceAccount { email, .. }) => Some(email),
            _ => None,
        })
    }

    /// A generic ID token of the user whose gcloud credentials the operator has. Only Cloud Run and Cloud Functions accept it, since
    /// its audience is the OAuth client.
    ///
    /// # Errors
    /// [`Reason::NotUserCredentials`] where the operator's credentials are of another type; otherwise what the credentials or Google
    /// said, with what to do about it.
    pub async fn user_id_token(&self, priority: CallPriority<'_>) -> Result<UserIdToken, Error> {
        self.adc.user_id_token(priority).await
    }

    /// Exchanges a workload's own token for a federated access token of scope [`FEDERATED_SCOPE`].
    ///
    /// # Errors
    /// [`Reason::SubjectTooLong`] without any call; otherwise what the limits or the Security Token Service said, with what to
    /// do about it.
    pub async fn exchange(
        &self,
        workload: &Workload<'_>,
        token: &SubjectToken,
    ) -> Result<FederatedToken, Error> {
        self.federation.exchange(workload, token).await
    }

    /// Has a federated workload impersonate a service account by its own permission; the operator's identity has no part in
    /// it. The token is parsed; compare it with what was asked for by [`IdToken::verify`].
    ///
    /// # Errors
    /// What the limits or Google said, with what to do about it; [`is_rejected`] tells that `bearer` is of no more use.
    pub async fn federate(
        &self,
        workload: &Workload<'_>,
        bearer: &FederatedToken,
        asked: &Impersonation<'_>,
    ) -> Result<IdToken, Error> {
        self.federation.generate_id_token(workload, bearer, asked).await
    }

    /// The e-mail or name of the operator's own identity; `None` where nothing tells, or at this moment nothing answers.
    pub async fn principal(&self) -> Option<String> {
        self.adc
            .principal(&self.metadata)
            .await
            .ok()
            .flatten()
            .map(|principal| principal.to_string())
    }
}

fn refuse_own<'n>(
    principal: Option<&Principal>,
    names: impl IntoIterator<Item = &'n str>,
) -> Result<(), Error> {
    match names
        .into_iter()
        .find(|name| principal.is_some_and(|principal| principal.is(name)))
    {
        Some(own) => {
            let message = advice::self_impersonation(own);
            Err(Error::new(
                Endpoint::IamCredentials,
                Reason::SelfImpersonation,
                &message,
            ))
        }
        None => Ok(()),
    }
}

/// Refuses numeric ids where nothing could tell that one is the operator's own: the metadata server does not say what its account's
/// is, and neither a delegate nor a token without e-mail shows whose it is.
fn refuse_unknowable(principal: Option<&Principal>, asked: &Impersonation<'_>) -> Result<(), Error> {
    let is_id = |name: &str| matches!(Account::from_name(name), Account::UniqueId(_));
    let by_email = asked.delegates.iter().find(|name| !is_id(name));
    if let Some(delegate) = by_email.filter(|_| principal.is_some_and(Principal::has_unknown_email)) {
        let message = advice::unknowable_email(delegate);
        return Err(Error::new(
            Endpoint::IamCredentials,
            Reason::SelfImpersonation,
            &message,
        ));
    }
    let hidden = std::iter::once(asked.service_account).filter(|_| !asked.include_email);
    let mut names = hidden.chain(asked.delegates.iter().map(String::as_str));
    match names.find(|name| is_id(name) && principal.is_some_and(Principal::has_unknown_id)) {
        Some(id) => {
            let message = advice::unknowable(id);
            Err(Error::new(
                Endpoint::IamCredentials,
                Reason::SelfImpersonation,
                &message,
            ))
        }
        None => Ok(()),
    }
}

impl fmt::Debug for Minter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minter")
            .field("iam_credentials", &self.iam_credentials)
            .finish_non_exhaustive()
    }
}

/// What users see of an answer that is no success, wherever it comes from, for the tests of all parsers.
#[cfg(test)]
pub(crate) fn show_answer(body: &[u8]) -> String {
    let answer = transport::response::Response::of(400, body);
    let mut shown = answer.error(Endpoint::IamCredentials).to_string();
    for error in [
        endpoints::sts::refusal(answer.status, body),
        Some(endpoints::metadata_server::shown(body)),
    ]
    .into_iter()
    .flatten()
    {
        shown.push_str(&error.to_string());
    }
    shown
}

/// What users see of a credential file that is not accepted; none where it is.
#[cfg(test)]
pub(crate) fn show_credential_file(content: &[u8]) -> Option<String> {
    let refused = credentials::file::CredentialFile::parse(content, &GoogleConfig::default()).err()?;
    Some(format!("{refused} {refused:?}"))
}

/// The limits' decisions without the calls, for who brings a clock and an upstream of his own, such as a simulation.
pub mod simulation {
    pub use super::transport::circuit_breaker::LastFailure;
    pub use super::transport::fair_queue::{
        CallResult, Decision, Decisions, FairQueue, QueueLimits, WaiterId,
    };
    pub use super::transport::limiter::{MAX_WAITING, classify_result, rejection_error};
}
