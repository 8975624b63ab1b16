//! The Secret of a request, as far as the caller may see it.

use idtoken_operator::kubernetes::secret::Content;

/// What a Secret turned out to be.
#[derive(Debug)]
pub(crate) enum SecretView {
    /// The caller may not read it; what the API server said.
    Unreadable(String),
    /// There is none.
    Missing,
    /// Its data and metadata.
    Found(Box<Content>),
}
