//! The private key of a service account, which signs its own access tokens: <https://google.aip.dev/auth/4111>.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::SigningKey;
use serde_json::json;
use zeroize::Zeroizing;

use super::file_error::CredentialFileError;
use crate::clock::Clock;
use crate::google::vocabulary::{AccessToken, SCOPE};

/// The longest lifetime that Google accepts.
const LIFETIME: Duration = Duration::from_secs(3600);

/// How far `iat` is in the past: Google rejects a token from the future, and clocks differ.
const SKEW: Duration = Duration::from_secs(10);

/// A private key. No `Debug`, because it is secret.
pub(crate) struct ServiceAccountKey {
    email: String,
    key_id: Option<String>,
    key: Arc<dyn SigningKey>,
}

impl ServiceAccountKey {
    /// Parses the PEM (PKCS#8, as Google writes it, or PKCS#1) of an RSA key.
    pub(crate) fn new(email: String, key_id: Option<String>, pem: &str) -> Result<Self, CredentialFileError> {
        // The parsers' messages could quote the key.
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| CredentialFileError::NotKey)?;
        let key = any_supported_type(&der).map_err(|_| CredentialFileError::NotKey)?;
        key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256])
            .ok_or(CredentialFileError::NotKey)?;
        Ok(Self { email, key_id, key })
    }

    /// A self-signed access token; `None` only if signing fails.
    pub(crate) fn access_token(&self, clock: &Clock) -> Option<AccessToken> {
        let now = clock.now().duration_since(Timestamp::UNIX_EPOCH);
        let issued = Duration::try_from(now).ok()?.checked_sub(SKEW)?;
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.key_id});
        let claims = json!({
            "iss": self.email,
            "sub": self.email,
            "scope": SCOPE,
            "iat": issued.as_secs(),
            "exp": (issued + LIFETIME).as_secs(),
        });
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signer = self.key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256])?;
        let signature = URL_SAFE_NO_PAD.encode(signer.sign(message.as_bytes()).ok()?);
        let token = Zeroizing::new(format!("{message}.{signature}"));
        Some(AccessToken::new(token, LIFETIME - SKEW, clock.boot()))
    }
}
