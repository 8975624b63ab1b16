//! Issues tokens: signs ID tokens, and hands out access tokens.

use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::clock::{now, seconds};
use crate::faults::WrongToken;
use crate::keys::SigningKey;
use crate::state::EmulatorState;
use crate::tokens::{Grant, MintedToken, Principal};

/// `iss` of Google's ID tokens.
pub const GOOGLE_ISSUER: &str = "https://accounts.google.com";

/// What faults change about the tokens of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenOverrides {
    pub(crate) lifetime: Option<Duration>,
    /// Seconds that the clock of ID tokens is ahead.
    pub(crate) clock: i64,
    pub(crate) wrong: Option<WrongToken>,
}

/// The claims of an ID token, without issuer and times.
#[derive(Clone, Debug)]
pub(crate) struct IdTokenClaims<'a> {
    pub(crate) subject: &'a str,
    pub(crate) audience: &'a str,
    pub(crate) authorized_party: &'a str,
    pub(crate) email: Option<&'a str>,
    /// The `google` claim.
    pub(crate) google: Option<Value>,
}

impl EmulatorState {
    /// Mints an ID token, changed as `overrides` say.
    pub(crate) fn mint(
        &self,
        subject: &IdTokenClaims<'_>,
        overrides: TokenOverrides,
    ) -> anyhow::Result<MintedToken> {
        self.minted.fetch_add(1, Ordering::SeqCst);
        let issued = now().saturating_add(overrides.clock);
        let lifetime = overrides.lifetime.unwrap_or(self.settings().lifetime);
        let expires = issued.saturating_add(seconds(lifetime));
        let mut claims = json!({
            "iss": GOOGLE_ISSUER,
            "iat": issued,
            "exp": expires,
            "aud": subject.audience,
            "sub": subject.subject,
            "azp": subject.authorized_party,
        });
        if let Some(email) = subject.email {
            claims["email"] = json!(email);
            claims["email_verified"] = json!(true);
        }
        if let Some(google) = &subject.google {
            claims["google"] = google.clone();
        }
        let token = match overrides.wrong {
            None => self.key.sign(&claims)?,
            Some(wrong) => self.wrong_token(claims, wrong)?,
        };
        Ok(MintedToken { token, expires })
    }

    fn wrong_token(&self, mut claims: Value, wrong: WrongToken) -> anyhow::Result<String> {
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
            WrongToken::Unsigned => {
                let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
                let header = json!({"alg": "none", "kid": self.key.kid(), "typ": "JWT"});
                return Ok(format!("{}.{}.", part(&header), part(&claims)));
            }
            WrongToken::ForeignKey => return SigningKey::generate()?.sign(&claims),
        }
        self.key.sign(&claims)
    }

    /// Issues an access token. Returns it with its lifetime in seconds.
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
