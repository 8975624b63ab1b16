//! `cargo xtask image`: builds the images as OCI archives, without a daemon. The Dockerfile builds the same images.

mod check;
mod flags;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use idtoken_image::Id;
use idtoken_testenv::oci::{self, File};
use jiff::Timestamp;
use serde_json::Value;

use crate::cargo;
use crate::cargo_tools::AUDITABLE;
use crate::crds::shown;
use crate::progress::Output;

/// The cargo profile of published programs.
pub(crate) const RELEASE: &str = "release";
/// A user that is not root and exists on no node; `nonroot` of distroless has the same id.
const USER: &str = "65532:65532";

/// The command's arguments.
#[derive(Clone, Debug, Args)]
pub(crate) struct ImageArgs {
    /// The emulator's image instead of the operator's.
    #[arg(long)]
    pub(crate) emulator: bool,
    /// The processor. Another one than this machine's needs the Rust target and a C cross-compiler.
    #[arg(long, value_enum)]
    pub(crate) arch: Option<ImageArch>,
    /// The cargo profile of the program. e2e builds quickly.
    #[arg(long, default_value = RELEASE)]
    pub(crate) profile: String,
    /// File of the archive. Default: target/image/NAME-VERSION-linux-ARCH.tar
    #[arg(long)]
    pub(crate) output: Option<PathBuf>,
    /// URL of the sources, for the label org.opencontainers.image.source.
    #[arg(long)]
    pub(crate) source: Option<String>,
    /// Check the image too: its format, its content, and that the program runs with only the image's files. Builds an API server.
    #[arg(long)]
    pub(crate) check: bool,
}

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageArch {
    /// x86-64
    Amd64,
    /// 64-bit Arm
    Arm64,
}

impl From<ImageArch> for oci::Arch {
    fn from(arch: ImageArch) -> Self {
        match arch {
            ImageArch::Amd64 => Self::Amd64,
            ImageArch::Arm64 => Self::Arm64,
        }
    }
}

/// A built program.
pub(crate) struct Program {
    /// Its file.
    pub(crate) path: PathBuf,
    /// The crates that cargo compiled for it.
    pub(crate) crates: BTreeSet<Id>,
}

/// A built image.
pub(crate) struct Image {
    /// The archive.
    pub(crate) archive: PathBuf,
    /// The program in it.
    pub(crate) program: Program,
    /// What the archive was written from.
    pub(crate) content: oci::Image,
    /// Its digest and sizes.
    pub(crate) written: oci::Written,
    /// The cargo profile of its program.
    pub(crate) profile: String,
}

/// Builds an image, and checks it if requested.
///
/// # Errors
/// When the image cannot be built, or a check fails.
pub(crate) async fn run(output: &Output, args: &ImageArgs) -> Result<Image> {
    let image = make(output, args).await?;
    if args.check {
        check::check(output, &image).await?;
    }
    Ok(image)
}

/// Builds the program and writes its image.
///
/// # Errors
/// When cargo fails, or the archive cannot be written.
pub(crate) async fn make(output: &Output, args: &ImageArgs) -> Result<Image> {
    let package = if args.emulator {
        "idtoken-emulator"
    } else {
        "idtoken-operator"
    };
    let arch = match args.arch {
        Some(arch) => arch.into(),
        None => oci::Arch::of_this_machine()?,
    };
    let program = build_static(output, package, arch, &args.profile, &[]).await?;

    let step = output.begin("image");
    let commit = Commit::of_workspace();
    let mut files = vec![File::program(format!("/{package}"), &program.path)];
    let beside = idtoken_image::files(&crate::workspace(), package, triple(arch))?;
    files.extend(
        beside
            .into_iter()
            .map(|(path, content)| File::text(path, content)),
    );
    let version = env!("CARGO_PKG_VERSION");
    let content = oci::Image {
        repository: package.to_owned(),
        tag: version.to_owned(),
        arch,
        created: commit.time,
        entrypoint: vec![format!("/{package}")],
        command: Vec::new(),
        env: BTreeMap::new(),
        user: USER.to_owned(),
        labels: labels(package, version, &commit, args.source.as_deref())?,
        files,
    };
    let archive = match &args.output {
        Some(path) => std::path::absolute(path)?,
        None => idtoken_testenv::target_dir()
            .join("image")
            .join(format!("{package}-{version}-linux-{}.tar", arch.as_str())),
    };
    let written = content.write(&archive)?;
    step.done(&format!(
        "{} is written: {package}:{version} for linux/{}, {:.1} MiB, {:.1} MiB unpacked, {}",
        shown(&archive),
        arch.as_str(),
        mebibytes(written.packed),
        mebibytes(written.unpacked),
        written.digest
    ));
    Ok(Image {
        archive,
        program,
        content,
        written,
        profile: args.profile.clone(),
    })
}

