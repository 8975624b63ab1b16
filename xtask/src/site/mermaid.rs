//! Mermaid, which draws the diagrams in the browser: from npm's registry, checked by its digest.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;

use crate::cargo;
use crate::progress::Output;

const VERSION: &str = "11.12.1";
/// The registry's SHA-512 of the package.
const DIGEST: &str =
    "UlIZrRariB11TY1RtTgUWp65tphtBv4CSq7vyS2ZZ2TgoMjs2nloq+wFqxiwcxlhHUvs7DPGgMjs2aeQxz5h9g==";
const FILE: &str = "package/dist/mermaid.min.js";

/// Fetches the script, unless it is there. Its path. Without npm or its registry, this machine cannot build the site, and the process ends.
///
/// # Errors
/// When the package is another one than was chosen, or cannot be written.
pub(super) async fn fetch(output: &Output) -> Result<PathBuf> {
    let folder = idtoken_testenv::target_dir()
        .join("xtask")
        .join(format!("mermaid-{VERSION}"));
    let script = folder.join("mermaid.min.js");
    if script.is_file() {
        return Ok(script);
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let step = output.begin("mermaid");
    let mut npm = std::process::Command::new("npm");
    npm.args(["pack", "--silent", "--pack-destination"])
        .arg(&folder)
        .arg(format!("mermaid@{VERSION}"))
        .current_dir(&folder);
    if let Err(error) = cargo::run(npm, &step, |_| ()).await {
        let error = error.context("npm, a part of Node.js, cannot fetch Mermaid, which draws the diagrams");
        crate::unavailable(output, &format!("{error:#}"));
    }
    let package =
        std::fs::read(folder.join(format!("mermaid-{VERSION}.tgz"))).context("npm wrote no package")?;
    let text = extract(&package, DIGEST)?;
    // Whole at once.
    let new = folder.join("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, &script)?;
    step.done(&format!("Mermaid {VERSION} is fetched"));
    Ok(script)
}

/// The script of a package that has this digest.
fn extract(package: &[u8], wanted: &str) -> Result<Vec<u8>> {
    let found = BASE64_STANDARD.encode(digest::digest(&digest::SHA512, package));
    if found != wanted {
        bail!("this is not the package that was chosen: its SHA-512 is {found}");
    }
    let mut archive = tar::Archive::new(GzDecoder::new(package));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.to_str() == Some(FILE) {
            let mut text = Vec::new();
            entry.read_to_end(&mut text)?;
            return Ok(text);
        }
    }
    bail!("the package has no {FILE}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chosen_package_is_taken() {
        let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(
            Vec::new(),
            flate2::Compression::fast(),
        ));
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_cksum();
        archive.append_data(&mut header, FILE, &b"js"[..]).unwrap();
        let package = archive.into_inner().unwrap().finish().unwrap();
        let digest = BASE64_STANDARD.encode(digest::digest(&digest::SHA512, &package));
        assert_eq!(extract(&package, &digest).unwrap(), b"js");
        let error = extract(&package, DIGEST).unwrap_err().to_string();
        assert!(error.starts_with("this is not the package"), "{error}");
    }
}
