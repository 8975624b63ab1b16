//! The Secret of a request, as far as the caller may see it.

use idtoken_operator::kubernetes::secret::SecretContent;

/// The result of reading a Secret.
#[derive(Debug)]
pub(crate) enum SecretView {
    /// The caller may not read it; with the message of the API server.
    Unreadable(String),
    /// It does not exist.
    Missing,
    /// It exists; with its data and metadata.
    Found(Box<SecretContent>),
}
