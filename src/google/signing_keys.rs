//! Google's published keys, and the check of an ID token's signature by them:
//! <https://developers.google.com/identity/openid-connect/openid-connect#validatinganidtoken>.
//!
//! A token that came over TLS from Google needs no such check. One that came over plain http, or was found in a Secret, does.

use std::time::Duration;

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{AGE, CACHE_CONTROL, HeaderMap, HeaderName};
use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use super::credentials::token_cache;
use super::transport::endpoint_client::{EndpointClient, Observer};
use super::transport::http::Http;
use super::transport::limiter::EndpointLoad;
use super::transport::response::Response;
use super::vocabulary::{CallPriority, ConfigError, Endpoint, Error, GoogleConfig, Reason};
use crate::clock::BootTime;
use crate::single_flight::{Fetched, SingleFlight};
use crate::token::IdToken;

/// The shortest and the longest time for which fetched keys are used, whatever their `Cache-Control` says.
const LIFETIME: (Duration, Duration) = (Duration::from_secs(5 * 60), Duration::from_secs(24 * 3600));

/// How old the keys must be before a token with an unknown key causes another fetch. Google publishes a key before it signs with it.
const REFETCH_INTERVAL: Duration = Duration::from_secs(60);

/// Why a signature is not accepted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SignatureError {
    /// The keys could not be fetched. Whether the signature is good is not known.
    #[error(transparent)]
    Unavailable(Error),
    /// None of Google's keys made the signature.
    #[error("the token is not signed by Google: {0}")]
    Invalid(&'static str),
}

impl SignatureError {
    /// The reason in conditions, events and metrics.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unavailable(error) => error.reason(),
            Self::Invalid(_) => Reason::TokenSignatureInvalid,
        }
    }
}

/// Google's keys, fetched when they are needed.
pub(crate) struct SigningKeys {
    client: EndpointClient,
    url: Url,
    keys: SingleFlight<KeySet, Error>,
}

struct KeySet {
    keys: Vec<SigningKey>,
    fetched_at: BootTime,
}

struct SigningKey {
    id: String,
    public: PublicKeyComponents<Vec<u8>>,
}

impl SigningKeys {
    /// Makes no call.
    pub(crate) fn new(config: &GoogleConfig, http: Http) -> Result<Self, ConfigError> {
        let url = match &config.keys_url {
            Some(url) => url.clone(),
            None => {
                let mut url = config.endpoint("www", None)?;
                url.set_path("/oauth2/v3/certs");
                url
            }
        };
        Ok(Self {
            client: EndpointClient::new(Endpoint::SigningKeys, url.clone(), http, config),
            url,
            keys: SingleFlight::new(token_cache::backoff, config.clock.clone()),
        })
    }

    pub(crate) fn set_observer(&mut self, observer: Observer) {
        self.client.set_observer(observer);
    }

    pub(crate) fn load(&self) -> EndpointLoad {
        self.client.load()
    }

    /// Checks that Google signed the token. Its claims are not compared with anything.
    pub(crate) async fn verify(&self, token: &IdToken) -> Result<(), SignatureError> {
        let Some((id, message, signature)) = signed(token) else {
            return Err(SignatureError::Invalid("its header names no key"));
        };
        let mut keys = self
            .keys
            .get(|| self.fetch())
            .await
            .map_err(SignatureError::Unavailable)?;
        let age = self
            .client
            .clock()
            .boot()
            .saturating_duration_since(keys.fetched_at);
        if !keys.has(&id) && age >= REFETCH_INTERVAL {
            let newer = self.keys.get_other(&keys, || self.fetch()).await;
            keys = newer.map_err(SignatureError::Unavailable)?;
        }
        keys.verify(&id, message, &signature)
    }

    async fn fetch(&self) -> Result<Fetched<KeySet>, Error> {
        let request = || Ok(self.client.http().get(self.url.clone()));
        let response = self.client.call(CallPriority::OPERATOR, request).await;
        let now = self.client.clock().boot();
        let keys = response.and_then(|response| {
            let keys = parse(&response.body);
            if keys.is_empty() {
                return Err(no_keys(&response));
            }
            Ok((keys, lifetime(&response.headers)))
        });
        let (keys, lifetime) = keys.map_err(|error| self.explained(error))?;
        Ok(Fetched {
            value: KeySet {
                keys,
                fetched_at: now,
            },
            // A short outage of the endpoint does not expire the keys.
            refresh_at: now + lifetime / 4 * 3,
            expires_at: now + lifetime,
        })
    }

