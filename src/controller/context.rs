//! The sum of the components. What needs two of them takes these two.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use kube::Client;

use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::clock::Clock;
use crate::controller::cache::foreign_secrets::ForeignSecrets;
use crate::controller::cache::{Cache, CacheLimits};
use crate::controller::issue::Issuer;
use crate::controller::issue::federation::{FederatedTokens, TokenSources};
use crate::controller::issue::write::SecretWriter;
use crate::controller::queue::permit::Permits;
use crate::google::Minter;
use crate::grants::store::GrantStore;
use crate::kubernetes::Connections;
use crate::kubernetes::events::EventRecorder;
use crate::metrics::Metrics;
use crate::request::SourceSettings;
use crate::shard::Shard;

/// How the controller works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Longest time for one reconcile.
    pub reconcile_timeout: Duration,
    /// Shortest time between two renewals of a request that its annotation asks for.
    pub min_renew_interval: SignedDuration,
    /// How many reconciles run at once. A reconcile that waits for Google does not count.
    pub concurrency: u16,
    /// How much memory requests and Secrets may take.
    pub cache_limits: CacheLimits,
    /// The requests that this operator is for.
    pub shard: Shard,
    /// The file from which grants are read besides the objects.
    pub grants_file: Option<std::path::PathBuf>,
    /// What sources of tokens may do.
    pub sources: SourceSettings,
}

/// What a reconcile uses.
pub struct Context {
    /// Wall time, monotonic time and boot time.
    pub clock: Clock,
    /// Client of the Kubernetes API, for all calls.
    pub client: Client,
    /// Connections of the Kubernetes API, for all watches.
    pub connections: Arc<Connections>,
    /// Client of Google's endpoints.
    pub minter: Minter,
    /// Requests, Secrets, and the state between reconciles.
    pub cache: Arc<Cache>,
    /// Secrets of others that block a request.
    pub foreign_secrets: Arc<ForeignSecrets>,
    /// The grants.
    pub grants: Arc<GrantStore>,
    /// Access tokens of federated ServiceAccounts.
    pub federated: Arc<FederatedTokens>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Writes events.
    pub events: Arc<EventRecorder>,
    /// As many permits as reconciles may run at once.
    pub permits: Arc<Permits>,
    /// Settings.
    pub settings: Settings,
}

impl Context {
    /// What writes tokens to Secrets, for a request with this status.
    pub(crate) fn issuer<'a>(&'a self, status: &'a IdTokenRequestStatus) -> Issuer<'a> {
        Issuer {
            sources: TokenSources {
                client: &self.client,
                minter: &self.minter,
                grants: &self.grants,
                federated: &self.federated,
                settings: &self.settings.sources,
                clock: &self.clock,
            },
            secrets: SecretWriter {
                client: &self.client,
                cache: &self.cache,
                foreign_secrets: &self.foreign_secrets,
                clock: &self.clock,
                recorded: status.secret.as_ref(),
            },
            cache: &self.cache,
            metrics: &self.metrics,
            events: &self.events,
        }
    }
}
