//! X.509 certificates at the Security Token Service: only the one that was shown, of an authority that the provider trusts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::start_with;
use idtoken_emulator::{Options, Policy, WorkloadIdentityProvider};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

const PROVIDER: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/x509";

struct Workload {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn workload(authority: &CertifiedIssuer<'static, KeyPair>, name: &str) -> Workload {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, authority).unwrap();
    Workload {
        certificate: certificate.der().clone(),
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

#[tokio::test]
async fn only_the_certificate_that_was_shown_counts() {
    let trusted = authority();
    let (billing, other) = (workload(&trusted, "billing"), workload(&trusted, "other"));
    let stranger = workload(&authority(), "billing");
    let anchors = trusted.pem();
    let world = start_with(Options::with_proxy(), |policy| {
        policy
            .workload_identity_providers
            .push(WorkloadIdentityProvider::x509(PROVIDER, anchors));
    })
    .await;
    let exchange = async |host: &str, shown: Option<&Workload>, named: &Workload| {
        let mut roots = rustls::RootCertStore::empty();
        let ca = world.google.proxy_ca_pem().unwrap();
        roots
            .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let tls = match shown {
            Some(shown) => builder
                .with_client_auth_cert(vec![shown.certificate.clone()], shown.key.clone_key())
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        let proxy = reqwest::Proxy::all(world.google.proxy_url().unwrap()).unwrap();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .proxy(proxy)
            .build()
            .unwrap();
        let token = serde_json::json!([STANDARD.encode(&named.certificate)]).to_string();
        let mut fields = common::exchange_fields(PROVIDER, &token);
        fields.retain(|(name, _)| *name != "subject_token_type");
        fields.push(("subject_token_type", "urn:ietf:params:oauth:token-type:mtls"));
        let request = client.post(format!("https://{host}/v1/token")).form(&fields);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        (
            status,
            answer["error_description"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    };
    let mtls = "sts.mtls.googleapis.com";
    assert_eq!(exchange(mtls, Some(&billing), &billing).await.0, 200);
    for (host, shown, named, said) in [
        (mtls, Some(&other), &billing, "is not the first certificate"),
        (mtls, None, &billing, "is not the first certificate"),
        (
            "sts.googleapis.com",
            Some(&billing),
            &billing,
            "is not the first certificate",
        ),
        (mtls, Some(&stranger), &stranger, "Unable to verify"),
    ] {
        let (status, description) = exchange(host, shown, named).await;
        assert_eq!(status, 400);
        assert!(description.contains(said), "{description}");
    }
}

#[test]
fn a_provider_has_one_kind_of_subject_token() {
    let of = |rest: &str| {
        Policy::from_yaml(&format!(
            "workloadIdentityProviders: [{{name: '{PROVIDER}', {rest}}}]"
        ))
        .unwrap_err()
    };
    let both = of("awsAccountId: '1', x509TrustAnchors: x");
    assert!(format!("{both:#}").contains("one of"), "{both:#}");
    let none = of("x509TrustAnchors: x");
    assert!(format!("{none:#}").contains("x509TrustAnchors"), "{none:#}");
}
