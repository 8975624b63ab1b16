//! The suite on Google itself, beside the emulator: creates what assertions are about, waits until Google knows it everywhere, asks, compares,
//! and deletes what it created, whatever happens.
//!
//! `resources` creates and deletes, `api` calls, `credential` is whose calls they are, `report` is what was found.

mod api;
mod credential;
mod report;
mod resources;

use std::io::Write;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use idtoken_emulator::{Jwks, SigningKey};
use idtoken_operator::random::Random;
use idtoken_operator::text::hex;
use serde_json::{Value, json};
use tokio::sync::watch;

pub use self::credential::Credential;
pub(crate) use self::report::left;
pub use self::report::{Report, Row, write_pages};

use self::api::{Api, pauses};
use self::resources::Created;
use crate::assertion::{Assertion, Service, all};
use crate::emulated::Emulated;
use crate::engine;
use crate::hosts::{APIS, METADATA_SERVER};
use crate::normal;
use crate::world::{Endpoints, ISSUER, Signer, World};

/// Assertions that hold as soon as Google knows all bindings and providers.
const READY: [&str; 4] = [
    "id-token",
    "access-token",
    "id-token-by-delegation",
    "id-token-for-federated-identity",
];
/// How long that may take: seven minutes, as Google says, and a few more.
const READY_LIMIT: Duration = Duration::from_secs(600);
/// How long an answer with another status is asked for again, since a part of Google may not know something yet; and how long all are.
const AGAIN_LIMIT: Duration = Duration::from_secs(60);
const AGAIN_LIMIT_OF_ALL: Duration = Duration::from_secs(300);

