//! The client of Google's token endpoints. It knows nothing of Kubernetes.
//!
//! [`Minter`] picks the flow; [`args`] are its flags. Imports go down this list only:
//!
//! 1. `signing_keys`: the signatures of tokens; `federation`: a tenant's access token; `credentials`: the operator's own;
//!    `self_impersonation`: the names that are rejected as the operator's own.
//! 2. `endpoints`: one file for each of Google's APIs.
//! 3. `remediation`: what to do about an error.
//! 4. `transport`: admission, HTTP, responses.
//! 5. `vocabulary`: settings, [`Error`] (whose messages are safe to show), identities and tokens.
//!
//! May import the ground only, such as [`crate::token`] and [`crate::text`]. Never decides who may have a token or when one
//! is due.

pub mod args;
mod credentials;
mod endpoints;
mod federation;
mod remediation;
mod self_impersonation;
mod signing_keys;
mod transport;
mod vocabulary;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;

pub use self::credentials::adc::UserIdToken;
pub use self::endpoints::iam_credentials::Impersonation;
pub use self::endpoints::metadata_server::AttachedIdentity;
pub use self::endpoints::sts::{FEDERATED_SCOPE, FederatedToken};
pub use self::federation::is_rejected;
pub use self::remediation::federation::check_subject;
pub use self::signing_keys::SignatureError;
pub use self::transport::adaptive_limit::{LimitMove, LimitMoves};
pub use self::transport::endpoint_client::{CallRecord, Observer};
pub use self::transport::limiter::{EndpointLoad, MAX_WAITING};
pub use self::transport::response::parse_retry_after;
pub use self::vocabulary::{
    CallGate, CallPriority, ConfigError, DEFAULT_MAX_IN_FLIGHT, DEFAULT_RATE, DEFAULT_UNIVERSE, Endpoint,
    Error, ErrorClass, GoogleConfig, IdentityProvider, MAX_RETRY_AFTER, MAX_SUBJECT_BYTES,
    ParseProviderError, Reason, Recoveries, SubjectToken, Transport, Workload, check_endpoint, is_gke_pool,
};

use self::credentials::adc::{Adc, Caller};
use self::endpoints::iam_credentials::IamCredentials;
use self::endpoints::metadata_server::MetadataServer;
use self::federation::Federation;
use self::self_impersonation::{reject_own, reject_unverifiable};
use self::signing_keys::SigningKeys;
use self::transport::endpoint_client::EndpointClient;
use self::transport::http::Http;
use self::vocabulary::Principal;
use crate::token::{Account, IdToken};

