//! Programs from crates that tasks need, at fixed versions.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo;
use crate::progress::Output;

/// A program, and its crate.
pub(crate) struct CargoTool {
    /// The name of its crate and program.
    pub(crate) name: &'static str,
    /// Its version.
    pub(crate) version: &'static str,
    /// Flags that choose features.
    pub(crate) features: &'static [&'static str],
}

/// Writes the list of linked crates into a program, for scanners: <https://docs.rs/auditable>.
pub(crate) const AUDITABLE: CargoTool = CargoTool {
    name: "cargo-auditable",
    version: "0.7.7",
    features: &[],
};

/// Checks licences, sources and advisories of crates: <https://embarkstudios.github.io/cargo-deny/>.
pub(crate) const DENY: CargoTool = CargoTool {
    name: "cargo-deny",
    version: "0.20.2",
    features: &[],
};

/// Makes a site of the pages: <https://rust-lang.github.io/mdBook/>. Without its server.
pub(crate) const MDBOOK: CargoTool = CargoTool {
    name: "mdbook",
    version: "0.5.4",
    features: &["--no-default-features", "--features=search"],
};

impl CargoTool {
    /// Builds it if it is not built yet. Returns its folder, for `PATH`.
    ///
    /// # Errors
    /// When it cannot be fetched or built: with cargo's output.
    pub(crate) async fn install(&self, output: &Output) -> Result<PathBuf> {
        let name = format!("{}-{}", self.name, self.version);
        let root = idtoken_testenv::target_dir().join("xtask").join(&name);
        let folder = root.join("bin");
        // Cargo puts the program there only when it is complete.
        if folder.join(self.name).is_file() {
            return Ok(folder);
        }
        let step = output.begin(&name);
        let mut cargo = cargo::cargo();
        cargo
            .args([
                "install",
                "--locked",
                // It runs for seconds; an optimised build takes minutes.
                "--debug",
                "--version",
                self.version,
                self.name,
                "--root",
            ])
            .arg(&root)
            .args(self.features);
        cargo::run(cargo, &step, |_| ())
            .await
            .with_context(|| format!("{name} cannot be installed"))?;
        step.done(&format!("{name} is installed"));
        Ok(folder)
    }
}
