//! Identity providers: those of workload identity pools, and GKE clusters.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use crate::cel::{Accessor, Condition};
use crate::keys::Jwks;

/// Where an issuer's public keys are. `jwksJson` takes precedence over `jwksUrl`; without both, OIDC discovery finds them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IssuerKeys {
    /// The JWKS document itself.
    pub jwks_json: Option<String>,
    /// Where to fetch the JWKS document.
    pub jwks_url: Option<String>,
    /// PEM certificates to trust for the fetch, instead of the system's.
    pub ca_certificates: Option<String>,
}

impl IssuerKeys {
    fn validate(&self) -> anyhow::Result<()> {
        if let Some(text) = &self.jwks_json {
            serde_json::from_str::<Jwks>(text).context("keys.jwksJson is not a JWKS document")?;
        }
        if let Some(url) = &self.jwks_url {
            url::Url::parse(url).with_context(|| format!("keys.jwksUrl {url}"))?;
        }
        Ok(())
    }
}

/// A provider of a workload identity pool: of OIDC, AWS or X.509.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadIdentityProvider {
    /// `//iam.googleapis.com/projects/N/locations/global/workloadIdentityPools/P/providers/Q`.
    pub name: String,
    /// An exchange with a disabled provider fails with `invalid_target`.
    #[serde(default)]
    pub disabled: bool,
    /// The subject tokens' `iss`; of an OIDC provider only.
    #[serde(default)]
    pub issuer: String,
    /// The account of an AWS provider, whose subject tokens are signed requests.
    #[serde(default)]
    pub aws_account_id: Option<String>,
    /// The PEM of the certificate authorities of an X.509 provider, whose subject tokens are certificates that the client has shown.
    #[serde(default)]
    pub x509_trust_anchors: Option<String>,
    /// The subject tokens' `aud`. Empty: the provider's name with or without `https:`.
    #[serde(default)]
    pub allowed_audiences: Vec<String>,
    /// The issuer's keys.
    #[serde(default)]
    pub keys: IssuerKeys,
    /// `google.subject` and `attribute.K` from `assertion.X`. Default: `google.subject` from `assertion.sub`.
    #[serde(default = "default_mapping")]
    pub attribute_mapping: BTreeMap<String, String>,
    /// `assertion.X == "…"` and `assertion.X.startsWith("…")`, joined by `&&`.
    #[serde(default)]
    pub attribute_condition: Option<String>,
}

impl WorkloadIdentityProvider {
    /// A provider with these keys of its issuer, and default audiences and mapping.
    #[must_use]
    pub fn new(name: impl Into<String>, issuer: impl Into<String>, jwks_json: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            disabled: false,
            issuer: issuer.into(),
            aws_account_id: None,
            x509_trust_anchors: None,
            allowed_audiences: Vec::new(),
            keys: IssuerKeys {
                jwks_json: Some(jwks_json.into()),
                ..IssuerKeys::default()
            },
            attribute_mapping: default_mapping(),
            attribute_condition: None,
        }
    }

    /// A provider for an AWS account, with `google.subject` from `assertion.arn`.
    #[must_use]
    pub fn aws(name: impl Into<String>, account_id: impl Into<String>) -> Self {
        Self {
            aws_account_id: Some(account_id.into()),
            keys: IssuerKeys::default(),
            attribute_mapping: BTreeMap::from([("google.subject".into(), "assertion.arn".into())]),
            ..Self::new(name, "", "")
        }
    }

    /// A provider for the certificates of an authority, with `google.subject` from the common name.
    #[must_use]
    pub fn x509(name: impl Into<String>, trust_anchors: impl Into<String>) -> Self {
        Self {
            x509_trust_anchors: Some(trust_anchors.into()),
            keys: IssuerKeys::default(),
            attribute_mapping: BTreeMap::from([("google.subject".into(), "assertion.subject.dn.cn".into())]),
            ..Self::new(name, "", "")
        }
    }

    pub(crate) fn validate(&self) -> anyhow::Result<()> {
        let kinds = [
            !self.issuer.is_empty(),
            self.aws_account_id.is_some(),
            self.x509_trust_anchors.is_some(),
        ];
        ensure!(
            kinds.into_iter().filter(|is| *is).count() == 1,
            "a provider has one of issuer, awsAccountId and x509TrustAnchors"
        );
        if let Some(pem) = &self.x509_trust_anchors {
            anchors(pem).context("x509TrustAnchors")?;
        }
        let parts: Vec<&str> = self.name.split('/').collect();
        let [
            "",
            "",
            "iam.googleapis.com",
            "projects",
            number,
            "locations",
            "global",
            "workloadIdentityPools",
            pool,
            "providers",
            id,
        ] = parts[..]
        else {
            bail!(
                "name must be //iam.googleapis.com/projects/N/locations/global/workloadIdentityPools/P/providers/Q"
            );
        };
        ensure!(
            number.parse::<u64>().is_ok(),
            "the name holds the project's number, not its id"
        );
        ensure!(
            !pool.is_empty() && !id.is_empty(),
            "the name lacks the pool or the provider"
        );
        ensure!(
            self.attribute_mapping.contains_key("google.subject"),
            "attributeMapping needs google.subject"
        );
        for (target, source) in &self.attribute_mapping {
            ensure!(
                target == "google.subject"
                    || target
                        .strip_prefix("attribute.")
                        .is_some_and(|key| !key.is_empty()),
                "attributeMapping target {target} must be google.subject or attribute.NAME"
            );
            Accessor::parse(source).with_context(|| format!("attributeMapping of {target}"))?;
        }
        if let Some(condition) = &self.attribute_condition {
            Condition::parse(condition).context("attributeCondition")?;
        }
        self.keys.validate()
    }

    /// `iam.googleapis.com/projects/N/locations/global/workloadIdentityPools/P`.
    pub(crate) fn pool(&self) -> &str {
        self.name
            .trim_start_matches('/')
            .split("/providers/")
            .next()
            .unwrap_or_default()
    }
}

fn default_mapping() -> BTreeMap<String, String> {
    BTreeMap::from([("google.subject".into(), "assertion.sub".into())])
}

/// A GKE cluster whose Kubernetes ServiceAccounts IAM knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GkeCluster {
    /// `https://container.googleapis.com/v1/projects/P/locations/L/clusters/C`: the issuer of its tokens.
    pub name: String,
    /// `PROJECT.svc.id.goog`: the pool, and the audience of the subject tokens.
    pub workload_pool: String,
    /// The tokens' `iss`. Absent: the cluster's name.
    #[serde(default)]
    pub issuer: Option<String>,
    /// The issuer's keys.
    #[serde(default)]
    pub keys: IssuerKeys,
}

impl GkeCluster {
    pub(crate) fn validate(&self) -> anyhow::Result<()> {
        ensure!(
            self.workload_pool.ends_with(".svc.id.goog"),
            "workloadPool must be PROJECT.svc.id.goog"
        );
        self.keys.validate()
    }

    /// The tokens' `iss`.
    #[must_use]
    pub fn issuer(&self) -> &str {
        self.issuer.as_deref().unwrap_or(&self.name)
    }

    /// The audience of an exchange.
    #[must_use]
    pub fn audience(&self) -> String {
        format!("identitynamespace:{}:{}", self.workload_pool, self.name)
    }
}

/// The trust anchors of a PEM, at least one.
pub(crate) fn anchors(pem: &str) -> anyhow::Result<RootCertStore> {
    let mut anchors = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        anchors.add(certificate.context("it is not the PEM of certificates")?)?;
    }
    ensure!(!anchors.is_empty(), "it has no certificate");
    Ok(anchors)
}
