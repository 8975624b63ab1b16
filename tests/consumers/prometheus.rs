//! Prometheus, with the example's configuration.

use anyhow::Result;
use idtoken_testenv::{Prometheus, until};
use serde_json::{Value, json};

use crate::example;
use crate::scene::{SOON, Scene};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_with_the_credentials_file_of_the_moment() -> Result<()> {
    let mut scene = Scene::new("prometheus.yaml").await?;
    let text = scene.here(&example::config(&scene.documents, "prometheus.yml")?);
    let mut config: Value = serde_saphyr::from_str(&text)?;
    config["global"] = json!({"scrape_interval": "1s", "scrape_timeout": "1s"});
    config["scrape_configs"][0]["scheme"] = json!("http");
    config["scrape_configs"][0]["static_configs"] =
        json!([{"targets": [scene.service.address().to_string()]}]);
    let prometheus = Prometheus::start(scene.dir.path(), &config).await?;
    let first = scene.token().await?;
    scene.served(&first, &prometheus.process).await?;
    let next = scene.rotate().await?;
    scene.served(&next, &prometheus.process).await?;

    let up = async || {
        let sold = prometheus.query("sold").await?;
        Ok(sold.iter().any(|(_, value)| *value == 1.0).then_some(()))
    };
    until("Prometheus has the service's metric", SOON, up).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_writes_with_the_credentials_file_of_the_moment() -> Result<()> {
    let mut scene = Scene::new("prometheus-remote-write.yaml").await?;
    let text = scene.here(&example::config(&scene.documents, "prometheus.yml")?);
    let mut config: Value = serde_saphyr::from_str(&text)?;
    config["global"] = json!({"scrape_interval": "1s", "scrape_timeout": "1s"});
    config["remote_write"][0]["queue_config"] = json!({"batch_send_deadline": "1s"});
    let prometheus = Prometheus::start(scene.dir.path(), &config).await?;
    let first = scene.token().await?;
    scene.served(&first, &prometheus.process).await?;
    let next = scene.rotate().await?;
    scene.served(&next, &prometheus.process).await?;
    assert!(
        scene
            .service
            .calls()
            .iter()
            .all(|call| call.what == "POST /api/v1/write")
    );
    Ok(())
}
