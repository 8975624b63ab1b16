//! What all endpoints share: the policy, the settings, the keys, and what was issued.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use crate::call_log::CallLog;
use crate::faults::Faults;
use crate::issuer_keys::KeyCache;
use crate::keys::{Jwk, SigningKey, random_text};
use crate::policy::Policy;
use crate::service_account::ServiceAccount;
use crate::tokens::{AccessTokens, IdentityTokenCache};

/// Settings that can change while the emulator runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) lifetime: Duration,
    pub(crate) access_token_lifetime: Duration,
    pub(crate) metadata_margin: Duration,
}

/// The emulator's state.
pub(crate) struct EmulatorState {
    pub(crate) url: String,
    pub(crate) key: SigningKey,
    pub(crate) certificate: String,
    policy: RwLock<Arc<Policy>>,
    settings: Mutex<Settings>,
    pub(crate) faults: Faults,
    pub(crate) calls: CallLog,
    pub(crate) access_tokens: AccessTokens,
    pub(crate) identity_tokens: IdentityTokenCache,
    pub(crate) issuer_keys: KeyCache,
    /// Public keys of key files made here, by the account's e-mail.
    account_keys: Mutex<HashMap<String, Vec<Jwk>>>,
    /// The session of EC2's metadata server that all clients share.
    pub(crate) ec2_session: String,
    /// How many ID tokens were minted.
    pub(crate) minted: AtomicU64,
    /// The certificate that the proxy's clients must trust, if there is a proxy.
    pub(crate) proxy_ca: OnceLock<String>,
}

impl EmulatorState {
    pub(crate) fn new(
        url: String,
        key: SigningKey,
        policy: Policy,
        settings: Settings,
    ) -> anyhow::Result<Self> {
        policy.validate()?;
        Ok(Self {
            url,
            certificate: key.certificate_pem()?,
            key,
            policy: RwLock::new(Arc::new(policy)),
            settings: Mutex::new(settings),
            faults: Faults::default(),
            calls: CallLog::default(),
            access_tokens: AccessTokens::default(),
            identity_tokens: IdentityTokenCache::default(),
            issuer_keys: KeyCache::default(),
            account_keys: Mutex::default(),
            ec2_session: random_text(32)?,
            minted: AtomicU64::new(0),
            proxy_ca: OnceLock::new(),
        })
    }

    pub(crate) fn policy(&self) -> Arc<Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_policy(&self, policy: Policy) -> anyhow::Result<()> {
        policy.validate()?;
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
        self.issuer_keys.clear();
        Ok(())
    }

    pub(crate) fn settings(&self) -> Settings {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Adds a public key to an account, besides those of the policy.
    pub(crate) fn add_account_key(&self, email: &str, key: Jwk) {
        let mut keys = self.account_keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.entry(email.to_owned()).or_default().push(key);
    }

    /// All public keys of an account: those of the policy and those of key files made here.
    pub(crate) fn account_keys(&self, account: &ServiceAccount) -> Vec<Jwk> {
        let generated = self.account_keys.lock().unwrap_or_else(PoisonError::into_inner);
        let configured = account.keys.iter().filter_map(|key| key.jwk().ok());
        configured
            .chain(generated.get(&account.email).into_iter().flatten().cloned())
            .collect()
    }

    /// Resets calls, counts and the number of minted tokens.
    pub(crate) fn reset_counts(&self) {
        self.calls.reset();
        self.minted.store(0, Ordering::SeqCst);
    }

    /// Clears the cached identity tokens, all issued access tokens, and the keys fetched from issuers.
    pub(crate) fn clear_caches(&self) {
        self.identity_tokens.clear();
        self.access_tokens.clear();
        self.issuer_keys.clear();
    }
}
