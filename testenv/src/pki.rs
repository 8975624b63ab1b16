//! The control plane's certificate authority, certificates and keys.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData, SanType, SigningKey,
    date_time_ymd,
};
use yasna::models::{ObjectIdentifier, UTCTime};
use yasna::{DERWriter, Tag};

const CA_NAME: &str = "idtoken-testenv";

/// A certificate with its private key, both PEM.
pub(crate) struct Credentials {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// A private key with its public key, both PEM.
pub(crate) struct SigningPair {
    pub(crate) public: String,
    pub(crate) key: String,
}

/// The certificate authority of one control plane.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    serial: AtomicU32,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let mut params = certificate_params(CA_NAME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, ec_key()?)
            .context("cannot create the certificate authority")?;
        Ok(Self {
            issuer,
            serial: AtomicU32::new(2),
        })
    }

    /// The CA's certificate, PEM.
    pub(crate) fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// A server certificate for the API server: its in-cluster names, loopback, and `more`.
    pub(crate) fn server(&self, more: &[IpAddr]) -> Result<Credentials> {
        let mut params = certificate_params("kube-apiserver")?;
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(
                name.try_into().context("a DNS name is invalid")?,
            ));
        }
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        params
            .subject_alt_names
            .extend(loopback.iter().chain(more).map(|ip| SanType::IpAddress(*ip)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = ec_key()?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("cannot sign the server certificate")?;
        Ok(Credentials {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// A client certificate. Kubernetes takes the user from the common name and each group from an organization
    /// (`x509.CommonNameUserConversion` of k8s.io/apiserver).
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Result<Credentials> {
        let key = ec_key()?;
        let tbs = self.client_tbs(user, groups, &key);
        let signature = self
            .issuer
            .key()
            .sign(&tbs)
            .context("cannot sign the client certificate")?;
        let der = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_der(&tbs);
                write_ecdsa_with_sha256(writer.next());
                writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        });
        Ok(Credentials {
            certificate: pem("CERTIFICATE", &der),
            key: key.serialize_pem(),
        })
    }

    // Written out (RFC 5280 §4.1), because rcgen's DistinguishedName holds one organization at most.
    fn client_tbs(&self, user: &str, groups: &[&str], key: &KeyPair) -> Vec<u8> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer
                    .next()
                    .write_tagged(Tag::context(0), |writer| writer.write_u8(2));
                writer.next().write_u32(serial);
                write_ecdsa_with_sha256(writer.next());
                write_name(writer.next(), CA_NAME, &[]);
                writer.next().write_sequence(|writer| {
                    writer
                        .next()
                        .write_utctime(&UTCTime::from_datetime(date_time_ymd(2000, 1, 1)));
                    writer
                        .next()
                        .write_utctime(&UTCTime::from_datetime(date_time_ymd(2049, 1, 1)));
                });
                write_name(writer.next(), user, groups);
                writer.next().write_der(&key.subject_public_key_info());
                writer.next().write_tagged(Tag::context(3), |writer| {
                    writer.write_sequence(|writer| {
                        write_extension(writer.next(), &[2, 5, 29, 37], |writer| {
                            writer.write_sequence(|writer| {
                                writer.next().write_oid(&oid(&[1, 3, 6, 1, 5, 5, 7, 3, 2]));
                            });
                        });
                    });
                });
            });
        })
    }
}

/// Generates the RSA key that signs service-account tokens (RS256, which Google's STS accepts).
pub(crate) fn service_account_key() -> Result<SigningPair> {
    let pair = KeyPair::generate_for(&PKCS_RSA_SHA256).context("cannot generate an RSA key")?;
    Ok(SigningPair {
        public: pair.public_key_pem(),
        key: pair.serialize_pem(),
    })
}

/// Writes a file that only its owner can read.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(content.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

fn ec_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot generate an ECDSA key")
}

fn certificate_params(common_name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).context("cannot create a certificate")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, DnValue::Utf8String(common_name.to_owned()));
    Ok(params)
}

fn oid(components: &[u64]) -> ObjectIdentifier {
    ObjectIdentifier::from_slice(components)
}

fn write_ecdsa_with_sha256(writer: DERWriter<'_>) {
    writer.write_sequence(|writer| writer.next().write_oid(&oid(&[1, 2, 840, 10045, 4, 3, 2])));
}

fn write_name(writer: DERWriter<'_>, common_name: &str, organizations: &[&str]) {
    let attributes = organizations
        .iter()
        .map(|organization| ([2, 5, 4, 10], *organization))
        .chain(std::iter::once(([2, 5, 4, 3], common_name)));
    writer.write_sequence(|writer| {
        for (kind, value) in attributes {
            writer.next().write_set(|writer| {
                writer.next().write_sequence(|writer| {
                    writer.next().write_oid(&oid(&kind));
                    writer.next().write_utf8_string(value);
                });
            });
        }
    });
}

fn write_extension(writer: DERWriter<'_>, kind: &[u64], value: impl FnOnce(DERWriter<'_>)) {
    writer.write_sequence(|writer| {
        writer.next().write_oid(&oid(kind));
        writer.next().write_bytes(&yasna::construct_der(value));
    });
}

fn pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text + &format!("-----END {label}-----\n")
}
