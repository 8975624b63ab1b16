//! Who holds a token, and the tokens that were issued and can still be used.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::clock::now;
use crate::keys::random_text;

/// The scope that opens all of Google Cloud.
pub(crate) const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
/// The scope of IAM and IAM Credentials.
pub(crate) const IAM: &str = "https://www.googleapis.com/auth/iam";

/// Who holds an access token, as IAM policies name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    /// `serviceAccount:…`, `user:…` or `principal://…`.
    pub(crate) name: String,
    /// Other members that include it: `principalSet://…` and older spellings.
    pub(crate) sets: Vec<String>,
}

impl Principal {
    pub(crate) fn service_account(email: &str) -> Self {
        Self {
            name: format!("serviceAccount:{email}"),
            sets: Vec::new(),
        }
    }

    pub(crate) fn user(email: &str) -> Self {
        Self {
            name: format!("user:{email}"),
            sets: Vec::new(),
        }
    }

    /// Whether this member of an IAM policy includes the principal.
    pub(crate) fn is(&self, member: &str) -> bool {
        member == "allAuthenticatedUsers" || self.name == member || self.sets.iter().any(|set| set == member)
    }
}

/// What an access token stands for.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) principal: Principal,
    pub(crate) scopes: Vec<String>,
    /// Seconds since 1970.
    pub(crate) expires: i64,
}

/// The access tokens issued and not yet expired.
#[derive(Default)]
pub(crate) struct AccessTokens(Mutex<HashMap<String, Grant>>);

impl AccessTokens {
    /// Issues a token with the prefix of Google's.
    pub(crate) fn issue(&self, grant: Grant) -> anyhow::Result<String> {
        let prefix = if grant.principal.name.starts_with("principal:") {
            "ya29.d.b0"
        } else {
            "ya29.c.b0"
        };
        let token = format!("{prefix}{}", random_text(48)?);
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        tokens.retain(|_, grant| grant.expires > now);
        tokens.insert(token.clone(), grant);
        Ok(token)
    }

    /// What a token stands for; none if it is unknown or expired.
    pub(crate) fn grant(&self, token: &str) -> Option<Grant> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(token).filter(|grant| grant.expires > now()).cloned()
    }

    /// Drops all tokens.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A signed ID token with its expiration.
#[derive(Clone)]
pub(crate) struct MintedToken {
    pub(crate) token: String,
    /// Seconds since 1970.
    pub(crate) expires: i64,
}

/// What decides an identity token of the metadata server.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct IdentityTokenKey {
    pub(crate) email: String,
    pub(crate) audience: String,
    pub(crate) full: bool,
    pub(crate) licenses: bool,
}

/// Identity tokens that the metadata server returns again until shortly before they expire.
#[derive(Default)]
pub(crate) struct IdentityTokenCache(Mutex<HashMap<IdentityTokenKey, MintedToken>>);

impl IdentityTokenCache {
    /// Returns the cached token, unless `margin` seconds or less remain of it; `mint`s and caches one otherwise. Callers wait for
    /// each other, so that one token is minted for many of them.
    pub(crate) fn get_or_mint(
        &self,
        key: IdentityTokenKey,
        margin: i64,
        mint: impl FnOnce() -> anyhow::Result<MintedToken>,
    ) -> anyhow::Result<MintedToken> {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, minted| minted.expires - margin > now());
        if let Some(minted) = tokens.get(&key) {
            return Ok(minted.clone());
        }
        let minted = mint()?;
        tokens.insert(key, minted.clone());
        Ok(minted)
    }

    /// Drops all tokens.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
