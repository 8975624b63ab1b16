//! The operator's own access token, by Application Default Credentials: <https://google.aip.dev/auth/4110>.
//!
//! The operator starts without credentials and says so. A credential file is read again every few seconds: what is put in its place,
//! by a rename, a new symbolic link or in place, is used from then on.

use std::path::PathBuf;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::fetch::{PrincipalTokens, for_user};
use super::file::{Credential, CredentialFile, MAX_FILE_BYTES};
use super::token_cache::{TokenCache, backoff_after, fetched, token_cache};
use crate::google::endpoints::metadata_server::MetadataServer;
use crate::google::endpoints::oauth2 as oauth;
use crate::google::transport::endpoint_client::Observer;
use crate::google::transport::http::Http;
use crate::google::transport::limiter::EndpointLoad;
use crate::google::vocabulary::{
    AccessToken, CallPriority, ConfigError, Endpoint, Error, ErrorClass, GoogleConfig, Principal, Reason,
};
use crate::token::IdToken;

/// How often the credential file is read to see whether it changed.
const CHECK_EVERY: Duration = Duration::from_secs(3);

/// How long the metadata server's word on whose credentials they are is believed: GKE follows an annotation.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// The operator's credentials.
pub(crate) struct Adc {
    config: GoogleConfig,
    location: Location,
    tokens: PrincipalTokens,
    state: Mutex<State>,
    /// The credentials in use and when they were last compared with the file: read without waiting for a slow disk.
    shown: SyncMutex<Option<(Instant, Arc<Loaded>)>>,
}

