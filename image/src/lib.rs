//! What the container images hold beside the program, so that those of the Dockerfile and of `cargo xtask image` are alike.
//!
//! A crate of its own, because the Dockerfile's build needs nothing else of the project's tools.

mod certificates;
mod crates;
mod licenses;

use std::path::Path;

use anyhow::Result;

pub use certificates::ca_bundle;
pub use crates::{Crate, Id, crates};
pub use licenses::third_party;

/// Without it glibc would ask DNS before the hosts file that the kubelet writes.
const NSSWITCH: &str = "hosts: files dns\n";

/// Absolute path and content of each file, for the program that `package` builds for `target`. All are readable by everybody.
///
/// # Errors
/// When cargo fails, or a dependency comes without its licence.
pub fn files(workspace: &Path, package: &str, target: &str) -> Result<Vec<(&'static str, String)>> {
    let licence = std::fs::read_to_string(workspace.join("LICENSE"))?;
    let third_party = third_party(&crates(workspace, package, target)?, &licence)?;
    Ok(vec![
        // Where rustls-native-certs, Go and curl look for it.
        ("/etc/ssl/certs/ca-certificates.crt", ca_bundle()),
        ("/etc/nsswitch.conf", NSSWITCH.to_owned()),
        ("/licenses/LICENSE", licence),
        ("/licenses/THIRD-PARTY", third_party),
    ])
}
