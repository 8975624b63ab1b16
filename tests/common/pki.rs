//! Certificates of workloads, as files: a certificate authority, what it issues, and the configuration that Google's libraries read.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

/// A certificate authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        Self(CertifiedIssuer::self_signed(authority_params("root"), key()).expect("a certificate"))
    }

    /// One below this one.
    pub(crate) fn intermediate(&self) -> Self {
        Self(
            CertifiedIssuer::signed_by(authority_params("intermediate"), key(), &self.0)
                .expect("a certificate"),
        )
    }

    /// Its own certificate, PEM.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// The certificate (PEM) of a workload that is valid from one time until another, in seconds from now.
    pub(crate) fn issue(&self, name: &str, key: &KeyPair, valid: (i64, i64)) -> String {
        let mut params = params(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let now = std::time::SystemTime::now();
        let at = |seconds: i64| match u64::try_from(seconds) {
            Ok(seconds) => now + Duration::from_secs(seconds),
            Err(_) => now - Duration::from_secs(seconds.unsigned_abs()),
        };
        (params.not_before, params.not_after) = (at(valid.0).into(), at(valid.1).into());
        params.signed_by(key, &self.0).expect("a certificate").pem()
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, DnValue::Utf8String(name.to_owned()));
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// A workload's files, in a folder that goes with the test.
pub(crate) struct Files(PathBuf);

impl Files {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("idtoken-pki-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the temporary folder can be written");
        let files = Self(path);
        let config = json!({"version": 1, "cert_configs": {"workload": {
            "cert_path": files.path("tls.crt"), "key_path": files.path("tls.key"),
        }}});
        files.write("certificate_config.json", &config.to_string());
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).expect("the temporary folder can be written");
    }

    /// The workload's certificate, valid for an hour, and its key.
    pub(crate) fn write_certificate(&self, authority: &Authority, name: &str) {
        let key = key();
        self.write("tls.crt", &authority.issue(name, &key, (-60, 3600)));
        self.write("tls.key", &key.serialize_pem());
    }

    /// What `gcloud iam workload-identity-pools create-cred-config` writes with `--credential-cert-path`.
    pub(crate) fn credentials(&self, provider: &str) -> Value {
        json!({
            "universe_domain": "googleapis.com",
            "type": "external_account",
            "audience": provider,
            "subject_token_type": "urn:ietf:params:oauth:token-type:mtls",
            "token_url": "https://sts.mtls.googleapis.com/v1/token",
            "credential_source": {"certificate": {
                "certificate_config_location": self.path("certificate_config.json"),
            }},
        })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
