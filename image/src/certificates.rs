//! The CA bundle.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Length of a line of Base64 in PEM (RFC 7468 §2).
const LINE: usize = 64;

/// The certificates of the CAs that Mozilla trusts for TLS servers, as PEM.
///
/// From the crate `webpki-root-certs`, so that Cargo.lock fixes them and every machine makes the same image. They are a
/// file in the image, not a part of the program, so that a cluster can put its own in their place.
#[must_use]
pub fn ca_bundle() -> String {
    let mut pem = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let mut base64 = STANDARD.encode(certificate.as_ref());
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        while base64.len() > LINE {
            let rest = base64.split_off(LINE);
            pem.push_str(&base64);
            pem.push('\n');
            base64 = rest;
        }
        pem.push_str(&base64);
        pem.push_str("\n-----END CERTIFICATE-----\n");
    }
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_pem_of_mozillas_certificates() {
        let bundle = ca_bundle();
        let blocks: Vec<_> = bundle
            .split("-----BEGIN CERTIFICATE-----\n")
            .skip(1)
            .map(|block| {
                let body = block
                    .strip_suffix("\n-----END CERTIFICATE-----\n")
                    .expect("an end");
                assert!(body.lines().all(|line| (1..=LINE).contains(&line.len())));
                STANDARD.decode(body.replace('\n', "")).expect("Base64")
            })
            .collect();
        let wanted: Vec<_> = webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .map(|certificate| certificate.to_vec())
            .collect();
        assert_eq!(blocks, wanted);
        assert!(blocks.len() > 100);
    }
}
