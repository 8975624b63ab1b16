//! An image registry and crane, which validate the images that this project builds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::go_module::{GoModule, GoTool};
use crate::{Port, Process, Progress, RunDir, http_status};

const TIMEOUT: Duration = Duration::from_secs(60);

/// crane v0.22.1 of go-containerregistry.
pub const CRANE: GoModule = GoModule {
    name: "crane",
    go_mod: include_str!("../tools/crane/go.mod"),
    go_sum: include_str!("../tools/crane/go.sum"),
    files: &[],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "crane",
        package: "github.com/google/go-containerregistry/cmd/crane",
    }],
};

/// A registry on a port and with a folder of its own.
#[derive(Debug)]
pub struct Registry {
    crane: PathBuf,
    address: String,
    process: Process,
    dir: RunDir,
    _port: Option<Port>,
}

impl Registry {
    /// Builds crane unless it is built, and starts its registry.
    ///
    /// # Errors
    /// When Go is missing or fails, or the registry does not respond.
    pub async fn start(progress: Progress) -> Result<Self> {
        let port = Port::reserve()?;
        let address = format!("127.0.0.1:{}", port.number());
        let mut registry = Self::start_at(address, progress).await?;
        registry._port = Some(port);
        Ok(registry)
    }

    /// Starts a registry at `address`, unless one answers there.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub async fn start_unless_there_is_one(address: &str, progress: Progress) -> Result<Option<Self>> {
        if http_status(address, "/v2/").await.is_ok() {
            return Ok(None);
        }
        Self::start_at(address.to_owned(), progress).await.map(Some)
    }

    async fn start_at(address: String, progress: Progress) -> Result<Self> {
        let tools = tokio::task::spawn_blocking(move || CRANE.build(&["crane"], progress)).await??;
        let crane = tools.join("crane");
        let dir = RunDir::create("registry")?;
        std::fs::create_dir(dir.path().join("blobs"))?;
        let mut command = Command::new(&crane);
        command
            .args(["registry", "serve", "--address", &address, "--disk"])
            .arg(dir.path().join("blobs"));
        let process = Process::spawn("registry", &command, dir.path())?;
        process.wait_for_http(&address, "/v2/", TIMEOUT).await?;
        Ok(Self {
            crane,
            address,
            process,
            dir,
            _port: None,
        })
    }

    /// Its address: `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The file that it keeps a blob in, such as a layer: `digest` is `sha256:…`.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.dir.path().join("blobs").join(digest.replace(':', "/"))
    }

    /// Validates both forms of an archive and pushes it. Returns its name in this registry.
    ///
    /// crane reads the form of `docker save` from the tar, and pushes the OCI layout from a folder. It then computes all digests and sizes
    /// again from the registry's responses.
    ///
    /// # Errors
    /// When crane rejects the archive, with crane's output; when the two forms are different images.
    pub fn push(&self, archive: &Path, name: &str) -> Result<String> {
        let reference = format!("{}/{name}", self.address);
        let archived = archive.to_string_lossy();
        self.crane(&["validate", "--tarball", &archived])?;
        let layout = self.dir.path().join(name.replace(['/', ':'], "-"));
        let tar =
            std::fs::File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
        tar::Archive::new(tar).unpack(&layout)?;
        self.crane(&["push", &layout.to_string_lossy(), &reference])?;
        self.crane(&["validate", "--remote", &reference])?;

        let config = |text: String| serde_json::from_str::<Value>(&text).map_err(anyhow::Error::from);
        let as_docker = format!("{reference}-docker");
        self.crane(&["push", &archived, &as_docker])?;
        let (oci, docker) = (
            config(self.crane(&["config", &reference])?)?,
            config(self.crane(&["config", &as_docker])?)?,
        );
        if oci != docker {
            bail!(
                "{} is one image for OCI and another for Docker",
                archive.display()
            );
        }
        Ok(reference)
    }

    /// The configuration of an image, as a container runtime reads it.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn config(&self, reference: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.crane(&["config", reference])?)?)
    }

    /// The manifest of an image.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn manifest(&self, reference: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.crane(&["manifest", reference])?)?)
    }

    /// The digest of an image: `sha256:…`.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn digest(&self, reference: &str) -> Result<String> {
        Ok(self.crane(&["digest", reference])?.trim().to_owned())
    }

    /// Writes the files of an image as a tar.
    ///
    /// # Errors
    /// When there is no such image, or the tar cannot be written.
    pub fn export(&self, reference: &str, to: &Path) -> Result<()> {
        self.crane(&["export", reference, &to.to_string_lossy()])
            .map(drop)
    }

    /// Stops the registry and removes its images.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub async fn stop(self) -> Result<()> {
        self.process.terminate(TIMEOUT).await.map(drop)
    }

    /// Runs crane, without the credentials of this machine.
    ///
    /// # Errors
    /// When it fails: with its output.
    pub fn crane(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.crane)
            .args(args)
            .env("DOCKER_CONFIG", self.dir.path())
            .output()
            .context("cannot run crane")?;
        if !output.status.success() {
            bail!(
                "crane {} failed: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        String::from_utf8(output.stdout).context("crane wrote output that is not UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_has_the_documented_version() {
        assert!(
            CRANE
                .go_mod
                .contains("github.com/google/go-containerregistry v0.22.1 ")
        );
    }
}
