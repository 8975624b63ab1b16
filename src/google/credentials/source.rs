//! Where the operator's credentials are, and their content.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use crate::google::vocabulary::{Endpoint, Error, ErrorClass, GoogleConfig, Reason};

/// The longest credential file, in bytes; Google's are about 2.5 KiB.
pub(crate) const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Where the credentials are.
pub(crate) enum Source {
    /// A file that must exist.
    File(PathBuf),
    /// gcloud's file if it exists, else the metadata server.
    WellKnown(PathBuf),
    /// The metadata server.
    Metadata,
}

/// What was read last.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Absent,
    /// The SHA-256 of the file.
    Present([u8; 32]),
}

impl Source {
    /// Decides by the settings and the environment, as <https://google.aip.dev/auth/4110> says.
    pub(crate) fn find(config: &GoogleConfig) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        match (
            &config.credentials_file,
            set("GOOGLE_APPLICATION_CREDENTIALS"),
            gcloud_folder(),
        ) {
            (Some(path), ..) => Self::File(path.clone()),
            (None, Some(path), _) => Self::File(path.into()),
            (None, None, Some(gcloud)) => {
                Self::WellKnown(gcloud.join("application_default_credentials.json"))
            }
            (None, None, None) => Self::Metadata,
        }
    }

    /// The content of the credential file; `None` if the credentials are the metadata server's.
    pub(crate) async fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let (path, required) = match self {
            Self::File(path) => (path, true),
            Self::WellKnown(path) => (path, false),
            Self::Metadata => return Ok(None),
        };
        let unreadable = |error: std::io::Error| {
            unavailable(&format!(
                "the credential file {} cannot be read: {error}",
                path.display()
            ))
        };
        let file = match tokio::fs::File::open(path).await {
            Ok(file) => file,
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        let mut content = Zeroizing::new(Vec::with_capacity(8 * 1024));
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut content)
            .await
            .map_err(unreadable)?;
        Ok(Some(content))
    }
}

/// gcloud's folder of configuration.
pub(crate) fn gcloud_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    set("CLOUDSDK_CONFIG")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".config/gcloud")))
}

/// Reads a file that credentials name, of at most [`MAX_FILE_BYTES`].
pub(crate) async fn read_bounded(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let file = tokio::fs::File::open(path).await?;
    let mut content = Zeroizing::new(Vec::with_capacity(8 * 1024));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).await?;
    if content.len() as u64 > MAX_FILE_BYTES {
        let message = "it is longer than 64 KiB";
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, message));
    }
    Ok(content)
}

/// The error of credentials that cannot be used before a user changes them.
pub(crate) fn unavailable(message: &str) -> Error {
    Error::new(Endpoint::Credentials, Reason::CredentialsUnavailable, message)
        .with_class(ErrorClass::Rejected)
}

/// The error of credentials whose subject token cannot be had at the moment.
pub(crate) fn no_subject_token(problem: &str) -> Error {
    let message = format!("there is no subject token: {problem}");
    Error::new(Endpoint::Credentials, Reason::CredentialsUnavailable, &message)
}

pub(crate) fn sha256(content: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, content).as_ref());
    out
}