/// Builds the program of `package` so that it needs no other file: linked statically with glibc, position-independent. rustc gets
/// `flags` for the program alone, not for its dependencies.
///
/// # Errors
/// When cargo fails: with its output.
pub(crate) async fn build_static(
    output: &Output,
    package: &str,
    arch: oci::Arch,
    profile: &str,
    flags: &[&str],
) -> Result<Program> {
    let target = triple(arch);
    let mut cargo = cargo::cargo();
    if profile == RELEASE {
        let tools = AUDITABLE.install(output).await?;
        cargo.env("PATH", cargo::path_with(&tools)?).arg("auditable");
    }
    let step = output.begin("cargo build");
    cargo.args([
        if flags.is_empty() { "build" } else { "rustc" },
        "--locked",
        "--bins",
        "--message-format=json-render-diagnostics",
    ]);
    cargo.args(["--package", package, "--target", target, "--profile", profile]);
    if !flags.is_empty() {
        cargo.arg("--").args(flags);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags::rustflags(arch)?.join("\x1f"));
    if arch != oci::Arch::of_this_machine()? {
        for (name, value) in cross_compiler(target) {
            if std::env::var_os(&name).is_none() {
                cargo.env(name, value);
            }
        }
    }
    let log = cargo::run(cargo, &step, |_| ()).await.with_context(|| {
        format!(
            "{package} cannot be built for {target} (`rustup target add {target}` installs its standard library)"
        )
    })?;
    let messages: Vec<_> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .collect();
    let path = messages
        .iter()
        .filter(|message| message["target"]["name"] == package)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo build made no {package}"))?;
    // Macros and build scripts are compiled for this machine, and are not linked into the program.
    let folder = format!("/{target}/");
    let crates = messages
        .iter()
        .filter(|message| {
            message["filenames"][0]
                .as_str()
                .is_some_and(|path| path.contains(&folder))
        })
        .filter_map(|message| package_id(message["package_id"].as_str()?))
        .collect();
    step.done(&format!("{} is built", shown(&path)));
    Ok(Program { path, crates })
}

/// Name and version in a package's id: `registry+URL#serde@1.0.228`, or `path+file:///src/ctl#0.1.0` if the folder has the package's name
/// (<https://doc.rust-lang.org/cargo/reference/pkgid-spec.html>).
fn package_id(id: &str) -> Option<Id> {
    let (source, fragment) = id.rsplit_once('#')?;
    let (name, version) = match fragment.split_once('@') {
        Some(named) => named,
        None => (source.rsplit('/').next()?, fragment),
    };
    Some((name.to_owned(), version.to_owned()))
}

/// The crates that a program lists, by name and version: cargo-auditable puts the list into it.
///
/// # Errors
/// When the program has no list.
fn audited(program: &[u8]) -> Result<BTreeSet<Id>> {
    // More than a list takes, compressed or not.
    let limit = 8 << 20;
    let json =
        auditable_info::json_from_slice(program, limit).context("the program does not list its crates")?;
    let info: Value = serde_json::from_str(&json)?;
    let packages = info["packages"]
        .as_array()
        .context("the program names no crates")?;
    let text = |package: &Value, field: &str| package[field].as_str().unwrap_or_default().to_owned();
    Ok(packages
        .iter()
        // The others are crates of its build scripts and macros.
        .filter(|package| package["kind"].is_null() || package["kind"] == "runtime")
        .map(|package| (text(package, "name"), text(package, "version")))
        .collect())
}

