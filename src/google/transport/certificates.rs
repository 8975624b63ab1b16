//! The certificates that are trusted: the platform's, and those of the CA file in addition. Both can be replaced while the process runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
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

/// Which content was read: digests, since a platform's file has hundreds of kilobytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentId {
    extra: Option<[u8; SHA256_OUTPUT_LEN]>,
    platform: Option<[u8; SHA256_OUTPUT_LEN]>,
}

impl Content {
    /// What tells it from another content.
    pub(crate) fn id(&self) -> ContentId {
        let digest = |file: &Option<Vec<u8>>| {
            let digest = digest(&SHA256, file.as_ref()?);
            digest.as_ref().try_into().ok()
        };
        ContentId {
            extra: digest(&self.extra),
            platform: digest(&self.platform),
        }
    }
}

impl ContentId {
    /// Whether the platform's file was readable.
    pub(crate) fn has_platform(self) -> bool {
        self.platform.is_some()
    }
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
        let extra = self.extra.as_deref().map(read);
        Ok(Content {
            extra: extra.transpose()?,
            platform: self.platform.as_deref().and_then(|path| std::fs::read(path).ok()),
        })
    }

    /// Reads the files again. If the platform's was readable, it must be now: without it, only the others would be trusted.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn read_again(&self, had_platform: bool) -> Result<Content, ConfigError> {
        let mut content = self.read()?;
        if let (Some(path), None, true) = (&self.platform, &content.platform, had_platform) {
            content.platform = Some(read(path)?);
        }
        Ok(content)
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

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::CaFile {
        path: path.to_owned(),
        source,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_of_the_platform_that_vanish_stay_in_use() {
        let path = std::env::temp_dir().join(format!("certificates-{}", std::process::id()));
        std::fs::write(&path, "PEM").expect("a temporary file");
        let certificates = Certificates {
            extra: None,
            platform: Some(path.clone()),
        };
        let first = certificates.read().expect("both files");
        assert!(first.id().has_platform());
        assert_eq!(certificates.read_again(true).expect("unchanged"), first);
        std::fs::remove_file(&path).expect("the temporary file");
        let absent = certificates.read().expect("no file is required");
        assert!(absent.id() != first.id() && !absent.id().has_platform());
        let error = certificates.read_again(true);
        assert!(matches!(error, Err(ConfigError::CaFile { .. })), "{error:?}");
        // At the start, the verifier reports it.
        assert_eq!(certificates.read_again(false).expect("as before"), absent);
    }
}