/// Gets ID tokens from Google. One is enough for a process; share it in an `Arc`.
pub struct Minter {
    http: Http,
    adc: Adc,
    metadata: MetadataServer,
    iam_credentials: IamCredentials,
    federation: Federation,
    signing_keys: SigningKeys,
    recoveries: Recoveries,
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
        let client = EndpointClient::new(Endpoint::IamCredentials, base, http.clone(), &config);
        Ok(Self {
            adc: Adc::new(&config, http.clone())?,
            metadata: MetadataServer::new(&config, http.clone())?,
            signing_keys: SigningKeys::new(&config, http.clone())?,
            federation: Federation::new(&config, http.clone())?,
            http,
            iam_credentials: IamCredentials::new(client),
            recoveries: config.recoveries,
        })
    }

    /// Reads the CA file again whenever its content changes, and `SSL_CERT_FILE` too. Ends when it is dropped.
    pub async fn follow_certificates(&self) -> Infallible {
        self.http.follow_certificates().await
    }

    /// Calls `observer` with each call that has ended.
    #[must_use]
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.adc.set_observer(observer.clone());
        self.metadata.set_observer(observer.clone());
        self.federation.set_observer(observer.clone());
        self.signing_keys.set_observer(observer.clone());
        self.iam_credentials.client_mut().set_observer(observer);
        self
    }

    /// The load of each endpoint. An endpoint can occur more than once, because each provider of federation has its own limiter.
    #[must_use]
    pub fn loads(&self) -> Vec<EndpointLoad> {
        let own = [
            self.adc.load(),
            self.metadata.load(),
            self.iam_credentials.load(),
            self.signing_keys.load(),
        ];
        own.into_iter().chain(self.federation.loads()).collect()
    }

    /// How many callers that want a token are of use to an endpoint at the moment: to the one that takes most. More would only wait, here or for
    /// the API server.
    #[must_use]
    pub fn useful_callers(&self) -> usize {
        let own = self
            .iam_credentials
            .useful_callers()
            .max(self.metadata.useful_callers());
        own.max(self.federation.useful_callers())
    }

    /// How many calls too many started at once at the operator's own endpoints.
    #[must_use]
    pub fn surge(&self) -> usize {
        self.iam_credentials.surge().max(self.metadata.surge())
    }

    /// Whether so many calls of the flow wait for their turn at the operator's own endpoints that another one would only wait as well.
    /// Providers of federation have few callers each, and their own limits.
    #[must_use]
    pub fn is_congested(&self, flow: &str) -> bool {
        self.iam_credentials.is_congested(flow) || self.metadata.is_congested(flow)
    }

    /// Waits until calls may start again that were held back because an endpoint failed. Returns their flows; the one of the operator's own
    /// calls stands for all.
    pub async fn recovered(&self) -> BTreeSet<String> {
        self.recoveries.next().await
    }

    /// Impersonates a service account with the operator's own identity. The token is parsed; compare it with the request by
    /// [`IdToken::verify`].
    ///
    /// # Errors
    /// [`Reason::SelfImpersonation`] without any call to the API when the account or a delegate is the operator's own
    /// identity; otherwise the error of the credentials, the limiter or Google, with what to do about it.
    pub async fn impersonate(&self, request: &Impersonation<'_>) -> Result<IdToken, Error> {
        // No identity information is acceptable; an unreachable metadata server is not: fail instead of skipping the check against
        // self-impersonation.
        let caller = Box::pin(self.adc.caller(&self.metadata)).await?;
        match self.impersonate_as(&caller, request).await {
            // It may be the refusal of an identity that the operator no longer has.
            Err(error) if is_about_caller(&error) => {
                match Box::pin(self.adc.successor(&self.metadata, &caller)).await {
                    Some(successor) => Box::pin(self.impersonate_as(&successor, request)).await,
                    None => Err(error),
                }
            }
            result => result,
        }
    }

    async fn impersonate_as(&self, caller: &Caller, request: &Impersonation<'_>) -> Result<IdToken, Error> {
        let principal = caller.principal();
        let delegates = request.delegates.iter().map(String::as_str);
        reject_own(
            principal,
            std::iter::once(request.service_account).chain(delegates),
        )?;
        reject_unverifiable(principal, request)?;
        // Boxed, because the future that fetches a token is large, and many calls wait here.
        let bearer = Box::pin(self.adc.bearer(caller, &self.metadata)).await?;
        match self
            .iam_credentials
            .generate_id_token(bearer.expose(), self.adc.quota_project(caller), request)
            .await
        {
            Ok(token) => {
                // An account that is named by unique id shows its e-mail only now.
                let claims = token.claims();
                reject_own(
                    principal,
                    claims.email.as_deref().into_iter().chain([claims.sub.as_str()]),
                )?;
                Ok(token)
            }
            Err(error) => {
                let error = remediation::impersonation::for_impersonation(
                    error,
                    principal,
                    request.service_account,
                    request.delegates,
                );
                if error.reason() == Reason::CredentialsRejected {
                    self.adc.reject(&bearer, &error);
                }
                Err(error)
            }
        }
    }

    /// A token of the account that is attached to the operator's pod, node or instance. If the request names an account by e-mail, the
    /// attached one is compared with it first. The token comes over plain HTTP, so its signature is checked. Compare it with the request by
    /// [`IdToken::verify`].
    ///
    /// # Errors
    /// [`Reason::AccountMismatch`] if another account is attached, [`Reason::IdentityNotAttached`] if none is; otherwise the error of
    /// the metadata server, with what to do about it. [`Reason::TokenSignatureInvalid`] if Google did not sign the token, and
    /// [`Reason::SigningKeysUnavailable`] if its keys cannot be fetched.
    pub async fn attached_identity(&self, request: &AttachedIdentity<'_>) -> Result<IdToken, Error> {
        if let Some(account) = request.service_account
            && let Account::Email(email) = Account::from_name(account)
            && let Some(attached) = self.metadata.principal().await?
            // A GKE pool has no token. The server says why in its answer to the request for one.
            && !matches!(attached, Principal::GkePool { .. })
            && !attached.is(email)
        {
            let message = remediation::metadata_server::account_mismatch(&attached, email);
            return Err(Error::new(Endpoint::Metadata, Reason::AccountMismatch, &message));
        }
        let token = self.metadata.identity(request).await?;
        match Box::pin(self.verify_signature(&token)).await {
            Ok(()) => Ok(token),
            Err(SignatureError::Unavailable(error)) => Err(error),
            Err(error) => Err(remediation::metadata_server::not_signed(&error.to_string())),
        }
    }

    /// Checks that Google signed the token, by the keys that it publishes. The claims are not compared with anything.
    ///
    /// # Errors
    /// [`SignatureError::Invalid`] if Google did not, [`SignatureError::Unavailable`] if the keys cannot be fetched.
    pub async fn verify_signature(&self, token: &IdToken) -> Result<(), SignatureError> {
        self.signing_keys.verify(token).await
    }

    /// The e-mail of the account that is attached to the operator's pod, node or instance; none if there is none.
    ///
    /// # Errors
    /// The error of the metadata server.
    pub async fn attached_account(&self) -> Result<Option<String>, Error> {
        Ok(match self.metadata.principal().await? {
            Some(Principal::ServiceAccount { email, .. }) => Some(email),
            _ => None,
        })
    }

    /// A generic ID token of the user whose gcloud credentials the operator has. Only Cloud Run and Cloud Functions may accept it,
    /// since its audience is the OAuth client.
    ///
    /// # Errors
    /// [`Reason::NotUserCredentials`] if the operator's credentials are of another type; otherwise the error of the credentials or
    /// Google, with what to do about it.
    pub async fn user_id_token(&self, priority: CallPriority<'_>) -> Result<UserIdToken, Error> {
        self.adc.user_id_token(priority).await
    }

    /// Exchanges a workload's own token for a federated access token of scope [`FEDERATED_SCOPE`].
    ///
    /// # Errors
    /// The error of the limiter or the Security Token Service, with what to do about it.
    pub async fn exchange(
        &self,
        workload: &Workload<'_>,
        token: &SubjectToken,
    ) -> Result<FederatedToken, Error> {
        self.federation.exchange(workload, token).await
    }

    /// Impersonates a service account with the permission of a federated workload; the operator's identity has no part in it. The token
    /// is parsed; compare it with the request by [`IdToken::verify`].
    ///
    /// # Errors
    /// The error of the limiter or Google, with what to do about it; with [`is_rejected`], `bearer` is not valid any more.
    pub async fn federate(
        &self,
        workload: &Workload<'_>,
        bearer: &FederatedToken,
        request: &Impersonation<'_>,
    ) -> Result<IdToken, Error> {
        self.federation.generate_id_token(workload, bearer, request).await
    }

    /// How often the operator's identity has changed, as far as calls and [`Self::principal`] have seen.
    #[must_use]
    pub fn identity_changes(&self) -> u64 {
        self.adc.changes()
    }

    /// The e-mail or name of the operator's own identity; `None` if nothing says who it is, or the metadata server does not answer.
    pub async fn principal(&self) -> Option<String> {
        let caller = self.adc.caller(&self.metadata).await.ok()?;
        caller.principal().map(Principal::to_string)
    }
}

