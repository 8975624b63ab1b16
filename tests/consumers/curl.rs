//! curl, as the CronJob runs it.

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::example;
use crate::scene::Scene;

async fn run(args: &[String]) -> Result<std::process::Output> {
    let mut curl = Command::new("curl");
    curl.args(args).env("NO_PROXY", "*").kill_on_drop(true);
    curl.output().await.context("curl cannot be run")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_sends_the_header_file_of_the_moment() -> Result<()> {
    let mut scene = Scene::new("cronjob-curl.yaml").await?;
    let jobs = example::of_kind(&scene.documents, "CronJob");
    let container = &jobs[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0];
    let args = container["args"].as_array().context("the container has args")?;
    let args: Vec<String> = args
        .iter()
        .map(|arg| scene.here(arg.as_str().unwrap_or_default()))
        .collect();
    let first = scene.token().await?;
    let output = run(&args).await?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(scene.service.served(&first), 1);
    assert_eq!(scene.service.calls()[0].what, "POST /reports");
    // The token is in the file alone.
    assert!(args.iter().all(|arg| !arg.contains(&first)));

    let next = scene.rotate().await?;
    let output = run(&args).await?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(scene.service.served(&next), 1);

    // A refusal is a failed Job, not a silent success.
    scene.service.accept("another");
    let output = run(&args).await?;
    assert_eq!(output.status.code(), Some(22));
    Ok(())
}
