//! A workload that is known by an X.509 certificate: the authority that vouches for it, and a client that shows the certificate to the Security
//! Token Service (<https://cloud.google.com/iam/docs/workload-identity-federation-with-x509-certificates>).

use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

/// The workload.
pub(crate) struct Workload {
    /// The certificate of the authority, PEM.
    pub(crate) trust_anchor: String,
    /// The list of certificates that says who the workload is, and that of another workload of the same authority.
    subject_token: String,
    subject_token_of_other: String,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Workload {
    /// A new workload of a new authority.
    pub(crate) fn generate() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let issue = |name: &str| {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &authority)?;
            anyhow::Ok((certificate.der().clone(), key))
        };
        let (certificate, key) = issue("billing")?;
        let (other, _) = issue("other")?;
        let token = |certificate: &[u8]| json!([STANDARD.encode(certificate)]).to_string();
        Ok(Self {
            trust_anchor: authority.pem(),
            subject_token: token(&certificate),
            subject_token_of_other: token(&other),
            certificate,
            key,
        })
    }

    /// The list of certificates: its own, or with `of` in `changes` the other's.
    pub(crate) fn list(&self, changes: &Value) -> String {
        match changes.get("of") {
            None => self.subject_token.clone(),
            Some(_) => self.subject_token_of_other.clone(),
        }
    }

    /// A client that shows the certificate, through a proxy whose authority is `ca`.
    pub(crate) fn client(&self, proxy: &str, ca: &str) -> Result<reqwest::Client> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).context("the proxy's CA")?)?;
        let key = PrivateKeyDer::try_from(self.key.serialize_der());
        let key = key.ok().context("the key of a workload")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![self.certificate.clone()], key)?;
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .proxy(reqwest::Proxy::all(proxy)?);
        Ok(builder.build()?)
    }
}
