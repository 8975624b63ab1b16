//! The certificate authority of the proxy: created at start; issues a certificate for a host at its first use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use jiff::ToSpan;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

use crate::{routing, x509};

/// Validity of the certificates, in days. Stays below the limit of the strictest clients: Apple's accept 825 days from a CA that
/// the user has added (<https://support.apple.com/en-us/103769>).
const VALIDITY_DAYS: i64 = 398;

/// A certificate authority whose key never leaves this process.
pub(crate) struct ProxyCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
    certificate: String,
    leaves: Mutex<HashMap<String, Arc<ServerConfig>>>,
}

impl ProxyCa {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut params = certificate_params("idtoken-emulator test CA")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("cannot generate the key of the test CA")?;
        let issuer = CertifiedIssuer::self_signed(params, key).context("cannot create the test CA")?;
        let certificate = issuer.pem();
        Ok(Self {
            issuer,
            certificate,
            leaves: Mutex::default(),
        })
    }

    /// The CA's certificate, PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The TLS configuration of a server named `host`.
    pub(crate) fn server_config(&self, host: &str) -> anyhow::Result<Arc<ServerConfig>> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = leaves.get(host) {
            return Ok(config.clone());
        }
        let config = Arc::new(self.issue(host)?);
        leaves.insert(host.to_owned(), config.clone());
        Ok(config)
    }

    fn issue(&self, host: &str) -> anyhow::Result<ServerConfig> {
        let mut params = certificate_params(host)?;
        params.subject_alt_names = CertificateParams::new([host.to_owned()])
            .with_context(|| format!("{host} cannot be the name in a certificate"))?
            .subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Python's VERIFY_X509_STRICT requires it.
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("cannot generate a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("cannot sign a certificate")?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = if routing::asks_for_certificates(host) {
            builder.with_client_cert_verifier(Arc::new(x509::AnyClient))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificate_params(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let today = jiff::Timestamp::now().to_zoned(TimeZone::UTC).date();
    let time = |date: Date| {
        date_time_ymd(
            date.year().into(),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        )
    };
    // Valid since yesterday, for clients whose clock is behind.
    params.not_before = time(today.checked_sub(1.day())?);
    params.not_after = time(today.checked_add((VALIDITY_DAYS - 1).days())?);
    Ok(params)
}
