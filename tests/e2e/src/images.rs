//! The images of the suite's own pods, made from files of this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use idtoken_testenv::node::packages;
use idtoken_testenv::oci::{Arch, File, Image};
use idtoken_testenv::{GoModule, GoTool, Progress, Registry, consumers};
use jiff::Timestamp;

use crate::release;

/// Where docker.io has images whose names have no slash, as the tutorial's.
pub(crate) const LIBRARY: &str = "library";
/// Holds the suite's own programs, busybox and curl.
pub(crate) const TOOLS: &str = "idtoken-e2e-tools:1";
/// Prometheus alone.
pub(crate) const PROMETHEUS: &str = "idtoken-e2e-prometheus:1";

/// Stands for the public image of this name, which the tutorial uses and no node here can fetch.
const BUSYBOX: &str = "busybox:1.37";

const PROGRAMS: GoModule = GoModule {
    name: "e2e",
    go_mod: include_str!("../go/go.mod"),
    go_sum: include_str!("../go/go.sum"),
    files: &[
        ("caller.go", include_str!("../go/caller.go")),
        ("main.go", include_str!("../go/main.go")),
        ("target.go", include_str!("../go/target.go")),
    ],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "e2e",
        package: ".",
    }],
};

/// The name of the image in an archive that [`build`], [`of_debug_build`] or [`rename`] made.
pub(crate) fn name(archive: &Path) -> String {
    let stem = archive.file_stem().unwrap_or_default().to_string_lossy();
    let own = [TOOLS, PROMETHEUS, BUSYBOX].map(str::to_owned);
    let released = match stem.strip_suffix("-next") {
        Some(name) => format!("{name}:{}", release::NEXT),
        None => format!("{stem}:{}", env!("CARGO_PKG_VERSION")),
    };
    let mut names = own.into_iter();
    let found = names.find(|name| name.split(':').next() == Some(&stem));
    found.unwrap_or(released)
}

/// Pushes the images to a registry, from which the cluster pulls them.
///
/// # Errors
/// With crane's words.
pub(crate) fn push(registry: &Registry, archives: &[PathBuf]) -> Result<()> {
    for archive in archives {
        registry.push(archive, &format!("{LIBRARY}/{}", name(archive)))?;
    }
    Ok(())
}

/// Writes the archives of both images to `dir`. Blocks.
///
/// # Errors
/// When a program is missing or cannot be built, or an archive cannot be written.
pub fn build(dir: &Path, progress: Progress) -> Result<Vec<PathBuf>> {
    let programs = PROGRAMS.build(&["e2e"], progress)?;
    let mut tools = image(TOOLS)?;
    tools.files = vec![File::program("/e2e", programs.join("e2e"))];
    tools.files.extend(busybox()?);
    tools.files.extend(curl()?);
    tools.entrypoint = vec!["/e2e".to_owned()];
    // What a pod's sandbox runs; other pods have arguments of their own.
    tools.command = vec!["pause".to_owned()];
    tools.env = BTreeMap::from([("PATH".to_owned(), "/bin:/usr/bin".to_owned())]);

    let built = consumers::PROMETHEUS.build(&["prometheus"], progress)?;
    let mut prometheus = image(PROMETHEUS)?;
    prometheus.files = vec![File::program("/bin/prometheus", built.join("prometheus"))];
    prometheus.entrypoint = vec!["/bin/prometheus".to_owned()];

    let mut shell = image(BUSYBOX)?;
    shell.files = busybox()?;
    shell.entrypoint = vec!["/bin/sh".to_owned()];

    let mut archives = Vec::new();
    for image in [tools, prometheus, shell] {
        let archive = dir.join(format!("{}.tar", image.repository));
        image.write(&archive)?;
        archives.push(archive);
    }
    Ok(archives)
}

/// The archives in `dir`.
///
/// # Errors
/// When the folder cannot be read.
pub fn archives(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths
        .filter(|path| path.extension() == Some("tar".as_ref()))
        .collect())
}

/// An image of a debug build: the program with the libraries it needs, stripped of what only a debugger reads.
///
/// # Errors
/// When the libraries cannot be listed, or strip fails.
pub fn of_debug_build(package: &str, program: &Path, certificates: &str) -> Result<Image> {
    let stripped = program.with_extension("stripped");
    let status = Command::new("strip")
        .args(["--strip-all", "-o"])
        .arg(&stripped)
        .arg(program)
        .status()
        .context("cannot run strip (Debian package binutils)")?;
    ensure!(status.success(), "strip failed ({status})");
    let mut image = image(&format!("{package}:{}", env!("CARGO_PKG_VERSION")))?;
    image.files = libraries(program)?
        .into_iter()
        .map(|library| File::program(library.clone(), library))
        .collect();
    image.files.push(File::program(format!("/{package}"), stripped));
    image
        .files
        .push(File::text("/etc/ssl/certs/ca-certificates.crt", certificates));
    image.entrypoint = vec![format!("/{package}")];
    Ok(image)
}

/// Writes the operator's image once more under the tag that the rolling update goes to.
///
/// # Errors
/// When it cannot be written.
pub fn rename(mut image: Image, archive: &Path) -> Result<()> {
    image.tag = release::NEXT.to_owned();
    image.write(archive).map(drop)
}

fn image(name: &str) -> Result<Image> {
    let (repository, tag) = name.split_once(':').context("an image's name has no tag")?;
    Ok(Image {
        repository: repository.to_owned(),
        tag: tag.to_owned(),
        arch: Arch::of_this_machine()?,
        created: Timestamp::UNIX_EPOCH,
        entrypoint: Vec::new(),
        command: Vec::new(),
        env: BTreeMap::new(),
        user: "65532:65532".to_owned(),
        labels: BTreeMap::new(),
        files: Vec::new(),
    })
}

/// A shell and the usual commands.
fn busybox() -> Result<Vec<File>> {
    let program = packages::find("busybox").context("there is no busybox (Debian package busybox-static)")?;
    ensure!(
        libraries(&program)?.is_empty(),
        "{} is not static: install the Debian package busybox-static",
        program.display()
    );
    let mut files = vec![File::program("/bin/busybox", program)];
    let applets = ["cat", "date", "md5sum", "sh", "sleep"];
    files.extend(applets.map(|applet| File::link(format!("/bin/{applet}"), "busybox")));
    Ok(files)
}

/// curl with the libraries it needs, each at its place.
fn curl() -> Result<Vec<File>> {
    let program = packages::find("curl").context("there is no curl (Debian package curl)")?;
    let mut files: Vec<_> = libraries(&program)?
        .into_iter()
        .map(|library| File::program(library.clone(), library))
        .collect();
    files.push(File::program("/usr/bin/curl", program));
    Ok(files)
}

/// The paths of the shared libraries that a program is loaded with, its loader among them.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot run ldd")?;
    // Lines are `name => path (address)`, `loader (address)`, or say that it is not dynamic.
    let said = String::from_utf8_lossy(&output.stdout);
    let path = |line: &str| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(str::to_owned)
    };
    Ok(said
        .lines()
        .filter(|line| line.contains("(0x"))
        .filter_map(path)
        .collect())
}
