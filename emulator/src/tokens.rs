//! The tokens the emulator issues: signed ID tokens and opaque access tokens.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::faults::WrongToken;
use crate::keys::random_text;
use crate::state::{EmulatorState, TokenOverrides, now};

/// `iss` of Google's ID tokens.
pub const GOOGLE_ISSUER: &str = "https://accounts.google.com";

/// The scope that opens all of Google Cloud.
pub(crate) const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
/// The scope of IAM and IAM Credentials.
pub(crate) const IAM: &str = "https://www.googleapis.com/auth/iam";

/// Who holds an access token, as IAM policies name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    /// `serviceAccount:…`, `user:…` or `principal://…`.
    pub(crate) name: String,
    /// Other names that hold for it: `principalSet://…` and older spellings.
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

    /// Whether the member of an IAM policy means this principal.
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
    /// Issues a token that begins as Google's do.
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

    /// What a token stands for, unless unknown or expired.
    pub(crate) fn grant(&self, token: &str) -> Option<Grant> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(token).filter(|grant| grant.expires > now()).cloned()
    }

    /// Forgets all tokens.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// What goes into an ID token.
#[derive(Clone, Debug)]
pub(crate) struct IdToken<'a> {
    pub(crate) subject: &'a str,
    pub(crate) audience: &'a str,
    pub(crate) authorized_party: &'a str,
    pub(crate) email: Option<&'a str>,
    /// The `google` claim.
    pub(crate) google: Option<Value>,
}

/// An ID token with its end.
#[derive(Clone)]
pub(crate) struct Minted {
    pub(crate) token: String,
    /// Seconds since 1970.
    pub(crate) expires: i64,
}

impl EmulatorState {
    /// Mints an ID token, tampered with as ordered.
    pub(crate) fn mint(&self, wanted: &IdToken<'_>, overrides: TokenOverrides) -> anyhow::Result<Minted> {
        self.minted.fetch_add(1, Ordering::SeqCst);
        let issued = now().saturating_add(overrides.clock);
        let lifetime = overrides.lifetime.unwrap_or(self.settings().lifetime);
        let expires = issued.saturating_add(seconds(lifetime));
        let mut claims = json!({
            "iss": GOOGLE_ISSUER,
            "iat": issued,
            "exp": expires,
            "aud": wanted.audience,
            "sub": wanted.subject,
            "azp": wanted.authorized_party,
        });
        if let Some(email) = wanted.email {
            claims["email"] = json!(email);
            claims["email_verified"] = json!(true);
        }
        if let Some(google) = &wanted.google {
            claims["google"] = google.clone();
        }
        let token = match overrides.wrong {
            None => self.key.sign(&claims)?,
            Some(wrong) => self.tamper(claims, wrong)?,
        };
        Ok(Minted { token, expires })
    }

    fn tamper(&self, mut claims: Value, wrong: WrongToken) -> anyhow::Result<String> {
        match wrong {
            WrongToken::Audience => claims["aud"] = json!("https://another-audience.example"),
            WrongToken::AudienceList => claims["aud"] = json!([claims["aud"]]),
            WrongToken::Account => {
                claims["sub"] = json!("100000000000000000000");
                claims["azp"] = json!("100000000000000000000");
                if claims.get("email").is_some() {
                    claims["email"] = json!("another-account@another-project.iam.gserviceaccount.com");
                }
            }
            WrongToken::Expired => {
                claims["iat"] = json!(now() - 3660);
                claims["exp"] = json!(now() - 60);
            }
            WrongToken::NoExpiry => {
                claims.as_object_mut().map(|claims| claims.remove("exp"));
            }
            WrongToken::Issuer => claims["iss"] = json!("https://not-google.example"),
            WrongToken::Garbage => return Ok("this is not a token".into()),
            WrongToken::Truncated => {
                let token = self.key.sign(&claims)?;
                return Ok(token[..token.len() / 2].to_owned());
            }
            WrongToken::Signature => {
                let (token, other) = (self.key.sign(&claims)?, self.key.sign(&json!({}))?);
                let input = token.rsplit_once('.').map_or("", |(input, _)| input);
                let signature = other.rsplit_once('.').map_or("", |(_, signature)| signature);
                return Ok(format!("{input}.{signature}"));
            }
        }
        self.key.sign(&claims)
    }

    /// Issues an access token, and returns it with its lifetime in seconds.
    pub(crate) fn issue_access_token(
        &self,
        principal: Principal,
        scopes: Vec<String>,
        overrides: TokenOverrides,
    ) -> anyhow::Result<(String, i64)> {
        let lifetime = seconds(
            overrides
                .lifetime
                .unwrap_or(self.settings().access_token_lifetime),
        );
        let token = self.access_tokens.issue(Grant {
            principal,
            scopes,
            expires: now().saturating_add(lifetime),
        })?;
        Ok((token, lifetime))
    }
}

/// Whole seconds, rounded down.
pub(crate) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
