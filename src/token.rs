//! A Google-signed ID token: parsed, checked against what was asked for, and kept out of sight.
//!
//! The signature is not verified here: the token comes straight from Google over TLS, and its readers verify it. What is
//! checked is that it is the token that was asked for, so that a wrong one is never written to a Secret.

use std::fmt;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::text;

/// The longest token that is accepted, in bytes. Google's are between 700 and 1,500 bytes; a Secret holds 1 MiB.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// The values of `iss` in Google's ID tokens; Google's verifiers take the second for the first.
pub const GOOGLE_ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];

/// How far `iat` may be from the local clock before [`IdToken::clock_skew`] speaks up.
const MAX_SKEW: SignedDuration = SignedDuration::from_secs(120);

/// The longest piece of a claim that a message shows, in characters.
const MAX_CLAIM_CHARS: usize = 256;

/// An OIDC ID token signed by Google.
///
/// The bytes are wiped from memory on drop. There is no `Display`, no `Serialize` and no `Clone`, and `Debug` shows the
/// claims' times only; [`IdToken::expose`] is the one way to the token itself.
pub struct IdToken {
    raw: Zeroizing<String>,
    claims: Claims,
}

/// The claims of an ID token that the operator reads. See
/// <https://openid.net/specs/openid-connect-core-1_0.html#IDToken>.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Who signed: one of [`GOOGLE_ISSUERS`] in a token of Google's.
    pub iss: String,
    /// For whom: the one audience.
    pub aud: String,
    /// The numeric unique id of the account.
    pub sub: String,
    /// The authorized party; for service accounts the same as `sub`.
    pub azp: Option<String>,
    /// The account's e-mail, present only when it was asked for.
    pub email: Option<String>,
    /// Whether Google vouches for `email`.
    pub email_verified: Option<bool>,
    /// When it was issued.
    pub iat: Timestamp,
    /// When it ends.
    pub exp: Timestamp,
}

/// The account a token was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account<'a> {
    /// By e-mail, compared with the claim `email`.
    Email(&'a str),
    /// By numeric unique id, compared with the claim `sub`.
    UniqueId(&'a str),
}

impl<'a> Account<'a> {
    /// Reads an account as users write it: all digits is a unique id, anything else an e-mail.
    #[must_use]
    pub fn from_name(name: &'a str) -> Self {
        if !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) {
            Self::UniqueId(name)
        } else {
            Self::Email(name)
        }
    }

    /// The name as it was written.
    #[must_use]
    pub fn name(&self) -> &'a str {
        match *self {
            Self::Email(name) | Self::UniqueId(name) => name,
        }
    }
}

/// What a token must say to be the one that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The audience, compared byte by byte.
    pub audience: &'a str,
    /// The account; `None` where only the source knows it (the identity attached to a pod or node).
    pub account: Option<Account<'a>>,
    /// Whether the claim `email` was asked for; if so, it must be there.
    pub include_email: bool,
    /// The `sub` seen in an earlier token. A different one means that the account was deleted and made anew.
    pub subject: Option<&'a str>,
}

/// Why a token was not accepted. Messages show claims (bounded, control characters escaped), never the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is not a signed JWT with the claims of an ID token.
    #[error("what came back is not an ID token: {0}")]
    Malformed(&'static str),
    /// It is signed with another algorithm than Google's.
    #[error("the token that came back is signed with {0}, not RS256")]
    WrongAlgorithm(String),
    /// Someone else issued it.
    #[error("the token that came back is issued by {0}, not by https://accounts.google.com")]
    WrongIssuer(String),
    /// It is for another audience.
    #[error("the token that came back is for the audience {got}, not {asked}")]
    WrongAudience {
        /// The audience that was asked for.
        asked: String,
        /// The audience in the token.
        got: String,
    },
    /// It is of another account.
    #[error("the token that came back is of the account {got}, not {asked}")]
    WrongAccount {
        /// The account that was asked for.
        asked: String,
        /// The account in the token.
        got: String,
    },
    /// `email` was asked for and is not there.
    #[error("the token that came back (sub {0}) has no email claim, although it was asked for")]
    EmailMissing(String),
    /// `email_verified` is false.
    #[error("the token that came back has the email {0}, which Google marks as not verified")]
    EmailNotVerified(String),
    /// The e-mail now belongs to another account than before.
    #[error(
        "the token that came back is of the account with the unique id {got}, but earlier ones were of {pinned}: the \
         account was deleted and made anew; if that is intended, delete and create the request again"
    )]
    SubjectChanged {
        /// The unique id seen before.
        pinned: String,
        /// The unique id in the token.
        got: String,
    },
    /// It has ended already.
    #[error("the token that came back ended at {exp}, and it is {now} here; check this machine's clock")]
    Expired {
        /// The end in the token.
        exp: Timestamp,
        /// The local time.
        now: Timestamp,
    },
}

impl TokenError {
    /// A CamelCase word for conditions, events and metrics.
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
    /// Reads a compact JWT: three non-empty base64url parts, RS256, and the claims of an ID token with a single audience.
    ///
    /// # Errors
    /// [`TokenError::Malformed`] or [`TokenError::WrongAlgorithm`]; neither holds any byte of the token's signature.
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

    /// The token itself, for the one place that writes it into a Secret.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.raw
    }

    /// What the token says.
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

    /// The first 16 hex digits of the token's SHA-256: tells two tokens apart and gives nothing away.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = digest::digest(&digest::SHA256, self.raw.as_bytes());
        crate::text::hex(&digest.as_ref()[..8])
    }

    /// How far `iat` is from `now`, when that is more than two minutes. Positive: the local clock is behind Google's.
    ///
    /// Means something for a token that was just minted; one that a metadata server had cached is rightly older.
    #[must_use]
    pub fn clock_skew(&self, now: Timestamp) -> Option<SignedDuration> {
        let skew = self.claims.iat.duration_since(now);
        (skew.abs() > MAX_SKEW).then_some(skew)
    }

    /// Checks that this is the token that was asked for, at the time `now`.
    ///
    /// # Errors
    /// The first thing that is wrong: the issuer, the audience, the times, then the account.
    pub fn verify(&self, expected: &Expected<'_>, now: Timestamp) -> Result<(), TokenError> {
        let claims = &self.claims;
        if !GOOGLE_ISSUERS.contains(&claims.iss.as_str()) {
            return Err(TokenError::WrongIssuer(bounded(&claims.iss)));
        }
        if claims.aud.as_bytes() != expected.audience.as_bytes() {
            return Err(TokenError::WrongAudience {
                asked: bounded(expected.audience),
                got: bounded(&claims.aud),
            });
        }
        if claims.exp <= claims.iat {
            return Err(TokenError::Malformed("it ends before it begins"));
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
    let wrong = |asked: &str, got: &str| {
        Err(TokenError::WrongAccount {
            asked: bounded(asked),
            got: bounded(got),
        })
    };
    match expected.account {
        Some(Account::UniqueId(id)) if claims.sub != id => return wrong(id, &claims.sub),
        Some(Account::Email(asked)) => {
            if let Some(email) = &claims.email
                && !email.eq_ignore_ascii_case(asked)
            {
                return wrong(asked, email);
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
