//! Publishes the release to a registry, and verifies it there.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use idtoken_testenv::node::packages::Package;
use idtoken_testenv::{Progress, Publisher, Registry};

use crate::crds::shown;
use crate::progress::Output;

/// What publish.sh needs of the machine beside Git and usual commands.
pub(crate) const JQ: Package = ("jq", "jq");

/// Whether a registry is on this machine, so that what is pushed to it is only tried.
pub(super) fn is_local(registry: &str) -> bool {
    let host = registry.split('/').next().unwrap_or_default();
    let host = match host.rsplit_once(':') {
        Some((host, _)) => host.trim_matches(['[', ']']),
        None => host,
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Pushes, signs, attests and verifies what `dist` holds. Prints a table of it.
///
/// # Errors
/// When a part of it fails; when nothing may sign.
pub(super) async fn run(output: &Output, dist: &Path, registry: &str, key: Option<&Path>) -> Result<()> {
    let workspace = crate::workspace();
    let publisher =
        tokio::task::spawn_blocking(move || Publisher::new(&workspace, Progress::Stderr)).await??;
    let key: PathBuf = match key {
        Some(key) => std::path::absolute(key)?,
        None if is_local(registry) => publisher.key(&idtoken_testenv::target_dir().join("dist/test-key"))?,
        None => bail!("--cosign-key names the key that signs; without one, the workflow of releases signs"),
    };
    let host = registry.split('/').next().unwrap_or(registry);
    let started = match is_local(registry) {
        true => Registry::start_unless_there_is_one(host, Progress::Stderr).await?,
        false => None,
    };
    let step = output.begin("push, signatures, SBOMs and provenance");
    let table = publisher.publish(dist, registry, &key, &[])?;
    step.done(&format!("published to {registry}, signed with {}", shown(&key)));
    let step = output.begin("verification");
    publisher.verify(dist, registry, &key)?;
    step.done("verified with the commands of docs/releasing.md");
    output.line(&table);
    if let Some(registry) = started {
        output.line(&format!(
            "  the registry at {host} was started for this, and is stopped"
        ));
        registry.stop().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The workflow builds what publish.sh needs by a script of its own: by each module's only tool, without the modules' other programs.
    #[test]
    fn the_programs_that_publish_are_the_tools_of_their_modules() {
        use idtoken_testenv::{COSIGN, CRANE, RunDir, binaries};
        use std::os::unix::fs::PermissionsExt;

        let dir = RunDir::create("tools").expect("a folder");
        // In place of Go: says what it is to install where.
        let go = dir.path().join("go");
        std::fs::write(&go, "#!/bin/sh\necho \"$GOBIN $*\" >>\"$GOBIN/calls\"\n").expect("a file");
        std::fs::set_permissions(&go, std::fs::Permissions::from_mode(0o755)).expect("a program");
        let bin = dir.path().join("bin");
        let done = std::process::Command::new(crate::workspace().join("xtask/release/tools.sh"))
            .arg(&bin)
            .env("PATH", crate::cargo::path_with(dir.path()).expect("a path"))
            .output()
            .expect("the script");
        assert!(done.status.success(), "{done:?}");
        let bin = bin.to_str().expect("a name");
        assert_eq!(String::from_utf8_lossy(&done.stdout), format!("{bin}\n"));
        let calls = std::fs::read_to_string(format!("{bin}/calls")).expect("calls");
        let modules = [CRANE, COSIGN, binaries::HELM];
        let wanted = modules.map(|module| format!("{bin} -C {} install tool\n", module.name));
        assert_eq!(calls, wanted.concat());
        for module in modules {
            let tools: Vec<_> = module
                .go_mod
                .lines()
                .filter_map(|line| line.strip_prefix("tool "))
                .collect();
            assert_eq!(tools, [module.tools[0].package]);
        }
    }

    #[test]
    fn only_registries_of_this_machine_are_local() {
        for local in [
            "localhost:5000",
            "localhost:5000/a/b",
            "127.0.0.1:5000",
            "[::1]:5000/a",
            "localhost",
        ] {
            assert!(is_local(local), "{local}");
        }
        for other in [
            "ghcr.io/localhost",
            "localhost.example.com:5000",
            "10.0.0.1:5000",
            "registry.example.com",
        ] {
            assert!(!is_local(other), "{other}");
        }
    }
}
