//! `cargo xtask demo`: the operator at work, from nothing to a renewed token.

mod dashboard;
mod environment;
mod picture;
mod token;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use idtoken_testenv::until;

use crate::progress::Output;
use crate::{cargo, programs};
use environment::Environment;
use token::Token;

/// Limit of what takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Lifetime of the emulator's ID tokens: short, so that the demo can show a renewal. Google's tokens live for an hour.
const LIFETIME: Duration = Duration::from_secs(20);

const NAMESPACE: &str = "shop";
const NAME: &str = "billing";

/// Serves several teams for five minutes, and writes a picture of the dashboard to `file`.
///
/// # Errors
/// When a program fails. Everything that was started is stopped.
pub(crate) async fn record(output: &Output, file: &Path) -> Result<()> {
    output.heading("Building");
    let built = cargo::build_programs(output).await?;
    let assets = programs::control_plane(output).await?;
    output.heading("Starting");
    let environment = Environment::start(output, assets, &built, dashboard::LIFETIME).await?;
    dashboard::record(output, &environment, file).await?;
    output.heading("Stopping");
    environment.stop(output).await
}

/// Runs the demo; with `keep` until it is interrupted. Writes a picture of it where `picture` names a file.
///
/// # Errors
/// When a check of the demo fails. Everything that was started is stopped.
pub(crate) async fn run(output: &Output, keep: bool, picture: Option<&Path>) -> Result<()> {
    output.heading("Building");
    let built = cargo::build_programs(output).await?;
    let assets = programs::control_plane(output).await?;

    output.heading("Starting");
    let environment = Environment::start(output, assets, &built, LIFETIME).await?;
    if let Err(error) = show(output, &environment, keep).await {
        bail!(
            "{error:#}\nthe operator's log ends with:\n{}",
            environment.operator_log_tail()
        );
    }

    if let Some(file) = picture {
        let svg = picture::draw(&output.lines());
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    }
    output.heading("Stopping");
    environment.stop(output).await?;
    output.heading("Done");
    output.table();
    Ok(())
}

async fn show(output: &Output, environment: &Environment, keep: bool) -> Result<()> {
    output.heading("A request without a grant");
    ask(output, environment).await?;
    output.heading("The same request, granted");
    grant(output, environment).await?;
    output.heading("The token");
    let first = check(output, environment).await?;
    output.heading("Its renewal");
    renewal(output, environment, &first).await?;
    if keep {
        output.heading("Everything stays up until Ctrl-C");
        environment.print_how_to_use(output);
        std::future::pending::<()>().await;
    }
    Ok(())
}

async fn ask(output: &Output, environment: &Environment) -> Result<()> {
    let step = output.begin("an IdTokenRequest without a grant");
    environment
        .show(output, "apply -f examples/demo/namespace.yaml")
        .await?;
    environment
        .show(output, "apply -f examples/demo/idtokenrequest.yaml")
        .await?;
    let message = until(
        "the request is not Ready, with the reason NotGranted",
        LIMIT,
        async || {
            let ready = environment.ready_condition().await?;
            let message = ready["message"].as_str().unwrap_or_default();
            Ok((ready["reason"] == "NotGranted").then(|| message.to_owned()))
        },
    )
    .await?;
    let secrets = environment
        .kubectl(&format!("get secrets -n {NAMESPACE} -o name"))
        .await?;
    if !secrets.trim().is_empty() {
        bail!("there should be no Secret without a grant, but there is: {secrets}");
    }
    step.done("the operator issues no token: the reason is NotGranted, the message says what to do");
    environment.show(output, "get idtr -n shop").await?;
    output.quote(&message);
    Ok(())
}

async fn grant(output: &Output, environment: &Environment) -> Result<()> {
    let step = output.begin("an IdTokenGrant");
    let grant = environment.show(output, "idtoken grant billing -n shop").await?;
    environment.apply(&grant).await?;
    until("the request is Ready", LIMIT, async || {
        Ok((environment.ready_condition().await?["status"] == "True").then_some(()))
    })
    .await?;
    step.done("that grant is applied; the request is Ready");
    environment.show(output, "get idtr -n shop").await?;
    Ok(())
}

async fn check(output: &Output, environment: &Environment) -> Result<Token> {
    let step = output.begin("the Secret");
    let secret = environment.secret().await?;
    let token = Token::from_secret(&secret)?;
    step.done("the Secret holds the token, and the header that contains it");
    environment
        .show(output, "describe secret billing -n shop")
        .await?;

    let step = output.begin("its signature");
    let kid = token.verify(&environment.emulator_url).await?;
    step.done(&format!(
        "its signature is good by key {} of the published keys",
        short(&kid)
    ));
    output.quote(&serde_json::to_string_pretty(token.claims())?);
    Ok(token)
}

async fn renewal(output: &Output, environment: &Environment, first: &Token) -> Result<()> {
    let step = output.begin("the next token");
    let due = environment.renewal_time().await?;
    let limit = LIFETIME + LIMIT;
    output.line(&format!(
        "  half of its {} s, less a jitter: due at {}",
        LIFETIME.as_secs(),
        due.round(jiff::Unit::Second)?
    ));
    let second = until("the Secret holds a newer token", limit, async || {
        let token = Token::from_secret(&environment.secret().await?)?;
        let left = due.duration_since(jiff::Timestamp::now()).as_secs();
        let until = first.expires() - jiff::Timestamp::now().as_second();
        step.progress(&match left {
            1.. => format!("the token is renewed in {left} s; it expires in {until} s"),
            _ => "the token is renewed about now".to_owned(),
        });
        Ok((token.issued() > first.issued() && !token.is_same(first)).then_some(token))
    })
    .await?;
    second.verify(&environment.emulator_url).await?;
    let left = first.expires() - second.issued();
    if left <= 0 {
        bail!("the token was renewed {} s after it had expired", -left);
    }
    step.done(&format!(
        "renewed {} s after the first was issued, {left} s before that expires",
        second.issued() - first.issued()
    ));
    environment.show(output, "get idtr -n shop").await?;

    let step = output.begin("the logs");
    if let Some(program) = environment.leaks_in_logs(&[first, &second]) {
        bail!("the log of {program} holds a token");
    }
    step.done("no log holds a token");
    Ok(())
}

fn short(kid: &str) -> String {
    kid.chars().take(8).collect()
}
