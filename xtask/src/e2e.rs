//! `cargo xtask e2e`: the end-to-end tests on a node of this machine, or on any cluster.

pub(crate) mod tested;

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;
use idtoken_e2e::{Settings, images};
use idtoken_testenv::node::isolation::{self, Isolation};
use idtoken_testenv::node::{NodePrograms, packages};
use idtoken_testenv::{CRANE, Progress, Publisher, binaries};

use crate::image::{self, ImageArgs};
use crate::progress::Output;
use crate::release::{self, ReleaseArgs};
use crate::{cargo, crds};

/// The command's arguments.
#[derive(Clone, Debug, Args)]
pub(crate) struct E2eArgs {
    /// Keep the node running after the tests, also after a failure, until Ctrl-C.
    #[arg(long, conflicts_with = "context")]
    keep: bool,
    /// Run on the cluster of this kubeconfig context instead of a local node. See --images.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The registry that has the images of --images, such as registry.example.com/me. Default: the cluster's nodes have them.
    #[arg(long, requires = "context")]
    registry: Option<String>,
    /// Only write the images to target/e2e/images, for `kind load image-archive` or `crane push`.
    #[arg(long)]
    images: bool,
    /// Build the images of the operator and the emulator statically, as they are released, with this cargo profile: release or
    /// e2e. Default: images of the debug build with its shared libraries.
    #[arg(long, value_name = "PROFILE")]
    image_profile: Option<String>,
    /// Make a release, publish it to the node's registry, verify it by the commands of docs/releasing.md, and test what is published: the
    /// chart and the images, by their digests.
    #[arg(long, conflicts_with_all = ["context", "images", "image_profile"])]
    released: bool,
    /// Another version of Kubernetes for the node, such as v1.34.2. Its modules are fetched the first time.
    #[arg(long, value_name = "VERSION", conflicts_with = "context")]
    kubernetes: Option<String>,
    /// Write into docs/upgrade-policy.md that the tests passed on this version of Kubernetes.
    #[arg(long, conflicts_with_all = ["context", "keep", "images"])]
    record: bool,
}

/// Runs the tests.
///
/// # Errors
/// When a test fails, or a program that the tests need cannot be built.
pub(crate) async fn run(output: &Output, args: &E2eArgs) -> Result<()> {
    if isolation::is_inside() {
        return inside(args).await;
    }
    let needs_node = args.context.is_none() && !args.images;
    if needs_node && let Some(obstacle) = isolation::obstacle() {
        unavailable(output, &obstacle);
    }
    output.heading("Building");
    let step = output.begin("packages");
    let mut needed = packages::NODE.to_vec();
    needed.extend(args.released.then_some(release::JQ));
    if let Err(error) =
        tokio::task::spawn_blocking(move || packages::install(&needed, Progress::Stderr)).await?
    {
        unavailable(output, &format!("{error:#}"));
    }
    step.done("runc, iptables, busybox and curl are installed");
    if needs_node && let Some(feature) = isolation::missing_feature() {
        unavailable(output, &feature);
    }
    let built = cargo::build_programs(output).await?;
    if args.images {
        let archives = make_images(output, &built, args).await?;
        archives
            .iter()
            .for_each(|archive| output.line(&format!("  {}", crds::shown(archive))));
        return Ok(());
    }
    let step = output.begin("etcd, Kubernetes, containerd, the CNI plugins, CoreDNS, Helm and crane");
    let version = args.kubernetes.clone();
    let build = move || {
        CRANE.build(&["crane"], Progress::Stderr)?;
        anyhow::Ok((
            NodePrograms::build(version.as_deref(), Progress::Stderr)?,
            helm()?,
        ))
    };
    let (programs, helm) = tokio::task::spawn_blocking(build).await??;
    step.done("etcd, Kubernetes, containerd, the CNI plugins, CoreDNS, Helm and crane are built");
    let kubectl = programs.assets().kubectl;
    let kubectl = kubectl.parent().context("kubectl is in no folder")?;
    let path = path([built.plugins.clone(), kubectl.to_owned(), helm])?;

    if let Some(context) = &args.context {
        output.heading("Testing");
        return idtoken_e2e::run_on_cluster(settings(path, false), context, args.registry.as_deref()).await;
    }
    // Before the images: a run that waits for the lock must not overwrite them. Dropped last: it removes what the namespaces leave.
    let isolation = tokio::task::spawn_blocking(Isolation::new).await??;
    if args.released {
        release::make(output, &ReleaseArgs::tried()?).await?;
        let workspace = crate::workspace();
        tokio::task::spawn_blocking(move || Publisher::new(&workspace, Progress::Stderr)).await??;
    }
    make_images(output, &built, args).await?;
    output.heading("Testing");
    run_on_local_node(output, &isolation, path, args.keep).await
}

