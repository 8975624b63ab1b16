//! Publishes the release to a registry, and verifies it there.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use idtoken_testenv::{Progress, Publisher, Registry};

use crate::crds::shown;
use crate::progress::Output;

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
