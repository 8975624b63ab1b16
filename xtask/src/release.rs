//! `cargo xtask release`: everything that a release consists of, in one folder. Nothing leaves this machine.

mod archive;
mod placeholders;
mod sbom;
mod sign;
mod versions;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use idtoken_testenv::{Progress, binaries, oci};

use crate::crds::shown;
use crate::image::{self, Commit, ImageArch, ImageArgs, Program};
use crate::progress::Output;
use archive::Entry;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const PLUGIN: &str = "kubectl-idtoken";

/// The command's arguments.
#[derive(Clone, Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The processors of the images and of the kubectl plugin.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [ImageArch::Amd64, ImageArch::Arm64])]
    arch: Vec<ImageArch>,
    /// The SSH key that signs the checksums: a private key, or the public key of one that ssh-agent has.
    #[arg(long)]
    sign_key: Option<PathBuf>,
    /// URL of the sources, for the images' label org.opencontainers.image.source.
    #[arg(long)]
    source: Option<String>,
    /// Only try it: take uncommitted changes and a CHANGELOG.md that does not have the version yet. Not to be published.
    #[arg(long)]
    snapshot: bool,
}

/// Makes the release.
///
/// # Errors
/// When the tree is not one to release, or a part of the release cannot be made or is not as it should be.
pub(crate) async fn run(output: &Output, args: &ReleaseArgs) -> Result<()> {
    output.heading(&format!("idtoken-operator {VERSION}"));
    placeholders::check(output, args.snapshot)?;
    let notes = ready(output, args)?;
    let dist = idtoken_testenv::target_dir().join("dist").join(VERSION);
    if dist.exists() {
        std::fs::remove_dir_all(&dist).with_context(|| format!("cannot empty {}", dist.display()))?;
    }
    std::fs::create_dir_all(&dist).with_context(|| format!("cannot make {}", dist.display()))?;
    std::fs::write(dist.join("RELEASE-NOTES.md"), notes)?;

    output.heading("Programs and images");
    let commit = Commit::of_workspace();
    let mut sboms = Vec::new();
    for arch in &args.arch {
        sboms.extend(images(output, args, *arch, &commit, &dist).await?);
        sboms.push(plugin(output, (*arch).into(), &commit, &dist).await?);
    }
    sbom::validate(output, &sboms).await?;
    output.heading("Chart and manifests");
    chart(output, &dist).await?;
    manifests(output, &commit, &dist)?;
    source(output, &dist)?;
    output.heading("Checksums");
    let sums = sign::checksums(&dist)?;
    match &args.sign_key {
        Some(key) => sign::sign(output, &sums, key)?,
        None => output.warn("SHA256SUMS is not signed: --sign-key names the key"),
    }

    output.heading(&format!("Made in {}", shown(&dist)));
    output.quote(&std::fs::read_to_string(&sums)?);
    output.heading("What is left needs a network");
    if args.snapshot {
        output.line("  nothing: a snapshot is not published");
    } else {
        output.quote(&next_steps(args));
    }
    Ok(())
}

