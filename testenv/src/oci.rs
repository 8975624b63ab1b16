//! Container images, built from files without a daemon.
//!
//! An archive is an [OCI image layout] in a tar, which containerd, podman, skopeo and Docker from 25 on load. It also has
//! the `manifest.json` of `docker save`, for older Docker and for tools that read only that file. Builds are reproducible: entries are
//! sorted, belong to root, and have the image's time.
//!
//! [OCI image layout]: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use jiff::Timestamp;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::digest::sha256;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// `ctr images import` and `kind load image-archive` name the image by this annotation.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A processor architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit Arm.
    Arm64,
}

impl Arch {
    /// The architecture of this machine.
    ///
    /// # Errors
    /// When it is neither amd64 nor arm64.
    pub fn of_this_machine() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("images are built only for amd64 and arm64; this machine is {other}"),
        }
    }

    /// The name in an image's configuration (Go's GOARCH).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// The content of a path in the image.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file with these bytes.
    Bytes(Vec<u8>),
    /// A copy of a file of this machine.
    Copy(PathBuf),
    /// A symbolic link to a path.
    Link(String),
    /// A folder. Parent folders of other paths are implied.
    Directory,
}

/// One path in the image. It belongs to root.
#[derive(Clone, Debug)]
pub struct File {
    /// Its absolute path in the image.
    pub path: String,
    /// Its permissions, such as 0o644; ignored for a link.
    pub mode: u32,
    /// Its content.
    pub content: Content,
}

impl File {
    /// A file that every user can read.
    pub fn text(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            mode: 0o644,
            content: Content::Bytes(content.into()),
        }
    }

    /// A copy of a program of this machine.
    pub fn program(path: impl Into<String>, from: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            mode: 0o755,
            content: Content::Copy(from.into()),
        }
    }

    /// A symbolic link.
    pub fn link(path: impl Into<String>, to: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            mode: 0o777,
            content: Content::Link(to.into()),
        }
    }
}

/// An image for Linux with one layer.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its repository, such as `idtoken-operator`.
    pub repository: String,
    /// Its tag.
    pub tag: String,
    /// Its architecture.
    pub arch: Arch,
    /// Its creation time, also of its files.
    pub created: Timestamp,
    /// The program that its containers run.
    pub entrypoint: Vec<String>,
    /// Default arguments of its containers.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The user of its containers: `uid:gid`.
    pub user: String,
    /// Labels of its configuration and annotations of its manifest, such as `org.opencontainers.image.*`.
    pub labels: BTreeMap<String, String>,
    /// Its files.
    pub files: Vec<File>,
}

/// A written archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The manifest's digest, for `repository@sha256:…`.
    pub digest: String,
    /// The size of the unpacked layer, in bytes.
    pub unpacked: u64,
    /// The size of the compressed layer, in bytes: about the download of a node.
    pub packed: u64,
}

impl Image {
    /// Writes the image as an archive.
    ///
    /// # Errors
    /// When a file cannot be read, two files have the same path, or the archive cannot be written.
    pub fn write(&self, to: &Path) -> Result<Written> {
        let layer = self.layer()?;
        let diff_id = sha256(&layer);
        let packed = gzip(&layer)?;
        let unpacked = layer.len() as u64;
        drop(layer);

        let config = serde_json::to_vec(&self.config(&diff_id))?;
        let manifest = serde_json::to_vec(&self.manifest(&config, &packed))?;
        let written = Written {
            digest: format!("sha256:{}", sha256(&manifest)),
            unpacked,
            packed: packed.len() as u64,
        };
        let docker = json!([{
            "Config": blob(&config),
            "RepoTags": [format!("{}:{}", self.repository, self.tag)],
            "Layers": [blob(&packed)],
        }]);
        let docker = ("manifest.json".to_owned(), serde_json::to_vec(&docker)?);
        let entry = self.entry(&manifest);
        write_layout(to, self.created, entry, [config, manifest, packed], Some(docker))?;
        Ok(written)
    }

    /// The name in containerd, which adds Docker's host to a name without one.
    fn containerd_name(&self) -> String {
        let (name, tag) = (&self.repository, &self.tag);
        match name.split_once('/') {
            None => format!("docker.io/library/{name}:{tag}"),
            // https://pkg.go.dev/github.com/distribution/reference#ParseNormalizedNamed
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => format!("{name}:{tag}"),
            Some(_) => format!("docker.io/{name}:{tag}"),
        }
    }

