//! The X.509 certificate of a workload, which it shows to the Security Token Service by mutual TLS:
//! <https://cloud.google.com/iam/docs/workload-identity-federation-with-x509-certificates>.
//!
//! Its files are read for each exchange, because they are rotated.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::file_error::CredentialFileError;
use super::source::{gcloud_folder, no_subject_token, read_bounded};
use crate::google::vocabulary::Error;

/// The variable that names the certificate configuration, as in Google's libraries.
const CONFIG_VARIABLE: &str = "GOOGLE_API_CERTIFICATE_CONFIG";

/// The `certificate` of a `credential_source`, unchecked.
#[derive(Deserialize)]
pub(super) struct RawCertificate {
    use_default_certificate_config: Option<bool>,
    certificate_config_location: Option<PathBuf>,
    trust_chain_path: Option<PathBuf>,
}

/// Where the certificate is.
pub(super) struct CertificateSource {
    /// The certificate configuration: it says where certificate and key are.
    config: PathBuf,
    /// The certificates between the workload's and the trust anchor.
    trust_chain: Option<PathBuf>,
}

/// A certificate as it was read.
pub(super) struct ClientCertificate {
    /// For TLS.
    pub(super) key: Arc<CertifiedKey>,
    /// The workload's own, DER.
    pub(super) leaf: CertificateDer<'static>,
    /// What the Security Token Service verifies: a list of certificates, the workload's first.
    pub(super) subject_token: String,
}

/// A certificate configuration; gcloud writes others into the same file.
#[derive(Deserialize)]
struct Config {
    cert_configs: Configs,
}

#[derive(Deserialize)]
struct Configs {
    workload: Files,
}

#[derive(Deserialize)]
struct Files {
    cert_path: PathBuf,
    key_path: PathBuf,
}

/// Why there is no certificate. Messages contain paths and times, and nothing of a file.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error("the {what} {path} cannot be read: {error}")]
    Unreadable {
        what: &'static str,
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("the certificate configuration {0} has no cert_configs.workload with cert_path and key_path")]
    NotConfig(PathBuf),
    #[error("the {what} {path} is not the PEM of X.509 certificates")]
    NotCertificates { what: &'static str, path: PathBuf },
    #[error("the private key {0} is not the PEM of an RSA, ECDSA or Ed25519 key without a passphrase")]
    NotKey(PathBuf),
    #[error("the private key {key} is not that of the certificate {certificate}")]
    KeyMismatch { certificate: PathBuf, key: PathBuf },
    #[error("the certificate {path} expired at {at}")]
    Expired { path: PathBuf, at: Timestamp },
    #[error("the certificate {path} is not valid before {at}")]
    NotYetValid { path: PathBuf, at: Timestamp },
    #[error("the trust chain {0} has the workload's own certificate behind another one")]
    LeafNotFirst(PathBuf),
}

impl CertificateError {
    /// What to do about it.
    fn advice(&self) -> &'static str {
        match self {
            Self::Unreadable {
                what: Self::CONFIG, ..
            }
            | Self::NotConfig(_) => {
                "Write one with gcloud iam workload-identity-pools create-cred-config … --credential-cert-path=FILE \
                 --credential-cert-private-key-path=FILE, and name it in credential_source.certificate.certificate_config_location or in \
                 GOOGLE_API_CERTIFICATE_CONFIG."
            }
            Self::Unreadable { .. } => {
                "Mount the files that the certificate configuration and the credential file name, readable for the operator's user."
            }
            Self::NotCertificates { .. } | Self::NotKey(_) => "Give the file as PEM.",
            Self::KeyMismatch { .. } => {
                "Replace certificate and key together; in one Secret, the kubelet does so."
            }
            Self::Expired { .. } => "Renew it: the operator reads the files again.",
            Self::NotYetValid { .. } => {
                "Compare the clock of the node with that of the certificate authority."
            }
            Self::LeafNotFirst(_) => {
                "Put it first, or leave it out: intermediate certificates follow, each signed by the next."
            }
        }
    }

    const CONFIG: &'static str = "certificate configuration";
}

impl From<CertificateError> for Error {
    fn from(error: CertificateError) -> Self {
        no_subject_token(&error.to_string()).with_remediation(error.advice())
    }
}

impl CertificateSource {
    /// Checks the file's fields, and decides where the certificate configuration is; reads only the environment.
    pub(super) fn new(raw: RawCertificate) -> Result<Self, CredentialFileError> {
        let is_set = |path: &PathBuf| !path.as_os_str().is_empty();
        let location = raw.certificate_config_location.filter(is_set);
        let config = match (location, raw.use_default_certificate_config) {
            (Some(_), Some(true)) => Err(CredentialFileError::Unsupported(
                "both use_default_certificate_config and certificate_config_location",
            )),
            (Some(path), _) => Ok(path),
            (None, Some(true)) => default_config(),
            (None, _) => Err(CredentialFileError::Missing(
                "credential_source.certificate.certificate_config_location, and use_default_certificate_config is not true",
            )),
        };
        Ok(Self {
            config: config?,
            trust_chain: raw.trust_chain_path.filter(is_set),
        })
    }