/// Refuses what must not be released; gives the release's notes.
fn ready(output: &Output, args: &ReleaseArgs) -> Result<String> {
    let step = output.begin("the tree");
    let workspace = crate::workspace();
    let read = |path: &str| {
        std::fs::read_to_string(workspace.join(path)).with_context(|| format!("cannot read {path}"))
    };
    versions::chart(VERSION, &read("charts/idtoken-operator/Chart.yaml")?)?;
    versions::dockerfile(VERSION, &read("Dockerfile")?, &read("rust-toolchain.toml")?)?;
    let notes = match versions::notes(VERSION, &read("CHANGELOG.md")?) {
        Err(error) if args.snapshot => {
            output.warn(&format!("{error:#}"));
            String::new()
        }
        notes => notes?,
    };
    let status = Command::new("git")
        .args(["status", "--porcelain"])
        .current_dir(&workspace)
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
        if !args.snapshot {
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
    sbom::write(package, image::triple(arch), &program.crates, commit.time, &path)?;
    Ok(path)
}

fn file_name(package: &str, arch: oci::Arch) -> String {
    format!("{package}-{VERSION}-linux-{}", arch.as_str())
}

async fn chart(output: &Output, dist: &Path) -> Result<()> {
    let helm = tokio::task::spawn_blocking(|| binaries::HELM.build(&["helm"], Progress::Stderr)).await??;
    let step = output.begin("chart");
    let chart = crate::workspace().join("charts/idtoken-operator");
    let done = Command::new(helm.join("helm"))
        .arg("package")
        .arg(&chart)
        .arg("--destination")
        .arg(dist)
        .output()
        .context("cannot run helm")?;
    if !done.status.success() {
        bail!(
            "helm cannot package the chart: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    step.done(&format!("idtoken-operator-{VERSION}.tgz is the chart"));
    Ok(())
}

/// The definitions as one file, and what kubectl applies in place of the chart.
fn manifests(output: &Output, commit: &Commit, dist: &Path) -> Result<()> {
    let step = output.begin("manifests");
    let workspace = crate::workspace();
    let mut entries = Vec::new();
    let mut crds = String::new();
    for folder in ["crds", "config"] {
        let mut paths: Vec<_> = std::fs::read_dir(workspace.join(folder))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        paths.sort();
        for path in paths {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if folder == "crds" {
                crds.push_str(&format!("---\n{text}"));
            }
            entries.push(Entry::text(
                path.strip_prefix(&workspace)?.to_string_lossy(),
                text,
            ));
        }
    }
    std::fs::write(dist.join(format!("idtoken-operator-{VERSION}-crds.yaml")), crds)?;
    let name = format!("idtoken-operator-{VERSION}-manifests.tar.gz");
    std::fs::write(dist.join(&name), archive::tar_gz(&entries, commit.time)?)?;
    step.done(&format!("{name} and the definitions are written"));
    Ok(())
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
fn next_steps(args: &ReleaseArgs) -> String {
    let mut steps = format!(
        "git tag --sign v{VERSION} --message 'idtoken-operator {VERSION}' && git push origin v{VERSION}\n\
         # REGISTRY is where the images and the chart go, such as HOST/ORGANIZATION; crane login, helm registry login\n"
    );
    for name in ["idtoken-operator", "idtoken-emulator"] {
        let mut parts = String::new();
        for arch in &args.arch {
            let arch = oci::Arch::from(*arch).as_str();
            let part = format!("\"$REGISTRY/{name}:{VERSION}-{arch}\"");
            steps.push_str(&format!(
                "crane push {name}-{VERSION}-linux-{arch}.oci.tar {part}\n"
            ));
            parts.push_str(&format!(" --manifest {part}"));
        }
        steps.push_str(&format!(
            "crane index append{parts} --tag \"$REGISTRY/{name}:{VERSION}\"\n\
             cosign sign \"$REGISTRY/{name}@$(crane digest \"$REGISTRY/{name}:{VERSION}\")\"\n"
        ));
    }
    steps.push_str(&format!(
        "helm push idtoken-operator-{VERSION}.tgz \"oci://$REGISTRY/charts\"\n\
         # and the files of this folder, with RELEASE-NOTES.md, to the page of the release"
    ));
    steps
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
        manifests(&Output::new(), &Commit::of_workspace(), dir.path()).expect("manifests");
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

    #[test]
    fn the_next_steps_name_every_file_to_push() {
        let args = ReleaseArgs {
            arch: vec![ImageArch::Amd64, ImageArch::Arm64],
            sign_key: None,
            source: None,
            snapshot: false,
        };
        let steps = next_steps(&args);
        for name in ["idtoken-operator", "idtoken-emulator"] {
            for arch in [oci::Arch::Amd64, oci::Arch::Arm64] {
                let push = format!("crane push {}.oci.tar", file_name(name, arch));
                assert!(steps.contains(&push), "{steps}");
            }
        }
        assert!(steps.contains(&format!("helm push idtoken-operator-{VERSION}.tgz")));
    }
}
