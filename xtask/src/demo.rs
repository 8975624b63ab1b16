//! `cargo xtask demo`: the operator at work, from nothing to a renewed token.

mod token;
mod world;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use idtoken_testenv::until;
use serde_json::Value;

use crate::output::Output;
use crate::{cargo, test};
use token::Token;
use world::World;

/// For what takes seconds; a busy machine gets all of it.
const LIMIT: Duration = Duration::from_secs(60);
/// How long the emulator's ID tokens live. Google's live for an hour; the demo shows a renewal.
const LIFETIME: Duration = Duration::from_secs(20);

const NAMESPACE: &str = "shop";
const NAME: &str = "billing";

/// Runs the demo; with `keep` until it is interrupted.
///
/// # Errors
/// When anything is not as it should be. What was started is stopped then.
pub(crate) async fn run(output: &Output, keep: bool) -> Result<()> {
    output.heading("Building");
    let programs = cargo::build_programs(output).await?;
    let assets = test::control_plane(output).await?;

    output.heading("Starting");
    let world = World::start(output, assets, &programs, LIFETIME).await?;
    if let Err(error) = show(output, &world, keep).await {
        bail!(
            "{error:#}\nthe operator's log ends with:\n{}",
            world.operator_log_tail()
        );
    }

    output.heading("Stopping");
    world.stop(output).await?;
    output.heading("Done");
    output.table();
    Ok(())
}

async fn show(output: &Output, world: &World, keep: bool) -> Result<()> {
    output.heading("A request that nobody has granted");
    ask(output, world).await?;
    output.heading("The same request, granted");
    grant(output, world).await?;
    output.heading("The token");
    let first = check(output, world).await?;
    output.heading("Its renewal");
    renewal(output, world, &first).await?;
    if keep {
        output.heading("Everything stays up until Ctrl-C");
        world.print_how_to_use(output);
        std::future::pending::<()>().await;
    }
    Ok(())
}

async fn ask(output: &Output, world: &World) -> Result<()> {
    let step = output.begin("an IdTokenRequest without a grant");
    world.apply("namespace.yaml").await?;
    world.apply("idtokenrequest.yaml").await?;
    let message = until("the request is refused as NotGranted", LIMIT, async || {
        let ready = world.ready_condition().await?;
        Ok((ready["reason"] == "NotGranted")
            .then(|| ready["message"].as_str().unwrap_or_default().to_owned()))
    })
    .await?;
    step.done("the operator refuses it: NotGranted");
    output.command(
        "kubectl apply -f examples/demo/namespace.yaml -f examples/demo/idtokenrequest.yaml",
        "",
    );
    output.command(
        "kubectl get idtr -n shop",
        &world.kubectl(&["get", "idtr", "-n", NAMESPACE]).await?,
    );
    output.line(&format!("    {message}"));
    let secrets = world
        .kubectl(&["get", "secrets", "-n", NAMESPACE, "-o", "name"])
        .await?;
    if !secrets.trim().is_empty() {
        bail!("there should be no Secret without a grant, but there is: {secrets}");
    }
    Ok(())
}

async fn grant(output: &Output, world: &World) -> Result<()> {
    let step = output.begin("an IdTokenGrant");
    let grant = world
        .kubectl(&["idtoken", "grant", NAME, "-n", NAMESPACE])
        .await?;
    world.apply_text(&grant).await?;
    until("the request is Ready", LIMIT, async || {
        Ok((world.ready_condition().await?["status"] == "True").then_some(()))
    })
    .await?;
    step.done("granted; the request is Ready");
    output.command(
        "kubectl idtoken grant billing -n shop | tee /dev/stderr | kubectl apply -f -",
        &grant,
    );
    output.command(
        "kubectl get idtr -n shop",
        &world.kubectl(&["get", "idtr", "-n", NAMESPACE]).await?,
    );
    Ok(())
}

async fn check(output: &Output, world: &World) -> Result<Token> {
    let step = output.begin("the Secret");
    let secret = world.secret().await?;
    let token = Token::from_secret(&secret)?;
    step.done("the Secret holds the token, and the header made of it");
    output.command("kubectl describe secret billing -n shop", &sizes(&secret)?);

    let step = output.begin("its signature");
    let kid = token.verify(&world.emulator_url).await?;
    step.done(&format!(
        "its signature is good by key {} of the published keys",
        short(&kid)
    ));
    for line in serde_json::to_string_pretty(token.claims())?.lines() {
        output.line(&format!("    {line}"));
    }
    Ok(token)
}

async fn renewal(output: &Output, world: &World, first: &Token) -> Result<()> {
    let step = output.begin("the next token");
    let due = world.renewal_time().await?;
    let limit = LIFETIME + LIMIT;
    let second = until("the Secret holds a newer token", limit, async || {
        let token = Token::from_secret(&world.secret().await?)?;
        let left = due.duration_since(jiff::Timestamp::now()).as_secs();
        let until = first.expires() - jiff::Timestamp::now().as_second();
        step.progress(&match left {
            1.. => format!("the token is renewed in {left} s, {until} s before it expires"),
            _ => "the token is renewed about now".to_owned(),
        });
        Ok((token.issued() > first.issued() && !token.is_same(first)).then_some(token))
    })
    .await?;
    second.verify(&world.emulator_url).await?;
    let left = first.expires() - second.issued();
    if left <= 0 {
        bail!("the token was renewed {} s after it had expired", -left);
    }
    step.done(&format!(
        "renewed {} s after the first was issued, {left} s before that expires",
        second.issued() - first.issued()
    ));
    output.command(
        "kubectl get idtr -n shop",
        &world.kubectl(&["get", "idtr", "-n", NAMESPACE]).await?,
    );

    let step = output.begin("the logs");
    if let Some(program) = world.who_logged(&[first, &second]) {
        bail!("the log of {program} holds a token");
    }
    step.done("no log holds a token");
    Ok(())
}

/// The keys of a Secret and how long their values are.
fn sizes(secret: &Value) -> Result<String> {
    let data = secret["data"].as_object().context("the Secret has no data")?;
    let mut lines = String::from("Data\n====");
    for (key, value) in data {
        let bytes = token::decode(value)?.len();
        lines.push_str(&format!("\n{key}:  {bytes} bytes"));
    }
    Ok(lines)
}

fn short(kid: &str) -> String {
    kid.chars().take(8).collect()
}
