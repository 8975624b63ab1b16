//! Commands that do not depend on the caller's environment.

use std::path::Path;
use std::process::Command;

/// Variables that change how the operator, the emulator or one of their clients works.
const CLEARED: [&str; 12] = [
    "GOOGLE_APPLICATION_CREDENTIALS",
    "CLOUDSDK_CONFIG",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "KUBECONFIG",
    "GOOGLE_CLOUD_QUOTA_PROJECT",
    "GOOGLE_CLOUD_UNIVERSE_DOMAIN",
    "RUST_LOG",
];

/// A command without the caller's variables for flags (`IDTOKEN_*`), credentials and proxies.
#[must_use]
pub fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.to_string_lossy().starts_with("IDTOKEN_")) {
        command.env_remove(name);
    }
    for name in CLEARED {
        command.env_remove(name);
    }
    command
}
