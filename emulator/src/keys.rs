//! RSA keys that sign, and JSON Web Keys (RFC 7517) that verify.

use anyhow::{Context, anyhow, bail};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::rsa::{KeyPair, KeySize, PublicKey};
use aws_lc_rs::signature::{self, KeyPair as _, UnparsedPublicKey};
use aws_lc_rs::{digest, rsa};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A public key as a JSON Web Key: RSA (`n`, `e`) or P-256 (`crv`, `x`, `y`). Other members are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// Key type: `RSA` or `EC`.
    pub kty: String,
    /// Key id, matched with a JWT's `kid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The only algorithm the key may be used with: `RS256` or `ES256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// Intended use; `sig` for the emulator's own keys.
    #[serde(default, rename = "use", skip_serializing_if = "Option::is_none")]
    pub use_: Option<String>,
    /// RSA modulus, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    /// RSA exponent, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// Curve of an EC key; only `P-256` verifies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// EC x coordinate, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// EC y coordinate, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

impl Jwk {
    /// Reads an RSA public key from PEM (`PUBLIC KEY` or `RSA PUBLIC KEY`).
    ///
    /// # Errors
    /// When the text is not PEM or the key is not RSA.
    pub fn from_public_pem(pem: &str, kid: Option<String>) -> anyhow::Result<Self> {
        let (_, der) = read_pem(pem)?;
        let key = PublicKey::from_der(&der)
            .map_err(|_| anyhow!("not an RSA public key: give a PEM `PUBLIC KEY` block"))?;
        Ok(Self::from_rsa(&key, kid))
    }

    fn from_rsa(key: &PublicKey, kid: Option<String>) -> Self {
        Self {
            kty: "RSA".into(),
            kid,
            alg: Some("RS256".into()),
            use_: Some("sig".into()),
            n: Some(URL_SAFE_NO_PAD.encode(key.modulus().big_endian_without_leading_zero())),
            e: Some(URL_SAFE_NO_PAD.encode(key.exponent().big_endian_without_leading_zero())),
            ..Self::default()
        }
    }

    /// Whether `signature` over `message` was made by this key with `alg` (`RS256` or `ES256`).
    #[must_use]
    pub fn verifies(&self, alg: &str, message: &[u8], signature: &[u8]) -> bool {
        if self.alg.as_deref().is_some_and(|only| only != alg) {
            return false;
        }
        let field = |value: &Option<String>| URL_SAFE_NO_PAD.decode(value.as_deref()?).ok();
        match (self.kty.as_str(), alg) {
            ("RSA", "RS256") => {
                let (Some(n), Some(e)) = (field(&self.n), field(&self.e)) else {
                    return false;
                };
                rsa::PublicKeyComponents { n, e }
                    .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
                    .is_ok()
            }
            ("EC", "ES256") if self.crv.as_deref() == Some("P-256") => {
                let (Some(x), Some(y)) = (field(&self.x), field(&self.y)) else {
                    return false;
                };
                let point = [&[4][..], &x, &y].concat();
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
                    .is_ok()
            }
            _ => false,
        }
    }
}

/// A JSON Web Key Set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwks {
    /// The keys, in the order they were published.
    pub keys: Vec<Jwk>,
}

