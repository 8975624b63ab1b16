//! The certificates that are trusted: the platform's, and those of a file in addition. Both can be replaced while the process runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::google::vocabulary::ConfigError;

/// Where certificates are.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    /// The file of those in addition.
    extra: Option<PathBuf>,
    /// `SSL_CERT_FILE`, which replaces the platform's.
    platform: Option<PathBuf>,
}

/// What is in the files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    extra: Option<Vec<u8>>,
    platform: Option<Vec<u8>>,
}

impl Certificates {
    /// Decides where they are; reads only the environment.
    pub(crate) fn new(extra: Option<PathBuf>) -> Self {
        let platform = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty());
        Self {
            extra,
            platform: platform.map(PathBuf::from),
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// The file of those in addition cannot be read. One of the platform that cannot be read is the verifier's to report.
    pub(crate) fn read(&self) -> Result<Content, ConfigError> {
        let extra = self.extra.as_deref().map(|path| {
            std::fs::read(path).map_err(|source| ConfigError::CaFile {
                path: path.to_owned(),
                source,
            })
        });
        Ok(Content {
            extra: extra.transpose()?,
            platform: self.platform.as_deref().and_then(|path| std::fs::read(path).ok()),
        })
    }

    /// TLS that trusts the platform's certificates and those of `content` in addition.
    pub(crate) fn tls_config(&self, content: &Content) -> Result<ClientConfig, ConfigError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let extra = match (&self.extra, &content.extra) {
            (Some(path), Some(pem)) => parse(path, pem)?,
            _ => Vec::new(),
        };
        let verifier = rustls_platform_verifier::Verifier::new_with_extra_roots(extra, provider.clone())
            .map_err(ConfigError::Tls)?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(ConfigError::Tls)?
            // Rustls calls each verifier "dangerous" that is not its own; this one is the platform's.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn parse(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let wrong = |detail: String| ConfigError::CaPem {
        path: path.to_owned(),
        detail,
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(format!("{error:?}")))?;
    if certificates.is_empty() {
        return Err(wrong("it contains none".to_owned()));
    }
    Ok(certificates)
}
