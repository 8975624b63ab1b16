//! `cargo xtask release`: everything that a release consists of, in one folder. Nothing leaves this machine.

mod again;
mod artifacts;
mod krew;
mod placeholders;
mod publish;
mod sbom;
mod sign;
mod versions;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use idtoken_testenv::archive::{self, Entry};
use idtoken_testenv::oci;

use crate::crds::shown;
use crate::image::{self, Commit, ImageArch, ImageArgs, Program};
use crate::progress::Output;

pub(crate) use publish::JQ;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const PLUGIN: &str = "kubectl-idtoken";

/// The command's arguments.
#[derive(Clone, Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The processors of the images and of the kubectl plugin.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [ImageArch::Amd64])]
    arch: Vec<ImageArch>,
    /// The SSH key that signs the checksums: a private key, or the public key of one that ssh-agent has.
    #[arg(long)]
    sign_key: Option<PathBuf>,
    /// URL of the sources, for the images' label org.opencontainers.image.source.
    #[arg(long)]
    source: Option<String>,
    /// Fail unless this tag is that of the version, such as v0.1.0.
    #[arg(long)]
    tag: Option<String>,
    /// Only try it: take uncommitted changes and a CHANGELOG.md that does not have the version yet. Not to be published.
    #[arg(long)]
    snapshot: bool,
    /// Push it to this registry, such as registry.example.com/platform, sign it, attest it, and verify that. At localhost it is only
    /// tried: as a snapshot, signed with a key made for it, in a registry that is started where none answers.
    #[arg(long)]
    registry: Option<String>,
    /// Make the release of target/dist again, in another folder, and fail if a file is other bytes.
    #[arg(long, exclusive = true)]
    again: bool,
    /// The private key of cosign that signs what is pushed; COSIGN_PASSWORD has its password.
    #[arg(long, requires = "registry")]
    cosign_key: Option<PathBuf>,
}

impl ReleaseArgs {
    /// Those of a release for this machine, which is only tried.
    ///
    /// # Errors
    /// When there are no images for its processor.
    pub(crate) fn tried() -> Result<Self> {
        let arch = match oci::Arch::of_this_machine()? {
            oci::Arch::Amd64 => ImageArch::Amd64,
            oci::Arch::Arm64 => ImageArch::Arm64,
        };
        Ok(Self {
            arch: vec![arch],
            sign_key: None,
            source: None,
            tag: None,
            snapshot: true,
            registry: None,
            again: false,
            cosign_key: None,
        })
    }

    /// Whether it leaves this machine at no time.
    fn is_tried(&self) -> bool {
        match &self.registry {
            Some(registry) => publish::is_local(registry),
            None => self.snapshot,
        }
    }
}

/// The folder of the release.
pub(crate) fn dist() -> PathBuf {
    idtoken_testenv::target_dir().join("dist").join(VERSION)
}

/// Makes the release, and publishes it where a registry is named.
///
/// # Errors
/// When the tree is not one to release, or a part of the release cannot be made or is not as it should be.
pub(crate) async fn run(output: &Output, args: &ReleaseArgs) -> Result<()> {
    if args.again {
        output.heading(&format!("idtoken-operator {VERSION}, once more"));
        return again::run(output).await;
    }
    make(output, args).await?;
    if let Some(registry) = &args.registry {
        output.heading("Published");
        return publish::run(output, &dist(), registry, args.cosign_key.as_deref()).await;
    }
    output.heading("What is left needs a network");
    if args.snapshot {
        output.line("  nothing: a snapshot is not published");
    } else {
        output.quote(&next_steps());
    }
    Ok(())
}