/// An RSA key pair that signs JWTs with RS256.
pub struct SigningKey {
    pair: KeyPair,
    kid: String,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Generates an RSA-2048 key.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn generate() -> anyhow::Result<Self> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow!("cannot generate an RSA key"))?;
        Ok(Self::new(pair))
    }

    /// Reads a private key from PEM (`PRIVATE KEY`, PKCS #8, or `RSA PRIVATE KEY`, PKCS #1).
    ///
    /// # Errors
    /// When the text is not PEM or the key is not RSA of at least 2048 bits.
    pub fn from_pem(pem: &str) -> anyhow::Result<Self> {
        let (label, der) = read_pem(pem)?;
        let pair = match label.as_str() {
            "PRIVATE KEY" => KeyPair::from_pkcs8(&der),
            "RSA PRIVATE KEY" => KeyPair::from_der(&der),
            other => bail!("a PEM `PRIVATE KEY` is needed, not `{other}`"),
        };
        Ok(Self::new(pair.map_err(|_| {
            anyhow!("not an RSA private key of 2048 bits or more")
        })?))
    }

    fn new(pair: KeyPair) -> Self {
        let modulus = pair
            .public_key()
            .modulus()
            .big_endian_without_leading_zero()
            .to_vec();
        // As long as Google's: 40 hexadecimal digits.
        let kid = hex(&sha256(&modulus)[..20]);
        Self { pair, kid }
    }

    /// The key id: a hash of the modulus, so that the same key always has the same id.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public half.
    #[must_use]
    pub fn jwk(&self) -> Jwk {
        Jwk::from_rsa(self.pair.public_key(), Some(self.kid.clone()))
    }

    /// The private key as PKCS #8 PEM.
    ///
    /// # Errors
    /// When the cryptographic library cannot encode it.
    pub fn to_pem(&self) -> anyhow::Result<String> {
        Ok(write_pem("PRIVATE KEY", &self.pkcs8()?))
    }

    /// A self-signed X.509 certificate of this key in PEM, like those that Google publishes at `oauth2/v1/certs`.
    ///
    /// # Errors
    /// When the certificate cannot be created.
    pub fn certificate_pem(&self) -> anyhow::Result<String> {
        let key = rcgen::KeyPair::try_from(self.pkcs8()?).context("cannot read the signing key")?;
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(
            rcgen::DnType::CommonName,
            "federated-signon.system.gserviceaccount.com",
        );
        Ok(params
            .self_signed(&key)
            .context("cannot create the certificate")?
            .pem())
    }

    /// Signs `claims` as a compact JWT (RS256) whose header has this key's `kid`.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn sign(&self, claims: &Value) -> anyhow::Result<String> {
        let header = json!({"alg": "RS256", "kid": self.kid, "typ": "JWT"});
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", encode(&header), encode(claims));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(
                &signature::RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                input.as_bytes(),
                &mut signature,
            )
            .map_err(|_| anyhow!("cannot sign"))?;
        Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn pkcs8(&self) -> anyhow::Result<Vec<u8>> {
        let der: Pkcs8V1Der<'static> = self
            .pair
            .as_der()
            .map_err(|_| anyhow!("cannot encode the private key"))?;
        Ok(der.as_ref().to_vec())
    }
}

/// `bytes` random bytes, base64url.
pub(crate) fn random_text(bytes: usize) -> anyhow::Result<String> {
    let mut buffer = vec![0; bytes];
    SystemRandom::new()
        .fill(&mut buffer)
        .map_err(|_| anyhow!("no random bytes available"))?;
    Ok(URL_SAFE_NO_PAD.encode(buffer))
}

/// The SHA-256 digest.
pub(crate) fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

/// `bytes` in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_pem(text: &str) -> anyhow::Result<(String, Vec<u8>)> {
    let missing = || anyhow!("no PEM block: expected `-----BEGIN …-----` and `-----END …-----` lines");
    let (_, rest) = text.split_once("-----BEGIN ").ok_or_else(missing)?;
    let (label, rest) = rest.split_once("-----").ok_or_else(missing)?;
    let (body, _) = rest.split_once("-----END ").ok_or_else(missing)?;
    let body: String = body.split_whitespace().collect();
    Ok((
        label.to_owned(),
        STANDARD.decode(body).context("the PEM block is not base64")?,
    ))
}

fn write_pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let body = STANDARD.encode(der);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_round_trip_keeps_the_key() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
        assert_eq!(key.kid(), again.kid());
        assert_eq!(key.jwk(), again.jwk());
        assert!(
            key.certificate_pem()
                .unwrap()
                .starts_with("-----BEGIN CERTIFICATE-----")
        );
        assert!(!format!("{key:?}").contains("PRIVATE"));
    }

    #[test]
    fn wrong_pem_is_explained() {
        assert!(
            SigningKey::from_pem("nonsense")
                .unwrap_err()
                .to_string()
                .contains("PEM")
        );
        let text = write_pem("CERTIFICATE", b"x");
        assert!(
            SigningKey::from_pem(&text)
                .unwrap_err()
                .to_string()
                .contains("CERTIFICATE")
        );
    }
}