/// Waits as long as it is told.
pub type Pause = dyn Fn(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// What a run needs of the world outside.
pub struct Outside {
    /// Where Google is.
    pub(crate) endpoints: Endpoints,
    /// Whose calls they are.
    pub credential: Credential,
    /// Shows a line of progress.
    pub say: Box<dyn Fn(&str) + Send + Sync>,
    /// Waits.
    pub pause: Box<Pause>,
    /// How often somebody wanted it to end. The first time ends what is done, and then what was created is deleted. The first time while it
    /// deletes, it says what is left; the second time, it ends.
    pub interrupts: watch::Receiver<u32>,
}

impl Outside {
    /// Google, with the credentials of the environment and without its metadata server.
    #[must_use]
    pub fn new(interrupts: watch::Receiver<u32>) -> Self {
        Self {
            endpoints: Endpoints {
                base: APIS.to_owned(),
                metadata: None,
            },
            credential: Credential::find(),
            // A terminal that was closed is no reason to leave something behind.
            say: Box::new(|line| drop(writeln!(std::io::stderr(), "{line}"))),
            pause: Box::new(|pause| Box::pin(tokio::time::sleep(pause))),
            interrupts,
        }
    }

    /// Asks the metadata server too, as an instance reaches it.
    pub fn ask_metadata_server(&mut self) {
        self.endpoints.metadata = Some(METADATA_SERVER.to_owned());
    }

    /// Calls servers at `base` instead, in which `{service}` stands for the service, and this metadata server.
    pub fn go_to(&mut self, base: &str, metadata: Option<&str>) {
        self.endpoints = Endpoints {
            base: base.to_owned(),
            metadata: metadata.map(str::to_owned),
        };
    }
}

/// Runs the assertions in a project. Without `member` it asks Google who runs it.
///
/// # Errors
/// When something cannot be created, is not known to Google in time, or there is an interrupt. The message also says what is left.
pub async fn run(
    outside: &Outside,
    project: &str,
    member: Option<&str>,
    assertions: &[Assertion],
) -> Result<Report> {
    let api = Api::new(outside, project).await?;
    let member = match member {
        Some(member) => member.to_owned(),
        None => credential::member(&api).await?,
    };
    let mut made = Vec::new();
    let result = set_up_and_ask(&api, &member, assertions, &mut made).await;
    if let Err(error) = &result {
        api.say(&format!("{error:#}; deleting what was created"));
    }
    let remaining = resources::tear_down(&api.to_delete().await, made).await;
    match result {
        Ok(report) => Ok(Report {
            left: remaining,
            ..report
        }),
        Err(error) if remaining.is_empty() => Err(error),
        Err(error) => bail!("{error:#}\n{}", left(project, &remaining)),
    }
}

/// Deletes what interrupted runs have left in a project, by the names that only runs give.
///
/// # Errors
/// When it cannot be listed, or something cannot be deleted.
pub async fn clean_up(outside: &Outside, project: &str) -> Result<()> {
    let api = Api::new(outside, project).await?;
    let found = resources::left_behind(&api).await?;
    api.say(&format!("{} to delete", found.len()));
    let remaining = resources::tear_down(&api.to_delete().await, found).await;
    ensure!(remaining.is_empty(), left(project, &remaining));
    Ok(())
}

async fn set_up_and_ask(
    api: &Api<'_>,
    member: &str,
    assertions: &[Assertion],
    made: &mut Vec<resources::Made>,
) -> Result<Report> {
    let issuer = SigningKey::generate()?;
    let jwks = serde_json::to_string(&Jwks {
        keys: vec![issuer.jwk()],
    })?;
    let mut suffix = [0; 4];
    Random::system().fill(&mut suffix)?;
    let created = resources::create(api, member, &hex(&suffix), &jwks, made).await?;
    let asked = async {
        let world = world(api, &created, issuer).await?;
        ready(api, &world, member).await?;
        compare(api, &world, assertions).await
    };
    // Nothing is created from here on, so this can stop anywhere.
    tokio::select! {
        biased;
        error = api.interrupted() => Err(error),
        result = asked => result,
    }
}

async fn world(api: &Api<'_>, created: &Created, issuer: SigningKey) -> Result<World> {
    let endpoints = api.outside.endpoints.clone();
    let has_metadata = endpoints.metadata.is_some();
    let mut world = World::new(
        endpoints,
        api.http.clone(),
        Signer::Google,
        api.token.clone(),
        issuer,
    )
    .await?;
    for (name, email, unique_id) in &created.accounts {
        world.name_account(name, email, unique_id);
    }
    let number = created.pool.split('/').nth(1).unwrap_or_default();
    ensure!(
        number.parse::<u64>().is_ok(),
        "{} has no number of the project",
        created.pool
    );
    let provider = |name: &str| format!("//iam.googleapis.com/{}/providers/{name}", created.pool);
    for (name, value) in [
        ("nobody", created.nobody.clone()),
        ("project", api.project.clone()),
        ("projectNumber", number.to_owned()),
        ("provider", provider("main")),
        ("unreachable", provider("unreachable")),
        ("issuer", ISSUER.to_owned()),
    ] {
        world.name(name, value);
    }
    if has_metadata {
        let path = "/computeMetadata/v1/instance/service-accounts/default/email";
        let email = world.get(Service::Metadata, path).await?;
        world.name_account("attached", &email, &resources::unique_id(api, &email).await?);
    }
    Ok(world)
}

/// Waits until Google knows everywhere what was created.
async fn ready(api: &Api<'_>, world: &World, member: &str) -> Result<()> {
    let mut pauses = pauses(READY_LIMIT);
    for assertion in all()?.iter().filter(|one| READY.contains(&one.name.as_str())) {
        loop {
            let why = match engine::ask(world, assertion).await {
                Ok(answer) if answer["status"] == assertion.answer.status => break,
                Ok(answer) => format!("it answers {}", answer["status"]),
                Err(error) => api.shown(&format!("{error:#}")),
            };
            let why = format!(
                "Google does not know all bindings yet ({}: {why})",
                assertion.name
            );
            let Some(pause) = pauses.next() else {
                bail!(
                    "{why}, after {} s. Is the access token one of {member}?",
                    READY_LIMIT.as_secs()
                );
            };
            api.pause(&why, pause).await?;
            world.forget_tokens();
        }
    }
    Ok(())
}

/// Asks Google and the emulator.
async fn compare(api: &Api<'_>, world: &World, assertions: &[Assertion]) -> Result<Report> {
    let emulated = Emulated::start().await?;
    let mut report = Report::new(world).await;
    let mut left = AGAIN_LIMIT_OF_ALL;
    for assertion in assertions.iter().filter(|one| one.why_only_emulated().is_none()) {
        if assertion.service() == Service::Metadata && api.outside.endpoints.metadata.is_none() {
            report.without_metadata += 1;
            continue;
        }
        let wanted = emulated.check(assertion).await?.answer;
        let mut pauses = pauses(AGAIN_LIMIT);
        let found = loop {
            let found = match engine::ask(world, assertion).await {
                Ok(answer) => answer,
                Err(error) => json!({"status": api.shown(&format!("{error:#}"))}),
            };
            if found["status"] == wanted["status"] {
                break found;
            }
            let Some(pause) = pauses.next().filter(|pause| *pause <= left) else {
                break found;
            };
            left -= pause;
            api.pause(&format!("{}: another status", assertion.name), pause)
                .await?;
            world.forget_tokens();
        };
        report.rows.push(row(assertion, &wanted, &found));
    }
    Ok(report)
}

fn row(assertion: &Assertion, emulated: &Value, google: &Value) -> Row {
    let of = |answer| engine::common(assertion, answer);
    Row {
        name: assertion.name.clone(),
        holds: engine::failures(assertion, google).is_empty(),
        fields: normal::differences(&of(emulated), &of(google)),
    }
}
