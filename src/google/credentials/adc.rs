//! The operator's own access token, by Application Default Credentials: <https://google.aip.dev/auth/4110>.
//!
//! The operator starts without credentials, and reports that. A credential file is read again every few seconds, so that a new content is
//! used, whether it comes by a rename, a new symbolic link or a write in place.
//!
//! A token belongs to an identity. Whatever names another one, a credential file, its subject token or the metadata server, gets a cache of
//! its own, and that of the former identity is dropped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use super::fetch::{TokenFetcher, for_user};
use super::file::{Credential, CredentialFile};
use super::identity::{Identity, LoadedCredential};
use super::source::{Content, Source, sha256, unavailable};
use super::token_cache::{backoff_after, fetched};
use crate::clock::BootTime;
use crate::google::endpoints::metadata_server::MetadataServer;
use crate::google::endpoints::oauth2;
use crate::google::transport::endpoint_client::Observer;
use crate::google::transport::http::Http;
use crate::google::transport::limiter::EndpointLoad;
use crate::google::vocabulary::{
    AccessToken, CallPriority, ConfigError, Endpoint, Error, ErrorClass, GoogleConfig, Principal,
    QuotaProject, Reason,
};
use crate::sync::lock;
use crate::token::IdToken;

/// How often the credential file is compared with the loaded credentials.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// How long the metadata server's principal is cached: GKE follows an annotation that can change.
const PRINCIPAL_TTL: Duration = Duration::from_secs(60);

/// How often file and principal are compared at most while Google refuses.
const REFUSED_INTERVAL: Duration = Duration::from_secs(1);

/// The operator's credentials.
pub(crate) struct Adc {
    config: GoogleConfig,
    source: Source,
    tokens: TokenFetcher,
    /// GOOGLE_CLOUD_QUOTA_PROJECT, which has precedence over the file's.
    quota_project: Option<QuotaProject>,
    state: Mutex<State>,
    /// The current credentials, and when they were last compared with the file. To read them does not wait for a slow disk.
    current: SyncMutex<Option<(BootTime, Arc<LoadedCredential>)>>,
    /// How often the identity has changed.
    changes: Arc<AtomicU64>,
}

/// Who the operator is at the moment.
#[derive(Clone)]
pub(crate) struct Caller {
    credentials: Arc<LoadedCredential>,
    identity: Arc<Identity>,
}

/// An access token, and whose it is.
pub(crate) struct Bearer {
    token: Arc<AccessToken>,
    identity: Arc<Identity>,
}

/// An ID token of a user, and the OAuth client that is its audience.
#[derive(Debug)]
pub struct UserIdToken {
    /// The token.
    pub token: IdToken,
    /// The OAuth client of the user's credentials.
    pub client_id: String,
}

#[derive(Default)]
struct State {
    loaded: Option<Arc<LoadedCredential>>,
    file: Option<Content>,
    /// The SHA-256 of whom the subject token is for, if the credentials have one.
    subject: Option<[u8; 32]>,
    failures: u32,
    /// Until when no new attempt is made, and the error of the last one.
    backoff: Option<(BootTime, Error)>,
}

impl Caller {
    /// The principal; `None` if nothing says who it is.
    pub(crate) fn principal(&self) -> Option<&Principal> {
        self.identity.principal.as_ref()
    }
}

impl Bearer {
    pub(crate) fn expose(&self) -> &str {
        &self.token.secret
    }
}

impl Adc {
    /// Decides where the credentials are; reads only the environment.
    pub(crate) fn new(config: &GoogleConfig, http: Http) -> Result<Self, ConfigError> {
        Ok(Self {
            config: config.clone(),
            source: Source::find(config),
            tokens: TokenFetcher::new(config, http)?,
            quota_project: quota_project()?,
            state: Mutex::default(),
            current: SyncMutex::default(),
            changes: Arc::default(),
        })
    }

