//! A release, as `cargo xtask release` makes it: published to the node's registry, and verified there before anything of it is installed.

use std::path::Path;

use anyhow::{Result, ensure};
use idtoken_testenv::{Progress, Publisher, Registry};

use crate::images::LIBRARY;
use crate::release::{CHART, NEXT, VERSION};
use crate::report::Report;

/// What cosign says where a signature is another key's.
const REFUSED: &str = "accepted signatures do not match threshold";

/// What was published.
pub(crate) struct Released {
    /// The chart, by its digest.
    pub(crate) chart: String,
    /// The digest of the operator's image: of the index of its platforms.
    pub(crate) image: String,
}

/// Publishes the release in `dist`, verifies it, and prints the table of its artifacts. Keys are made in `scratch`.
pub(crate) fn publish(
    report: &Report,
    registry: &Registry,
    workspace: &Path,
    dist: &Path,
    scratch: &Path,
) -> Result<Released> {
    let to = format!("{}/{LIBRARY}", registry.address());
    let publisher = Publisher::new(workspace, Progress::Quiet)?;
    let key = publisher.key(&scratch.join("key"))?;
    let case = report.begin("publish.sh pushes, signs and attests the release");
    let table = case.ended(publisher.publish(dist, &to, &key, &[]))?;
    let case = report.begin("the commands of docs/releasing.md verify it, and refuse another key");
    case.ended(verify(&publisher, dist, &to, &key, scratch))?;
    report.block("Published", &table);

    let image = format!("{to}/idtoken-operator:{VERSION}");
    let index = registry.manifest(&image)?;
    ensure!(
        index["manifests"].is_array(),
        "{image} is no index of platforms: {index}"
    );
    registry.crane(&["tag", &image, NEXT])?;
    let chart = format!("{to}/{CHART}");
    Ok(Released {
        chart: format!(
            "oci://{chart}@{}",
            registry.digest(&format!("{chart}:{VERSION}"))?
        ),
        image: registry.digest(&image)?,
    })
}

fn verify(publisher: &Publisher, dist: &Path, registry: &str, key: &Path, scratch: &Path) -> Result<()> {
    publisher.verify(dist, registry, key)?;
    let other = publisher.key(&scratch.join("another"))?;
    match publisher.verify(dist, registry, &other) {
        Ok(_) => anyhow::bail!("another key verifies it too"),
        Err(error) => ensure!(error.to_string().contains(REFUSED), "{error:#}"),
    }
    Ok(())
}
