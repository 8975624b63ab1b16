//! An OpenTelemetry Collector, with the example's configuration.

use std::process::Command;

use anyhow::{Context, Result};
use idtoken_testenv::{Process, consumers::OTELCOL};
use serde_json::{Value, json};

use crate::example;
use crate::scene::{SOON, Scene, built};

/// Sends spans to the collector until it is dropped.
struct Spans(tokio::task::JoinHandle<()>);

impl Drop for Spans {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Spans {
    fn to(address: &str) -> Result<Self> {
        let url = format!("http://{address}/v1/traces");
        let client = reqwest::Client::builder().no_proxy().build()?;
        let span = json!({
            "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "name": "sale",
            "startTimeUnixNano": "1", "endTimeUnixNano": "2", "kind": 1,
        });
        let traces = json!({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]});
        Ok(Self(tokio::spawn(async move {
            loop {
                // A refused one is followed by another; the service's own list of calls tells.
                let _ = client.post(&url).json(&traces).send().await;
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        })))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_collector_sends_the_token_file_of_the_moment() -> Result<()> {
    let program = built(OTELCOL, "otelcol").await?;
    let mut scene = Scene::new("opentelemetry-collector.yaml").await?;
    let text = scene.here(&example::config(&scene.documents, "config.yaml")?);
    let mut config: Value = serde_saphyr::from_str(&text)?;
    config["receivers"]["otlp"]["protocols"]["http"]["endpoint"] = json!("127.0.0.1:0");
    // Its own metrics are served on a port that another may have.
    config["service"]["telemetry"] = json!({"metrics": {"level": "none"}});
    let file = scene.dir.path().join("config.yaml");
    std::fs::write(&file, config.to_string())?;
    let mut command = Command::new(program);
    command
        .arg(format!("--config={}", file.display()))
        .env("NO_PROXY", "*");
    let collector = Process::spawn("otelcol", &command, scene.dir.path())?;
    let line = collector.wait_for_line("Starting HTTP server", SOON).await?;
    let address = line
        .split("\"endpoint\": \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    let _spans = Spans::to(address.context("the collector does not say where it listens")?)?;

    let first = scene.token().await?;
    scene.served(&first, &collector).await?;
    let next = scene.rotate().await?;
    scene.served(&next, &collector).await?;
    assert!(
        scene
            .service
            .calls()
            .iter()
            .all(|call| call.what == "POST /v1/traces")
    );
    Ok(())
}
