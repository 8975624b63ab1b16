//! A Google-signed ID token: parsed, checked against the request, and never shown. May import [`crate::text`] only; reads no clock.
//!
//! The signature is not verified here: a token that comes from Google over TLS needs no such check, and any other is checked by Google's
//! published keys ([`Minter::verify_signature`](crate::google::Minter::verify_signature)). The checks here ensure that it is the requested
//! token, so that a wrong one is never written to a Secret.

use std::fmt;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::text;

/// The longest accepted token, in bytes. Google's have 700 to 1,500 bytes; a Secret holds 1 MiB.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// The values of `iss` in Google's ID tokens; Google's verifiers accept both.
pub const GOOGLE_ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];

/// The largest difference between `iat` and the local clock that [`IdToken::clock_skew`] does not report.
const MAX_SKEW: SignedDuration = SignedDuration::from_secs(120);

/// The longest lifetime of a token that Google issues, an hour, and what clocks may differ by.
pub const MAX_LIFETIME: SignedDuration = SignedDuration::from_mins(65);

/// The longest part of a claim that a message shows, in characters.
const MAX_CLAIM_CHARS: usize = 256;

/// An OIDC ID token signed by Google.
///
/// The bytes are wiped from memory on drop. There is no `Display`, `Serialize` or `Clone`, and `Debug` shows only the times of the claims;
/// only [`IdToken::expose`] returns the token itself.
pub struct IdToken {
    raw: Zeroizing<String>,
    claims: Claims,
}

/// The claims of an ID token that the operator reads:
/// <https://openid.net/specs/openid-connect-core-1_0.html#IDToken>.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The issuer: one of [`GOOGLE_ISSUERS`] in a token from Google.
    pub iss: String,
    /// The single audience.
    pub aud: String,
    /// The numeric unique ID of the account.
    pub sub: String,
    /// The authorized party; for service accounts the same as `sub`.
    pub azp: Option<String>,
    /// The e-mail address of the account, present only if requested.
    pub email: Option<String>,
    /// Whether Google vouches for `email`.
    pub email_verified: Option<bool>,
    /// When the token was issued.
    pub iat: Timestamp,
    /// When the token expires.
    pub exp: Timestamp,
}

/// The account of a requested token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account<'a> {
    /// By e-mail address, compared with the claim `email`.
    Email(&'a str),
    /// By numeric unique ID, compared with the claim `sub`.
    UniqueId(&'a str),
}

impl<'a> Account<'a> {
    /// Parses an account as users write it: only digits are a unique ID, anything else is an e-mail address.
    #[must_use]
    pub fn from_name(name: &'a str) -> Self {
        if !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) {
            Self::UniqueId(name)
        } else {
            Self::Email(name)
        }
    }

    /// The account as written.
    #[must_use]
    pub fn name(&self) -> &'a str {
        match *self {
            Self::Email(name) | Self::UniqueId(name) => name,
        }
    }
}

/// The claims that the requested token must have.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The audience, compared byte by byte.
    pub audience: &'a str,
    /// The account; `None` if only the source knows it (the identity attached to a pod or node).
    pub account: Option<Account<'a>>,
    /// Whether the claim `email` was requested; the token must have it then.
    pub include_email: bool,
    /// The `sub` of an earlier token. Another `sub` means that the account was deleted and recreated.
    pub subject: Option<&'a str>,
}

/// Why a token was rejected. Messages show claims (bounded, control characters escaped), never the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The token is not a signed JWT with the claims of an ID token.
    #[error("the response is not an ID token: {0}")]
    Malformed(&'static str),
    /// The token is signed with another algorithm than Google's.
    #[error("the returned token is signed with {0}, not RS256")]
    WrongAlgorithm(String),
    /// The token has another issuer.
    #[error("the returned token is issued by {0}, not by https://accounts.google.com")]
    WrongIssuer(String),
    /// The token is for another audience.
    #[error("the returned token is for the audience {got}, not {requested}")]
    WrongAudience {
        /// The requested audience.
        requested: String,
        /// The audience in the token.
        got: String,
    },
    /// The token is for another account.
    #[error("the returned token is for the account {got}, not {requested}")]
    WrongAccount {
        /// The requested account.
        requested: String,
        /// The account in the token.
        got: String,
    },
    /// The claim `email` was requested and is missing.
    #[error("the returned token (sub {0}) has no email claim, although it was requested")]
    EmailMissing(String),
    /// `email_verified` is false.
    #[error("the returned token has the email {0}, which Google marks as not verified")]
    EmailNotVerified(String),
    /// The e-mail address belongs to another account than before.
    #[error(
        "the returned token is for the account with the unique ID {got}, but earlier tokens were for {pinned}: the account \
         was deleted and created again"
    )]
    SubjectChanged {
        /// The unique ID of earlier tokens.
        pinned: String,
        /// The unique ID in the token.
        got: String,
    },
    /// The token has expired already.
    #[error("the returned token expired at {exp}, and this machine's clock says {now}; check this clock")]
    Expired {
        /// The expiry in the token.
        exp: Timestamp,
        /// The local time.
        now: Timestamp,
    },
}

