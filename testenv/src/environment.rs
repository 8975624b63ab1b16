//! What the environment of whoever starts a program must not decide.

use std::path::Path;
use std::process::Command;

/// Variables that would steer the operator, the emulator or a client of theirs.
const FOREIGN: [&str; 12] = [
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

/// A command without what the caller's environment would tell it: its own flags (`IDTOKEN_*`), credentials, proxies.
#[must_use]
pub fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.to_string_lossy().starts_with("IDTOKEN_")) {
        command.env_remove(name);
    }
    for name in FOREIGN {
        command.env_remove(name);
    }
    command
}
