//! SHA-256.

use aws_lc_rs::digest;

/// The digest of `content`, in hexadecimal digits.
#[must_use]
pub fn sha256(content: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, content);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
