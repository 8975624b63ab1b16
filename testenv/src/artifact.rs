//! What a registry keeps beside images: one file, with a configuration that says what it is.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::digest::sha256;
use crate::oci::{MANIFEST, descriptor, write_layout};

/// As Helm stores charts in registries: <https://helm.sh/docs/topics/registries/#helm-chart-manifest>.
const CHART_CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
const CHART: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
/// <https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md#guidelines-for-artifact-usage>
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// What Flux, Argo CD, crane and oras unpack.
const FILES: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFESTS: &str = "application/vnd.idtoken.manifests.v1";

/// An artifact.
#[derive(Clone, Debug)]
pub struct Artifact {
    config_type: &'static str,
    config: Vec<u8>,
    artifact_type: Option<&'static str>,
    media_type: &'static str,
    content: Vec<u8>,
    annotations: BTreeMap<String, String>,
}

impl Artifact {
    /// A Helm chart. `metadata` is its Chart.yaml.
    ///
    /// # Errors
    /// When the metadata cannot be written as JSON.
    pub fn chart(package: Vec<u8>, metadata: &Value) -> Result<Self> {
        Ok(Self {
            config_type: CHART_CONFIG,
            config: serde_json::to_vec(metadata)?,
            artifact_type: None,
            media_type: CHART,
            content: package,
            annotations: annotations(metadata),
        })
    }

    /// Manifests for kubectl, Flux and Argo CD: a compressed tar. `metadata` has `name`, `version` and `description`.
    #[must_use]
    pub fn manifests(archive: Vec<u8>, metadata: &Value) -> Self {
        Self {
            config_type: EMPTY,
            config: b"{}".to_vec(),
            artifact_type: Some(MANIFESTS),
            media_type: FILES,
            content: archive,
            annotations: annotations(metadata),
        }
    }

    /// Writes it as an archive: an OCI image layout in a tar. `revision` is the commit that it is made from. Returns the digest of its
    /// manifest.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn write(mut self, to: &Path, created: Timestamp, revision: Option<&str>) -> Result<String> {
        let mut annotate = |name: &str, value: String| {
            self.annotations
                .insert(format!("org.opencontainers.image.{name}"), value)
        };
        annotate("created", created.to_string());
        if let Some(revision) = revision {
            annotate("revision", revision.to_owned());
        }
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(self.config_type, &self.config),
            "layers": [descriptor(self.media_type, &self.content)],
            "annotations": self.annotations,
        });
        if let Some(artifact_type) = self.artifact_type {
            manifest["artifactType"] = artifact_type.into();
        }
        let manifest = serde_json::to_vec(&manifest)?;
        let digest = format!("sha256:{}", sha256(&manifest));
        let entry = descriptor(MANIFEST, &manifest);
        write_layout(to, created, entry, [self.config, manifest, self.content], None)?;
        Ok(digest)
    }
}

/// <https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md>
fn annotations(metadata: &Value) -> BTreeMap<String, String> {
    [
        ("title", "name"),
        ("version", "version"),
        ("description", "description"),
        ("url", "home"),
    ]
    .into_iter()
    .filter_map(|(annotation, field)| {
        let value = metadata[field].as_str()?;
        Some((format!("org.opencontainers.image.{annotation}"), value.to_owned()))
    })
    .collect()
}
