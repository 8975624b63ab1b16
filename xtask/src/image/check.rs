//! `cargo xtask image --check`: reads the archive as a registry and a node do, and runs the program with only the image's files.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use idtoken_testenv::{ControlPlane, Options, Process, Progress, Registry, RunDir, oci};
use object::elf;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};
use serde_json::Value;

use super::flags::cargo_home;
use super::{Image, RELEASE, USER, audited, mebibytes};
use crate::programs;
use crate::progress::Output;

/// Maximum size of an unpacked image.
const SIZE_LIMIT: u64 = 25 << 20;
const LIMIT: Duration = Duration::from_secs(60);
const CA_BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// Packages of the workspace that only the emulator's image may contain.
const NEVER: [&str; 5] = [
    "idtoken-emulator",
    "idtoken-image",
    "idtoken-testenv",
    "kubectl-idtoken",
    "xtask",
];
/// The user that the API server sees for the ServiceAccount of config/rbac.yaml.
const OPERATOR_USER: &str = "system:serviceaccount:idtoken-system:idtoken-operator";

/// Checks an image.
///
/// # Errors
/// With the first check that fails.
pub(crate) async fn check(output: &Output, image: &Image) -> Result<()> {
    let dir = RunDir::create("image")?;
    let root = dir.path().join("root");
    std::fs::create_dir(&root)?;
    // The image's user must be able to read them.
    for path in [dir.path(), &root] {
        std::fs::set_permissions(path, Permissions::from_mode(0o755))?;
    }

    let step = output.begin("crane");
    let registry = Registry::start(Progress::Stderr).await?;
    let reference = registry.push(
        &image.archive,
        &format!("{}:{}", image.content.repository, image.content.tag),
    )?;
    ensure!(
        registry.digest(&reference)? == image.written.digest,
        "the registry has another digest"
    );
    configuration(&registry.config(&reference)?, image)?;
    let files = dir.path().join("files.tar");
    registry.export(&reference, &files)?;
    registry.stop().await?;
    tar::Archive::new(std::fs::File::open(&files)?).unpack(&root)?;
    step.done(
        "crane and its registry take the archive, as OCI and as Docker have it; the configuration is right",
    );

    let step = output.begin("files");
    let program = root.join(&image.content.repository);
    contents(&root, image)?;
    let bytes = std::fs::read(&program)?;
    is_static(&bytes, image.content.arch)?;
    let crates = linked_crates(&bytes, image)?;
    step.done(&format!(
        "its one executable is static, made of {crates} crates, and none of them is a test's; {:.1} MiB unpacked",
        mebibytes(image.written.unpacked)
    ));
    if image.content.arch == oci::Arch::of_this_machine()? {
        in_empty_root(output, &root, &program).await?;
    } else {
        output.warn(&format!("not run: it is for {}", image.content.arch.as_str()));
    }
    Ok(())
}

fn configuration(config: &Value, image: &Image) -> Result<()> {
    let content = &image.content;
    let container = &config["config"];
    ensure!(container["User"] == USER, "it runs as {}", container["User"]);
    let entrypoint = format!("/{}", content.repository);
    ensure!(
        container["Entrypoint"] == serde_json::json!([entrypoint]),
        "it runs {}",
        container["Entrypoint"]
    );
    ensure!(
        config["architecture"] == content.arch.as_str(),
        "it is for {}",
        config["architecture"]
    );
    for label in [
        "title",
        "description",
        "version",
        "licenses",
        "created",
        "revision",
    ] {
        let value = container["Labels"][format!("org.opencontainers.image.{label}")].as_str();
        ensure!(
            value.is_some_and(|value| !value.is_empty()),
            "the label {label} is missing"
        );
    }
    Ok(())
}

/// Checks which files the image has, their modes and its size.
fn contents(root: &Path, image: &Image) -> Result<()> {
    let unpacked = image.written.unpacked;
    ensure!(
        unpacked <= SIZE_LIMIT || image.profile != RELEASE,
        "it unpacks to {:.1} MiB, more than {:.0}",
        mebibytes(unpacked),
        mebibytes(SIZE_LIMIT)
    );
    let mut executables = BTreeSet::new();
    let mut all = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let (path, metadata) = (entry.path(), entry.metadata()?);
            let mode = metadata.permissions().mode() & 0o7777;
            ensure!(mode & 0o6022 == 0, "{} has mode {mode:o}", path.display());
            if metadata.is_dir() {
                folders.push(path);
                continue;
            }
            ensure!(metadata.is_file(), "{} is no file", path.display());
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            if mode & 0o111 != 0 {
                executables.insert(name.clone());
            }
            all.insert(name);
        }
    }
    let wanted = BTreeSet::from([image.content.repository.clone()]);
    ensure!(executables == wanted, "it has these executables: {executables:?}");
    for file in [CA_BUNDLE, "licenses/LICENSE", "licenses/THIRD-PARTY"] {
        ensure!(all.contains(file), "{file} is missing");
    }
    Ok(())
}

