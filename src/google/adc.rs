//! The operator's own access token, by Application Default Credentials.
//!
//! The Google library does the talking. Around it: it is built late (the operator starts without credentials and says so),
//! from a file that was checked; every call has a limit; and what it cannot recover from by itself (a permanent error, a
//! hang, a panic of its task, a changed file) replaces it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_lc_rs::digest;
use google_cloud_auth::build_errors;
use google_cloud_auth::credentials::{
    AccessTokenCredentials, external_account, impersonated, mds, service_account, user_account,
};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Mutex, OnceCell};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use url::Url;
use zeroize::Zeroizing;

use super::adc_error;
use super::config::{ConfigError, DEFAULT_UNIVERSE, GoogleConfig};
use super::credential_file::{CredentialFile, Kind, MAX_FILE_BYTES};
use super::error::{Class, Endpoint, Error, Reason, chain};
use super::http::Http;
use super::principal::Principal;

/// The scope of the operator's access token: <https://cloud.google.com/iam/docs/reference/credentials/rest>.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// How often the credential file is read to see whether it changed.
const CHECK_EVERY: Duration = Duration::from_secs(3);

/// The shortest and longest pause before credentials that failed are built again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The operator's credentials.
pub(crate) struct Adc {
    config: GoogleConfig,
    http: Http,
    location: Location,
    metadata: Url,
    state: Mutex<State>,
    failures: AtomicU32,
}

/// An access token, with the credentials it came from.
pub(crate) struct Bearer {
    pub(crate) token: Zeroizing<String>,
    origin: Arc<Built>,
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
    current: Option<Arc<Built>>,
    seen: Option<Seen>,
    checked: Option<Instant>,
    pause: Option<(Instant, Error)>,
}

/// What a look at the file found.
#[derive(Clone, PartialEq, Eq)]
enum Seen {
    Absent,
    File([u8; 32]),
}

struct Built {
    credentials: AccessTokenCredentials,
    from_metadata: bool,
    principal: OnceCell<Option<Principal>>,
}