    /// What the layout's index says of the image.
    fn entry(&self, manifest: &[u8]) -> Value {
        let mut entry = descriptor(MANIFEST, manifest);
        entry["platform"] = json!({"architecture": self.arch.as_str(), "os": "linux"});
        entry["annotations"] = json!({CONTAINERD_NAME: self.containerd_name(), REF_NAME: self.tag});
        entry
    }

    fn manifest(&self, config: &[u8], layer: &[u8]) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config),
            "layers": [descriptor(LAYER, layer)],
            "annotations": self.labels,
        })
    }

    fn config(&self, diff_id: &str) -> Value {
        let env: Vec<_> = self
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        json!({
            "created": self.created.to_string(),
            "architecture": self.arch.as_str(),
            "os": "linux",
            "config": {
                "User": self.user,
                "Env": env,
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "WorkingDir": "/",
                "Labels": self.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
            "history": [{"created": self.created.to_string(), "comment": "made from files, with no daemon"}],
        })
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let pairs = self.files.iter().map(|file| Ok((relative(file)?, file)));
        let files: BTreeMap<&str, &File> = pairs.collect::<Result<_>>()?;
        if files.len() != self.files.len() {
            bail!("two files of the image {} have the same path", self.repository);
        }
        let parents: BTreeSet<&str> = files.keys().flat_map(|path| parents(path)).collect();
        let mut layer = tar::Builder::new(Vec::new());
        // A folder sorts before its content.
        for path in files.keys().chain(&parents).collect::<BTreeSet<_>>() {
            let Some(file) = files.get(*path) else {
                self.append_as(&mut layer, EntryType::Directory, &format!("{path}/"), 0o755, &[])?;
                continue;
            };
            match &file.content {
                Content::Directory => {
                    self.append_as(
                        &mut layer,
                        EntryType::Directory,
                        &format!("{path}/"),
                        file.mode,
                        &[],
                    )?;
                }
                Content::Bytes(bytes) => self.append(&mut layer, path, file.mode, bytes)?,
                Content::Copy(from) => {
                    let bytes =
                        std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
                    self.append(&mut layer, path, file.mode, &bytes)?;
                }
                Content::Link(target) => {
                    let mut header = self.header(EntryType::Symlink, 0o777, 0);
                    layer.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(layer.into_inner()?)
    }

    fn append(&self, to: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.append_as(to, EntryType::Regular, path, mode, content)
    }

    fn append_as(
        &self,
        to: &mut tar::Builder<Vec<u8>>,
        kind: EntryType,
        path: &str,
        mode: u32,
        content: &[u8],
    ) -> Result<()> {
        let mut header = self.header(kind, mode, content.len() as u64);
        to.append_data(&mut header, path, content)
            .with_context(|| format!("cannot put {path} into the image {}", self.repository))
    }

    fn header(&self, kind: EntryType, mode: u32, size: u64) -> Header {
        header(self.created, kind, mode, size)
    }
}

/// Writes an OCI image layout with one manifest, which `entry` describes, as a tar.
pub(crate) fn write_layout(
    to: &Path,
    created: Timestamp,
    entry: Value,
    blobs: [Vec<u8>; 3],
    more: Option<(String, Vec<u8>)>,
) -> Result<()> {
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    let mut files = BTreeMap::from([
        ("oci-layout".to_owned(), serde_json::to_vec(&layout)?),
        ("index.json".to_owned(), serde_json::to_vec(&index)?),
    ]);
    files.extend(more);
    files.extend(blobs.map(|content| (blob(&content), content)));
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in &files {
        let mut header = header(created, EntryType::Regular, 0o644, content.len() as u64);
        archive.append_data(&mut header, path, content.as_slice())?;
    }
    write_whole(to, &archive.into_inner()?).with_context(|| format!("cannot write {}", to.display()))
}

/// Of root, with the time `created`.
fn header(created: Timestamp, kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(created.as_second()).unwrap_or(0));
    header
}

/// A path in a layer.
fn relative(file: &File) -> Result<&str> {
    let path = file.path.strip_prefix('/').unwrap_or_default();
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        bail!("{:?} is not an absolute path of a file", file.path);
    }
    Ok(path)
}

/// `a/b/c` → `a`, `a/b`.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

pub(crate) fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(content)), "size": content.len()})
}

fn blob(content: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(content))
}

fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    // Without a name and a time in the header, for reproducible builds.
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::default());
    encoder.write_all(content)?;
    Ok(encoder.finish()?)
}

/// Renamed into place, so that no reader sees an incomplete file.
fn write_whole(to: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let part = to.with_extension("part");
    std::fs::write(&part, content)?;
    Ok(std::fs::rename(part, to)?)
}
