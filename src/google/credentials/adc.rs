//! The operator's own access token, by Application Default Credentials: <https://google.aip.dev/auth/4110>.
//!
//! The operator starts without credentials, and reports that. A credential file is read again every few seconds, so that a new content is
//! used, whether it comes by a rename, a new symbolic link or a write in place.

use std::path::PathBuf;
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::fetch::{TokenFetcher, for_user};
use super::file::{Credential, CredentialFile, MAX_FILE_BYTES};
use super::token_cache::{TokenCache, backoff_after, fetched, token_cache};
use crate::google::endpoints::metadata_server::MetadataServer;
use crate::google::endpoints::oauth2;
use crate::google::transport::endpoint_client::Observer;
use crate::google::transport::http::Http;
use crate::google::transport::limiter::EndpointLoad;
use crate::google::vocabulary::{
    AccessToken, CallPriority, ConfigError, Endpoint, Error, ErrorClass, GoogleConfig, Principal, Reason,
};
use crate::sync::lock;
use crate::token::IdToken;

/// How often the credential file is compared with the loaded credentials.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// How long the metadata server's principal is cached: GKE follows an annotation that can change.
const PRINCIPAL_TTL: Duration = Duration::from_secs(60);

/// The operator's credentials.
pub(crate) struct Adc {
    config: GoogleConfig,
    source: Source,
    tokens: TokenFetcher,
    state: Mutex<State>,
    /// The current credentials, and when they were last compared with the file. To read them does not wait for a slow disk.
    current: SyncMutex<Option<(Instant, Arc<LoadedCredential>)>>,
}

/// An access token, and the credentials that it comes from.
pub(crate) struct Bearer {
    token: Arc<AccessToken>,
    origin: Arc<LoadedCredential>,
}

/// An ID token of a user, and the OAuth client that is its audience.
#[derive(Debug)]
pub struct UserIdToken {
    /// The token.
    pub token: IdToken,
    /// The OAuth client of the user's credentials.
    pub client_id: String,
}

/// Where the credentials are.
enum Source {
    /// A file that must exist.
    File(PathBuf),
    /// gcloud's file if it exists, else the metadata server.
    WellKnown(PathBuf),
    /// The metadata server.
    Metadata,
}

#[derive(Default)]
struct State {
    loaded: Option<Arc<LoadedCredential>>,
    file: Option<FileState>,
    failures: u32,
    /// Until when no new attempt is made, and the error of the last one.
    backoff: Option<(Instant, Error)>,
}

/// The file when it was last read.
#[derive(Clone, PartialEq, Eq)]
enum FileState {
    Absent,
    /// The SHA-256 of its content.
    Present([u8; 32]),
}

/// Credentials with their access token.
struct LoadedCredential {
    /// None means the metadata server.
    credential: Option<Credential>,
    principal: Mutex<Option<CachedPrincipal>>,
    cache: TokenCache,
}

/// The principal of credentials.
struct CachedPrincipal {
    principal: Option<Principal>,
    /// Absent if it comes from a file: then it does not change.
    expires_at: Option<Instant>,
}

impl Bearer {
    pub(crate) fn expose(&self) -> &str {
        &self.token.secret
    }
}

