//! Starts, controls and stops an emulator in this process.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::call_log::{CallRecord, Endpoint};
use crate::faults::Fault;
use crate::keys::SigningKey;
use crate::policy::Policy;
use crate::proxy::{self, Proxy};
use crate::proxy_ca::ProxyCa;
use crate::server;
use crate::state::{EmulatorState, Settings};

/// How an emulator starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens. Default `127.0.0.1:0`, a free port.
    pub listen: SocketAddr,
    /// The base URL, for clients that reach the emulator by another address. Absent: `http://` and the listener's address.
    pub url: Option<String>,
    /// The lifetime of ID tokens in whole seconds. Default one hour, as Google's have.
    pub lifetime: Duration,
    /// The lifetime of access tokens in whole seconds. Default one hour.
    pub access_token_lifetime: Duration,
    /// How long before its expiration the metadata server stops returning a cached identity token. Default 5 minutes.
    pub metadata_margin: Duration,
    /// The PEM private key (RSA) that signs ID tokens, for keys that outlive the process. Absent: a new key.
    pub signing_key_pem: Option<String>,
    /// Where an HTTP proxy listens that responds as Google's hosts, for clients whose endpoints are fixed. Its clients must trust
    /// [`EmulatorHandle::proxy_ca_pem`]. Absent: no proxy.
    pub proxy: Option<SocketAddr>,
}

impl Options {
    /// The default, with a proxy on a free port of the loopback interface.
    #[must_use]
    pub fn with_proxy() -> Self {
        Self {
            proxy: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            ..Self::default()
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            url: None,
            lifetime: Duration::from_secs(3600),
            access_token_lifetime: Duration::from_secs(3600),
            metadata_margin: Duration::from_secs(300),
            signing_key_pem: None,
            proxy: None,
        }
    }
}

/// A running emulator. Dropping it stops it.
pub struct EmulatorHandle {
    state: Arc<EmulatorState>,
    address: SocketAddr,
    /// The proxy's URL and the certificate of its CA.
    proxy: Option<(String, String)>,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for EmulatorHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmulatorHandle")
            .field("url", &self.state.url)
            .finish_non_exhaustive()
    }
}

impl EmulatorHandle {
    /// Starts an emulator on the current tokio runtime. It accepts calls once this returns.
    ///
    /// # Errors
    /// When the policy or the signing key is invalid, or an address is not available.
    pub async fn start(policy: Policy, options: Options) -> anyhow::Result<Self> {
        let listener = listen(options.listen).await?;
        let address = listener.local_addr()?;
        let proxy_listener = match options.proxy {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let url = options.url.unwrap_or_else(|| format!("http://{address}"));
        let settings = Settings {
            lifetime: options.lifetime,
            access_token_lifetime: options.access_token_lifetime,
            metadata_margin: options.metadata_margin,
        };
        let pem = options.signing_key_pem;
        let state = tokio::task::spawn_blocking(move || {
            let key = match pem {
                Some(pem) => SigningKey::from_pem(&pem).context("the signing key")?,
                None => SigningKey::generate()?,
            };
            EmulatorState::new(url.trim_end_matches('/').to_owned(), key, policy, settings)
        })
        .await??;
        let state = Arc::new(state);
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve(listener, state.clone()));
        let mut proxy = None;
        if let Some(listener) = proxy_listener {
            let address = listener.local_addr()?;
            let ca = ProxyCa::new()?;
            let certificate = ca.certificate().to_owned();
            state.proxy_ca.get_or_init(|| certificate.clone());
            proxy = Some((format!("http://{address}"), certificate));
            let state = state.clone();
            tasks.spawn(proxy::serve(listener, Arc::new(Proxy { state, ca })));
        }
        Ok(Self {
            state,
            address,
            proxy,
            tasks,
        })
    }

