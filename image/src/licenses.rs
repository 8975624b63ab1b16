//! The licences of what a static binary contains: they have to come with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::crates::Crate;

/// The GNU C Library is linked into the binary.
const LGPL: &str = include_str!("../licenses/LGPL-2.1.txt");

const INTRODUCTION: &str = "\
The program in this image contains the software listed here, each under its own licence.

The Rust standard library, Copyright (c) The Rust Project Contributors, is licensed under MIT OR Apache-2.0; the texts are below.

The GNU C Library, Copyright (C) Free Software Foundation, Inc. and others, is linked statically and licensed under the GNU
Lesser General Public License, version 2.1 or later; its text is at the end. The source of this program and the way to build it
are published with it, so it can be linked with a modified C library.
";

/// Names of files with a licence or a notice, in small letters, as they begin.
const NAMES: [&str; 6] = [
    "license",
    "licence",
    "copying",
    "copyright",
    "notice",
    "unlicense",
];

/// All licences and notices of those of `crates` that come from a registry, each text once. `apache` is the text for those that name Apache-2.0 and bring none.
///
/// # Errors
/// When a crate has no licence that is known.
pub fn third_party(crates: &[Crate], apache: &str) -> Result<String> {
    let mut texts: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for one in crates.iter().filter(|one| one.checksum.is_some()) {
        let mut own = texts_of(&one.dir)?;
        if own.is_empty() {
            if !one.license.contains("Apache-2.0") {
                bail!(
                    "{} {} ({}) comes without the text of its licence",
                    one.name,
                    one.version,
                    one.license
                );
            }
            own.push(apache.to_owned());
        }
        for text in own {
            // Texts that differ in their line breaks only are one.
            let key = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let (_, users) = texts.entry(key).or_insert_with(|| (text, Vec::new()));
            users.push(format!("{} {} ({})", one.name, one.version, one.license));
        }
    }
    let line = "=".repeat(80);
    let mut all = INTRODUCTION.to_owned();
    for (text, users) in texts.values() {
        all.push_str(&format!("\n{line}\n{}\n\n{}\n", users.join("\n"), text.trim()));
    }
    all.push_str(&format!("\n{line}\nGNU C Library\n\n{}\n", LGPL.trim()));
    Ok(all)
}

fn texts_of(dir: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if NAMES.iter().any(|start| name.starts_with(start)) && entry.path().is_file() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    let read = |path: &PathBuf| {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"))
    };
    paths.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crates::crates;
    use std::collections::BTreeSet;

    fn workspace() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent")
    }

    fn one(name: &str, license: &str, dir: PathBuf) -> Crate {
        Crate {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.to_owned(),
            description: String::new(),
            dir,
            checksum: Some("0".repeat(64)),
            dependencies: BTreeSet::new(),
        }
    }

    #[test]
    fn each_crate_is_named_with_its_text() {
        let crates = crates(workspace(), "idtoken-operator", "x86_64-unknown-linux-gnu").expect("crates");
        let licence = std::fs::read_to_string(workspace().join("LICENSE")).expect("LICENSE");
        let all = third_party(&crates, &licence).expect("texts");
        for one in crates.iter().filter(|one| one.checksum.is_some()) {
            assert!(
                all.contains(&format!("\n{} {} (", one.name, one.version)),
                "{}",
                one.name
            );
        }
        // A crate with a copyright line of its own, one that brings no file, and the C library.
        assert!(all.contains("Copyright (c) 2014 Carl Lerche and other MIO contributors"));
        assert!(all.contains("\nkube-client "));
        assert!(all.contains("GNU LESSER GENERAL PUBLIC LICENSE"));
    }

    #[test]
    fn a_crate_without_a_licence_is_an_error() {
        let without = workspace().join("crds");
        assert!(third_party(&[one("a", "Apache-2.0", without.clone())], "the text").is_ok());
        let error = third_party(&[one("b", "MIT", without)], "the text").err();
        assert!(error.is_some_and(|error| error.to_string().contains("b 1.0.0 (MIT)")));
    }
}
