//! The API group stands in one place of the code and in one of the templates: what an owner changes before the first release.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use idtoken_operator::api::GROUP;
use idtoken_testenv::RunDir;
use serde_json::Value;

use crate::helm::{CHART, Helm, Version, matrix, read};

/// All files below a folder.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(files(&path)?),
            false => found.push(path),
        }
    }
    found.sort();
    Ok(found)
}

/// Without its tests, which stand last.
fn code(path: &Path) -> Result<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with("tests.rs") || name == "fixtures.rs" {
        return Ok(String::new());
    }
    let text = std::fs::read_to_string(path)?;
    Ok(text.split("\nmod tests {").next().unwrap_or_default().to_owned())
}

#[test]
fn the_code_has_the_group_once() -> Result<()> {
    let mut places = Vec::new();
    for folder in ["src", "ctl/src", "emulator/src"] {
        for path in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))? {
            if path.extension().is_some_and(|extension| extension == "rs") {
                let code = code(&path)?;
                let lines = code.lines().filter(|line| line.contains(GROUP));
                places.extend(lines.map(|line| format!("{}: {}", path.display(), line.trim())));
            }
        }
    }
    let place = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/mod.rs: $then! { ");
    ensure!(places.len() == 1 && places[0].starts_with(place), "{places:#?}");
    Ok(())
}

/// kube-state-metrics reads no template, so that its configuration has the kind by hand.
#[test]
fn kube_state_metrics_is_told_of_the_kind_as_the_code_has_it() -> Result<()> {
    use idtoken_operator::api::v1alpha1::IdTokenRequest;
    use kube::Resource;

    let text = std::fs::read_to_string(Path::new(CHART).join("files/kube-state-metrics.yaml"))?;
    let configuration: Value = serde_saphyr::from_str(&text)?;
    let resources = configuration["spec"]["resources"]
        .as_array()
        .context("resources")?;
    let kinds: Vec<_> = resources
        .iter()
        .map(|resource| &resource["groupVersionKind"])
        .collect();
    let kind = serde_json::json!({
        "group": IdTokenRequest::group(&()),
        "version": IdTokenRequest::version(&()),
        "kind": IdTokenRequest::kind(&()),
    });
    ensure!(kinds == [&kind], "{kinds:?} is not {kind}");
    // The comment at its head says which rights that needs.
    let plural = IdTokenRequest::plural(&());
    let rights = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .collect::<String>();
    for word in [GROUP, &*plural] {
        ensure!(rights.contains(word), "the comment does not name {word}");
    }
    Ok(())
}

#[tokio::test]
async fn a_chart_with_another_group_names_only_that() -> Result<()> {
    const OTHER: &str = "tokens.acme.test";
    let dir = RunDir::create("chart-group")?;
    let define = |group: &str| format!("{{{{- define \"idtoken-operator.group\" -}}}}\n{group}\n");
    for from in files(Path::new(CHART))? {
        let path = from.strip_prefix(CHART)?;
        let text = std::fs::read_to_string(&from)?;
        // The rest is generated, or is values of a user.
        let text = match path.starts_with("templates") {
            true => text.replace(&define(GROUP), &define(OTHER)),
            false => text.replace(GROUP, OTHER),
        };
        // What helm template does not render, as the notes.
        ensure!(!text.contains(GROUP), "{} has the group too", path.display());
        let to = dir.path().join(path);
        std::fs::create_dir_all(to.parent().context("a folder")?)?;
        std::fs::write(to, text)?;
    }
    let helm = Helm::offline(Version::Three).await?;
    for file in matrix()? {
        let name = file.file_name().context("a name")?;
        let values = format!("--values={}", dir.path().join("ci").join(name).display());
        let chart = dir.path().display().to_string();
        let rendered = helm
            .run(["template", "release", &chart, "--kube-version=1.30.0", &values])
            .await?;
        let now = read(&rendered)?;
        let then = helm
            .objects(&[&format!("--values={}", file.display())])
            .await?
            .into_iter()
            .map(|object| serde_json::from_str::<Value>(&object.to_string().replace(GROUP, OTHER)))
            .collect::<Result<Vec<_>, _>>()?;
        ensure!(now == then, "{name:?} renders something else: {rendered}");
    }
    Ok(())
}