impl TokenError {
    /// The reason in conditions, events and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "TokenMalformed",
            Self::WrongAlgorithm(_) => "TokenWrongAlgorithm",
            Self::WrongIssuer(_) => "TokenWrongIssuer",
            Self::WrongAudience { .. } => "TokenWrongAudience",
            Self::WrongAccount { .. } => "TokenWrongAccount",
            Self::EmailMissing(_) => "TokenEmailMissing",
            Self::EmailNotVerified(_) => "TokenEmailNotVerified",
            Self::SubjectChanged { .. } => "TokenSubjectChanged",
            Self::Expired { .. } => "TokenExpired",
        }
    }
}

#[derive(Deserialize)]
struct RawHeader {
    alg: String,
}

#[derive(Deserialize)]
struct RawClaims {
    iss: String,
    aud: serde_json::Value,
    sub: String,
    azp: Option<String>,
    email: Option<String>,
    email_verified: Option<bool>,
    iat: i64,
    exp: i64,
}

impl IdToken {
    /// Parses a compact JWT: three non-empty base64url parts, RS256, and the claims of an ID token with a single audience.
    ///
    /// # Errors
    /// [`TokenError::Malformed`] or [`TokenError::WrongAlgorithm`]; neither holds a byte of the signature.
    pub fn parse(raw: impl Into<Zeroizing<String>>) -> Result<Self, TokenError> {
        let raw = raw.into();
        if raw.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed("it is longer than 16 KiB"));
        }
        if !raw.is_ascii() {
            return Err(TokenError::Malformed("it holds characters outside ASCII"));
        }
        let mut parts = raw.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed(
                "it does not have three dot-separated parts",
            ));
        };
        let header = decode(header, "its header is not base64url")?;
        let payload = decode(payload, "its claims are not base64url")?;
        decode(signature, "its signature is not base64url")?;

        let RawHeader { alg } = serde_json::from_slice(&header)
            .map_err(|_| TokenError::Malformed("its header is not a JSON object with an alg"))?;
        if alg != "RS256" {
            return Err(TokenError::WrongAlgorithm(bounded(&alg)));
        }
        let claims: RawClaims = serde_json::from_slice(&payload).map_err(|_| {
            TokenError::Malformed("its claims are not a JSON object with iss, aud, sub, iat and exp")
        })?;
        let claims = Claims::try_from(claims)?;
        Ok(Self { raw, claims })
    }

    /// The token itself, for the code that writes it to a Secret.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.raw
    }

    /// The claims of the token.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// All claims as JSON, also those that the operator does not read. `None` if JSON nests too deeply or has a number out of
    /// range, which [`IdToken::parse`] accepts in claims that it does not read.
    #[must_use]
    pub fn all_claims(&self) -> Option<serde_json::Value> {
        unverified_claims(&self.raw)
    }

    /// The first 16 hex digits of the token's SHA-256: distinguishes tokens and reveals nothing of them.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.digest()[..16].to_owned()
    }

    /// The first 32 hex digits of the token's SHA-256: nobody can make another token with the same, or guess the signature by it.
    #[must_use]
    pub fn digest(&self) -> String {
        let digest = digest::digest(&digest::SHA256, self.raw.as_bytes());
        crate::text::hex(&digest.as_ref()[..16])
    }

    /// The difference between `iat` and `now` if it is more than two minutes. Positive if the local clock is behind Google's.
    ///
    /// Valid only for a token that was just minted: a metadata server may return an older one from its cache.
    #[must_use]
    pub fn clock_skew(&self, now: Timestamp) -> Option<SignedDuration> {
        let skew = self.claims.iat.duration_since(now);
        (skew.abs() > MAX_SKEW).then_some(skew)
    }

    /// Checks at `now` that this is the requested token.
    ///
    /// # Errors
    /// The first failed check, in this order: issuer, audience, times, account.
    pub fn verify(&self, expected: &Expected<'_>, now: Timestamp) -> Result<(), TokenError> {
        let claims = &self.claims;
        if !GOOGLE_ISSUERS.contains(&claims.iss.as_str()) {
            return Err(TokenError::WrongIssuer(bounded(&claims.iss)));
        }
        if claims.aud.as_bytes() != expected.audience.as_bytes() {
            return Err(TokenError::WrongAudience {
                requested: bounded(expected.audience),
                got: bounded(&claims.aud),
            });
        }
        if claims.exp <= claims.iat {
            return Err(TokenError::Malformed("it expires before it is issued"));
        }
        if claims.exp.duration_since(claims.iat) > MAX_LIFETIME {
            return Err(TokenError::Malformed("it is valid for more than an hour"));
        }
        if claims.exp <= now {
            return Err(TokenError::Expired { exp: claims.exp, now });
        }
        verify_account(claims, expected)
    }
}

