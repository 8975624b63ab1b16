//! X.509 certificates of workloads: the TLS side, which asks clients for one, and the subject token, which must be about the same one.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use serde_json::{Map, Value, json};

use crate::clock::now;
use crate::provider::{WorkloadIdentityProvider, anchors};
use crate::subject_token::{Bearer, ExchangeError, invalid_grant, mapped};

/// How long Google's access token for a certificate is valid, in seconds.
const LIFETIME: i64 = 3600;

/// The attribute type of a common name, 2.5.4.3, as DER: tag, length, value.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];

/// Takes any certificate whose key the client has, and clients without one: the Security Token Service decides later.
#[derive(Debug)]
pub(crate) struct AnyClient;

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    default_provider().signature_verification_algorithms
}

/// Verifies a list of certificates: its first is the one that the client has shown, and the rest leads from there to a trust anchor.
pub(crate) fn bearer(
    provider: &WorkloadIdentityProvider,
    trust_anchors: &str,
    shown: Option<&CertificateDer<'static>>,
    token: &str,
) -> Result<Bearer, ExchangeError> {
    let unparsable = || ExchangeError {
        error: "invalid_request",
        description: "Unable to parse the list of certificates.".into(),
    };
    let list: Vec<String> = serde_json::from_str(token).map_err(|_| unparsable())?;
    let decoded = list
        .iter()
        .map(|text| STANDARD.decode(text).map(CertificateDer::from));
    let chain: Vec<_> = decoded.collect::<Result<_, _>>().map_err(|_| unparsable())?;
    let (leaf, rest) = chain.split_first().ok_or_else(unparsable)?;
    if shown != Some(leaf) {
        return Err(invalid_grant(
            "The client certificate of the mTLS connection is not the first certificate of the subject token.",
        ));
    }
    let refused =
        |reason: String| invalid_grant(format!("Unable to verify the client certificate: {reason}."));
    let anchors = anchors(trust_anchors).map_err(|error| refused(error.to_string()))?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(anchors), Arc::new(default_provider())).build();
    let verifier = verifier.map_err(|error| refused(error.to_string()))?;
    verifier
        .verify_client_cert(leaf, rest, UnixTime::now())
        .map_err(|error| refused(error.to_string()))?;
    let name = common_name(leaf).ok_or_else(|| refused("it has no common name".into()))?;
    let claims: Map<String, Value> = Map::from_iter([("subject".to_owned(), json!({"dn": {"cn": name}}))]);
    Ok(Bearer {
        principal: mapped(provider, &claims)?,
        expires: now() + LIFETIME,
    })
}

/// The common name in a certificate's subject.
fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    // The subject is at hand where a certificate is an anchor.
    let mut store = RootCertStore::empty();
    store.add(certificate.clone().into_owned()).ok()?;
    let subject = store.roots.first()?.subject.as_ref().to_vec();
    let start = subject
        .windows(COMMON_NAME.len())
        .position(|bytes| bytes == COMMON_NAME)?;
    // A name is at most 64 characters long, so that its length is one byte.
    let [_tag, length, rest @ ..] = subject.get(start + COMMON_NAME.len()..)? else {
        return None;
    };
    String::from_utf8(rest.get(..usize::from(*length))?.to_vec()).ok()
}
