//! What Chart.yaml tells Helm and Artifact Hub (<https://artifacthub.io/docs/topics/annotations/helm>) is what the tree has.

use std::path::Path;

use idtoken_operator::api::crds;
use serde_json::{Value, json};

use crate::helm::{CHART, read};

/// Artifact Hub's categories.
const CATEGORIES: [&str; 8] = [
    "ai-machine-learning",
    "database",
    "integration-delivery",
    "monitoring-logging",
    "networking",
    "security",
    "storage",
    "streaming-messaging",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn yaml(path: impl AsRef<Path>) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn chart() -> Value {
    yaml(format!("{CHART}/Chart.yaml"))
}

/// An annotation of Artifact Hub's as it stands there.
fn text(chart: &Value, name: &str) -> String {
    let value = chart["annotations"][format!("artifacthub.io/{name}")].as_str();
    value
        .unwrap_or_else(|| panic!("there is no string artifacthub.io/{name}"))
        .to_owned()
}

/// An annotation of Artifact Hub's that is YAML.
fn annotation(chart: &Value, name: &str) -> Value {
    serde_saphyr::from_str(&text(chart, name)).unwrap()
}

#[test]
fn the_image_is_that_of_the_values() {
    let chart = chart();
    let values = yaml(format!("{CHART}/values.yaml"));
    // Until the registry is decided, the values name none.
    let repository = match values["image"]["repository"].as_str().unwrap() {
        "" => "idtoken-operator",
        repository => repository,
    };
    let version = chart["appVersion"].as_str().unwrap();
    let images = annotation(&chart, "images");
    assert_eq!(images.as_array().unwrap().len(), 1);
    assert_eq!(images[0]["image"], format!("{repository}:{version}"));
}

#[test]
fn the_definitions_are_those_of_the_code() {
    let chart = chart();
    let annotated = annotation(&chart, "crds");
    let mut alpha = true;
    let mut named = Vec::new();
    for crd in crds() {
        let name = crd.metadata.name.unwrap();
        let stored = crd.spec.versions.iter().find(|version| version.storage).unwrap();
        alpha &= stored.name.contains("alpha");
        let found = annotated.as_array().unwrap().iter().find(|card| {
            let identity = json!([card["name"], card["kind"], card["version"]]);
            identity == json!([name, crd.spec.names.kind, stored.name])
        });
        let card = found.unwrap_or_else(|| panic!("{name} is not annotated so: {annotated}"));
        assert!(card["displayName"].is_string() && card["description"].is_string());
        named.push(name);
    }
    assert_eq!(annotated.as_array().unwrap().len(), named.len());
    assert_eq!(text(&chart, "prerelease"), alpha.to_string());
}

#[test]
fn the_examples_are_those_of_the_folder() {
    let shown = annotation(&chart(), "crdsExamples");
    let files = ["idtokenrequest.yaml", "grant.yaml"].map(|name| {
        let text = std::fs::read_to_string(root().join("examples").join(name)).unwrap();
        read(&text).unwrap().remove(0)
    });
    assert_eq!(shown, json!(files));
}

#[test]
fn artifact_hub_knows_category_and_license() {
    let chart = chart();
    let category = text(&chart, "category");
    assert!(CATEGORIES.contains(&category.as_str()), "{category}");
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let license = format!("license = \"{}\"\n", text(&chart, "license"));
    assert!(manifest.contains(&license), "{license}");
}

#[test]
fn links_into_the_repository_lead_to_files() {
    let chart = chart();
    let home = chart["home"].as_str().unwrap();
    assert_eq!(chart["sources"], json!([home]));
    let links = annotation(&chart, "links");
    let urls = links.as_array().unwrap().iter().map(|link| &link["url"]);
    let mut files = 0;
    for url in urls.chain([&chart["icon"]]) {
        let path = url.as_str().and_then(|url| url.strip_prefix(home));
        let path = path.unwrap_or_else(|| panic!("{url} is elsewhere than {home}"));
        let file = ["/blob/main/", "/raw/main/"]
            .iter()
            .find_map(|prefix| path.strip_prefix(prefix));
        if let Some(file) = file {
            assert!(root().join(file).is_file(), "{url}: there is no {file}");
            files += 1;
        }
    }
    assert_eq!(files, 3);
}
