//! What rustc is told for programs that are released.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use idtoken_testenv::oci;

/// Links statically, and keeps folders of this machine out of panic messages, so that other machines build the same bytes.
pub(super) fn rustflags(arch: oci::Arch) -> Result<Vec<String>> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    // Half a MiB less to read and to keep resident.
    if arch == oci::Arch::Amd64
        && arch == oci::Arch::of_this_machine()?
        && applies_packed_relocations(&glibc_version()?)
    {
        flags.push("-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned());
    }
    // rustc takes the last prefix that fits, and the workspace may be in the home folder.
    let folders = [(cargo_home(), "/cargo"), (Some(crate::workspace()), "/src")];
    for (folder, name) in folders {
        if let Some(folder) = folder {
            flags.push(format!("--remap-path-prefix={}={name}", folder.display()));
        }
    }
    Ok(flags)
}

/// The answer of `getconf GNU_LIBC_VERSION`: the version of this machine's C library, which is linked into the programs.
fn glibc_version() -> Result<String> {
    let output = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .context("cannot run getconf (Debian package libc-bin)")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a program that starts with this C library, such as `glibc 2.36`, applies relocations in the format DT_RELR: since 2.36
/// (<https://sourceware.org/glibc/wiki/Release/2.36>).
fn applies_packed_relocations(version: &str) -> bool {
    let numbers = version
        .strip_prefix("glibc ")
        .and_then(|rest| rest.split_once('.'));
    let minor = numbers.filter(|(major, _)| *major == "2").map(|(_, minor)| minor);
    minor.and_then(|minor| minor.split('.').next()?.parse().ok()) >= Some(36_u32)
}

/// Where cargo keeps the sources of crates.
pub(super) fn cargo_home() -> Option<PathBuf> {
    let named = std::env::var_os("CARGO_HOME").filter(|home| !home.is_empty());
    named
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_relocations_need_a_c_library_that_applies_them() {
        for version in ["glibc 2.36", "glibc 2.41", "glibc 2.100"] {
            assert!(applies_packed_relocations(version), "{version}");
        }
        for version in ["glibc 2.35", "glibc 2.9", "glibc 3.40", "musl 2.40", ""] {
            assert!(!applies_packed_relocations(version), "{version}");
        }
    }
}