/// Whether another identity of the operator could succeed.
fn is_about_caller(error: &Error) -> bool {
    match error.reason() {
        Reason::InvalidArgument => false,
        Reason::CredentialsUnavailable => true,
        _ => error.class() == ErrorClass::Rejected,
    }
}

impl fmt::Debug for Minter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minter")
            .field("iam_credentials", &self.iam_credentials)
            .finish_non_exhaustive()
    }
}

/// The errors that users see of an unsuccessful response, from each parser.
#[cfg(test)]
pub(crate) fn shown_response(body: &[u8]) -> String {
    let response = transport::response::Response::of(400, body);
    let mut shown = response.error(Endpoint::IamCredentials).to_string();
    for error in [
        endpoints::sts::rejection(response.status, body),
        Some(endpoints::metadata_server::error_of(body)),
    ]
    .into_iter()
    .flatten()
    {
        shown.push_str(&error.to_string());
    }
    shown
}

/// The error that users see of a credential file; none if it is accepted.
#[cfg(test)]
pub(crate) fn shown_credential_file(content: &[u8]) -> Option<String> {
    let error = credentials::file::CredentialFile::parse(content, &GoogleConfig::default()).err()?;
    Some(format!("{error} {error:?}"))
}

/// The limiter's decisions without the calls, for a simulation with its own clock and endpoints.
pub mod simulation {
    pub use super::transport::circuit_breaker::LastFailure;
    pub use super::transport::decision::{CallResult, Decision, Decisions, WaiterId};
    pub use super::transport::fair_queue::{FairQueue, QueueLimits};
    pub use super::transport::limiter::{MAX_WAITING, classify_result, rejection_error};
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::sync::lock;

    #[tokio::test]
    async fn a_model_of_google_in_the_process_answers_each_call() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let model = calls.clone();
        let transport = Transport::new(move |request| {
            let request = request.build().expect("a request");
            lock(&model).push(format!("{} {}", request.method(), request.url().path()));
            let answer = match request.url().path() {
                "/computeMetadata/v1/instance/service-accounts/default/email" => http::Response::builder()
                    .header("Metadata-Flavor", "Google")
                    .body("caller@p.iam.gserviceaccount.com"),
                _ => http::Response::builder().status(404).body(""),
            };
            Box::pin(async { Ok(answer.expect("a response").into()) })
        });
        let minter = Minter::new(GoogleConfig {
            transport,
            ..GoogleConfig::default()
        })
        .expect("a client");
        let account = minter.attached_account().await.expect("an account");
        assert_eq!(account.as_deref(), Some("caller@p.iam.gserviceaccount.com"));
        assert_eq!(
            *lock(&calls),
            ["GET /computeMetadata/v1/instance/service-accounts/default/email"]
        );
    }
}
