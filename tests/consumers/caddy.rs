//! Caddy beside a program, with the example's configuration.

use std::process::Command;

use anyhow::Result;
use idtoken_testenv::{Port, Process, consumers::CADDY};

use crate::example;
use crate::scene::{SOON, Scene, built};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caddy_adds_the_token_file_of_the_moment() -> Result<()> {
    let program = built(CADDY, "caddy").await?;
    let mut scene = Scene::new("caddy-sidecar.yaml").await?;
    let port = Port::reserve()?;
    let address = format!("127.0.0.1:{}", port.number());
    let config = scene.here(&example::config(&scene.documents, "Caddyfile")?);
    let file = scene.dir.path().join("Caddyfile");
    std::fs::write(&file, config.replace("127.0.0.1:8080", &address))?;
    let mut command = Command::new(program);
    command
        .args(["run", "--adapter=caddyfile", "--config"])
        .arg(&file)
        // Where it keeps certificates and its last configuration.
        .env("XDG_DATA_HOME", scene.dir.path())
        .env("XDG_CONFIG_HOME", scene.dir.path())
        .env("NO_PROXY", "*");
    let caddy = Process::spawn("caddy", &command, scene.dir.path())?;
    caddy.wait_for_http(&address, "/prices", SOON).await?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let call = async || {
        anyhow::Ok(
            client
                .get(format!("http://{address}/prices"))
                .send()
                .await?
                .status(),
        )
    };
    let first = scene.token().await?;
    assert_eq!(call().await?, 200);
    assert!(scene.service.served(&first) >= 2);

    let next = scene.rotate().await?;
    // The very next request has it.
    assert_eq!(call().await?, 200);
    assert_eq!(scene.service.served(&next), 1);
    // What the program sends itself does not get past.
    let forged = client
        .get(format!("http://{address}/prices"))
        .bearer_auth("forged");
    assert_eq!(forged.send().await?.status(), 200);
    assert!(
        scene
            .service
            .calls()
            .iter()
            .all(|call| !call.authorization.contains("forged"))
    );
    Ok(())
}
