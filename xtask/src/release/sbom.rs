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

use crate::image::Program;
use crate::progress::Output;

/// CycloneDX' own library for Python, which knows the schema.
const PYTHON: PythonEnvironment = PythonEnvironment {
    name: "cyclonedx",
    requirements: include_str!("../../sbom/requirements.txt"),
};
const VALIDATE: &str = include_str!("../../sbom/validate.py");

/// Writes the SBOM of `package`, which is built as `program`, to `to`.
///
/// # Errors
/// When cargo fails, the program was compiled with other crates, or it does not name its libraries.
pub(crate) fn write(
    package: &str,
    target: &str,
    program: &Program,
    time: Timestamp,
    to: &Path,
) -> Result<()> {
    let crates = idtoken_image::crates(&crate::workspace(), package, target)?;
    let listed: BTreeSet<Id> = crates.iter().map(Crate::id).collect();
    let other: Vec<_> = program.crates.symmetric_difference(&listed).collect();
    ensure!(
        other.is_empty(),
        "{package} is compiled with, or without, {other:?}"
    );
    let path = &program.path;
    let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let sbom = sbom(package, &crates, &libraries(&content)?, time)?;
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

/// What is linked into a program and is no crate of cargo's: the program says which C library and which compiler.
fn libraries(program: &[u8]) -> Result<[Value; 2]> {
    // "GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.", for `gnu_get_libc_version`.
    let (package, rest) = after(program, "GNU C Library (")
        .and_then(|text| text.split_once(") stable release version "))
        .context("the program does not name its C library")?;
    let version = rest.split(['\n', '\0']).next().unwrap_or_default();
    let glibc = library(
        "glibc",
        version.trim_end_matches('.'),
        "GNU C Library",
        "LGPL-2.1-or-later",
        "gnu:glibc",
        match package.split_once(" GLIBC ") {
            Some((distribution @ ("Debian" | "Ubuntu"), version)) => format!(
                "pkg:deb/{}/glibc@{}?arch=source",
                distribution.to_lowercase(),
                version.replace('+', "%2B")
            ),
            _ => format!("pkg:generic/glibc@{}", version.trim_end_matches('.')),
        },
    );
    // "rustc version 1.95.0 (59807616e 2026-04-14)", in the section of comments.
    let version = after(program, "rustc version ")
        .and_then(|text| text.split_whitespace().next())
        .context("the program does not name its compiler")?;
    let description = "The Rust standard library";
    let purl = format!("pkg:generic/rust-std@{version}");
    let std = library(
        "rust-std",
        version,
        description,
        "MIT OR Apache-2.0",
        "rust-lang:rust",
        purl,
    );
    Ok([glibc, std])
}

/// The text that follows `words` where a program has them last, as its comments are.
fn after<'p>(program: &'p [u8], words: &str) -> Option<&'p str> {
    const LONGEST: usize = 200;
    let found = program
        .windows(words.len())
        .rposition(|window| window == words.as_bytes())?;
    let start = found + words.len();
    let rest = &program[start..program.len().min(start + LONGEST)];
    rest.utf8_chunks().next().map(|chunk| chunk.valid())
}

/// `cpe` is vendor and product (<https://nvd.nist.gov/products/cpe>), by which vulnerabilities are published.
fn library(name: &str, version: &str, description: &str, license: &str, cpe: &str, purl: String) -> Value {
    json!({
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "description": description,
        "scope": "required",
        "licenses": [{"expression": license}],
        "cpe": format!("cpe:2.3:a:{cpe}:{version}:*:*:*:*:*:*:*"),
        "purl": purl,
    })
}

