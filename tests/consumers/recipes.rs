//! The recipes of `docs/connecting-services.md` for programs that are not built here: the programs' own code reads them, and calls with the
//! token where it calls at all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use idtoken_testenv::{Process, Progress, RunDir, clean_command, consumers, or_skip, sha256};
use serde_json::{Value, json};

use crate::example;
use crate::manifests::yaml_blocks;
use crate::scene::{SOON, Scene, built};

/// What the kinds of Grafana's file of data sources have:
/// <https://github.com/grafana/grafana/blob/01c834234982c8ae5eba61acd1313c1c4443e9dd/pkg/services/provisioning/datasources/types.go>.
const GRAFANA: [&str; 18] = [
    "orgId",
    "orgName",
    "version",
    "name",
    "type",
    "access",
    "url",
    "user",
    "database",
    "basicAuth",
    "basicAuthUser",
    "withCredentials",
    "isDefault",
    "correlations",
    "jsonData",
    "secureJsonData",
    "editable",
    "uid",
];

/// The block of YAML that contains `text`.
fn recipe(text: &str) -> Result<Value> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/connecting-services.md");
    let blocks = yaml_blocks(&std::fs::read_to_string(page)?);
    let (_, block) = blocks
        .iter()
        .find(|(_, block)| block.contains(text))
        .with_context(|| format!("the page has no recipe with {text}"))?;
    Ok(serde_saphyr::from_str(block)?)
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/consumers/python")
        .join(name)
}

/// Python with the packages of the recipes; None, which is said, where it cannot be had and need not be.
async fn python() -> Result<Option<PathBuf>> {
    let environment = || consumers::RECIPES_IN_PYTHON.build(Progress::Stderr);
    or_skip(
        "Python with the packages of the recipes",
        tokio::task::spawn_blocking(environment).await?,
    )
}

fn spawn(name: &str, program: &Path, arguments: &[&Path], dir: &Path) -> Result<Process> {
    let mut command = clean_command(program);
    command
        .args(arguments)
        .current_dir(dir)
        .env("NO_PROXY", "*")
        .env("no_proxy", "*");
    Process::spawn(name, &command, dir)
}

