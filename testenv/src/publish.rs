//! Publishes a release and verifies it: by the script that the workflow runs, and by the commands that the page of releases has.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::go_module::{GoModule, GoTool};
use crate::{CRANE, Progress, binaries};

/// cosign v3.1.3, which signs and verifies.
pub const COSIGN: GoModule = GoModule {
    name: "cosign",
    go_mod: include_str!("../tools/cosign/go.mod"),
    go_sum: include_str!("../tools/cosign/go.sum"),
    files: &[],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "cosign",
        package: "github.com/sigstore/cosign/v3/cmd/cosign",
    }],
};

/// The page with the commands that verify.
const PAGE: &str = "docs/releasing.md";
const HEADING: &str = "\n## Verifying a release\n";

/// Publishes and verifies, with the programs for it.
#[derive(Debug)]
pub struct Publisher {
    workspace: PathBuf,
    path: OsString,
}

impl Publisher {
    /// Builds crane, cosign and Helm unless they are built. Blocks.
    ///
    /// # Errors
    /// When Go is missing or fails.
    pub fn new(workspace: &Path, progress: Progress) -> Result<Self> {
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let tools = [
            CRANE.build(&["crane"], progress)?,
            COSIGN.build(&["cosign"], progress)?,
            binaries::HELM.build(&["helm"], progress)?,
        ];
        let folders = tools.into_iter().chain(std::env::split_paths(&inherited));
        Ok(Self {
            workspace: workspace.to_owned(),
            path: std::env::join_paths(folders)?,
        })
    }

    /// Makes a pair of keys without a password, `cosign.key` and `cosign.pub`, in `folder`. Returns the path of the private one.
    ///
    /// # Errors
    /// With cosign's words.
    pub fn key(&self, folder: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let key = folder.join("cosign.key");
        if !key.is_file() {
            self.run(
                self.command("cosign")
                    .arg("generate-key-pair")
                    .current_dir(folder),
            )?;
        }
        Ok(key)
    }

    /// Publishes the release in `dist` to `registry`. Returns the table of what is published. Blocks.
    ///
    /// # Errors
    /// With what the script said.
    pub fn publish(
        &self,
        dist: &Path,
        registry: &str,
        key: &Path,
        variables: &[(&str, &str)],
    ) -> Result<String> {
        let mut command = self.command(self.workspace.join("xtask/release/publish.sh"));
        command.arg(dist).arg(registry).env("COSIGN_KEY", key);
        self.run(command.envs(variables.iter().copied()))
    }

    /// Verifies everything of a release that a key signed, with the commands of the page. Blocks.
    ///
    /// # Errors
    /// With what the first command said that failed.
    pub fn verify(&self, dist: &Path, registry: &str, key: &Path) -> Result<String> {
        let page = std::fs::read_to_string(self.workspace.join(PAGE)).context(PAGE)?;
        let mut script = format!(
            "set -euo pipefail\nREGISTRY={registry} VERSION={}\nSIGNER=(--key {} --insecure-ignore-tlog)\n",
            dist.file_name().unwrap_or_default().display(),
            key.with_extension("pub").display(),
        );
        script.push_str(commands(&page)?);
        let mut command = self.command("bash");
        self.run(command.args(["-c", &script]).current_dir(dist))
    }

    /// A program with crane, cosign and Helm in its `PATH`.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        let found = std::env::split_paths(&self.path)
            .map(|folder| folder.join(program))
            .find(|file| file.is_file());
        let mut command = Command::new(found.as_deref().unwrap_or(program));
        command
            .current_dir(&self.workspace)
            .env("PATH", &self.path)
            .env("COSIGN_PASSWORD", "");
        command
    }

    /// Runs a command; returns what it printed.
    ///
    /// # Errors
    /// When it fails: with what it said.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        let output = command
            .output()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        if !output.status.success() {
            bail!(
                "{} failed ({}): {}",
                command.get_program().display(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The page's commands that verify, without those before them that name registry, version and signer.
fn commands(page: &str) -> Result<&str> {
    let section = page
        .split_once(HEADING)
        .context("the page has no commands that verify")?;
    let mut blocks = section
        .1
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let names = blocks.next().unwrap_or_default();
    let commands = blocks.next().unwrap_or_default();
    if !names.contains("SIGNER=(") || !commands.contains("cosign verify \"${SIGNER[@]}\"") {
        bail!("{PAGE} names the signer in one block, and verifies in the next");
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_has_the_documented_version() {
        assert!(COSIGN.go_mod.contains("github.com/sigstore/cosign/v3 v3.1.3 "));
    }
}