/// An access token, with the credentials it came from.
pub(crate) struct Bearer {
    token: Arc<AccessToken>,
    origin: Arc<Loaded>,
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
enum Location {
    /// A file that must be there.
    File(PathBuf),
    /// gcloud's file if it is there, else the metadata server.
    WellKnown(PathBuf),
    /// The metadata server.
    Metadata,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Loaded>>,
    seen: Option<Seen>,
    failures: u32,
    pause: Option<(Instant, Error)>,
}

/// What a look at the file found.
#[derive(Clone, PartialEq, Eq)]
enum Seen {
    Absent,
    File([u8; 32]),
}

/// Credentials with their access token.
struct Loaded {
    /// None is the metadata server.
    credential: Option<Credential>,
    principal: Mutex<Option<Known>>,
    cache: TokenCache,
}

/// Whose credentials they are, and until when that is believed; for ever where a file says so.
struct Known {
    principal: Option<Principal>,
    until: Option<Instant>,
}

impl Bearer {
    pub(crate) fn expose(&self) -> &str {
        &self.token.secret
    }
}

impl Adc {
    /// Decides where the credentials are; reads nothing but the environment.
    pub(crate) fn new(config: &GoogleConfig, http: Http) -> Result<Self, ConfigError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let gcloud = set("CLOUDSDK_CONFIG")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".config/gcloud")));
        let location = match (
            &config.credentials_file,
            set("GOOGLE_APPLICATION_CREDENTIALS"),
            gcloud,
        ) {
            (Some(path), ..) => Location::File(path.clone()),
            (None, Some(path), _) => Location::File(path.into()),
            (None, None, Some(gcloud)) => {
                Location::WellKnown(gcloud.join("application_default_credentials.json"))
            }
            (None, None, None) => Location::Metadata,
        };
        Ok(Self {
            config: config.clone(),
            location,
            tokens: PrincipalTokens::new(config, http)?,
            state: Mutex::default(),
            shown: SyncMutex::default(),
        })
    }

    pub(crate) fn set_observer(&mut self, observer: Observer) {
        self.tokens.set_observer(observer);
    }

    pub(crate) fn upstream_load(&self) -> EndpointLoad {
        self.tokens.upstream().load()
    }

    /// An access token with the scope `cloud-platform`.
    pub(crate) async fn bearer(&self, metadata: &MetadataServer) -> Result<Bearer, Error> {
        let origin = self.current().await?;
        let fetch = || async {
            match &origin.credential {
                Some(credential) => self.tokens.fetch(credential).await,
                None => metadata.access_token().await.map_err(|error| self.no_file(error)),
            }
            .map(fetched)
            .map_err(Error::as_credentials_error)
        };
        let token = origin.cache.get(fetch).await?;
        Ok(Bearer { token, origin })
    }

    /// Drops an access token that Google has rejected.
    pub(crate) fn reject(&self, bearer: &Bearer, error: &Error) {
        // A metadata server may give the same token again.
        let is_rejected = |token: &AccessToken| token.secret == bearer.token.secret;
        bearer.origin.cache.reject(is_rejected, error);
    }

    /// Whose credentials they are; `None` where nothing tells.
    pub(crate) async fn principal(&self, metadata: &MetadataServer) -> Result<Option<Principal>, Error> {
        let loaded = self.current().await?;
        let mut known = loaded.principal.lock().await;
        let now = Instant::now();
        if let Some(known) = known.as_ref()
            && known.until.is_none_or(|until| now < until)
        {
            return Ok(known.principal.clone());
        }
        let principal = metadata.principal().await?;
        *known = Some(Known {
            principal: principal.clone(),
            until: Some(now + ASK_EVERY),
        });
        Ok(principal)
    }

    /// A new ID token of the user whose credentials they are.
    pub(crate) async fn user_id_token(&self, priority: CallPriority<'_>) -> Result<UserIdToken, Error> {
        let loaded = self.current().await?;
        let Some(Credential::AuthorizedUser(user)) = &loaded.credential else {
            let message = "the operator's credentials are not those of a user, of which alone the source developer gives tokens";
            let error = Error::new(Endpoint::Credentials, Reason::NotUserCredentials, message);
            return Err(error.with_remediation(
                "Give the operator those of gcloud auth application-default login by --credentials-file, or use another source.",
            ));
        };
        let refreshed = oauth::refresh(self.tokens.upstream(), priority, user)
            .await
            .map_err(|error| for_user(error).as_credentials_error())?;
        Ok(UserIdToken {
            token: refreshed.id_token()?,
            client_id: user.client_id.clone(),
        })
    }

    /// Says that the file was looked for, too.
    fn no_file(&self, error: Error) -> Error {
        let unreachable = matches!(
            error.reason(),
            Reason::UpstreamUnreachable | Reason::UpstreamTimeout
        );
        if !unreachable {
            return error;
        }
        error.with_remediation(
            "There is no credential file, and no metadata server answers. Mount a credential file and set \
             GOOGLE_APPLICATION_CREDENTIALS, or run the operator where there is a metadata server (GKE with Workload \
             Identity Federation, Compute Engine).",
        )
    }

    /// The credentials as of now: loaded if need be, and again if the file changed.
    async fn current(&self) -> Result<Arc<Loaded>, Error> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((checked, loaded)) = shown
            && checked.elapsed() < CHECK_EVERY
        {
            return Ok(loaded);
        }
        let seconds = self.config.timeout.as_secs_f64();
        timeout(self.config.timeout, self.looked_up())
            .await
            .map_err(|_| {
                unavailable(&format!(
                    "the credential file could not be read within {seconds} s"
                ))
            })?
    }

    async fn looked_up(&self) -> Result<Arc<Loaded>, Error> {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        let content = self.read().await;
        let seen = match &content {
            Ok(Some(content)) => Some(Seen::File(sha256(content))),
            Ok(None) => Some(Seen::Absent),
            Err(_) => None,
        };
        // A file that cannot be read at this moment says nothing new.
        let changed = seen.is_some() && seen != state.seen;
        if !changed {
            match (&state.current, &state.pause) {
                (Some(loaded), _) => return Ok(self.show(now, loaded)),
                (None, Some((until, error))) if now < *until => return Err(error.clone()),
                _ => {}
            }
        }
        state.seen = seen.or(state.seen.take());
        match content.and_then(|content| self.load(content.as_deref().map(Vec::as_slice))) {
            Ok(loaded) => {
                let loaded = Arc::new(loaded);
                state.current = Some(Arc::clone(&loaded));
                (state.pause, state.failures) = (None, 0);
                Ok(self.show(now, &loaded))
            }
            Err(error) => match &state.current {
                Some(loaded) => {
                    tracing::warn!(%error, "the credential file changed and cannot be used; the former one stays in use");
                    Ok(self.show(now, loaded))
                }
                None => {
                    state.pause = Some((now + backoff_after(state.failures), error.clone()));
                    state.failures = state.failures.saturating_add(1);
                    Err(error)
                }
            },
        }
    }

    fn show(&self, now: Instant, loaded: &Arc<Loaded>) -> Arc<Loaded> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Arc::clone(loaded)));
        Arc::clone(loaded)
    }

    /// The content of the credential file; `None` when the metadata server is to be asked.
    async fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let (path, required) = match &self.location {
            Location::File(path) => (path, true),
            Location::WellKnown(path) => (path, false),
            Location::Metadata => return Ok(None),
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

    fn load(&self, content: Option<&[u8]>) -> Result<Loaded, Error> {
        let Some(content) = content else {
            return Ok(Loaded {
                credential: None,
                principal: Mutex::default(),
                cache: token_cache(),
            });
        };
        let file = CredentialFile::parse(content, &self.config).map_err(|error| {
            unavailable(&format!("the operator's credential file cannot be used: {error}"))
        })?;
        Ok(Loaded {
            credential: Some(file.credential),
            principal: Mutex::new(Some(Known {
                principal: file.principal,
                until: None,
            })),
            cache: token_cache(),
        })
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
