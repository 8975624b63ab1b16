//! Whose the loaded credentials are. Each identity has an access token of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::Duration;

use tokio::sync::Mutex;

use super::file::{Credential, CredentialFile};
use super::token_cache::{TokenCache, token_cache};
use crate::clock::{BootTime, Clock};
use crate::google::endpoints::metadata_server::MetadataServer;
use crate::google::vocabulary::{Error, Principal, QuotaProject};
use crate::sync::lock;

/// Credentials.
pub(super) struct LoadedCredential {
    /// None means the metadata server.
    pub(super) credential: Option<Credential>,
    /// The project that the file names for quotas.
    pub(super) quota_project: Option<QuotaProject>,
    /// To read it does not wait for the metadata server.
    identity: SyncMutex<Option<KnownIdentity>>,
    /// Held during a call of the metadata server, so that all who wait share it.
    lookup: Mutex<()>,
    /// Counts the changes of the identity, of these credentials and those before.
    changes: Arc<AtomicU64>,
}

/// The identity of credentials.
struct KnownIdentity {
    identity: Arc<Identity>,
    /// Absent if a file says who it is: another file is other credentials.
    read_at: Option<BootTime>,
}

/// An identity with its access token.
pub(super) struct Identity {
    /// `None` if nothing says who it is.
    pub(super) principal: Option<Principal>,
    /// Its access token.
    pub(super) cache: TokenCache,
}

impl Identity {
    fn new(principal: Option<Principal>, clock: &Clock) -> Arc<Self> {
        Arc::new(Self {
            principal,
            cache: token_cache(clock.clone()),
        })
    }
}

impl LoadedCredential {
    /// Those of the metadata server.
    pub(super) fn attached(changes: Arc<AtomicU64>) -> Self {
        Self {
            changes,
            credential: None,
            quota_project: None,
            identity: SyncMutex::default(),
            lookup: Mutex::default(),
        }
    }

    /// Those of a file.
    pub(super) fn from_file(file: CredentialFile, clock: &Clock, changes: Arc<AtomicU64>) -> Self {
        let known = KnownIdentity {
            identity: Identity::new(file.principal, clock),
            read_at: None,
        };
        Self {
            changes,
            credential: Some(file.credential),
            quota_project: file.quota_project,
            identity: SyncMutex::new(Some(known)),
            lookup: Mutex::default(),
        }
    }

    /// Whom the subject token is for, as [`ExternalAccount::subject_identity`](super::external_account::ExternalAccount::subject_identity).
    pub(super) async fn subject_identity(&self, clock: &Clock) -> Option<[u8; 32]> {
        let account = self.credential.as_ref()?.external_account()?;
        account.subject_identity(clock.now()).await
    }

    /// The identity, as it was at most `max_age` ago.
    pub(super) async fn identify(
        &self,
        clock: &Clock,
        metadata: &MetadataServer,
        max_age: Duration,
    ) -> Result<Arc<Identity>, Error> {
        let recent = || {
            let now = clock.boot();
            let is_recent = |at: BootTime| now.saturating_duration_since(at) < max_age;
            let known = lock(&self.identity);
            let known = known
                .as_ref()
                .filter(|known| known.read_at.is_none_or(is_recent))?;
            Some(Arc::clone(&known.identity))
        };
        if let Some(identity) = recent() {
            return Ok(identity);
        }
        let _lookup = self.lookup.lock().await;
        if let Some(identity) = recent() {
            return Ok(identity);
        }
        let now = clock.boot();
        let principal = metadata.principal().await?;
        let mut known = lock(&self.identity);
        let former = known.as_ref().map(|known| &known.identity);
        let identity = match former {
            Some(former) if former.principal == principal => Arc::clone(former),
            former => {
                if former.is_some() {
                    self.changes.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(
                        "the operator's identity has changed: the former one's access token is dropped"
                    );
                }
                Identity::new(principal, clock)
            }
        };
        *known = Some(KnownIdentity {
            identity: Arc::clone(&identity),
            read_at: Some(now),
        });
        Ok(identity)
    }
}