    /// The base URL of all endpoints, `http://127.0.0.1:PORT`, without a trailing slash.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.state.url
    }

    /// The address it listens on, also the value of `GCE_METADATA_HOST`.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The proxy's URL, for `HTTPS_PROXY`, if there is one.
    #[must_use]
    pub fn proxy_url(&self) -> Option<&str> {
        self.proxy.as_ref().map(|(url, _)| url.as_str())
    }

    /// The certificate (PEM) that the proxy's clients must trust, if there is a proxy.
    #[must_use]
    pub fn proxy_ca_pem(&self) -> Option<&str> {
        self.proxy.as_ref().map(|(_, pem)| pem.as_str())
    }

    /// Closes all connections and frees the ports before it returns.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Sets the lifetime of ID tokens minted from now on. The metadata server's cached tokens stay as they are; see
    /// [`EmulatorHandle::clear_caches`].
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.state
            .change_settings(|settings| settings.lifetime = lifetime);
    }

    /// Sets the lifetime of access tokens issued from now on.
    pub fn set_access_token_lifetime(&self, lifetime: Duration) {
        self.state
            .change_settings(|settings| settings.access_token_lifetime = lifetime);
    }

    /// Sets how long before its expiration the metadata server stops returning a cached identity token.
    pub fn set_metadata_margin(&self, margin: Duration) {
        self.state
            .change_settings(|settings| settings.metadata_margin = margin);
    }

    /// Replaces the policy. Tokens that were issued before stay valid.
    ///
    /// # Errors
    /// When [`Policy::validate`] rejects it. The old policy stays.
    pub fn set_policy(&self, policy: Policy) -> anyhow::Result<()> {
        self.state.set_policy(policy)
    }

    /// The current policy.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy::clone(&self.state.policy())
    }

    /// Injects a fault.
    ///
    /// # Errors
    /// When [`Fault::validate`] rejects it.
    pub fn fault(&self, fault: Fault) -> anyhow::Result<()> {
        fault.validate()?;
        self.state.faults.inject(fault);
        Ok(())
    }

    /// Clears all faults. Calls that already hang stay so.
    pub fn clear_faults(&self) {
        self.state.faults.clear();
    }

    /// The injected faults that still apply.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.state.faults.pending()
    }

    /// How many ID tokens all endpoints minted. A cached token of the metadata server counts once.
    #[must_use]
    pub fn mint_count(&self) -> u64 {
        self.state.minted.load(Ordering::SeqCst)
    }

    /// How many calls each endpoint received. Calls to `/_emulator/` do not count.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Endpoint, u64> {
        self.state.calls.counts()
    }

    /// How many calls one endpoint received.
    #[must_use]
    pub fn count(&self, endpoint: Endpoint) -> u64 {
        self.counts().get(&endpoint).copied().unwrap_or(0)
    }

    /// The last 200,000 calls, oldest first, with those in flight.
    #[must_use]
    pub fn calls(&self) -> Vec<CallRecord> {
        self.state.calls.calls()
    }

    /// Resets calls and counts, [`EmulatorHandle::mint_count`] included.
    pub fn reset_counts(&self) {
        self.state.reset_counts();
    }

    /// Clears the cached identity tokens, all issued access tokens, and the keys fetched from issuers.
    pub fn clear_caches(&self) {
        self.state.clear_caches();
    }

    /// Verifies an ID token's signature by this emulator's key, its issuer and its expiration. Returns its claims.
    ///
    /// # Errors
    /// When the token is invalid. The error has the reason, never the token.
    pub fn verify(&self, token: &str) -> anyhow::Result<Value> {
        self.state.verify(token)
    }

    /// The public signing key, as `/oauth2/v3/certs` publishes it.
    #[must_use]
    pub fn signing_jwk(&self) -> crate::keys::Jwk {
        self.state.key.jwk()
    }

    /// Generates a key for a service account of the policy. Returns the key file, whose `token_uri` is this emulator. Blocks while the
    /// RSA key is generated.
    ///
    /// # Errors
    /// When the policy has no such account.
    pub fn service_account_key(&self, email: &str) -> anyhow::Result<Value> {
        self.state.service_account_key(email)
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: choose another address or port"))
}
