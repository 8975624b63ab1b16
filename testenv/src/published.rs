//! etcd, kube-apiserver and kubectl as Kubernetes publishes them for tests (envtest): found in an index, downloaded, checked by the SHA-512
//! that the index has, and unpacked.
//!
//! The version is the newest published patch of the pinned minor version ([`KUBERNETES_VERSION`]). Not each patch is published, and two
//! patches differ in no API. Another minor version is never taken: it has other APIs and defaults, so a test could pass with the one
//! and fail with the other. Where the minor version is not published yet, the programs are built.
//!
//! A redirect is followed only to the hosts of the constants file. A server that stalls is given up.
//!
//! What is downloaded is kept in `target/testenv/envtest-<version>-<platform>-<first digits of its SHA-512>`, and asks no host again.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::digest;
use flate2::read::MultiGzDecoder;
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use serde::Deserialize;
use tar::EntryType;

use crate::binaries::{KUBERNETES_VERSION, REQUIRED};
use crate::progress::{Progress, Step};
use crate::{RunDir, builder, hosts};

/// The folder of the programs in an archive.
const FOLDER: &str = "controller-tools/envtest";
/// Between hosts of one owner there is one.
const MAX_REDIRECTS: usize = 3;
const WHAT: &str = "etcd, kube-apiserver and kubectl";

/// Where archives are published, and what is accepted from there.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The URL of the index.
    index: String,
    /// What the URL of each archive begins with.
    archives: String,
    /// What the URL of a redirect begins with.
    redirects: Vec<String>,
    /// Whether the proxy of the environment is used.
    proxy: bool,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    /// For a connection, names and TLS included: where there is no network, this is what it costs to find out.
    connect: Duration,
    /// For the whole index.
    index: Duration,
    /// For the next bytes of an archive.
    read: Duration,
    /// For a whole archive: a build takes about as long.
    archive: Duration,
    index_bytes: u64,
    archive_bytes: u64,
    unpacked_bytes: u64,
}

impl Source {
    /// The archives of Kubernetes.
    pub(crate) fn public() -> Self {
        Self {
            index: hosts::ENVTEST_INDEX.to_owned(),
            archives: hosts::ENVTEST_ARCHIVES.to_owned(),
            redirects: hosts::ENVTEST_FILES.map(str::to_owned).to_vec(),
            proxy: true,
            limits: Limits {
                connect: Duration::from_millis(1500),
                index: Duration::from_secs(5),
                read: Duration::from_secs(15),
                archive: Duration::from_secs(600),
                index_bytes: 4 << 20,
                archive_bytes: 256 << 20,
                unpacked_bytes: 1 << 30,
            },
        }
    }

    /// The folder below `parent` with the programs: that of an earlier download, otherwise of a new one. Blocks. If several processes want
    /// them at once, one downloads and the others wait.
    ///
    /// # Errors
    /// When the archive of this platform cannot be had: no network, no such version, a broken download, a wrong checksum. Nothing of it is
    /// kept then.
    pub(crate) fn get(&self, parent: &Path, progress: Progress) -> Result<PathBuf> {
        if let Some(dir) = kept(parent) {
            return Ok(dir);
        }
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let _lock = builder::lock(&parent.join(".envtest.lock"), WHAT, progress)?;
        if let Some(dir) = kept(parent) {
            return Ok(dir);
        }
        // In a thread, since the caller may be in a runtime.
        std::thread::scope(|scope| scope.spawn(|| self.download(parent, progress)).join())
            .unwrap_or_else(|_| bail!("the download panicked"))
    }

