//! Prometheus, with the example's configuration.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use idtoken_testenv::{Process, consumers::PROMETHEUS, until};
use serde_json::{Value, json};

use crate::example;
use crate::scene::{SOON, Scene, built};

fn start(scene: &Scene, program: &Path, config: &Value) -> Result<Process> {
    let file = scene.dir.path().join("prometheus.yml");
    std::fs::write(&file, config.to_string())?;
    let mut command = Command::new(program);
    command
        .arg(format!("--config.file={}", file.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            scene.dir.path().join("data").display()
        ))
        .arg("--web.listen-address=127.0.0.1:0")
        .current_dir(scene.dir.path())
        .env("NO_PROXY", "*");
    Process::spawn("prometheus", &command, scene.dir.path())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_with_the_credentials_file_of_the_moment() -> Result<()> {
    let program = built(PROMETHEUS, "prometheus").await?;
    let mut scene = Scene::new("prometheus.yaml").await?;
    let text = scene.here(&example::config(&scene.documents, "prometheus.yml")?);
    let mut config: Value = serde_saphyr::from_str(&text)?;
    config["global"] = json!({"scrape_interval": "1s", "scrape_timeout": "1s"});
    config["scrape_configs"][0]["scheme"] = json!("http");
    config["scrape_configs"][0]["static_configs"] =
        json!([{"targets": [scene.service.address().to_string()]}]);
    let prometheus = start(&scene, &program, &config)?;
    let first = scene.token().await?;
    scene.served(&first, &prometheus).await?;
    let next = scene.rotate().await?;
    scene.served(&next, &prometheus).await?;

    let line = prometheus.wait_for_line("Listening on", SOON).await?;
    let address = line
        .split("address=")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let address = address.context("Prometheus does not say where it listens")?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let up = async || {
        let answer = client
            .get(format!("http://{address}/api/v1/query?query=sold"))
            .send()
            .await?;
        let answer: Value = answer.json().await?;
        Ok((answer["data"]["result"][0]["value"][1] == "1").then_some(()))
    };
    until("Prometheus has the service's metric", SOON, up).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_writes_with_the_credentials_file_of_the_moment() -> Result<()> {
    let program = built(PROMETHEUS, "prometheus").await?;
    let mut scene = Scene::new("prometheus-remote-write.yaml").await?;
    let text = scene.here(&example::config(&scene.documents, "prometheus.yml")?);
    let mut config: Value = serde_saphyr::from_str(&text)?;
    config["global"] = json!({"scrape_interval": "1s", "scrape_timeout": "1s"});
    config["remote_write"][0]["queue_config"] = json!({"batch_send_deadline": "1s"});
    let prometheus = start(&scene, &program, &config)?;
    let first = scene.token().await?;
    scene.served(&first, &prometheus).await?;
    let next = scene.rotate().await?;
    scene.served(&next, &prometheus).await?;
    assert!(
        scene
            .service
            .calls()
            .iter()
            .all(|call| call.what == "POST /api/v1/write")
    );
    Ok(())
}