impl Adc {
    /// Decides where the credentials are; reads nothing but the environment.
    pub(crate) fn new(config: &GoogleConfig, http: Http) -> Result<Self, ConfigError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let location = match (
            &config.credentials_file,
            set("GOOGLE_APPLICATION_CREDENTIALS"),
            set("HOME"),
        ) {
            (Some(path), ..) => Location::File(path.clone()),
            (None, Some(path), _) => Location::File(path.into()),
            (None, None, Some(home)) => Location::WellKnown(
                PathBuf::from(home).join(".config/gcloud/application_default_credentials.json"),
            ),
            (None, None, None) => Location::Metadata,
        };
        let host = std::env::var("GCE_METADATA_HOST")
            .ok()
            .or_else(|| config.metadata_host.clone());
        let host = host.as_deref().unwrap_or("metadata.google.internal");
        let metadata = Url::parse(&format!("http://{host}/")).map_err(|_| ConfigError::NotBase {
            setting: "metadata server (GCE_METADATA_HOST)",
        })?;
        let (config, state, failures) = (config.clone(), Mutex::default(), AtomicU32::new(0));
        Ok(Self {
            config,
            http,
            location,
            metadata,
            state,
            failures,
        })
    }

    /// An access token with the scope `cloud-platform`; cached and renewed by the library.
    pub(crate) async fn bearer(&self) -> Result<Bearer, Error> {
        let origin = self.current().await?;
        // In a task of its own: when the library's refresh task has panicked, so does asking it.
        let mut task = JoinSet::new();
        let credentials = origin.credentials.clone();
        task.spawn(async move { credentials.access_token().await });
        let (error, is_dead) = match timeout(self.config.timeout, task.join_next()).await {
            Ok(Some(Ok(Ok(token)))) => {
                self.failures.store(0, Ordering::Relaxed);
                return Ok(Bearer {
                    token: Zeroizing::new(token.token),
                    origin,
                });
            }
            Ok(Some(Ok(Err(error)))) => {
                // The library tries on by itself after a passing error, and never again after another.
                (
                    adc_error::from_library(&error, origin.from_metadata),
                    !error.is_transient(),
                )
            }
            Ok(Some(Err(_)) | None) => (
                unavailable("the operator's credentials broke down and are set up anew")
                    .with_class(Class::Passing),
                true,
            ),
            Err(_) => {
                let seconds = self.config.timeout.as_secs_f64();
                let message = format!("the operator's credentials gave no access token within {seconds} s");
                (unavailable(&message).with_class(Class::Passing), true)
            }
        };
        if is_dead {
            self.discard(&origin, &error).await;
        }
        Err(error)
    }

    /// Drops the credentials a bearer came from, after Google has rejected it.
    pub(crate) async fn reject(&self, bearer: &Bearer, error: &Error) {
        self.discard(&bearer.origin, error).await;
    }

    /// Whose credentials they are; `None` where nothing tells.
    pub(crate) async fn principal(&self) -> Result<Option<Principal>, Error> {
        let built = self.current().await?;
        let principal = built
            .principal
            .get_or_try_init(|| self.metadata_principal())
            .await?;
        Ok(principal.clone())
    }

    async fn metadata_principal(&self) -> Result<Option<Principal>, Error> {
        let mut url = self.metadata.clone();
        url.set_path("computeMetadata/v1/instance/service-accounts/default/email");
        let request = self
            .http
            .client(&url)
            .get(url)
            .header("Metadata-Flavor", "Google");
        let answer = self.http.send(Endpoint::Metadata, request).await?;
        if answer.status.as_u16() == 404 {
            return Ok(None);
        }
        if !answer.status.is_success() {
            return Err(Error::from_answer(
                Endpoint::Metadata,
                answer.status,
                None,
                &answer.body,
            ));
        }
        if answer
            .headers
            .get("metadata-flavor")
            .is_none_or(|flavor| flavor != "Google")
        {
            let message = "what answers as metadata server is none: it sends no Metadata-Flavor header";
            return Err(Error::new(
                Endpoint::Metadata,
                Reason::UnexpectedResponse,
                message,
            ));
        }
        Ok(std::str::from_utf8(&answer.body)
            .ok()
            .and_then(Principal::from_metadata))
    }

    /// The credentials as of now: built if need be, and again if the file changed.
    async fn current(&self) -> Result<Arc<Built>, Error> {
        let seconds = self.config.timeout.as_secs_f64();
        timeout(self.config.timeout, self.refreshed())
            .await
            .map_err(|_| {
                unavailable(&format!(
                    "the credential file could not be read within {seconds} s"
                ))
            })?
    }

    async fn refreshed(&self) -> Result<Arc<Built>, Error> {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        let look = state
            .checked
            .is_none_or(|checked| now.duration_since(checked) >= CHECK_EVERY);
        if !look {
            match (&state.current, &state.pause) {
                (Some(built), _) => return Ok(Arc::clone(built)),
                (None, Some((until, error))) if now < *until => return Err(error.clone()),
                _ => {}
            }
        }
        state.checked = Some(now);
        let read = self.read().await;
        let seen = match &read {
            Ok(Some(content)) => Some(Seen::File(sha256(content))),
            Ok(None) => Some(Seen::Absent),
            Err(_) => None,
        };
        // A file that cannot be read at this moment says nothing new.
        let changed = seen.is_some() && seen != state.seen;
        if !changed {
            match (&state.current, &state.pause) {
                (Some(built), _) => return Ok(Arc::clone(built)),
                (None, Some((until, error))) if now < *until => return Err(error.clone()),
                _ => {}
            }
        }
        state.seen = seen.or(state.seen.take());
        match read.and_then(|content| self.build(content.as_deref().map(Vec::as_slice))) {
            Ok(built) => {
                let built = Arc::new(built);
                state.current = Some(Arc::clone(&built));
                state.pause = None;
                Ok(built)
            }
            Err(error) => match &state.current {
                Some(built) => {
                    tracing::warn!(%error, "the credential file changed and cannot be used; the former one stays in use");
                    Ok(Arc::clone(built))
                }
                None => {
                    state.pause = Some((now + self.next_pause(), error.clone()));
                    Err(error)
                }
            },
        }
    }

    async fn discard(&self, dead: &Arc<Built>, error: &Error) {
        let mut state = self.state.lock().await;
        if state
            .current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, dead))
        {
            state.current = None;
            state.pause = Some((Instant::now() + self.next_pause(), error.clone()));
        }
    }

    fn next_pause(&self) -> Duration {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        PAUSE.0.saturating_mul(1 << failures.min(16)).min(PAUSE.1)
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

    fn build(&self, content: Option<&[u8]>) -> Result<Built, Error> {
        // The library's clients panic where one cannot be built, for instance without any CA bundle.
        reqwest::Client::builder().build().map_err(|error| {
            unavailable(&format!(
                "no TLS client for the operator's credentials: {}",
                chain(&error)
            ))
        })?;
        let Some(content) = content else {
            let builder = mds::Builder::default()
                .with_scopes([SCOPE])
                .with_endpoint(self.metadata.as_str())
                .with_universe_domain(&self.config.universe_domain);
            let credentials = builder
                .build_access_token_credentials()
                .map_err(|error| not_built(&error))?;
            return Ok(Built {
                credentials,
                from_metadata: true,
                principal: OnceCell::new(),
            });
        };
        let file = CredentialFile::parse(content, &self.config).map_err(|error| {
            unavailable(&format!("the operator's credential file cannot be used: {error}"))
        })?;
        let principal = OnceCell::new_with(Some(file.principal.clone()));
        let credentials = self
            .library_credentials(file)
            .map_err(|error| not_built(&error))?;
        Ok(Built {
            credentials,
            from_metadata: false,
            principal,
        })
    }

    /// Hands the library the content that was checked, so that it does not read the file a second time.
    fn library_credentials(
        &self,
        file: CredentialFile,
    ) -> Result<AccessTokenCredentials, build_errors::Error> {
        let universe = Some(&self.config.universe_domain).filter(|universe| *universe != DEFAULT_UNIVERSE);
        match file.kind {
            Kind::AuthorizedUser => user_account::Builder::new(file.json)
                .with_scopes([SCOPE])
                .build_access_token_credentials(),
            Kind::ServiceAccount => {
                let scopes = service_account::AccessSpecifier::from_scopes([SCOPE]);
                let builder = service_account::Builder::new(file.json).with_access_specifier(scopes);
                universe
                    .into_iter()
                    .fold(builder, |b, u| b.with_universe_domain(u))
                    .build_access_token_credentials()
            }
            Kind::ImpersonatedServiceAccount => {
                let builder = impersonated::Builder::new(file.json).with_scopes([SCOPE]);
                universe
                    .into_iter()
                    .fold(builder, |b, u| b.with_universe_domain(u))
                    .build_access_token_credentials()
            }
            Kind::ExternalAccount => {
                let builder = external_account::Builder::new(file.json).with_scopes([SCOPE]);
                universe
                    .into_iter()
                    .fold(builder, |b, u| b.with_universe_domain(u))
                    .build_access_token_credentials()
            }
        }
    }
}

fn unavailable(message: &str) -> Error {
    Error::new(Endpoint::Credentials, Reason::CredentialsUnavailable, message)
}

fn not_built(error: &build_errors::Error) -> Error {
    unavailable(&format!(
        "the operator's credentials cannot be used: {}",
        chain(error)
    ))
}

fn sha256(content: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, content).as_ref());
    out
}
