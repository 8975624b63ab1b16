//! Cargo's subcommands that tasks need, at fixed versions.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo;
use crate::progress::Output;

/// A subcommand of cargo.
pub(crate) struct CargoTool {
    /// The name of its crate and program.
    pub(crate) name: &'static str,
    /// Its version.
    pub(crate) version: &'static str,
}

/// Records in a program what crates it is made of, so that scanners find them: <https://docs.rs/auditable>.
pub(crate) const AUDITABLE: CargoTool = CargoTool {
    name: "cargo-auditable",
    version: "0.7.7",
};

/// Checks licences, sources and advisories of crates: <https://embarkstudios.github.io/cargo-deny/>.
pub(crate) const DENY: CargoTool = CargoTool {
    name: "cargo-deny",
    version: "0.20.2",
};

impl CargoTool {
    /// Builds it where it is not built yet; gives the folder that it is in, for `PATH`.
    ///
    /// # Errors
    /// With what cargo said, when it cannot be fetched or built.
    pub(crate) async fn install(&self, output: &Output) -> Result<PathBuf> {
        let name = format!("{}-{}", self.name, self.version);
        let root = idtoken_testenv::target_dir().join("xtask").join(&name);
        let folder = root.join("bin");
        // Cargo puts it there when it is whole.
        if folder.join(self.name).is_file() {
            return Ok(folder);
        }
        let step = output.begin(&name);
        let mut cargo = cargo::cargo();
        cargo
            .args([
                "install",
                "--locked",
                // It runs for seconds; optimised it would compile for minutes.
                "--debug",
                "--version",
                self.version,
                self.name,
                "--root",
            ])
            .arg(&root);
        cargo::run(cargo, &step, |_| ())
            .await
            .with_context(|| format!("{name} cannot be installed"))?;
        step.done(&format!("{name} is installed"));
        Ok(folder)
    }
}
