//! Digests.

use aws_lc_rs::digest;

/// The SHA-256 of `content`, in hexadecimal digits.
#[must_use]
pub fn sha256(content: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, content).as_ref())
}

/// In hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