    fn download(&self, parent: &Path, progress: Progress) -> Result<PathBuf> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let result = runtime.block_on(self.download_now(parent, progress));
        // A name that is still being looked up is not waited for.
        runtime.shutdown_background();
        result
    }

    async fn download_now(&self, parent: &Path, progress: Progress) -> Result<PathBuf> {
        let client = self.client()?;
        let index = self.read_index(&client);
        let index = tokio::time::timeout(self.limits.index, index)
            .await
            .unwrap_or_else(|_| bail!("it takes too long"))
            .context("the index of published archives cannot be read")?;
        let archive = choose(&index)?;
        ensure!(
            archive.url.starts_with(&self.archives),
            "the index names {}, which is not below {}",
            archive.url,
            self.archives
        );
        // Below the same folder, so that it can be renamed into place. Removed at the end, whatever happens.
        let scratch = RunDir::create("envtest")?;
        let packed = scratch.path().join("archive");
        let download = self.save(&client, &archive, &packed, progress);
        let bytes = tokio::time::timeout(self.limits.archive, download)
            .await
            .unwrap_or_else(|_| bail!("it takes too long"))
            .with_context(|| format!("{} cannot be used", archive.url))?;
        let programs = scratch.path().join("programs");
        std::fs::create_dir(&programs)?;
        unpack(&packed, &programs, self.limits.unpacked_bytes)
            .with_context(|| format!("{} cannot be used", archive.url))?;
        let dir = parent.join(archive.folder());
        // What is there lacks a program: otherwise it were used.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::rename(&programs, &dir).with_context(|| format!("cannot write {}", dir.display()))?;
        progress.note(&format!(
            "downloaded {WHAT} {} ({} MB, with the published SHA-512)",
            archive.version,
            bytes >> 20
        ));
        Ok(dir)
    }

    fn client(&self) -> Result<Client> {
        // Fails if there is one, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut builder = Client::builder()
            .user_agent("idtoken-testenv")
            .https_only(self.index.starts_with("https://"))
            .connect_timeout(self.limits.connect)
            .read_timeout(self.limits.read)
            .redirect(self.redirects());
        if !self.proxy {
            builder = builder.no_proxy();
        }
        Ok(builder.build()?)
    }

    /// A redirect leads only to where the archives are known to be: another host could have anything.
    fn redirects(&self) -> Policy {
        let allowed = self.redirects.clone();
        Policy::custom(move |attempt| {
            let url = attempt.url().as_str();
            if allowed.iter().any(|allowed| url.starts_with(allowed))
                && attempt.previous().len() <= MAX_REDIRECTS
            {
                return attempt.follow();
            }
            // The query may have a signature.
            let shown = url.split('?').next().unwrap_or_default();
            let refused = format!("it redirects to {shown}, which is not followed");
            attempt.error(refused)
        })
    }

    async fn send(&self, client: &Client, url: &str) -> Result<Response> {
        let response = client.get(url).send().await.map_err(|error| self.named(error))?;
        response.error_for_status().map_err(|error| self.named(error))
    }

    async fn chunk(&self, response: &mut Response) -> Result<Option<Vec<u8>>> {
        let chunk = response.chunk().await.map_err(|error| self.named(error))?;
        Ok(chunk.map(Vec::from))
    }

    /// An error that says so if a server stalls. The URL may have a signature, and is left out.
    fn named(&self, error: reqwest::Error) -> anyhow::Error {
        match error.is_timeout() && !error.is_connect() {
            true => anyhow!("nothing came for {:?}", self.limits.read),
            false => error.without_url().into(),
        }
    }

    async fn read_index(&self, client: &Client) -> Result<Index> {
        let mut response = self.send(client, &self.index).await?;
        let mut text = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            text.extend(&chunk);
            within(text.len() as u64, self.limits.index_bytes)?;
        }
        let text = String::from_utf8(text).ok().context("it is no text")?;
        serde_saphyr::from_str(&text).map_err(|error| {
            // A snippet of the text follows.
            let error = error.to_string();
            anyhow!("it is no index: {}", error.lines().next().unwrap_or_default())
        })
    }

    /// Writes the archive to `file` if its checksum is right. Returns its size.
    async fn save(&self, client: &Client, archive: &Archive, file: &Path, progress: Progress) -> Result<u64> {
        let mut step = Step::new(progress);
        let mut out = File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
        let mut digest = digest::Context::new(&digest::SHA512);
        let (mut response, mut bytes) = (self.send(client, &archive.url).await?, 0);
        while let Some(chunk) = self.chunk(&mut response).await? {
            bytes += chunk.len() as u64;
            within(bytes, self.limits.archive_bytes)?;
            digest.update(&chunk);
            out.write_all(&chunk)?;
            step.update(&format!(
                "downloading {WHAT} {}: {} MB",
                archive.version,
                bytes >> 20
            ));
        }
        let found = crate::digest::hex(digest.finish().as_ref());
        ensure!(
            found == archive.sha512,
            "its SHA-512 is {found}, and not {} as the index says",
            archive.sha512
        );
        Ok(bytes)
    }
}

fn within(bytes: u64, limit: u64) -> Result<()> {
    ensure!(bytes <= limit, "it has more than {limit} bytes");
    Ok(())
}

