//! Bills of materials: what each program is made of, as CycloneDX 1.5 (<https://cyclonedx.org/docs/1.5/json/>).
//!
//! Of each program its own: exactly the crates and features that it is built with, and no path of this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use idtoken_image::{Crate, Id};
use idtoken_testenv::{Progress, PythonEnvironment};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::progress::Output;

/// CycloneDX' own library for Python, which knows the schema.
const PYTHON: PythonEnvironment = PythonEnvironment {
    name: "cyclonedx",
    requirements: include_str!("../../sbom/requirements.txt"),
};
const VALIDATE: &str = include_str!("../../sbom/validate.py");

/// Writes the SBOM of `package` to `to`. `compiled` is what cargo compiled for its program.
///
/// # Errors
/// When cargo fails, or that is something else.
pub(crate) fn write(
    package: &str,
    target: &str,
    compiled: &BTreeSet<Id>,
    time: Timestamp,
    to: &Path,
) -> Result<()> {
    let crates = idtoken_image::crates(&crate::workspace(), package, target)?;
    let listed: BTreeSet<Id> = crates.iter().map(Crate::id).collect();
    let other: Vec<_> = compiled.symmetric_difference(&listed).collect();
    ensure!(
        other.is_empty(),
        "{package} is compiled with, or without, {other:?}"
    );
    let sbom = sbom(package, &crates, time)?;
    let text = serde_json::to_string_pretty(&sbom)?;
    std::fs::write(to, format!("{text}\n")).with_context(|| format!("cannot write {}", to.display()))
}

/// Validates SBOMs by the schema of CycloneDX.
///
/// # Errors
/// When one is refused, or Python is missing.
pub(crate) async fn validate(output: &Output, sboms: &[PathBuf]) -> Result<()> {
    let python = tokio::task::spawn_blocking(|| PYTHON.build(Progress::Stderr)).await??;
    let step = output.begin("CycloneDX' schema");
    let said = Command::new(python)
        .args(["-c", VALIDATE])
        .args(sboms)
        .output()
        .context("cannot run Python")?;
    if !said.status.success() {
        bail!(
            "a bill of materials is refused: {}",
            String::from_utf8_lossy(&said.stderr).trim()
        );
    }
    step.done(&format!(
        "{} bills of materials are what CycloneDX' schema wants",
        sboms.len()
    ));
    Ok(())
}

fn sbom(package: &str, crates: &[Crate], time: Timestamp) -> Result<Value> {
    let own = crates
        .iter()
        .find(|one| one.name == package)
        .with_context(|| format!("{package} is not among its own crates"))?;
    let parts: Vec<_> = crates
        .iter()
        .filter(|one| one.name != package)
        .map(component)
        .collect();
    let mut program = component(own);
    program["type"] = json!("application");
    let dependencies: Vec<_> = crates
        .iter()
        .map(|one| {
            let on: Vec<_> = one.dependencies.iter().map(reference).collect();
            json!({"ref": reference(&one.id()), "dependsOn": on})
        })
        .collect();
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": time.to_string(), "component": program},
        "components": parts,
        "dependencies": dependencies,
    }))
}

fn component(one: &Crate) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(&one.id()),
        "name": one.name,
        "version": one.version,
        "scope": "required",
        "licenses": [{"expression": one.license}],
    });
    if !one.description.is_empty() {
        component["description"] = json!(one.description);
    }
    // What comes from no registry has no package there.
    if let Some(checksum) = &one.checksum {
        component["purl"] = json!(reference(&one.id()));
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    component
}

/// <https://github.com/package-url/purl-spec>
fn reference((name, version): &Id) -> String {
    format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use idtoken_testenv::RunDir;

    const TARGET: &str = "x86_64-unknown-linux-gnu";

    #[tokio::test]
    async fn the_sboms_are_what_cyclonedx_wants() {
        let python = Command::new("python3").arg("--version").output();
        if python.is_err() && std::env::var_os("IDTOKEN_REQUIRE_REFEREES").is_none() {
            eprintln!("skipped: there is no Python");
            return;
        }
        let dir = RunDir::create("sbom").expect("a folder");
        let mut sboms = Vec::new();
        for package in ["idtoken-operator", "idtoken-emulator", "kubectl-idtoken"] {
            let path = dir.path().join(format!("{package}.cdx.json"));
            let crates = idtoken_image::crates(&crate::workspace(), package, TARGET).expect("crates");
            let crates = crates.iter().map(Crate::id).collect();
            write(package, TARGET, &crates, Timestamp::UNIX_EPOCH, &path).expect("an SBOM");
            sboms.push(path);
        }
        validate(&Output::new(), &sboms).await.expect("a verdict");

        let sbom = std::fs::read_to_string(&sboms[0]).expect("the SBOM");
        let bad = dir.path().join("bad.cdx.json");
        std::fs::write(
            &bad,
            sbom.replacen("\"alg\": \"SHA-256\"", "\"alg\": \"SHA-257\"", 1),
        )
        .expect("a file");
        assert!(validate(&Output::new(), &[bad]).await.is_err());
    }

    #[test]
    fn a_program_made_of_something_else_is_refused() {
        let dir = RunDir::create("sbom").expect("a folder");
        let path = dir.path().join("a.cdx.json");
        let more = BTreeSet::from([("left-pad".to_owned(), "1.0.0".to_owned())]);
        let error =
            write("idtoken-operator", TARGET, &more, Timestamp::UNIX_EPOCH, &path).expect_err("refused");
        assert!(error.to_string().contains("left-pad"), "{error}");
        assert!(!path.exists());
    }
}