    /// Reads the certificate, its key and its chain, which must be usable at `now`.
    pub(super) async fn read(&self, now: Timestamp) -> Result<ClientCertificate, Error> {
        Ok(self.read_files(now).await?)
    }

    async fn read_files(&self, now: Timestamp) -> Result<ClientCertificate, CertificateError> {
        let config = read(CertificateError::CONFIG, &self.config).await?;
        // The parser's message could quote the file.
        let config: Config =
            serde_json::from_slice(&config).map_err(|_| CertificateError::NotConfig(self.config.clone()))?;
        let Files { cert_path, key_path } = config.cert_configs.workload;
        let chain = certificates("certificate", &cert_path).await?;
        let not_certificates = || CertificateError::NotCertificates {
            what: "certificate",
            path: cert_path.clone(),
        };
        let leaf = chain.first().cloned().ok_or_else(not_certificates)?;
        let pem = read("private key", &key_path).await?;
        let not_key = || CertificateError::NotKey(key_path.clone());
        let der = Zeroizing::new(PrivateKeyDer::from_pem_slice(&pem).map_err(|_| not_key())?);
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(|_| not_key())?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(CertificateError::KeyMismatch {
                    certificate: cert_path,
                    key: key_path,
                });
            }
            Err(_) => return Err(not_certificates()),
        }
        check_validity(&leaf, &cert_path, now)?;
        let subject_token = self.subject_token(&leaf).await?;
        Ok(ClientCertificate {
            key: Arc::new(key),
            leaf,
            subject_token,
        })
    }

    /// The list of certificates as Google's libraries write it: the leaf, then the trust chain, which may begin with the leaf too.
    async fn subject_token(&self, leaf: &CertificateDer<'_>) -> Result<String, CertificateError> {
        let rest = match &self.trust_chain {
            Some(path) => certificates("trust chain", path).await?,
            None => Vec::new(),
        };
        let rest = match rest.split_first() {
            Some((first, rest)) if first == leaf => rest,
            _ => &rest[..],
        };
        if let Some(path) = self.trust_chain.as_ref().filter(|_| rest.contains(leaf)) {
            return Err(CertificateError::LeafNotFirst(path.clone()));
        }
        let all = std::iter::once(leaf).chain(rest);
        let encoded: Vec<String> = all.map(|certificate| STANDARD.encode(certificate)).collect();
        Ok(serde_json::json!(encoded).to_string())
    }
}

/// As Google's libraries find it.
fn default_config() -> Result<PathBuf, CredentialFileError> {
    let variable = std::env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty());
    let folder = || gcloud_folder().map(|folder| folder.join("certificate_config.json"));
    variable
        .map(PathBuf::from)
        .or_else(folder)
        .ok_or(CredentialFileError::Missing(
            "certificate configuration: neither GOOGLE_API_CERTIFICATE_CONFIG nor HOME is set",
        ))
}

async fn read(what: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateError> {
    read_bounded(path)
        .await
        .map_err(|error| CertificateError::Unreadable {
            what,
            path: path.to_owned(),
            error,
        })
}

/// At least one certificate.
async fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let pem = read(what, path).await?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    certificates
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| CertificateError::NotCertificates {
            what,
            path: path.to_owned(),
        })
}

/// rustls checks validity only as a part of a chain, and before the rest of it. The rest is for Google to check, so that here the
/// certificate is its own anchor, and only what is said of its validity counts.
fn check_validity(leaf: &CertificateDer<'_>, path: &Path, now: Timestamp) -> Result<(), CertificateError> {
    use rustls::CertificateError::{ExpiredContext, NotValidYetContext};
    let wrong = || CertificateError::NotCertificates {
        what: "certificate",
        path: path.to_owned(),
    };
    let mut anchors = RootCertStore::empty();
    anchors.add(leaf.clone().into_owned()).map_err(|_| wrong())?;
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(anchors), provider).build();
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    let result =
        verifier
            .map_err(|_| wrong())?
            .verify_client_cert(leaf, &[], UnixTime::since_unix_epoch(now));
    let time = |time: UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
    };
    match result {
        Err(rustls::Error::InvalidCertificate(ExpiredContext { not_after, .. })) => {
            Err(CertificateError::Expired {
                path: path.to_owned(),
                at: time(not_after),
            })
        }
        Err(rustls::Error::InvalidCertificate(NotValidYetContext { not_before, .. })) => {
            Err(CertificateError::NotYetValid {
                path: path.to_owned(),
                at: time(not_before),
            })
        }
        _ => Ok(()),
    }
}
