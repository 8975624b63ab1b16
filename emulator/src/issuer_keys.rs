//! The public keys of identity providers: fetched from the issuer, and cached.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Deserialize;

use crate::keys::Jwks;
use crate::provider::IssuerKeys;

/// Key sets fetched from issuers, by their URL or the issuer's.
#[derive(Default)]
pub(crate) struct KeyCache(Mutex<HashMap<String, Arc<Jwks>>>);

impl KeyCache {
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn get(&self, url: &str) -> Option<Arc<Jwks>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(url)
            .cloned()
    }

    pub(crate) fn put(&self, url: &str, keys: Arc<Jwks>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(url.to_owned(), keys);
    }
}

/// Fetches an issuer's keys, by OIDC discovery unless `keys` has their URL.
pub(crate) async fn fetch(issuer: &str, keys: &IssuerKeys) -> anyhow::Result<Jwks> {
    #[derive(Deserialize)]
    struct Discovery {
        issuer: String,
        jwks_uri: String,
    }

    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Only a race between two callers can fail here, and then the other one has installed it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    let mut builder = reqwest::Client::builder().timeout(Duration::from_secs(10));
    if let Some(pem) = &keys.ca_certificates {
        builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem.as_bytes())?);
    }
    let client = builder.build().context("cannot make an HTTP client")?;
    let get = async |url: &str| client.get(url).send().await?.error_for_status()?.bytes().await;
    let jwks_url = match &keys.jwks_url {
        Some(url) => url.clone(),
        None => {
            let url = format!(
                "{}/.well-known/openid-configuration",
                issuer.trim_end_matches('/')
            );
            let document: Discovery =
                serde_json::from_slice(&get(&url).await?).context("the discovery document is malformed")?;
            if document.issuer != issuer {
                return Err(anyhow!(
                    "the discovery document is of the issuer {}",
                    document.issuer
                ));
            }
            document.jwks_uri
        }
    };
    serde_json::from_slice(&get(&jwks_url).await?).context("the JWKS document is malformed")
}
