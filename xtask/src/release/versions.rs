//! Whether everything that names the version names the same.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Checks the tag.
///
/// # Errors
/// When it is another version's.
pub(crate) fn tag(version: &str, tag: &str) -> Result<()> {
    ensure!(
        tag == format!("v{version}"),
        "Cargo.toml has the version {version}, and the tag is {tag}"
    );
    Ok(())
}

/// Checks Chart.yaml.
///
/// # Errors
/// When one of its versions is another.
pub(crate) fn chart(version: &str, chart: &str) -> Result<()> {
    let chart: Value = serde_saphyr::from_str(chart).context("Chart.yaml is no YAML")?;
    for field in ["version", "appVersion"] {
        ensure!(
            chart[field] == version,
            "Cargo.toml has the version {version}, and Chart.yaml the {field} {}",
            chart[field]
        );
    }
    Ok(())
}

/// Checks the Dockerfile: the version in its labels, and the compiler.
///
/// # Errors
/// When one is another.
pub(crate) fn dockerfile(version: &str, dockerfile: &str, toolchain: &str) -> Result<()> {
    let labelled = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("ARG VERSION="));
    for found in labelled {
        ensure!(
            found == version,
            "Cargo.toml has the version {version}, and the Dockerfile {found}"
        );
    }
    let channel = toolchain
        .lines()
        .find_map(|line| line.strip_prefix("channel = "))
        .context("rust-toolchain.toml names no channel")?
        .trim_matches('"');
    for wanted in [
        format!("rust:{channel}-"),
        format!("RUSTUP_TOOLCHAIN={channel}\n"),
    ] {
        ensure!(
            dockerfile.contains(&wanted),
            "rust-toolchain.toml has {channel}, and the Dockerfile has no {}",
            wanted.trim_end()
        );
    }
    Ok(())
}

/// The section of a version in CHANGELOG.md (<https://keepachangelog.com/en/1.1.0/>), without its heading.
///
/// # Errors
/// When there is none with a date, it is empty, or something is still to be released.
pub(crate) fn notes(version: &str, changelog: &str) -> Result<String> {
    let mut sections = changelog.split("\n## ").skip(1);
    let title = |section: &str| section.lines().next().unwrap_or_default().replace(['[', ']'], "");
    let body = |section: &str| {
        let body = section
            .split_once('\n')
            .map_or("", |(_, body)| body)
            .trim()
            .to_owned();
        (!body.is_empty()).then_some(body)
    };
    let mut unreleased = sections.clone().filter(|section| title(section) == "Unreleased");
    if unreleased.any(|section| body(section).is_some()) {
        bail!("CHANGELOG.md has changes under \"Unreleased\": move them to \"## {version} - YYYY-MM-DD\"");
    }
    let section = sections
        .find(|section| {
            let title = title(section);
            title
                .strip_prefix(version)
                .and_then(|rest| rest.strip_prefix(" - "))
                .is_some_and(|date| date.parse::<jiff::civil::Date>().is_ok())
        })
        .with_context(|| format!("CHANGELOG.md has no section \"## {version} - YYYY-MM-DD\""))?;
    body(section)
        .map(|notes| format!("{notes}\n"))
        .with_context(|| format!("the section of {version} in CHANGELOG.md is empty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_of_another_version_is_refused() {
        assert!(tag("1.2.3", "v1.2.3").is_ok());
        for other in ["v1.2.4", "1.2.3", "v1.2.3-rc.1", ""] {
            assert!(tag("1.2.3", other).is_err(), "{other}");
        }
    }

    #[test]
    fn a_chart_of_another_version_is_refused() {
        assert!(chart("1.2.3", "version: 1.2.3\nappVersion: 1.2.3\n").is_ok());
        for other in [
            "version: 1.2.4\nappVersion: 1.2.3\n",
            "version: 1.2.3\nappVersion: v1.2.3\n",
            "version: 1.2.3\n",
        ] {
            assert!(chart("1.2.3", other).is_err(), "{other}");
        }
    }

    #[test]
    fn the_projects_own_files_agree() {
        let read = |path: &str| std::fs::read_to_string(crate::workspace().join(path)).expect("a file");
        let version = env!("CARGO_PKG_VERSION");
        chart(version, &read("charts/idtoken-operator/Chart.yaml")).expect("the chart's version");
        let (ours, toolchain) = (read("Dockerfile"), read("rust-toolchain.toml"));
        dockerfile(version, &ours, &toolchain).expect("the Dockerfile's versions");
        let older = ours.replace(version, "0.0.9");
        assert!(dockerfile(version, &older, &toolchain).is_err());
        let newer = toolchain.replace("channel = \"1.", "channel = \"2.");
        assert!(dockerfile(version, &ours, &newer).is_err());
    }

    /// Docker's builder would miss a member of the workspace, and cargo with it.
    #[test]
    fn dockerignore_lets_every_member_through() {
        let read = |path: &str| std::fs::read_to_string(crate::workspace().join(path)).expect("a file");
        let (manifest, ignored) = (read("Cargo.toml"), read(".dockerignore"));
        let members = manifest.lines().find_map(|line| line.strip_prefix("members = ["));
        let members: Vec<_> = members.expect("members").split('"').skip(1).step_by(2).collect();
        assert!(members.len() > 4, "{members:?}");
        for member in members.into_iter().filter(|member| *member != ".") {
            let folder = member.split('/').next().expect("a folder");
            assert!(
                ignored.lines().any(|line| line == format!("!{folder}")),
                "{member}"
            );
        }
    }

    #[test]
    fn notes_are_the_section_of_the_version() {
        let log = "# Changelog\n\n## Unreleased\n\n## [1.2.3] - 2026-11-23\n\n### Added\n\n- This.\n\n## 1.2.2 - 2026-11-01\n\n- That.\n";
        assert_eq!(notes("1.2.3", log).expect("notes"), "### Added\n\n- This.\n");
        assert_eq!(notes("1.2.2", log).expect("notes"), "- That.\n");
        for (version, why) in [("1.2", "no section"), ("1.2.4", "no section")] {
            let error = notes(version, log).expect_err(version).to_string();
            assert!(error.contains(why), "{error}");
        }
        let pending = log.replace("## Unreleased\n", "## Unreleased\n\n- More.\n");
        assert!(notes("1.2.3", &pending).is_err());
        let undated = log.replace(" - 2026-11-23", " - soon");
        assert!(notes("1.2.3", &undated).is_err());
        let empty = log.replace("### Added\n\n- This.\n", "");
        assert!(notes("1.2.3", &empty).is_err());
    }
}