/// Makes the release in [`dist`].
///
/// # Errors
/// As [`run`].
pub(crate) async fn make(output: &Output, args: &ReleaseArgs) -> Result<()> {
    output.heading(&format!("idtoken-operator {VERSION}"));
    if let Some(open) = placeholders::check(args.is_tried(), read)? {
        output.warn(&open);
    }
    let notes = ready(output, args)?;
    let dist = dist();
    if dist.exists() {
        std::fs::remove_dir_all(&dist).with_context(|| format!("cannot empty {}", dist.display()))?;
    }
    std::fs::create_dir_all(&dist).with_context(|| format!("cannot make {}", dist.display()))?;
    std::fs::write(dist.join("RELEASE-NOTES.md"), notes)?;

    output.heading("Programs and images");
    let commit = Commit::of_workspace();
    let (mut sboms, mut plugins) = (Vec::new(), Vec::new());
    for arch in &args.arch {
        sboms.extend(images(output, args, *arch, &commit, &dist).await?);
        sboms.push(plugin(output, (*arch).into(), &commit, &dist).await?);
        let archive = dist.join(format!("{}.tar.gz", file_name(PLUGIN, (*arch).into())));
        plugins.push(((*arch).into(), archive));
    }
    sbom::validate(output, &sboms).await?;
    krew::write(output, &plugins, &dist).await?;
    output.heading("Chart and manifests");
    artifacts::chart(output, &commit, &dist).await?;
    artifacts::manifests(output, &commit, &dist)?;
    source(output, &dist)?;
    output.heading("Checksums");
    let sums = sign::checksums(&dist)?;
    match &args.sign_key {
        Some(key) => sign::sign(output, &sums, key)?,
        None => output.warn("SHA256SUMS is not signed: --sign-key names the key"),
    }

    output.heading(&format!("Made in {}", shown(&dist)));
    output.quote(&std::fs::read_to_string(&sums)?);
    Ok(())
}