/// The claims of a compact JWT; its signature is not checked. No error, since the parser's messages could quote the token.
pub(crate) fn unverified_claims<T: DeserializeOwned>(jwt: &str) -> Option<T> {
    let payload = jwt.split('.').nth(1)?;
    let payload = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload).ok()?);
    serde_json::from_slice(&payload).ok()
}

fn verify_account(claims: &Claims, expected: &Expected<'_>) -> Result<(), TokenError> {
    match (&claims.email, expected.include_email) {
        (Some(email), _) if claims.email_verified == Some(false) => {
            return Err(TokenError::EmailNotVerified(bounded(email)));
        }
        (None, true) => return Err(TokenError::EmailMissing(bounded(&claims.sub))),
        _ => {}
    }
    let wrong = |requested: &str, got: &str| {
        Err(TokenError::WrongAccount {
            requested: bounded(requested),
            got: bounded(got),
        })
    };
    match expected.account {
        Some(Account::UniqueId(id)) if claims.sub != id => return wrong(id, &claims.sub),
        Some(Account::Email(requested)) => {
            if let Some(email) = &claims.email
                && !email.eq_ignore_ascii_case(requested)
            {
                return wrong(requested, email);
            }
        }
        _ => {}
    }
    match expected.subject {
        Some(pinned) if pinned != claims.sub => Err(TokenError::SubjectChanged {
            pinned: bounded(pinned),
            got: bounded(&claims.sub),
        }),
        _ => Ok(()),
    }
}

impl fmt::Debug for IdToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdToken")
            .field("raw", &"[redacted]")
            .field("iat", &self.claims.iat)
            .field("exp", &self.claims.exp)
            .finish()
    }
}

impl TryFrom<RawClaims> for Claims {
    type Error = TokenError;

    fn try_from(raw: RawClaims) -> Result<Self, TokenError> {
        let serde_json::Value::String(aud) = raw.aud else {
            return Err(TokenError::Malformed("its aud is not a single string"));
        };
        if raw.sub.is_empty() {
            return Err(TokenError::Malformed("its sub is empty"));
        }
        let instant = |seconds| {
            Timestamp::from_second(seconds)
                .map_err(|_| TokenError::Malformed("its iat or exp is out of range"))
        };
        Ok(Self {
            iss: raw.iss,
            aud,
            sub: raw.sub,
            azp: raw.azp,
            email: raw.email,
            email_verified: raw.email_verified,
            iat: instant(raw.iat)?,
            exp: instant(raw.exp)?,
        })
    }
}

fn decode(part: &str, complaint: &'static str) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    if part.is_empty() {
        return Err(TokenError::Malformed("one of its three parts is empty"));
    }
    URL_SAFE_NO_PAD
        .decode(part)
        .map(Zeroizing::new)
        .map_err(|_| TokenError::Malformed(complaint))
}

fn bounded(claim: &str) -> String {
    if claim.is_empty() {
        "(empty)".to_owned()
    } else {
        text::printable(claim, MAX_CLAIM_CHARS)
    }
}

#[cfg(test)]
mod tests;
