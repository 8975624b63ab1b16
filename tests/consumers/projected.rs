//! One volume with the tokens of two requests, as the pod of the example mounts and reads it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use idtoken_testenv::{Process, RunDir, until};
use serde_json::Value;

use crate::common::{World, token};
use crate::example::{self, MOUNT};
use crate::scene::SOON;
use crate::service::Service;
use crate::volume::Volume;

/// Shows the Secrets in the volume as its sources say. Their tokens, in the order of the sources.
async fn mount(world: &World, sources: &[Value], volume: &mut Volume) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for source in sources {
        let name = source["secret"]["name"].as_str().context("a Secret has a name")?;
        let secret = world.secret("shop", name).await?;
        let item = &source["secret"]["items"][0];
        ensure!(item["key"] == "token", "{item}");
        let path = item["path"].as_str().context("an item has a path")?;
        files.push((path, token(&secret)));
    }
    let shown: Vec<_> = files
        .iter()
        .map(|(path, token)| (*path, token.as_bytes()))
        .collect();
    volume.write_files(&shown)?;
    Ok(files.into_iter().map(|(_, token)| token).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_calls_two_services_each_with_its_own_token() -> Result<()> {
    let documents = example::documents("projected-volume.yaml")?;
    let world = World::new().await?;
    world.namespace("shop").await?;
    let requests = example::of_kind(&documents, "IdTokenRequest");
    let grant = example::documents("grant.yaml")?;
    let manifests: Vec<_> = requests.iter().chain([&grant[0]]).map(Value::to_string).collect();
    world.cluster.apply(&manifests.join("\n---\n")).await?;
    let names = ["call-billing", "call-stock"];
    for name in names {
        world.ready("shop", name).await?;
    }

    let pods = example::of_kind(&documents, "Pod");
    let sources = pods[0]["spec"]["volumes"][0]["projected"]["sources"].as_array();
    let sources = sources.context("the pod has a projected volume")?;
    let dir = RunDir::create("projected")?;
    let mut volume = Volume::new(dir.path())?;
    let service = Service::start().await?;
    let first = mount(&world, sources, &mut volume).await?;
    assert_ne!(first[0], first[1]);
    service.accept_all(&[&first[0], &first[1]]);

    let script = pods[0]["spec"]["containers"][0]["args"][0]
        .as_str()
        .context("the pod has a script")?;
    let mut script = script.replace(MOUNT, &volume.path().display().to_string());
    for request in &requests {
        let audience = request["spec"]["audience"].as_str().context("an audience")?;
        script = script.replace(audience, &format!("http://{}", service.address()));
    }
    let mut command = Command::new("sh");
    command.args(["-c", &script]).env("NO_PROXY", "*");
    let pod = Process::spawn("two-services", &command, dir.path())?;
    let served = async |tokens: &[String]| {
        until(
            "both services are called, each with its own token",
            SOON,
            async || {
                let calls = service.calls();
                let with = |what: &str, token: &str| {
                    let wanted = format!("Bearer {token}");
                    calls
                        .iter()
                        .any(|call| call.what == what && call.status == 200 && call.authorization == wanted)
                };
                Ok((with("GET /prices", &tokens[0]) && with("GET /items", &tokens[1])).then_some(()))
            },
        )
        .await
        .with_context(|| pod.log_tail())
    };
    served(&first).await?;

    // One of them is renewed; its old token is refused from then on.
    let issued = world.google.verify(&first[1])?["iat"]
        .as_i64()
        .unwrap_or_default();
    let later = async || Ok(jiff::Timestamp::now().as_second() > issued);
    world.wait("the second is over", later).await?;
    world.renew("shop", names[1], "now").await?;
    let changed = async || Ok(token(&world.secret("shop", names[1]).await?) != first[1]);
    world.wait("the token is renewed", changed).await?;
    let next = mount(&world, sources, &mut volume).await?;
    assert_eq!(next[0], first[0]);
    service.accept_all(&[&next[0], &next[1]]);
    served(&next).await
}
