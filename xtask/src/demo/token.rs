//! The token of a Secret, verified by the published keys as its receiver does. It is never printed.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use idtoken_emulator::Jwks;
use serde_json::Value;

/// A token from a Secret. It has no `Debug`, so that it is not printed by accident.
pub(crate) struct Token {
    text: String,
    header: Value,
    claims: Value,
}

impl Token {
    /// Takes the token from key `token` of `secret`, and checks that key `header` holds the same.
    ///
    /// # Errors
    /// When there is none, or it is no JWT. Never with the token.
    pub(crate) fn from_secret(secret: &Value) -> Result<Self> {
        let text = String::from_utf8(decode(&secret["data"]["token"])?).ok();
        let text = text.context("the Secret's token is not text")?;
        if decode(&secret["data"]["header"])? != format!("Authorization: Bearer {text}").into_bytes() {
            bail!("the Secret's header is not made of its token");
        }
        let part = |number: usize| -> Option<Value> {
            let part = URL_SAFE_NO_PAD.decode(text.split('.').nth(number)?).ok()?;
            serde_json::from_slice(&part).ok()
        };
        let (header, claims) = part(0).zip(part(1)).context("the Secret's token is no JWT")?;
        Ok(Self { text, header, claims })
    }

    /// The claims.
    pub(crate) fn claims(&self) -> &Value {
        &self.claims
    }

    /// The claim `iat`, in seconds since 1970.
    pub(crate) fn issued(&self) -> i64 {
        self.claims["iat"].as_i64().unwrap_or_default()
    }

    /// The claim `exp`, in seconds since 1970.
    pub(crate) fn expires(&self) -> i64 {
        self.claims["exp"].as_i64().unwrap_or_default()
    }

    /// Whether both tokens are equal.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.text == other.text
    }

    /// Whether `text` holds the token or its signature.
    pub(crate) fn is_in(&self, text: &str) -> bool {
        self.text
            .rsplit('.')
            .next()
            .is_some_and(|signature| text.contains(signature))
    }

    /// Verifies the signature by the keys that `issuer` publishes. Gives the id of the key.
    ///
    /// # Errors
    /// When the keys cannot be fetched, or the signature fits none of them.
    pub(crate) async fn verify(&self, issuer: &str) -> Result<String> {
        // Both are on this machine: a proxy from the environment cannot reach them.
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.get(format!("{issuer}/oauth2/v3/certs")).send().await?;
        let keys: Jwks = answer.error_for_status()?.json().await?;
        let (signed, signature) = self.text.rsplit_once('.').context("the token has no signature")?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .ok()
            .context("the signature is not base64url")?;
        let (algorithm, kid) = (self.header["alg"].as_str(), self.header["kid"].as_str());
        let (algorithm, kid) = algorithm
            .zip(kid)
            .context("the token's header names no algorithm or key")?;
        let key = keys.keys.iter().find(|key| key.kid.as_deref() == Some(kid));
        let key = key.context("the token's key is not among the published ones")?;
        if !key.verifies(algorithm, signed.as_bytes(), &signature) {
            bail!("the token's signature is wrong");
        }
        Ok(kid.to_owned())
    }
}

/// Decodes a value of a Secret's `data`.
///
/// # Errors
/// When it is missing or not base64. Never with the value.
pub(crate) fn decode(value: &Value) -> Result<Vec<u8>> {
    let text = value.as_str().context("the Secret lacks a key")?;
    STANDARD
        .decode(text)
        .ok()
        .context("the Secret's data is not base64")
}
