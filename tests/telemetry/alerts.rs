//! The alerts: promtool checks them and runs their cases in virtual time; each has what a reader needs.

use std::collections::BTreeMap;

use anyhow::Result;
use idtoken_testenv::RunDir;
use regex::Regex;
use serde_json::Value;

use crate::page::{headings, read};
use crate::programs::{file, promtool};

/// The cases.
const CASES: &str = include_str!("alerts.test.yaml");

/// All alerts.
pub(crate) fn alerts() -> Result<Vec<Value>> {
    let rules: Value = serde_saphyr::from_str(&std::fs::read_to_string(file("alerts.yaml"))?)?;
    let groups = rules["groups"].as_array().into_iter().flatten();
    let all = groups.flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
    Ok(all.collect())
}

#[tokio::test]
async fn each_fires_in_its_fault_and_none_in_a_healthy_hour() -> Result<()> {
    let dir = RunDir::create("alerts")?;
    std::fs::copy(file("alerts.yaml"), dir.path().join("alerts.yaml"))?;
    std::fs::write(dir.path().join("alerts.test.yaml"), CASES)?;
    promtool(&["check", "rules", "alerts.yaml"], dir.path(), None).await?;
    promtool(&["test", "rules", "alerts.test.yaml"], dir.path(), None).await?;
    Ok(())
}

#[test]
fn each_has_a_case_in_which_it_fires_and_one_in_which_it_is_quiet() -> Result<()> {
    let cases: Value = serde_saphyr::from_str(CASES)?;
    let name = Regex::new(r#"alertname="(\w+)""#)?;
    let mut seen: BTreeMap<String, [bool; 2]> = BTreeMap::new();
    for case in cases["tests"].as_array().into_iter().flatten() {
        for check in case["promql_expr_test"].as_array().into_iter().flatten() {
            let Some(alert) = name.captures(check["expr"].as_str().unwrap_or_default()) else {
                continue;
            };
            let fires = check["exp_samples"].as_array().is_some_and(|all| !all.is_empty());
            seen.entry(alert[1].to_owned()).or_default()[usize::from(fires)] = true;
        }
    }
    let both: Vec<String> = seen
        .into_iter()
        .filter(|(_, cases)| *cases == [true, true])
        .map(|(name, _)| name)
        .collect();
    let mut wanted: Vec<String> = alerts()?
        .iter()
        .map(|alert| alert["alert"].as_str().unwrap_or_default().to_owned())
        .collect();
    wanted.sort();
    assert_eq!(both, wanted);
    Ok(())
}

#[test]
fn each_says_what_it_is_and_where_to_read_on() -> Result<()> {
    let page = read("docs/metrics.md");
    for alert in alerts()? {
        let name = alert["alert"].as_str().unwrap_or_default();
        let severity = alert["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["warning", "critical"].contains(&severity), "{name}: {severity}");
        for note in ["summary", "description"] {
            let text = alert["annotations"][note].as_str().unwrap_or_default();
            assert!(text.len() > 20, "{name} has no {note}");
        }
        let runbook = format!("docs/metrics.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook"], runbook, "{name}");
        assert!(
            headings(&page).contains(&name.to_owned()),
            "docs/metrics.md has no heading {name}"
        );
        let row = format!("| [`{name}`](#{}) | {severity} |", name.to_lowercase());
        assert!(page.contains(&row), "docs/metrics.md has no row {row}");
    }
    Ok(())
}
