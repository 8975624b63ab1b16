//! Compact JSON Web Tokens (RFC 7519): parsing, and verifying signatures.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::keys::Jwk;

/// A parsed JWT whose signature is not verified yet.
pub(crate) struct Jwt {
    header: Map<String, Value>,
    /// The payload.
    pub(crate) claims: Map<String, Value>,
    signing_input: Vec<u8>,
    signature: Vec<u8>,
}

impl Jwt {
    /// Parses `token`. Returns `None` unless it is three base64url parts with JSON objects in the first two.
    pub(crate) fn parse(token: &str) -> Option<Self> {
        let (signing_input, signature) = token.rsplit_once('.')?;
        let (header, claims) = signing_input.split_once('.')?;
        let object = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        Some(Self {
            header: object(header)?,
            claims: object(claims)?,
            signing_input: signing_input.as_bytes().to_vec(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    /// The header's key id.
    pub(crate) fn kid(&self) -> Option<&str> {
        self.header.get("kid")?.as_str()
    }

    /// Whether one of `keys` made the signature. Skips keys whose id differs from the header's.
    pub(crate) fn verified_by<'k>(&self, keys: impl IntoIterator<Item = &'k Jwk>) -> bool {
        let Some(alg) = self.header.get("alg").and_then(Value::as_str) else {
            return false;
        };
        let kid = self.kid();
        keys.into_iter()
            .filter(|key| kid.is_none() || key.kid.is_none() || key.kid.as_deref() == kid)
            .any(|key| key.verifies(alg, &self.signing_input, &self.signature))
    }

    /// A claim that is a string.
    pub(crate) fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim)?.as_str()
    }

    /// A claim that is a time, in whole seconds since 1970.
    pub(crate) fn time(&self, claim: &str) -> Option<i64> {
        let value = self.claims.get(claim)?;
        value
            .as_i64()
            .or_else(|| value.as_f64().map(|seconds| seconds as i64))
    }

    /// `aud`, which may be one string or a list.
    pub(crate) fn audiences(&self) -> Vec<&str> {
        match self.claims.get("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;
    use serde_json::json;

    #[test]
    fn signature_is_checked() {
        let key = SigningKey::generate().unwrap();
        let other = SigningKey::generate().unwrap();
        let token = key.sign(&json!({"aud": ["a", "b"], "exp": 12})).unwrap();
        let jwt = Jwt::parse(&token).unwrap();
        assert!(jwt.verified_by(&[other.jwk(), key.jwk()]));
        assert!(!jwt.verified_by(&[other.jwk()]));
        assert_eq!(jwt.audiences(), ["a", "b"]);
        assert_eq!(jwt.time("exp"), Some(12));

        let (input, _) = token.rsplit_once('.').unwrap();
        let (_, foreign) = other
            .sign(&json!({}))
            .map(|t| {
                t.rsplit_once('.')
                    .map(|(a, b)| (a.to_owned(), b.to_owned()))
                    .unwrap()
            })
            .unwrap();
        assert!(
            !Jwt::parse(&format!("{input}.{foreign}"))
                .unwrap()
                .verified_by(&[key.jwk()])
        );
        assert!(Jwt::parse("a.b").is_none());
        assert!(Jwt::parse("ya29.opaque").is_none());
    }
}
