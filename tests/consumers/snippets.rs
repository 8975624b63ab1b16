//! The snippets of `examples/snippets`: each program goes on running while the token is renewed, and must call with the new one.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use idtoken_testenv::node::packages;
use idtoken_testenv::{Process, Progress, clean_command};

use crate::example;
use crate::scene::{SOON, Scene};

/// A file, what runs it, and Debian's package of that.
const SNIPPETS: [(&str, &[&str], &str); 6] = [
    ("call.sh", &["sh"], "dash"),
    ("call.py", &["python3"], "python3"),
    ("call.go", &["go", "run"], "golang-go"),
    ("Call.java", &["java"], "default-jdk-headless"),
    ("call.mjs", &["node"], "nodejs"),
    ("call.rb", &["ruby"], "ruby"),
];
/// Files that `recipes.rs` parses or runs.
const NOT_RUN: [&str; 2] = ["call.ps1", "mcp_client.py"];

fn start(scene: &Scene, file: &str, program: &Path, arguments: &[&str]) -> Result<Process> {
    let text = std::fs::read_to_string(example::folder().join("snippets").join(file))?;
    ensure!(text.contains("/prices"), "{file} calls something else");
    let path = scene.dir.path().join(file);
    // So that the calls can be told apart.
    std::fs::write(&path, scene.here(&text).replace("/prices", &format!("/{file}")))?;
    let mut command: Command = clean_command(program);
    command
        .args(arguments)
        .arg(&path)
        .current_dir(scene.dir.path())
        .env("NO_PROXY", "*")
        .env("no_proxy", "*");
    Process::spawn(file, &command, scene.dir.path())
}

/// Longest wait for the first call: `go run` compiles Go's standard library where nothing is cached.
const FIRST: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snippets_call_with_the_token_of_the_moment() -> Result<()> {
    let mut scene = Scene::new("../idtokenrequest.yaml").await?;
    let mut running = Vec::new();
    for (file, command, package) in SNIPPETS {
        let found = tokio::task::spawn_blocking(move || {
            packages::find_or_skip((command[0], package), Progress::Stderr)
        })
        .await??;
        if let Some(program) = found {
            running.push((file, start(&scene, file, &program, &command[1..])?));
        }
    }
    ensure!(running.len() >= 2, "this machine can run hardly any snippet");
    let first = scene.token().await?;
    for (file, process) in &running {
        scene
            .served_at(&format!("GET /{file}"), &first, process, FIRST)
            .await?;
    }
    let next = scene.rotate().await?;
    for (file, process) in &running {
        scene
            .served_at(&format!("GET /{file}"), &next, process, SOON)
            .await?;
    }
    Ok(())
}

#[test]
fn every_snippet_is_run_or_named_as_one_that_is_not() {
    let run = SNIPPETS.map(|(file, _, _)| file);
    for entry in std::fs::read_dir(example::folder().join("snippets")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(
            run.contains(&name.as_str()) || NOT_RUN.contains(&name.as_str()),
            "{name}"
        );
    }
}