/// Whether the program's own code takes this; the error says why not.
async fn taken(program: &Path, kind: &str, recipe: &Value) -> Result<()> {
    let dir = RunDir::create("recipe")?;
    let file = dir.path().join("recipe.json");
    std::fs::write(&file, recipe.to_string())?;
    let process = spawn(kind, program, &[Path::new(kind), &file], dir.path())?;
    let status = process.wait(SOON).await?;
    ensure!(status.success(), "{kind}: {}", process.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alertmanager_and_vmagent_call_with_the_token_of_the_moment() -> Result<()> {
    let program = built(consumers::RECIPES, "recipes").await?;
    let mut alertmanager = recipe("webhook_configs:")?;
    alertmanager["route"] = json!({"receiver": alertmanager["receivers"][0]["name"]});
    let vmagent = recipe("-remoteWrite.bearerTokenFile")?["args"].take();

    let mut scene = Scene::new("../idtokenrequest.yaml").await?;
    let dir = scene.dir.path().to_path_buf();
    let mut running = Vec::new();
    for (kind, recipe, what) in [
        ("alertmanager", alertmanager, "POST /alerts"),
        ("vmagent", vmagent, "POST /api/v1/write"),
    ] {
        let file = dir.join(format!("{kind}.json"));
        std::fs::write(&file, scene.here(&recipe.to_string()))?;
        running.push((what, spawn(kind, &program, &[Path::new(kind), &file], &dir)?));
    }
    let first = scene.token().await?;
    for (what, process) in &running {
        scene.served_at(what, &first, process, SOON).await?;
    }
    let next = scene.rotate().await?;
    for (what, process) in &running {
        scene.served_at(what, &next, process, SOON).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_argo_cd_alertmanager_and_vmagent_refuse_what_is_not_theirs() -> Result<()> {
    let program = built(consumers::RECIPES, "recipes").await?;
    let filter = recipe("CredentialInjector")?[0].take();
    let request = recipe("sds.yaml:")?;
    let secret = request["spec"]["target"]["template"]["data"]["sds.yaml"]
        .as_str()
        .context("the template has Envoy's file")?;
    let mut secret: Value = serde_saphyr::from_str(&secret.replace("$(token)", "a-token"))?;
    let injected = &filter["typed_config"]["credential"]["typed_config"]["credential"];
    ensure!(
        secret["resources"][0]["name"] == injected["name"],
        "{secret} {injected}"
    );
    let mut notifications = recipe("service.webhook.billing")?;
    taken(&program, "envoy-filter", &filter).await?;
    taken(&program, "envoy-secret", &secret).await?;
    taken(&program, "argocd", &notifications).await?;

    let mut unknown = filter.clone();
    unknown["typed_config"]["credentials"] = unknown["typed_config"]["credential"].take();
    let mut incomplete = filter;
    incomplete["typed_config"]["credential"] = json!(null);
    secret["resources"][0]["generic_secret"]["secret"] = json!({"inline": "a"});
    let service = &mut notifications["data"]["service.webhook.billing"];
    *service = json!(
        service
            .as_str()
            .unwrap_or_default()
            .replace("$billing-token", "$billing")
    );
    let alerts = json!({"route": {"receiver": "a"}, "receivers": [{"name": "a", "webhook_configs": [
        {"url": "https://a", "http_config": {"authorization": {"credential_file": "/a"}}}]}]});
    for (kind, wrong, why) in [
        ("envoy-filter", unknown, "unknown field \"credentials\""),
        (
            "envoy-filter",
            incomplete,
            "invalid CredentialInjector.Credential",
        ),
        ("envoy-secret", secret, "unknown field \"inline\""),
        ("argocd", notifications, "\"Bearer $billing\""),
        ("alertmanager", alerts, "credential_file"),
        (
            "vmagent",
            json!(["-remoteWrite.url=http://a", "-remoteWrite.tokenFile=/a"]),
            "not defined",
        ),
    ] {
        let refused = taken(&program, kind, &wrong).await.unwrap_err().to_string();
        ensure!(refused.contains(why), "{refused}");
    }
    Ok(())
}

#[test]
fn grafanas_data_source_has_grafanas_fields() -> Result<()> {
    let recipe = recipe("datasources:")?;
    let source = recipe["datasources"][0].as_object().context("a data source")?;
    ensure!(source.len() >= 4, "{source:?}");
    for field in source.keys() {
        ensure!(GRAFANA.contains(&field.as_str()), "{field}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mcp_client_calls_with_the_token_of_the_moment_in_one_session() -> Result<()> {
    let Some(python) = python().await? else {
        return Ok(());
    };
    let mut scene = Scene::new("../idtokenrequest.yaml").await?;
    let dir = scene.dir.path().to_path_buf();
    let accepted = dir.join("accepted");
    let accept = async |scene: &Scene| {
        let token = scene.token().await?;
        std::fs::write(&accepted, &token)?;
        // What the server's tool answers, and the client prints.
        anyhow::Ok(sha256(token.as_bytes()))
    };
    let first = accept(&scene).await?;
    let server = spawn("server", &python, &[&script("mcp_server.py"), &accepted], &dir)?;
    let line = server.wait_for_line("Uvicorn running on", SOON).await?;
    let url = line.split_whitespace().find(|word| word.starts_with("http://"));
    let url = url.context("the server does not say where it listens")?;

    let text = std::fs::read_to_string(example::folder().join("snippets/mcp_client.py"))?;
    let client = dir.join("client.py");
    let here = text.replace("https://billing-x.run.app", url);
    ensure!(here != text, "the client calls something else");
    std::fs::write(&client, scene.here(&here))?;
    let client = spawn("client", &python, &[&client], &dir)?;
    client.wait_for_line(&first, SOON).await?;
    scene.rotate().await?;
    let next = accept(&scene).await?;
    ensure!(next != first, "the token is renewed");
    client.wait_for_line(&next, SOON).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn powershell_has_no_syntax_error() -> Result<()> {
    let Some(python) = python().await? else {
        return Ok(());
    };
    let dir = RunDir::create("powershell")?;
    let snippet = example::folder().join("snippets/call.ps1");
    let completion =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("ctl/src/output/completions/kubectl-idtoken.ps1");
    let parsed = async |file: &Path| {
        let process = spawn(
            "powershell",
            &python,
            &[&script("powershell.py"), file],
            dir.path(),
        )?;
        anyhow::Ok(process.wait(Duration::from_secs(60)).await?.success())
    };
    for file in [snippet, completion] {
        ensure!(parsed(&file).await?, "{} has a syntax error", file.display());
        // A brace less.
        let text = std::fs::read_to_string(&file)?;
        let (before, after) = text.rsplit_once('}').context("a block")?;
        let broken = dir.path().join("broken.ps1");
        std::fs::write(&broken, format!("{before}{after}"))?;
        ensure!(!parsed(&broken).await?, "a missing brace is no error");
    }
    Ok(())
}
