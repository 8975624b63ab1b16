//! What crates a program is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Name and version of a crate.
pub type Id = (String, String);

/// A crate that a program is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence as an SPDX expression.
    pub license: String,
    /// What it is, in its own words.
    pub description: String,
    /// The folder of its sources.
    pub dir: PathBuf,
    /// The SHA-256 of its package in the registry; absent for crates of this workspace.
    pub checksum: Option<String>,
    /// The crates it is made of in turn.
    pub dependencies: BTreeSet<Id>,
}

impl Crate {
    /// Its name and version.
    #[must_use]
    pub fn id(&self) -> Id {
        (self.name.clone(), self.version.clone())
    }
}

/// The crates that `package` is made of where it is built alone for `target`, itself among them, by name; without those that
/// only its build, its macros or its tests need.
///
/// # Errors
/// When cargo fails.
pub fn crates(workspace: &Path, package: &str, target: &str) -> Result<Vec<Crate>> {
    let metadata: Value = serde_json::from_str(&cargo(
        workspace,
        &[
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
            target,
        ],
    )?)?;
    let known = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    let lock = std::fs::read_to_string(workspace.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    // Cargo tree, and not the metadata's graph, takes the features of this package alone.
    let args = [
        "tree",
        "--locked",
        "--package",
        package,
        "--target",
        target,
        "--edges=normal,no-proc-macro",
        "--prefix=depth",
        "--format={p}",
    ];
    let graph = graph(&cargo(workspace, &args)?)?;
    let mut crates = Vec::new();
    for ((name, version), dependencies) in graph {
        let found = known
            .iter()
            .find(|known| known["name"] == name.as_str() && known["version"] == version.as_str())
            .with_context(|| format!("cargo metadata does not know {name} {version}"))?;
        let manifest = found["manifest_path"]
            .as_str()
            .context("a package without a manifest")?;
        let text = |field: &str| found[field].as_str().unwrap_or_default().trim().to_owned();
        crates.push(Crate {
            // With `/`, which old crates have for OR, it is no SPDX expression.
            license: text("license").replace(" / ", " OR ").replace('/', " OR "),
            description: text("description"),
            dir: Path::new(manifest)
                .parent()
                .context("a manifest in no folder")?
                .to_owned(),
            checksum: checksum(&lock, &name, &version),
            dependencies,
            name,
            version,
        });
    }
    Ok(crates)
}

/// Reads `cargo tree --prefix=depth --format={p}`: lines such as `2serde v1.0.228` and, where a crate was there before, `2serde
/// v1.0.228 (*)`.
fn graph(tree: &str) -> Result<BTreeMap<Id, BTreeSet<Id>>> {
    let mut graph: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
    let mut path: Vec<Id> = Vec::new();
    for line in tree.lines() {
        let digits = line.chars().take_while(char::is_ascii_digit).count();
        let (depth, rest) = line.split_at(digits);
        let depth: usize = depth
            .parse()
            .with_context(|| format!("cargo tree wrote {line:?}"))?;
        let mut words = rest.split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next()) else {
            bail!("cargo tree wrote {line:?}");
        };
        let id = (name.to_owned(), version.trim_start_matches('v').to_owned());
        path.truncate(depth);
        if let Some(parent) = path.last() {
            graph.entry(parent.clone()).or_default().insert(id.clone());
        }
        graph.entry(id.clone()).or_default();
        path.push(id);
    }
    Ok(graph)
}

/// The checksum that Cargo.lock has of a crate.
fn checksum(lock: &str, name: &str, version: &str) -> Option<String> {
    let start = format!("\nname = \"{name}\"\nversion = \"{version}\"\n");
    let block = lock
        .split("[[package]]")
        .find(|block| block.starts_with(&start))?;
    let line = block.lines().find_map(|line| line.strip_prefix("checksum = "))?;
    Some(line.trim_matches('"').to_owned())
}

fn cargo(workspace: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(args)
        .current_dir(workspace)
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "cargo {} failed: {}",
            args[0],
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).context("cargo wrote something that is not text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str, version: &str) -> Id {
        (name.to_owned(), version.to_owned())
    }

    #[test]
    fn the_operator_is_made_of_what_it_needs_and_no_more() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent");
        let crates = crates(workspace, "idtoken-operator", "x86_64-unknown-linux-gnu").expect("crates");
        let find = |name: &str| crates.iter().find(|one| one.name == name);
        for name in ["kube-runtime", "aws-lc-sys", "rustls"] {
            let one = find(name).expect(name);
            assert_eq!(one.checksum.as_ref().map(String::len), Some(64), "{name}");
        }
        let operator = find("idtoken-operator").expect("the operator");
        assert_eq!(operator.checksum, None);
        assert!(operator.dependencies.iter().any(|(name, _)| name == "kube"));
        // Of other targets, of tests, of builds, of macros, of other packages.
        for name in [
            "windows-sys",
            "proptest",
            "cc",
            "syn",
            "rcgen",
            "idtoken-emulator",
        ] {
            assert!(find(name).is_none(), "{name}");
        }
    }

    #[test]
    fn reads_cargos_tree() {
        let tree = "0a v1.0.0 (/src)\n1b v0.2.0\n2c v3.0.0-rc.1\n1c v3.0.0-rc.1 (*)\n1d v1.0.0 (proc-macro)\n2b v0.2.0 (*)\n";
        let (b, c, d) = (id("b", "0.2.0"), id("c", "3.0.0-rc.1"), id("d", "1.0.0"));
        let wanted = BTreeMap::from([
            (
                id("a", "1.0.0"),
                BTreeSet::from([b.clone(), c.clone(), d.clone()]),
            ),
            (b.clone(), BTreeSet::from([c.clone()])),
            (c, BTreeSet::new()),
            (d, BTreeSet::from([b])),
        ]);
        assert_eq!(graph(tree).expect("a graph"), wanted);
        assert!(graph("serde v1.0.0\n").is_err());
    }

    #[test]
    fn reads_checksums() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\ndependencies = [\n \"b\",\n]\n\n\
            [[package]]\nname = \"b\"\nversion = \"1.0.0\"\nsource = \"registry\"\nchecksum = \"0123\"\n\n";
        assert_eq!(checksum(lock, "b", "1.0.0").as_deref(), Some("0123"));
        assert_eq!(checksum(lock, "b", "1.0.1"), None);
        assert_eq!(checksum(lock, "a", "1.0.0"), None);
    }
}
