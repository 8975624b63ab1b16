//! The programs of a control plane: found in `KUBEBUILDER_ASSETS`, built before, downloaded, or built.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::binaries::{KUBERNETES, REQUIRED};
use crate::published::Source;
use crate::{Progress, paths};

/// The programs of a [`crate::ControlPlane`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assets {
    /// etcd.
    pub etcd: PathBuf,
    /// kube-apiserver.
    pub kube_apiserver: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
}

impl Assets {
    /// The programs in `KUBEBUILDER_ASSETS` if it is set. Otherwise those that were built in the pinned version or downloaded before. Otherwise
    /// downloads what Kubernetes publishes for tests: the newest patch of the pinned minor version, checked by its SHA-512. Where that cannot
    /// be had, or `IDTOKEN_TESTENV_BUILD` is `1`, builds them with Go: about 5 minutes on two cores. Which of the two happens is known within
    /// seconds, and said in a line on stderr. Blocks. Several threads and processes may call this at once.
    ///
    /// # Errors
    /// When `KUBEBUILDER_ASSETS` lacks a program; when they cannot be downloaded and Go is missing, too old or fails.
    pub fn locate(progress: Progress) -> Result<Self> {
        if let Some(dir) = std::env::var_os("KUBEBUILDER_ASSETS").filter(|dir| !dir.is_empty()) {
            return in_assets_dir(Path::new(&dir));
        }
        let only_built = std::env::var_os("IDTOKEN_TESTENV_BUILD").is_some_and(|value| value == "1");
        let published = (!only_built).then(Source::public);
        let dir = match KUBERNETES.built(&REQUIRED) {
            Some(dir) => dir,
            None => downloaded_or_built(published, &paths::testenv_dir(), progress, || {
                KUBERNETES.build(&REQUIRED, progress)
            })?,
        };
        Ok(Assets::in_dir(&dir))
    }

    fn in_dir(dir: &Path) -> Self {
        Self {
            etcd: dir.join("etcd"),
            kube_apiserver: dir.join("kube-apiserver"),
            kubectl: dir.join("kubectl"),
        }
    }
}

/// The folder of the programs: below `parent` if they are downloaded from `published`, otherwise what `build` returns.
pub(crate) fn downloaded_or_built(
    published: Option<Source>,
    parent: &Path,
    progress: Progress,
    build: impl FnOnce() -> Result<PathBuf>,
) -> Result<PathBuf> {
    if let Some(published) = published {
        match published.get(parent, progress) {
            Ok(dir) => return Ok(dir),
            Err(error) => progress.note(&format!(
                "etcd, kube-apiserver and kubectl are built, since they cannot be downloaded: {error:#}"
            )),
        }
    }
    build().context(
        "etcd, kube-apiserver and kubectl cannot be built (KUBEBUILDER_ASSETS may name a folder with them)",
    )
}

fn in_assets_dir(dir: &Path) -> Result<Assets> {
    let missing: Vec<_> = REQUIRED
        .into_iter()
        .filter(|name| !dir.join(name).is_file())
        .collect();
    if !missing.is_empty() {
        bail!(
            "KUBEBUILDER_ASSETS is {}, which has no {}: put it there (setup-envtest makes such folders), or unset the \
             variable to have everything built with Go",
            dir.display(),
            missing.join(" and no "),
        );
    }
    // Programs with another working directory would resolve a relative path differently.
    let absolute = std::path::absolute(dir)?;
    Ok(Assets::in_dir(&absolute))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_asset_is_named() {
        let dir = crate::RunDir::create("assets").unwrap();
        std::fs::write(dir.path().join("etcd"), "").unwrap();
        let error = in_assets_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("no kube-apiserver and no kubectl"), "{error}");
    }
}