    fn explained(&self, error: Error) -> Error {
        // No call was made, and these say why. Another URL would not help.
        if matches!(error.reason(), Reason::NotLeading | Reason::LocallyLimited) {
            return error;
        }
        let reach = format!(
            "Without the keys the token's signature cannot be checked, and nothing is written. Let the operator reach {}, or name \
             another URL of Google's keys with --google-keys-url.",
            self.url
        );
        let remediation = match error.remediation() {
            Some(first) => format!("{first} {reach}"),
            None => reach,
        };
        error
            .with_reason(Reason::SigningKeysUnavailable)
            .with_remediation(remediation)
    }
}

impl KeySet {
    fn has(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id == id)
    }

    fn verify(&self, id: &str, message: &str, signature: &[u8]) -> Result<(), SignatureError> {
        let mut named = self.keys.iter().filter(|key| key.id == id).peekable();
        if named.peek().is_none() {
            return Err(SignatureError::Invalid(
                "none of Google's keys has the ID that its header names",
            ));
        }
        let made_it = |key: &SigningKey| {
            let verified = key
                .public
                .verify(&RSA_PKCS1_2048_8192_SHA256, message.as_bytes(), signature);
            verified.is_ok()
        };
        match named.any(made_it) {
            true => Ok(()),
            false => Err(SignatureError::Invalid(
                "the key that its header names did not make its signature",
            )),
        }
    }
}

/// The ID of the key, what is signed, and the signature. The algorithm is RS256, as [`IdToken::parse`] requires.
fn signed(token: &IdToken) -> Option<(String, &str, Zeroizing<Vec<u8>>)> {
    #[derive(Deserialize)]
    struct Header {
        kid: String,
    }
    let (message, signature) = token.expose().rsplit_once('.')?;
    let (header, _) = message.split_once('.')?;
    let Header { kid } = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
    Some((
        kid,
        message,
        Zeroizing::new(URL_SAFE_NO_PAD.decode(signature).ok()?),
    ))
}

/// The keys of a JWKS document (RFC 7517) that sign by RS256. Others are ignored, as the RFC asks for.
fn parse(body: &[u8]) -> Vec<SigningKey> {
    #[derive(Deserialize)]
    struct Jwks {
        keys: Vec<serde_json::Value>,
    }
    #[derive(Deserialize)]
    struct Jwk {
        kty: String,
        kid: String,
        n: String,
        e: String,
        alg: Option<String>,
        #[serde(rename = "use")]
        usage: Option<String>,
    }
    let key = |value| {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let signs = jwk.kty == "RSA"
            && jwk.alg.is_none_or(|alg| alg == "RS256")
            && jwk.usage.is_none_or(|usage| usage == "sig");
        let decode = |field: String| URL_SAFE_NO_PAD.decode(field).ok();
        Some(SigningKey {
            id: signs.then_some(jwk.kid)?,
            public: PublicKeyComponents {
                n: decode(jwk.n)?,
                e: decode(jwk.e)?,
            },
        })
    };
    let jwks = serde_json::from_slice(body).map_or_else(|_| Vec::new(), |Jwks { keys }| keys);
    jwks.into_iter().filter_map(key).collect()
}

fn no_keys(response: &Response) -> Error {
    let message = format!(
        "{} answered {} without an RSA key for RS256",
        Endpoint::SigningKeys.title(),
        response.status.as_u16()
    );
    Error::new(Endpoint::SigningKeys, Reason::SigningKeysUnavailable, &message)
        .with_status(response.status.as_u16())
}

/// For how long a response is fresh (RFC 9111, 4.2.1), within [`LIFETIME`].
fn lifetime(headers: &HeaderMap) -> Duration {
    let values = |name: HeaderName| {
        headers
            .get_all(name)
            .into_iter()
            .filter_map(|value| value.to_str().ok())
    };
    let directives = values(CACHE_CONTROL)
        .flat_map(|value| value.split(','))
        .map(str::trim);
    let mut max_age = 0_u64;
    for directive in directives {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.to_ascii_lowercase().as_str() {
            "max-age" => max_age = value.trim_matches('"').parse().unwrap_or(0),
            "no-store" | "no-cache" => return LIFETIME.0,
            _ => {}
        }
    }
    let age: u64 = values(AGE)
        .next()
        .and_then(|age| age.trim().parse().ok())
        .unwrap_or(0);
    Duration::from_secs(max_age.saturating_sub(age)).clamp(LIFETIME.0, LIFETIME.1)
}

#[cfg(test)]
#[path = "signing_keys_tests.rs"]
mod tests;
