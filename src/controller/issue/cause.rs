//! Why a token is issued.

/// Why a token is issued; a field of the log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssueCause {
    /// There is no Secret.
    Missing,
    /// The spec asks for another token.
    Changed,
    /// The Secret's token was replaced.
    Damaged,
    /// The token has expired.
    Expired,
    /// The annotation requests it.
    Requested,
    /// The renewal is due.
    Due,
}