/// A file of the workspace.
fn read(path: &str) -> Result<String> {
    let path = crate::workspace().join(path);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Refuses what must not be released; gives the release's notes.
fn ready(output: &Output, args: &ReleaseArgs) -> Result<String> {
    let step = output.begin("the tree");
    if let Some(tag) = &args.tag {
        versions::tag(VERSION, tag)?;
    }
    versions::chart(VERSION, &read("charts/idtoken-operator/Chart.yaml")?)?;
    versions::dockerfile(VERSION, &read("Dockerfile")?, &read("rust-toolchain.toml")?)?;
    let notes = match versions::notes(VERSION, &read("CHANGELOG.md")?) {
        Err(error) if args.is_tried() => {
            output.warn(&format!("{error:#}"));
            String::new()
        }
        notes => notes?,
    };
    let status = Command::new("git")
        .args(["status", "--porcelain"])
        .current_dir(crate::workspace())
        .output()
        .context("cannot run git")?;
    let changes = String::from_utf8_lossy(&status.stdout);
    if !status.status.success() {
        bail!(
            "this is no Git checkout: {}",
            String::from_utf8_lossy(&status.stderr).trim()
        );
    }
    if !changes.trim().is_empty() {
        let message = format!(
            "there are changes that are not committed:\n{}",
            changes.trim_end()
        );
        if !args.is_tried() {
            bail!(message);
        }
        output.warn(&message);
    }
    step.done("Cargo.toml, the chart, the Dockerfile and the changelog have one version");
    Ok(notes)
}

/// The images, each with its bill of materials; returns the SBOMs.
async fn images(
    output: &Output,
    args: &ReleaseArgs,
    arch: ImageArch,
    commit: &Commit,
    dist: &Path,
) -> Result<Vec<PathBuf>> {
    let mut sboms = Vec::new();
    for emulator in [false, true] {
        let name = if emulator {
            "idtoken-emulator"
        } else {
            "idtoken-operator"
        };
        let archive = dist.join(format!("{}.oci.tar", file_name(name, arch.into())));
        let args = ImageArgs {
            emulator,
            arch: Some(arch),
            profile: image::RELEASE.to_owned(),
            output: Some(archive),
            source: args.source.clone(),
            check: true,
        };
        let image = image::run(output, &args).await?;
        sboms.push(sbom(name, &image.program, arch.into(), commit, dist)?);
    }
    Ok(sboms)
}

/// The kubectl plugin with its licences, and its bill of materials; returns the SBOM.
async fn plugin(output: &Output, arch: oci::Arch, commit: &Commit, dist: &Path) -> Result<PathBuf> {
    let program = image::build_static(output, PLUGIN, arch, image::RELEASE, &[]).await?;
    let step = output.begin("kubectl plugin");
    let mut entries = vec![Entry::program(PLUGIN, std::fs::read(&program.path)?)];
    for (path, text) in idtoken_image::files(&crate::workspace(), PLUGIN, image::triple(arch))? {
        if let Some(name) = path.strip_prefix("/licenses/") {
            entries.push(Entry::text(name, text));
        }
    }
    let name = format!("{}.tar.gz", file_name(PLUGIN, arch));
    std::fs::write(dist.join(&name), archive::tar_gz(&entries, commit.time)?)?;
    step.done(&format!("{name} is written"));
    sbom(PLUGIN, &program, arch, commit, dist)
}

fn sbom(package: &str, program: &Program, arch: oci::Arch, commit: &Commit, dist: &Path) -> Result<PathBuf> {
    let path = dist.join(format!("{}.cdx.json", file_name(package, arch)));
    sbom::write(package, image::triple(arch), program, commit.time, &path)?;
    Ok(path)
}

fn file_name(package: &str, arch: oci::Arch) -> String {
    format!("{package}-{VERSION}-linux-{}", arch.as_str())
}

/// The commit's files: whoever links the programs with another C library needs them (LGPL-2.1 §6).
fn source(output: &Output, dist: &Path) -> Result<()> {
    let step = output.begin("source");
    let name = format!("idtoken-operator-{VERSION}-source.tar.gz");
    let done = Command::new("git")
        .args(["archive", "--format=tar.gz", "HEAD"])
        .arg(format!("--prefix=idtoken-operator-{VERSION}/"))
        .arg(format!("--output={}", dist.join(&name).display()))
        .current_dir(crate::workspace())
        .output()
        .context("cannot run git")?;
    if !done.status.success() {
        bail!(
            "git cannot archive the commit: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    step.done(&format!("{name} is written"));
    Ok(())
}

/// The commands that publish the release; docs/releasing.md explains them.
fn next_steps() -> String {
    format!(
        "git tag --sign v{VERSION} --message 'idtoken-operator {VERSION}' && git push origin v{VERSION}\n\
         # and then the workflow publishes it. Without the workflow, this command again with --registry and --cosign-key, and the files\n\
         # of this folder, with RELEASE-NOTES.md, to the page of the release"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use idtoken_testenv::RunDir;
    use std::collections::BTreeSet;

    #[test]
    fn the_manifests_are_those_of_the_tree() {
        let dir = RunDir::create("release").expect("a folder");
        artifacts::manifests(&Output::new(), &Commit::of_workspace(), dir.path()).expect("manifests");
        let crds = std::fs::read_to_string(dir.path().join(format!("idtoken-operator-{VERSION}-crds.yaml")));
        let crds = crds.expect("the definitions");
        let kinds: Vec<serde_json::Value> = crds
            .split("---\n")
            .skip(1)
            .map(|document| serde_saphyr::from_str(document).expect("YAML"))
            .collect();
        let wanted: Vec<_> = idtoken_operator::api::crds()
            .into_iter()
            .map(|crd| serde_json::to_value(crd).expect("a definition"))
            .collect();
        assert_eq!(kinds.len(), wanted.len());
        assert!(wanted.iter().all(|crd| kinds.contains(crd)));

        let archive = dir
            .path()
            .join(format!("idtoken-operator-{VERSION}-manifests.tar.gz"));
        let archive = std::fs::File::open(archive).expect("an archive");
        let mut archive = tar::Archive::new(GzDecoder::new(archive));
        let names: BTreeSet<_> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .path()
                    .expect("a path")
                    .display()
                    .to_string()
            })
            .collect();
        assert!(
            names.contains("config/rbac.yaml") && names.contains("crds/idtokengrants.yaml"),
            "{names:?}"
        );
    }
}
