//! Checksums and their signature.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::Output;

/// What the signature is for, so that one made for something else does not pass (`ssh-keygen -Y sign -n`).
const NAMESPACE: &str = "idtoken-operator-release";
/// The file of checksums.
pub(super) const SUMS: &str = "SHA256SUMS";

/// Writes SHA256SUMS of the folder's files, for `sha256sum --check`; gives its path.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn checksums(dist: &Path) -> Result<PathBuf> {
    let mut names: Vec<_> = std::fs::read_dir(dist)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.retain(|name| !name.starts_with(SUMS));
    names.sort();
    let mut sums = String::new();
    for name in names {
        sums.push_str(&format!("{}  {name}\n", sha256(&dist.join(&name))?));
    }
    let path = dist.join(SUMS);
    std::fs::write(&path, sums)?;
    Ok(path)
}

/// The digest of a file, in hexadecimal digits.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn sha256(file: &Path) -> Result<String> {
    let content = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(idtoken_testenv::sha256(&content))
}

/// Signs `file` to `file.sig` with an SSH key, and puts the public key beside it.
///
/// # Errors
/// With what ssh-keygen said.
pub(crate) fn sign(output: &Output, file: &Path, key: &Path) -> Result<()> {
    let step = output.begin("signature");
    let said = Command::new("ssh-keygen")
        .args(["-Y", "sign", "-q", "-n", NAMESPACE, "-f"])
        .arg(key)
        .arg(file)
        .output()
        .context("cannot run ssh-keygen")?;
    if !said.status.success() {
        bail!(
            "ssh-keygen cannot sign: {}",
            String::from_utf8_lossy(&said.stderr).trim()
        );
    }
    step.done("SHA256SUMS.sig is the signature of SHA256SUMS");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use idtoken_testenv::RunDir;
    use std::fs::File;

    fn run(command: &mut Command) -> bool {
        command.output().is_ok_and(|output| output.status.success())
    }

    #[test]
    fn others_tools_accept_the_checksums_and_the_signature() {
        let scratch = RunDir::create("sign").expect("a folder");
        let (dist, key) = (scratch.path().join("dist"), scratch.path().join("key"));
        std::fs::create_dir(&dist).expect("a folder");
        std::fs::write(dist.join("b.txt"), "b").expect("a file");
        std::fs::write(dist.join("a.txt"), "a").expect("a file");
        let sums = checksums(&dist).expect("checksums");
        let check = || {
            run(Command::new("sha256sum")
                .args(["--check", "--strict", "SHA256SUMS"])
                .current_dir(&dist))
        };
        assert!(check());

        assert!(run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)));
        sign(&Output::new(), &sums, &key).expect("a signature");
        let public = std::fs::read_to_string(key.with_extension("pub")).expect("the public key");
        let signers = scratch.path().join("allowed_signers");
        std::fs::write(&signers, format!("releases@idtoken.dev {public}")).expect("a file");
        let verify = |namespace: &str| {
            let mut command = Command::new("ssh-keygen");
            command
                .args([
                    "-Y",
                    "verify",
                    "-I",
                    "releases@idtoken.dev",
                    "-n",
                    namespace,
                    "-f",
                ])
                .arg(&signers);
            command
                .arg("-s")
                .arg(dist.join("SHA256SUMS.sig"))
                .stdin(File::open(&sums).expect("the checksums"));
            run(&mut command)
        };
        assert!(verify(NAMESPACE));
        assert!(!verify("file"));
        std::fs::write(dist.join("a.txt"), "c").expect("a file");
        assert!(!check());
        let other = checksums(&dist).expect("checksums");
        assert_eq!(other, sums);
        assert!(!verify(NAMESPACE));
    }
}
