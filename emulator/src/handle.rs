//! Starting, controlling and stopping an emulator in this process.

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
    /// The address in [`EmulatorHandle::url`]; `http://` and the listener's where absent.
    pub url: Option<String>,
    /// How long ID tokens live. Default one hour, as Google's do. Whole seconds count.
    pub lifetime: Duration,
    /// How long access tokens live. Default one hour.
    pub access_token_lifetime: Duration,
    /// How long before its end the metadata server stops serving an identity token again. Default 5 minutes.
    pub metadata_margin: Duration,
    /// A PEM private key (RSA) to sign with, for keys that outlive the process; a new one where absent.
    pub signing_key_pem: Option<String>,
    /// Where an HTTP proxy listens that answers as Google's hosts, for clients whose endpoints are fixed; none where
    /// absent. Its clients must trust [`EmulatorHandle::proxy_ca_pem`].
    pub proxy: Option<SocketAddr>,
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
    // Dropping it ends them.
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
    /// Starts an emulator on the current tokio runtime. It answers as soon as this returns.
    ///
    /// # Errors
    /// When the policy or the signing key is refused, or the address cannot be listened on.
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

    /// The base URL of all endpoints, `http://127.0.0.1:PORT`, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.state.url
    }

    /// Where it listens; `HOST:PORT` is what `GCE_METADATA_HOST` takes.
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

    /// Ends all connections and frees the ports before it returns.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Sets how long ID tokens minted from now on live. What the metadata server serves again stays as it is; see
    /// [`EmulatorHandle::clear_caches`].
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.state
            .change_settings(|settings| settings.lifetime = lifetime);
    }

    /// Sets how long access tokens issued from now on live.
    pub fn set_access_token_lifetime(&self, lifetime: Duration) {
        self.state
            .change_settings(|settings| settings.access_token_lifetime = lifetime);
    }

    /// Sets how long before its end the metadata server stops serving an identity token again.
    pub fn set_metadata_margin(&self, margin: Duration) {
        self.state
            .change_settings(|settings| settings.metadata_margin = margin);
    }

    /// Replaces the policy. Tokens issued before stay valid.
    ///
    /// # Errors
    /// When [`Policy::validate`] refuses it; the old one stays.
    pub fn set_policy(&self, policy: Policy) -> anyhow::Result<()> {
        self.state.set_policy(policy)
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy::clone(&self.state.policy())
    }

    /// Orders a fault.
    ///
    /// # Errors
    /// When [`Fault::validate`] refuses it.
    pub fn fault(&self, fault: Fault) -> anyhow::Result<()> {
        fault.validate()?;
        self.state.faults.order(fault);
        Ok(())
    }

    /// Clears all faults. Calls that already hang go on hanging.
    pub fn clear_faults(&self) {
        self.state.faults.clear();
    }

    /// The faults ordered and not used up.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.state.faults.pending()
    }

    /// How many ID tokens were minted, by any endpoint. A token that the metadata server serves again counts once.
    #[must_use]
    pub fn mint_count(&self) -> u64 {
        self.state.minted.load(Ordering::SeqCst)
    }

    /// How many calls each endpoint had. Control calls do not count.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Endpoint, u64> {
        self.state.calls.counts()
    }

    /// How many calls one endpoint had.
    #[must_use]
    pub fn count(&self, endpoint: Endpoint) -> u64 {
        self.counts().get(&endpoint).copied().unwrap_or(0)
    }

    /// The calls, oldest first; the last 200,000 are kept. A call is listed from its arrival on.
    #[must_use]
    pub fn calls(&self) -> Vec<CallRecord> {
        self.state.calls.calls()
    }

    /// Forgets calls and counts, [`EmulatorHandle::mint_count`] among them.
    pub fn reset_counts(&self) {
        self.state.reset_counts();
    }

    /// Forgets the identity tokens to serve again, all access tokens issued, and the keys fetched from issuers.
    pub fn clear_caches(&self) {
        self.state.metadata_cache.clear();
        self.state.access_tokens.clear();
        self.state.issuer_keys.clear();
    }

    /// Checks an ID token's signature, issuer and expiry against this emulator's key, and returns its claims.
    ///
    /// # Errors
    /// When the token does not hold; says why, never the token.
    pub fn verify(&self, token: &str) -> anyhow::Result<Value> {
        self.state.verify(token)
    }

    /// The public signing key, as `/oauth2/v3/certs` publishes it.
    #[must_use]
    pub fn signing_jwk(&self) -> crate::keys::Jwk {
        self.state.key.jwk()
    }

    /// Makes a new key for a service account of the policy, and returns its key file, whose `token_uri` is this
    /// emulator. Takes a moment, as RSA keys do.
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