    /// How often the operator's identity has changed, as far as was seen.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_observer(&mut self, observer: Observer) {
        self.tokens.set_observer(observer);
    }

    pub(crate) fn load(&self) -> EndpointLoad {
        self.tokens.client().load()
    }

    /// Who the operator is.
    pub(crate) async fn caller(&self, metadata: &MetadataServer) -> Result<Caller, Error> {
        self.caller_within(metadata, CHECK_INTERVAL, PRINCIPAL_TTL).await
    }

    /// Who the operator is, if that is another one than `former`, whom Google has refused.
    pub(crate) async fn successor(&self, metadata: &MetadataServer, former: &Caller) -> Option<Caller> {
        let caller = self
            .caller_within(metadata, REFUSED_INTERVAL, REFUSED_INTERVAL)
            .await;
        caller
            .ok()
            .filter(|caller| !Arc::ptr_eq(&caller.identity, &former.identity))
    }

    async fn caller_within(
        &self,
        metadata: &MetadataServer,
        file: Duration,
        principal: Duration,
    ) -> Result<Caller, Error> {
        let credentials = self.current(file).await?;
        let identity = credentials
            .identify(&self.config.clock, metadata, principal)
            .await?;
        Ok(Caller {
            credentials,
            identity,
        })
    }

    /// An access token of `caller` with the scope `cloud-platform`.
    pub(crate) async fn bearer(&self, caller: &Caller, metadata: &MetadataServer) -> Result<Bearer, Error> {
        let identity = &caller.identity;
        let fetch = || async {
            match &caller.credentials.credential {
                Some(credential) => self.tokens.fetch(credential).await,
                None => self.fetch_attached(caller, metadata).await,
            }
            .map(fetched)
            .map_err(Error::into_credentials_error)
        };
        Ok(Bearer {
            token: identity.cache.get(fetch).await?,
            identity: Arc::clone(identity),
        })
    }

    /// The metadata server's token. It gives token and e-mail one after the other: the e-mail before it and the one after it must agree.
    async fn fetch_attached(&self, caller: &Caller, metadata: &MetadataServer) -> Result<AccessToken, Error> {
        let token = metadata.access_token().await.map_err(explain_missing)?;
        let identity = caller
            .credentials
            .identify(&self.config.clock, metadata, Duration::ZERO)
            .await?;
        if Arc::ptr_eq(&identity, &caller.identity) {
            return Ok(token);
        }
        let message = "the identity of the metadata server has changed meanwhile";
        let error = Error::new(Endpoint::Metadata, Reason::CredentialsUnavailable, message);
        Err(error.with_class(ErrorClass::Transient))
    }

    /// The project whose quota calls of `caller` count for.
    pub(crate) fn quota_project<'a>(&'a self, caller: &'a Caller) -> Option<&'a QuotaProject> {
        self.quota_project
            .as_ref()
            .or(caller.credentials.quota_project.as_ref())
    }

    /// Drops an access token that Google has rejected.
    pub(crate) fn reject(&self, bearer: &Bearer, error: &Error) {
        // By value, because a metadata server may return the same token again.
        let is_rejected = |token: &AccessToken| token.secret == bearer.token.secret;
        bearer.identity.cache.invalidate(is_rejected, error);
    }

    /// A new ID token of the user whose credentials the operator has.
    pub(crate) async fn user_id_token(&self, priority: CallPriority<'_>) -> Result<UserIdToken, Error> {
        let loaded = self.current(CHECK_INTERVAL).await?;
        let Some(Credential::AuthorizedUser(user)) = &loaded.credential else {
            let message =
                "the source developer needs a user's credentials, and the operator's are of another type";
            let error = Error::new(Endpoint::Credentials, Reason::NotUserCredentials, message);
            return Err(error.with_remediation(
                "Give the operator the credentials of gcloud auth application-default login with --credentials-file, or use another source.",
            ));
        };
        let refreshed = oauth2::refresh(self.tokens.client(), priority, user)
            .await
            .map_err(|error| for_user(error).into_credentials_error())?;
        Ok(UserIdToken {
            token: refreshed.id_token()?,
            client_id: user.client_id.clone(),
        })
    }

    /// The credentials as they were at most `max_age` ago: loaded if they are not yet, and again if the file has changed.
    async fn current(&self, max_age: Duration) -> Result<Arc<LoadedCredential>, Error> {
        let current = lock(&self.current).clone();
        if let Some((checked, loaded)) = current
            && self.config.clock.boot().saturating_duration_since(checked) < max_age
        {
            return Ok(loaded);
        }
        let limit = self.config.timeout;
        timeout(limit, self.reload()).await.map_err(|_| {
            let seconds = limit.as_secs_f64();
            unavailable(&format!(
                "the credential file could not be read within {seconds} s"
            ))
        })?
    }

    async fn reload(&self) -> Result<Arc<LoadedCredential>, Error> {
        let mut state = self.state.lock().await;
        let now = self.config.clock.boot();
        let content = self.source.read().await;
        let file = match &content {
            Ok(Some(content)) => Some(Content::Present(sha256(content))),
            Ok(None) => Some(Content::Absent),
            // It may be readable again soon: not a change.
            Err(_) => None,
        };
        let subject = match &state.loaded {
            Some(loaded) => loaded.subject_identity(&self.config.clock).await,
            None => None,
        };
        let changed = (file.is_some() && file != state.file)
            || (content.is_ok() && subject.is_some() && subject != state.subject);
        if !changed {
            match (&state.loaded, &state.backoff) {
                (Some(loaded), _) => return Ok(self.set_current(now, loaded)),
                (None, Some((until, error))) if now < *until => return Err(error.clone()),
                _ => {}
            }
        }
        state.file = file.or(state.file.take());
        match content.and_then(|content| self.parse(content.as_deref().map(Vec::as_slice))) {
            Ok(loaded) => {
                // The first credentials are no change, unless earlier attempts to load them failed.
                if state.loaded.is_some() || state.failures > 0 {
                    self.changes.fetch_add(1, Ordering::Relaxed);
                }
                state.subject = loaded.subject_identity(&self.config.clock).await;
                let loaded = Arc::new(loaded);
                state.loaded = Some(Arc::clone(&loaded));
                (state.backoff, state.failures) = (None, 0);
                Ok(self.set_current(now, &loaded))
            }
            Err(error) => match &state.loaded {
                Some(loaded) => {
                    tracing::warn!(%error, "the credential file has changed and cannot be used; the previous one stays in use");
                    let current = self.set_current(now, loaded);
                    // Said once for each subject.
                    state.subject = subject.or(state.subject);
                    Ok(current)
                }
                None => {
                    state.backoff = Some((now + backoff_after(state.failures), error.clone()));
                    state.failures = state.failures.saturating_add(1);
                    Err(error)
                }
            },
        }
    }

    fn set_current(&self, now: BootTime, loaded: &Arc<LoadedCredential>) -> Arc<LoadedCredential> {
        *lock(&self.current) = Some((now, Arc::clone(loaded)));
        Arc::clone(loaded)
    }

    fn parse(&self, content: Option<&[u8]>) -> Result<LoadedCredential, Error> {
        let Some(content) = content else {
            return Ok(LoadedCredential::attached(Arc::clone(&self.changes)));
        };
        let file = CredentialFile::parse(content, &self.config).map_err(|error| {
            unavailable(&format!("the operator's credential file cannot be used: {error}"))
        })?;
        let changes = Arc::clone(&self.changes);
        Ok(LoadedCredential::from_file(file, &self.config.clock, changes))
    }
}

fn quota_project() -> Result<Option<QuotaProject>, ConfigError> {
    match std::env::var("GOOGLE_CLOUD_QUOTA_PROJECT").unwrap_or_default() {
        name if name.is_empty() => Ok(None),
        name => QuotaProject::parse(&name)
            .map(Some)
            .ok_or(ConfigError::QuotaProject),
    }
}

/// Explains that there is neither a credential file nor a metadata server.
fn explain_missing(error: Error) -> Error {
    match error.reason() {
        Reason::UpstreamUnreachable | Reason::UpstreamTimeout => error.with_remediation(
            "There is no credential file, and no metadata server answers. Mount a credential file and set \
             GOOGLE_APPLICATION_CREDENTIALS, or run the operator where there is a metadata server (GKE with Workload \
             Identity Federation, Compute Engine).",
        ),
        _ => error,
    }
}