impl Adc {
    /// Decides where the credentials are; reads only the environment.
    pub(crate) fn new(config: &GoogleConfig, http: Http) -> Result<Self, ConfigError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let gcloud = set("CLOUDSDK_CONFIG")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".config/gcloud")));
        let source = match (
            &config.credentials_file,
            set("GOOGLE_APPLICATION_CREDENTIALS"),
            gcloud,
        ) {
            (Some(path), ..) => Source::File(path.clone()),
            (None, Some(path), _) => Source::File(path.into()),
            (None, None, Some(gcloud)) => {
                Source::WellKnown(gcloud.join("application_default_credentials.json"))
            }
            (None, None, None) => Source::Metadata,
        };
        Ok(Self {
            config: config.clone(),
            source,
            tokens: TokenFetcher::new(config, http)?,
            state: Mutex::default(),
            current: SyncMutex::default(),
        })
    }

    pub(crate) fn set_observer(&mut self, observer: Observer) {
        self.tokens.set_observer(observer);
    }

    pub(crate) fn load(&self) -> EndpointLoad {
        self.tokens.client().load()
    }

    /// An access token with the scope `cloud-platform`.
    pub(crate) async fn bearer(&self, metadata: &MetadataServer) -> Result<Bearer, Error> {
        let origin = self.current().await?;
        let fetch = || async {
            match &origin.credential {
                Some(credential) => self.tokens.fetch(credential).await,
                None => metadata.access_token().await.map_err(explain_missing),
            }
            .map(fetched)
            .map_err(Error::into_credentials_error)
        };
        let token = origin.cache.get(fetch).await?;
        Ok(Bearer { token, origin })
    }

    /// Drops an access token that Google has rejected.
    pub(crate) fn reject(&self, bearer: &Bearer, error: &Error) {
        // By value, because a metadata server may return the same token again.
        let is_rejected = |token: &AccessToken| token.secret == bearer.token.secret;
        bearer.origin.cache.reject(is_rejected, error);
    }

    /// The principal of the credentials; `None` if nothing says who it is.
    pub(crate) async fn principal(&self, metadata: &MetadataServer) -> Result<Option<Principal>, Error> {
        let loaded = self.current().await?;
        let mut cached = loaded.principal.lock().await;
        let now = self.config.clock.monotonic();
        if let Some(cached) = cached.as_ref()
            && cached.expires_at.is_none_or(|at| now < at)
        {
            return Ok(cached.principal.clone());
        }
        let principal = metadata.principal().await?;
        *cached = Some(CachedPrincipal {
            principal: principal.clone(),
            expires_at: Some(now + PRINCIPAL_TTL),
        });
        Ok(principal)
    }

    /// A new ID token of the user whose credentials the operator has.
    pub(crate) async fn user_id_token(&self, priority: CallPriority<'_>) -> Result<UserIdToken, Error> {
        let loaded = self.current().await?;
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

    /// The current credentials: loaded if they are not yet, and again if the file has changed.
    async fn current(&self) -> Result<Arc<LoadedCredential>, Error> {
        let current = lock(&self.current).clone();
        if let Some((checked, loaded)) = current
            && self.config.clock.monotonic().saturating_duration_since(checked) < CHECK_INTERVAL
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
        let now = self.config.clock.monotonic();
        let content = self.read().await;
        let file = match &content {
            Ok(Some(content)) => Some(FileState::Present(sha256(content))),
            Ok(None) => Some(FileState::Absent),
            // It may be readable again soon: not a change.
            Err(_) => None,
        };
        let changed = file.is_some() && file != state.file;
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
                let loaded = Arc::new(loaded);
                state.loaded = Some(Arc::clone(&loaded));
                (state.backoff, state.failures) = (None, 0);
                Ok(self.set_current(now, &loaded))
            }
            Err(error) => match &state.loaded {
                Some(loaded) => {
                    tracing::warn!(%error, "the credential file has changed and cannot be used; the previous one stays in use");
                    Ok(self.set_current(now, loaded))
                }
                None => {
                    state.backoff = Some((now + backoff_after(state.failures), error.clone()));
                    state.failures = state.failures.saturating_add(1);
                    Err(error)
                }
            },
        }
    }

    fn set_current(&self, now: Instant, loaded: &Arc<LoadedCredential>) -> Arc<LoadedCredential> {
        *lock(&self.current) = Some((now, Arc::clone(loaded)));
        Arc::clone(loaded)
    }

    /// The content of the credential file; `None` if the credentials are the metadata server's.
    async fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let (path, required) = match &self.source {
            Source::File(path) => (path, true),
            Source::WellKnown(path) => (path, false),
            Source::Metadata => return Ok(None),
        };
        let unreadable = |error: std::io::Error| {
            unavailable(&format!(
                "the credential file {} cannot be read: {error}",
                path.display()
            ))
        };
        let file = match tokio::fs::File::open(path).await {
            Ok(file) => file,
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        let mut content = Zeroizing::new(Vec::with_capacity(8 * 1024));
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut content)
            .await
            .map_err(unreadable)?;
        Ok(Some(content))
    }

    fn parse(&self, content: Option<&[u8]>) -> Result<LoadedCredential, Error> {
        let cache = token_cache(self.config.clock.clone());
        let Some(content) = content else {
            return Ok(LoadedCredential {
                credential: None,
                principal: Mutex::default(),
                cache,
            });
        };
        let file = CredentialFile::parse(content, &self.config).map_err(|error| {
            unavailable(&format!("the operator's credential file cannot be used: {error}"))
        })?;
        Ok(LoadedCredential {
            credential: Some(file.credential),
            principal: Mutex::new(Some(CachedPrincipal {
                principal: file.principal,
                expires_at: None,
            })),
            cache,
        })
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

fn unavailable(message: &str) -> Error {
    Error::new(Endpoint::Credentials, Reason::CredentialsUnavailable, message)
        .with_class(ErrorClass::Rejected)
}

fn sha256(content: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, content).as_ref());
    out
}