/// Checks that the program needs no dynamic linker and no library, is position-independent, and is for the right processor.
fn is_static(program: &[u8], arch: oci::Arch) -> Result<()> {
    let file = ElfFile64::<object::Endianness>::parse(program).context("the program is no ELF file")?;
    let endian = file.endian();
    let machine = file.elf_header().e_machine(endian);
    let wanted = match arch {
        oci::Arch::Amd64 => elf::EM_X86_64,
        oci::Arch::Arm64 => elf::EM_AARCH64,
    };
    ensure!(machine == wanted, "the program is for machine {machine}");
    ensure!(
        file.elf_header().e_type(endian) == elf::ET_DYN,
        "the program is not position-independent"
    );
    for header in file.elf_program_headers() {
        ensure!(
            header.p_type(endian) != elf::PT_INTERP,
            "the program needs a dynamic linker"
        );
        for entry in header.dynamic(endian, program)?.unwrap_or_default() {
            ensure!(
                entry.d_tag(endian) != elf::DT_NEEDED,
                "the program needs a shared library"
            );
        }
    }
    Ok(())
}

/// Checks the crates that are linked into the program, as it lists them itself. Returns their number.
fn linked_crates(program: &[u8], image: &Image) -> Result<usize> {
    // Panic messages contain the path of their source.
    let marker = b"emulator/src/";
    let emulates = program.windows(marker.len()).any(|bytes| bytes == marker);
    let is_emulator = image.content.repository == "idtoken-emulator";
    ensure!(
        emulates == is_emulator,
        "the program has the emulator's code: {emulates}"
    );
    if image.profile != RELEASE {
        return Ok(0);
    }
    // With such a path, other machines would build other bytes.
    for folder in [idtoken_testenv::target_dir(), crate::workspace()]
        .into_iter()
        .chain(cargo_home())
    {
        let folder = folder.to_string_lossy().into_owned();
        let found = program
            .windows(folder.len())
            .any(|bytes| bytes == folder.as_bytes());
        ensure!(!found, "the program names {folder}, a folder of this machine");
    }
    let crates = audited(program)?;
    let names: BTreeSet<_> = crates.iter().map(|(name, _)| name.as_str()).collect();
    // The list may have more crates: it comes from cargo's metadata, which includes crates that features leave out.
    let unsaid: Vec<_> = image.program.crates.difference(&crates).collect();
    ensure!(
        unsaid.is_empty(),
        "the program does not say that it has {unsaid:?}"
    );
    let own = image.content.repository.as_str();
    ensure!(
        names.contains(own) && names.contains("rustls"),
        "the program says that it is made of {names:?}"
    );
    for name in NEVER.iter().filter(|name| **name != own) {
        ensure!(!names.contains(name), "{name} is in the image of {own}");
    }
    Ok(image.program.crates.len())
}

