//! The structure of the dashboard. Grafana itself does not run here; `run.rs` sends the queries to Prometheus.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::Value;

use crate::programs::file;

/// The dashboard.
pub(crate) fn dashboard() -> Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(file(
        "dashboard.json",
    ))?)?)
}

/// The panels, without the rows.
pub(crate) fn panels(dashboard: &Value) -> Vec<Value> {
    let all = dashboard["panels"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|panel| panel["type"] != "row").collect()
}

/// All queries, by the title of their panel.
pub(crate) fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    queries
}

#[test]
fn panels_have_numbers_and_places_of_their_own() -> Result<()> {
    let dashboard = dashboard()?;
    let all = dashboard["panels"].as_array().cloned().unwrap_or_default();
    let ids: BTreeSet<i64> = all.iter().filter_map(|panel| panel["id"].as_i64()).collect();
    assert_eq!(ids.len(), all.len());
    let mut taken: BTreeMap<(u64, u64), String> = BTreeMap::new();
    for panel in &all {
        let title = panel["title"].to_string();
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24 && at("h") >= 1, "{title} is too wide");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                let other = taken.insert((x, y), title.clone());
                assert_eq!(other, None, "{title} lies over another panel");
            }
        }
    }
    Ok(())
}

#[test]
fn panels_are_complete_and_use_the_variables() -> Result<()> {
    let dashboard = dashboard()?;
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    assert_eq!(variables, ["datasource", "namespace"]);
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap_or_default();
        assert!(!title.is_empty());
        let described = panel["description"]
            .as_str()
            .is_some_and(|text| text.ends_with('.'));
        assert!(described, "{title} has no description");
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        assert!(!targets.is_empty(), "{title} asks nothing");
        let names: BTreeSet<&str> = targets
            .iter()
            .filter_map(|target| target["refId"].as_str())
            .collect();
        assert_eq!(names.len(), targets.len(), "{title}");
        for source in targets
            .iter()
            .map(|target| &target["datasource"])
            .chain([&panel["datasource"]])
        {
            assert_eq!(source["uid"], "${datasource}", "{title}");
        }
    }
    let of_namespaces = [
        "idtoken_requests",
        "idtoken_earliest",
        "idtoken_request_conditions",
    ];
    for (title, query) in queries(&dashboard) {
        let is_of_one = of_namespaces.iter().any(|name| query.contains(name));
        assert_eq!(
            query.contains(r#"namespace=~"$namespace""#),
            is_of_one,
            "{title}: {query}"
        );
    }
    Ok(())
}
