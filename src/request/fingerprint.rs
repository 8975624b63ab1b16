//! Pure: versioned hashes, as the annotations of Secrets hold them.

use aws_lc_rs::digest::{SHA256, digest};

use crate::text::hex;

/// `VERSION-` and 32 hex digits of the SHA-256 over `parts`, each preceded by its length, so that no two lists collide.
pub(crate) fn versioned(version: &str, parts: &[String]) -> String {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    format!("{version}-{}", hex(&digest(&SHA256, &bytes).as_ref()[..16]))
}

#[cfg(test)]
mod tests {
    use super::versioned;

    #[test]
    fn parts_do_not_run_together() {
        let hash =
            |parts: &[&str]| versioned("v1", &parts.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>());
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        // Every Secret carries such a hash: with another value an upgrade would re-issue every token.
        assert_eq!(hash(&["a"]), "v1-ae6121c88ba555f64c3d812123eb799d");
        assert!(hash(&["a"]).starts_with("v1-") && hash(&["a"]).len() == 35);
    }
}