/// Runs the program as the image's user in a root that has only the image's files.
async fn in_empty_root(output: &Output, root: &Path, program: &Path) -> Result<()> {
    let step = output.begin("an empty root");
    let Some(enter) = EmptyRoot::find(root) else {
        output.warn("not run in an empty root: that needs root, or unshare and user namespaces");
        return Ok(());
    };
    let name = program
        .file_name()
        .context("a program without a name")?
        .to_string_lossy()
        .into_owned();
    let version = enter.output(&name, &["--version"])?;
    ensure!(
        version.trim() == format!("{name} {}", env!("CARGO_PKG_VERSION")),
        "--version says {version}"
    );
    step.done(&format!("in an empty root, {} says its version", version.trim()));
    if name != "idtoken-operator" {
        return Ok(());
    }

    let assets = programs::control_plane(output).await?;
    let step = output.begin("the operator in an empty root");
    let cluster = ControlPlane::start(Options {
        assets: Some(assets),
        ..Options::default()
    })
    .await?;
    let workspace = crate::workspace();
    for file in [
        "crds/idtokenrequests.yaml",
        "crds/idtokengrants.yaml",
        "config/rbac.yaml",
    ] {
        cluster
            .apply(&std::fs::read_to_string(workspace.join(file))?)
            .await?;
    }
    let kubeconfig = std::fs::read_to_string(cluster.kubeconfig_for(OPERATOR_USER, &[])?)?;
    let mut kubeconfig: Value = serde_json::from_str(&kubeconfig)?;
    // Without it, the program trusts the image's CA bundle.
    if let Some(server) = kubeconfig["clusters"][0]["cluster"].as_object_mut() {
        server.remove("certificate-authority-data");
    }
    std::fs::write(root.join("kubeconfig"), kubeconfig.to_string())?;
    std::fs::set_permissions(root.join("kubeconfig"), Permissions::from_mode(0o644))?;

    // The server runs in both cases; only the bundle differs. With Mozilla's certificates the connection must fail.
    let bundle = std::fs::read_to_string(root.join(CA_BUNDLE))?;
    let stranger = enter.operator(cluster.dir(), "stranger")?;
    stranger.wait_for_line("client error (Connect)", LIMIT).await?;
    stranger.kill().await?;
    let with_ours = format!("{bundle}{}", std::fs::read_to_string(cluster.ca_file())?);
    std::fs::write(root.join(CA_BUNDLE), with_ours)?;
    let operator = enter.operator(cluster.dir(), "operator")?;
    let line = operator.wait_for_line("listen=", LIMIT).await?;
    let listen = line
        .rsplit_once("listen=")
        .and_then(|(_, rest)| rest.split_whitespace().next());
    operator
        .wait_for_http(
            listen.context("it does not say where it listens")?,
            "/readyz",
            LIMIT,
        )
        .await?;
    operator.terminate(LIMIT).await?;
    cluster.stop().await?;
    step.done("in an empty root, it trusts the API server that the CA bundle names, no other, and is ready");
    Ok(())
}

/// Does what a container runtime does: gives the program its own root with the devices that every container has
/// (<https://github.com/opencontainers/runtime-spec/blob/v1.2.1/config-linux.md#default-devices>).
const ENTER: &str = r#"mount --rbind /dev "$0/dev" && exec "$@""#;

/// A folder that becomes a program's root.
struct EmptyRoot<'r> {
    root: &'r Path,
    args: Vec<String>,
}

impl<'r> EmptyRoot<'r> {
    /// With root's permissions; otherwise in a user namespace, if the machine allows one, as its only user.
    fn find(root: &'r Path) -> Option<Self> {
        let userspec = format!("--userspec={USER}");
        let root_user = ["unshare", "--mount", "chroot", &userspec];
        let other_user = ["unshare", "--mount", "--map-root-user", "chroot"];
        let works = |args: &[&str]| {
            let mut command = Command::new(args[0]);
            command.args(&args[1..]).args(["/", "true"]);
            command.output().is_ok_and(|output| output.status.success())
        };
        let found = [root_user, other_user].into_iter().find(|args| works(args))?;
        std::fs::create_dir_all(root.join("dev")).ok()?;
        let at = found.iter().position(|arg| *arg == "chroot")?;
        let (unshare, chroot) = found.split_at(at);
        let mut args: Vec<_> = unshare.iter().map(|arg| (*arg).to_owned()).collect();
        args.extend(["sh", "-c", ENTER].map(str::to_owned));
        args.push(root.to_string_lossy().into_owned());
        args.extend(chroot.iter().map(|arg| (*arg).to_owned()));
        Some(Self { root, args })
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.args[0]);
        command
            .args(&self.args[1..])
            .arg(self.root)
            .arg(format!("/{program}"))
            .args(args);
        command
    }

    fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self
            .command(program, args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()?;
        if !output.status.success() {
            bail!(
                "{program} {} failed: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn operator(&self, dir: &Path, name: &str) -> Result<Process> {
        let mut command = self.command("idtoken-operator", &["run", "--listen", "127.0.0.1:0"]);
        command.env("KUBECONFIG", "/kubeconfig").env("HOME", "/");
        for variable in [
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "HTTPS_PROXY",
            "https_proxy",
        ] {
            command.env_remove(variable);
        }
        Process::spawn(name, &command, dir)
    }
}