/// Runs this program again in the node's own namespaces. Everything is built before: the namespaces have no network but the node's.
async fn run_on_local_node(output: &Output, isolation: &Isolation, path: OsString, keep: bool) -> Result<()> {
    let mut command = isolation.command(std::env::current_exe()?.as_os_str());
    command.args(std::env::args_os().skip(1));
    // The pipe closes when this process exits, for whatever reason; the child reads it.
    command.stdin(Stdio::piped()).env("PATH", path);
    for variable in [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(variable);
    }
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .context("cannot run unshare")?;
    let _pipe = child.stdin.take();
    if let (true, Some(unshare)) = (keep, child.id()) {
        output.line(&format!(
            "  a shell in the node's namespaces: nsenter --all --target \"$(pgrep --parent {unshare})\""
        ));
    }
    let status = child.wait().await?;
    if !status.success() {
        bail!("the end-to-end tests failed");
    }
    Ok(())
}

/// The part that runs in the namespaces.
async fn inside(args: &E2eArgs) -> Result<()> {
    let version = args.kubernetes.clone();
    let build = move || NodePrograms::build(version.as_deref(), Progress::Quiet);
    let programs = tokio::task::spawn_blocking(build).await??;
    let archives = images::archives(&image_dir())?;
    let settings = Settings {
        released: args.released.then(release::dist),
        ..settings(std::env::var_os("PATH").unwrap_or_default(), args.keep)
    };
    let tests = idtoken_e2e::run_on_node(settings, &programs, &archives);
    let (ended, parent) = tokio::sync::oneshot::channel();
    // Not a blocking task of tokio: the runtime would wait for it at shutdown.
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read(&mut [0]);
        let _ = ended.send(());
    });
    tokio::select! {
        result = tests => {
            let cases = result?;
            if args.record {
                tested::record(args.kubernetes.as_deref(), cases)?;
            }
            Ok(())
        },
        _ = parent => bail!("the process that started the tests exited"),
    }
}

/// Warns that nothing was tested, and exits.
fn unavailable(output: &Output, why: &str) -> ! {
    crate::unavailable(
        output,
        &format!("the end-to-end tests cannot run on this machine: {why}"),
    );
}

/// Builds all images: the project's, unless it is a release that has them, and those of the tests' pods.
async fn make_images(output: &Output, programs: &cargo::Programs, args: &E2eArgs) -> Result<Vec<PathBuf>> {
    let dir = image_dir();
    // Images of earlier runs may have other versions.
    let _ = std::fs::remove_dir_all(&dir);
    let mut archives = Vec::new();
    if !args.released {
        archives = own_images(output, programs, args.image_profile.as_deref(), &dir).await?;
    }
    let step = output.begin("images");
    let build = move || images::build(&dir, Progress::Stderr);
    archives.extend(tokio::task::spawn_blocking(build).await??);
    step.done(&format!(
        "{} images are in {}",
        archives.len(),
        crds::shown(&image_dir())
    ));
    Ok(archives)
}

/// Builds the project's images. Without a profile, they contain this workspace's debug build, which exists already. With a profile, they
/// are those of `cargo xtask image`.
async fn own_images(
    output: &Output,
    programs: &cargo::Programs,
    profile: Option<&str>,
    dir: &Path,
) -> Result<Vec<PathBuf>> {
    let mut archives = Vec::new();
    for (package, program) in [
        ("idtoken-operator", &programs.operator),
        ("idtoken-emulator", &programs.emulator),
    ] {
        let archive = dir.join(format!("{package}.tar"));
        let image = match profile {
            Some(profile) => {
                let args = ImageArgs {
                    emulator: package == "idtoken-emulator",
                    arch: None,
                    profile: profile.to_owned(),
                    output: Some(archive.clone()),
                    source: None,
                    check: false,
                };
                image::make(output, &args).await?.content
            }
            None => {
                let image = images::of_debug_build(package, program, &idtoken_image::ca_bundle())?;
                image.write(&archive)?;
                image
            }
        };
        archives.push(archive);
        if package == "idtoken-operator" {
            let next = dir.join("idtoken-operator-next.tar");
            images::rename(image, &next)?;
            archives.push(next);
        }
    }
    Ok(archives)
}

fn image_dir() -> PathBuf {
    idtoken_testenv::target_dir().join("e2e/images")
}

fn helm() -> Result<PathBuf> {
    binaries::HELM.build(&["helm"], Progress::Stderr)
}

fn settings(path: OsString, keep: bool) -> Settings {
    Settings {
        path,
        workspace: crate::workspace(),
        released: None,
        keep,
    }
}

/// `PATH` with `folders` first.
fn path(folders: [PathBuf; 3]) -> Result<OsString> {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let all = folders.into_iter().chain(std::env::split_paths(&inherited));
    Ok(std::env::join_paths(all)?)
}