/// <https://github.com/kubernetes-sigs/controller-tools/blob/main/envtest-releases.yaml>
#[derive(Debug, Deserialize)]
struct Index {
    /// By version, then by the name of the archive.
    releases: BTreeMap<String, BTreeMap<String, Published>>,
}

#[derive(Debug, Deserialize)]
struct Published {
    /// SHA-512 in hexadecimal digits.
    hash: String,
    #[serde(rename = "selfLink")]
    url: String,
}

/// An archive of this platform.
#[derive(Debug, PartialEq, Eq)]
struct Archive {
    version: Version,
    sha512: String,
    url: String,
}

impl Archive {
    fn folder(&self) -> String {
        format!("envtest-{}-{}-{}", self.version, platform(), &self.sha512[..16])
    }
}

/// A published version of the pinned minor version. Alpha and beta versions are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    patch: u32,
}

impl Version {
    fn parse(version: &str) -> Option<Self> {
        let patch = version.strip_prefix(minor())?.strip_prefix('.')?;
        let digits = !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit());
        Some(Self {
            patch: patch.parse().ok().filter(|_| digits)?,
        })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", minor(), self.patch)
    }
}

/// `v1.37.2` → `v1.37`.
fn minor() -> &'static str {
    KUBERNETES_VERSION
        .rsplit_once('.')
        .map_or(KUBERNETES_VERSION, |(minor, _)| minor)
}

/// This machine, as Go names it.
fn platform() -> String {
    let os = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{os}-{arch}")
}

/// The newest archive for this machine.
fn choose(index: &Index) -> Result<Archive> {
    let platform = platform();
    let found = index.releases.iter().filter_map(|(name, archives)| {
        let archive = archives.get(&format!("envtest-{name}-{platform}.tar.gz"))?;
        Some((Version::parse(name)?, archive))
    });
    let newest = found.max_by_key(|(version, _)| *version);
    let (version, archive) = newest.with_context(|| {
        format!(
            "the index of published archives has no {} for {platform}",
            minor()
        )
    })?;
    let sha512 = archive.hash.to_ascii_lowercase();
    ensure!(
        sha512.len() == 128 && sha512.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "the index of published archives has no SHA-512 of {version}"
    );
    Ok(Archive {
        version,
        sha512,
        url: archive.url.clone(),
    })
}

/// The newest folder of an earlier download.
fn kept(parent: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(parent).ok()?;
    let found = entries.flatten().filter_map(|entry| {
        let (name, dir) = (entry.file_name(), entry.path());
        let (version, rest) = name.to_str()?.strip_prefix("envtest-")?.split_once('-')?;
        let version = Version::parse(version)?;
        let usable = rest.strip_prefix(&platform())?.starts_with('-')
            && REQUIRED.iter().all(|name| dir.join(name).is_file());
        usable.then_some((version, dir))
    });
    found.max().map(|(_, dir)| dir)
}

/// Writes the three programs of an archive to `to`. Other files of its folder are left out; a path that leads out of it is not accepted.
fn unpack(archive: &Path, to: &Path, limit: u64) -> Result<()> {
    let mut packed = tar::Archive::new(MultiGzDecoder::new(File::open(archive)?).take(limit));
    for entry in packed.entries()? {
        let mut entry = entry.context("it is incomplete or no archive")?;
        let path = entry.path()?.into_owned();
        let shown = path.display();
        let harmless = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        ensure!(path.components().all(harmless), "it has the path {shown}");
        let within = path.strip_prefix(FOLDER).ok().and_then(Path::to_str);
        let Some(name) = REQUIRED.into_iter().find(|name| within == Some(name)) else {
            continue;
        };
        ensure!(
            entry.header().entry_type() == EntryType::Regular,
            "{shown} is no file"
        );
        let mut program = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(to.join(name))
            .with_context(|| format!("cannot write {name}"))?;
        let (size, written) = (entry.size(), std::io::copy(&mut entry, &mut program));
        let written = written.with_context(|| format!("{shown} cannot be unpacked"))?;
        ensure!(written == size, "{shown} is incomplete");
    }
    // The checksum of the compression is at the end.
    std::io::copy(&mut packed.into_inner(), &mut std::io::sink())
        .context("it is incomplete or no archive")?;
    for name in REQUIRED {
        ensure!(to.join(name).is_file(), "it has no {FOLDER}/{name}");
    }
    Ok(())
}