fn sbom(package: &str, crates: &[Crate], libraries: &[Value], time: Timestamp) -> Result<Value> {
    let own = crates
        .iter()
        .find(|one| one.name == package)
        .with_context(|| format!("{package} is not among its own crates"))?;
    let parts: Vec<_> = crates
        .iter()
        .filter(|one| one.name != package)
        .map(component)
        .chain(libraries.iter().cloned())
        .collect();
    let mut program = component(own);
    program["type"] = json!("application");
    let dependencies: Vec<_> = crates
        .iter()
        .map(|one| {
            let mut on: Vec<_> = one.dependencies.iter().map(|id| json!(reference(id))).collect();
            if one.name == package {
                on.extend(libraries.iter().map(|library| library["bom-ref"].clone()));
            }
            json!({"ref": reference(&one.id()), "dependsOn": on})
        })
        .chain(libraries.iter().map(|library| json!({"ref": library["bom-ref"]})))
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
    /// As they stand in a program that is linked on Debian 12.
    const GLIBC: &str =
        "\0GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.\nCopyright";
    const RUSTC: &str =
        "\0GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0rustc version 1.95.0 (59807616e 2026-04-14)\0";

    fn program(dir: &Path, crates: BTreeSet<Id>) -> Program {
        let path = dir.join("program");
        std::fs::write(
            &path,
            [b"\x7fELF\xff", GLIBC.as_bytes(), b"\xff", RUSTC.as_bytes()].concat(),
        )
        .expect("a file");
        Program { path, crates }
    }

    #[test]
    fn the_c_library_and_the_standard_library_are_those_of_the_program() {
        let text = |glibc: &str, rustc: &str| [b"\xff", glibc.as_bytes(), b"\xff", rustc.as_bytes()].concat();
        let [glibc, std] = libraries(&text(GLIBC, RUSTC)).expect("libraries");
        assert_eq!(
            glibc["purl"],
            "pkg:deb/debian/glibc@2.36-9%2Bdeb12u14?arch=source"
        );
        assert_eq!(glibc["cpe"], "cpe:2.3:a:gnu:glibc:2.36:*:*:*:*:*:*:*");
        assert_eq!([&std["name"], &std["version"]], ["rust-std", "1.95.0"]);
        let other = "GNU C Library (GNU libc) stable release version 2.41.\n";
        let [glibc, _] = libraries(&text(other, RUSTC)).expect("libraries");
        assert_eq!(glibc["purl"], "pkg:generic/glibc@2.41");
        for without in [text("", RUSTC), text(GLIBC, ""), Vec::new()] {
            assert!(libraries(&without).is_err());
        }
    }

    #[test]
    fn the_program_depends_on_them() {
        let crates = idtoken_image::crates(&crate::workspace(), "kubectl-idtoken", TARGET).expect("crates");
        let parts = libraries(&[GLIBC, RUSTC].concat().into_bytes()).expect("libraries");
        let sbom = sbom("kubectl-idtoken", &crates, &parts, Timestamp::UNIX_EPOCH).expect("an SBOM");
        let of = |name: &str| {
            let mut all = sbom["dependencies"].as_array().into_iter().flatten();
            all.find(|one| one["ref"].as_str().is_some_and(|id| id.contains(name)))
                .expect("a component")
                .clone()
        };
        for library in &parts {
            assert!(
                sbom["components"]
                    .as_array()
                    .is_some_and(|all| all.contains(library))
            );
            let on = of("kubectl-idtoken");
            assert!(
                on["dependsOn"]
                    .as_array()
                    .is_some_and(|on| on.contains(&library["bom-ref"]))
            );
        }
    }

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
            let program = program(dir.path(), crates.iter().map(Crate::id).collect());
            write(package, TARGET, &program, Timestamp::UNIX_EPOCH, &path).expect("an SBOM");
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
        let more = program(
            dir.path(),
            BTreeSet::from([("left-pad".to_owned(), "1.0.0".to_owned())]),
        );
        let error =
            write("idtoken-operator", TARGET, &more, Timestamp::UNIX_EPOCH, &path).expect_err("refused");
        assert!(error.to_string().contains("left-pad"), "{error}");
        assert!(!path.exists());
    }
}