/// The target triple.
pub(crate) fn triple(arch: oci::Arch) -> &'static str {
    match arch {
        oci::Arch::Amd64 => "x86_64-unknown-linux-gnu",
        oci::Arch::Arm64 => "aarch64-unknown-linux-gnu",
    }
}

/// The linker and the C compiler for aws-lc, by their names in Debian and Ubuntu (package gcc-aarch64-linux-gnu and so on).
fn cross_compiler(target: &str) -> [(String, String); 2] {
    let gcc = format!("{}-gcc", target.replace("-unknown", ""));
    let name = target.replace('-', "_");
    [
        (
            format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()),
            gcc.clone(),
        ),
        (format!("CC_{name}"), gcc),
    ]
}

/// Labels: <https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md>.
fn labels(
    package: &str,
    version: &str,
    commit: &Commit,
    source: Option<&str>,
) -> Result<BTreeMap<String, String>> {
    let description = match package {
        "idtoken-operator" => "Keeps Google-signed OIDC ID tokens in Kubernetes Secrets, always fresh",
        "idtoken-emulator" => "Google's token endpoints for tests; issues tokens that Google never signed",
        other => bail!("there is no image of {other}"),
    };
    let mut labels = BTreeMap::from([
        ("title", package.to_owned()),
        ("description", description.to_owned()),
        ("version", version.to_owned()),
        ("licenses", "Apache-2.0".to_owned()),
        ("created", commit.time.to_string()),
    ]);
    labels.extend(commit.revision.clone().map(|revision| ("revision", revision)));
    labels.extend(source.map(|source| ("source", source.to_owned())));
    Ok(labels
        .into_iter()
        .map(|(name, value)| (format!("org.opencontainers.image.{name}"), value))
        .collect())
}

/// The commit of the workspace.
pub(crate) struct Commit {
    /// The commit's hash; absent if the workspace is no Git checkout.
    pub(crate) revision: Option<String>,
    /// `SOURCE_DATE_EPOCH` (<https://reproducible-builds.org/specs/source-date-epoch/>), else the commit's time, else 1970.
    pub(crate) time: Timestamp,
}

impl Commit {
    pub(crate) fn of_workspace() -> Self {
        let git = |args: &[&str]| -> Option<String> {
            let output = Command::new("git")
                .args(args)
                .current_dir(crate::workspace())
                .output()
                .ok()?;
            let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
            output.status.success().then_some(text)
        };
        let dirty = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
        let revision = git(&["rev-parse", "HEAD"]).filter(|revision| !revision.is_empty());
        let seconds = std::env::var("SOURCE_DATE_EPOCH")
            .ok()
            .or_else(|| git(&["log", "-1", "--format=%ct"]));
        Self {
            revision: revision.map(|revision| {
                if dirty {
                    format!("{revision}-dirty")
                } else {
                    revision
                }
            }),
            time: seconds
                .and_then(|seconds| Timestamp::from_second(seconds.trim().parse().ok()?).ok())
                .unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }
}

pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_package_ids() {
        let id = |name: &str, version: &str| Some((name.to_owned(), version.to_owned()));
        let registry = "registry+https://github.com/rust-lang/crates.io-index";
        assert_eq!(
            package_id(&format!("{registry}#serde@1.0.228")),
            id("serde", "1.0.228")
        );
        assert_eq!(package_id("path+file:///a/b#0.1.0"), id("b", "0.1.0"));
        assert_eq!(
            package_id("path+file:///a/ctl#kubectl-idtoken@0.1.0"),
            id("kubectl-idtoken", "0.1.0")
        );
        assert_eq!(package_id("serde"), None);
    }
}
