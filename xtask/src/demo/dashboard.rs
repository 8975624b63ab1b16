//! `cargo xtask demo --dashboard FILE`: the operator serves four teams while Google fails for a while, and a real Prometheus observes it.

mod draw;
mod panels;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use idtoken_operator::api::GROUP;
use idtoken_testenv::Prometheus;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::environment::Environment;
use crate::progress::Output;
use panels::Panel;

/// Lifetime of the ID tokens, so that each is renewed several times.
pub(super) const LIFETIME: Duration = Duration::from_secs(180);
/// What is drawn. The phases before, of and after the outage.
const PHASES: [(&str, Duration); 3] = [
    ("tokens are issued and renewed", Duration::from_secs(150)),
    ("Google answers 503", Duration::from_secs(45)),
    ("Google is back", Duration::from_secs(105)),
];
const TEAMS: [(&str, usize); 4] = [("shop", 14), ("billing", 9), ("data", 6), ("search", 4)];
/// Seconds between two points of a line.
const STEP: u64 = 2;

/// Observes what happens in `environment`, and writes the picture to `file`.
///
/// # Errors
/// When a program fails, or the file cannot be written.
pub(super) async fn record(output: &Output, environment: &Environment, file: &Path) -> Result<()> {
    output.heading("Recording");
    let step = output.begin("Prometheus");
    let config = json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{
            "job_name": "idtoken-operator",
            "static_configs": [{"targets": [environment.metrics_address]}],
            "metric_relabel_configs": [{"target_label": "instance", "replacement": "idtoken-operator-0"}],
        }],
    });
    let prometheus = Prometheus::start(environment.dir(), &config).await?;
    step.done("Prometheus observes the operator");
    let started = Timestamp::now();
    environment.apply(&teams()).await?;
    for (index, (what, length)) in PHASES.into_iter().enumerate() {
        let step = output.begin(what);
        fail(environment, index == 1).await?;
        // It records what happens in this time.
        tokio::time::sleep(length).await;
        step.done(what);
    }
    let dashboard =
        std::fs::read_to_string(crate::workspace().join("charts/idtoken-operator/files/dashboard.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let mut drawn = Vec::new();
    for panel in Panel::all(&dashboard) {
        let series = panel.series(&prometheus, started, STEP).await?;
        drawn.push((panel, series));
    }
    let minutes = started.duration_until(Timestamp::now()).as_secs_f64() / 60.0;
    let svg = draw::draw(&drawn, minutes).map_err(|error| anyhow::anyhow!("cannot draw: {error}"))?;
    std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    prometheus.process.terminate(super::LIMIT).await?;
    Ok(())
}

/// The namespaces of the teams, one grant for all but the last request of the first team, and the requests.
fn teams() -> String {
    let mut documents = Vec::new();
    let account = "caller@demo-project.iam.gserviceaccount.com";
    for (team, requests) in TEAMS {
        documents.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team}}));
        for index in 1..=requests {
            documents.push(json!({
                "apiVersion": format!("{GROUP}/v1alpha1"),
                "kind": "IdTokenRequest",
                "metadata": {"name": format!("service-{index}"), "namespace": team},
                "spec": {"audience": format!("https://service-{index}.example.com"), "serviceAccount": account},
            }));
        }
    }
    let from: Vec<Value> = TEAMS.iter().map(|(team, _)| json!({"namespace": team})).collect();
    let granted = 1..TEAMS[0].1;
    let audiences: Vec<String> = granted
        .map(|index| format!("https://service-{index}.example.com"))
        .collect();
    documents.push(json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": "IdTokenGrant",
        "metadata": {"name": "teams"},
        "spec": {"from": from, "to": [{"serviceAccounts": [account], "audiences": audiences}]},
    }));
    let texts: Vec<String> = documents.iter().map(Value::to_string).collect();
    texts.join("\n---\n")
}

/// Lets the emulator answer each call for an ID token with 503, or as usual.
async fn fail(environment: &Environment, fails: bool) -> Result<()> {
    let url = format!("{}/_emulator/faults", environment.emulator_url);
    let client = reqwest::Client::builder().no_proxy().build()?;
    let fault = json!({"endpoint": "generateIdToken", "kind": {"type": "status", "code": 503}});
    let request = match fails {
        true => client.post(url).json(&fault),
        false => client.delete(url),
    };
    let status = request.send().await?.status();
    ensure!(status.is_success(), "the emulator answers {status}");
    Ok(())
}
