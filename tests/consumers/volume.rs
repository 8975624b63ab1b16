//! A Secret as the kubelet mounts it.

use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Result;
use k8s_openapi::api::core::v1::Secret;

/// A folder with a Secret's keys, changed as the kubelet's `AtomicWriter` changes it: each file is a link into `..data`, which is
/// a link to a folder that is replaced as a whole. Programs that watch the file itself see only links.
pub(crate) struct Volume {
    path: PathBuf,
    written: u32,
}

impl Volume {
    /// An empty volume below `parent`.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        let path = parent.join("idtoken");
        std::fs::create_dir(&path)?;
        Ok(Self { path, written: 0 })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Shows another state of the Secret.
    pub(crate) fn write(&mut self, secret: &Secret) -> Result<()> {
        let keys = secret.data.iter().flatten();
        let files: Vec<_> = keys
            .map(|(key, value)| (key.as_str(), value.0.as_slice()))
            .collect();
        self.write_files(&files)
    }

    /// Shows other files, whose paths may have folders, as a projected volume's.
    pub(crate) fn write_files(&mut self, files: &[(&str, &[u8])]) -> Result<()> {
        let last = format!("..{}", self.written);
        self.written += 1;
        let next = format!("..{}", self.written);
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(self.path.join(&next))?;
        for (path, content) in files {
            let path = self.path.join(&next).join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::write(path, content)?;
        }
        symlink(&next, self.path.join("..data_tmp"))?;
        std::fs::rename(self.path.join("..data_tmp"), self.path.join("..data"))?;
        for (path, _) in files {
            let first = path.split('/').next().unwrap_or_default();
            if !self.path.join(first).is_symlink() {
                symlink(Path::new("..data").join(first), self.path.join(first))?;
            }
        }
        if self.written > 1 {
            std::fs::remove_dir_all(self.path.join(last))?;
        }
        Ok(())
    }
}
