//! `try`: calls the target with the token of a request's Secret, and says what its answer means.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::request::target_name;
use idtoken_operator::shell::quote;
use idtoken_operator::text::error_chain;
use idtoken_operator::token::IdToken;
use jiff::Timestamp;
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Client, Method, redirect};
use serde_json::{Value, json};
use tokio::time::sleep;
use url::Url;

use crate::args::{ClusterArgs, OutputFormat, header, header_name, method, positive_duration};
use crate::decisions::answer::{self, Answer, MAX_BODY, Recognized};
use crate::decisions::destination::{authority, destination, is_loopback};
use crate::decisions::diagnosis::{TokenState, token_key, token_state};
use crate::decisions::target_command::{self, Call};
use crate::decisions::target_rows::PageRow;
use crate::decisions::try_pod::{self, PodCall, PodProgress};
use crate::kubernetes::client::KubeClient;
use crate::output::age::relative;
use crate::output::table;
use crate::output::{self, printable, redacted};

/// Why a token is not sent where one of the spec's audience may be.
const ANOTHER_AUDIENCE: &str = "the Secret's token is not of the spec's audience";

/// Time between two reads of the pod.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Flags of `try`.
#[derive(Debug, Args)]
pub(crate) struct TryArgs {
    /// Name of the IdTokenRequest
    name: String,

    /// URL to call [default: the audience]
    url: Option<String>,

    /// Method of the call; the body is empty
    #[arg(long, value_name = "METHOD", default_value = "GET", value_parser = method, help_heading = "Call")]
    method: Method,

    /// Further header, visible in the pod's spec with --from-pod; repeat for each
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header, help_heading = "Call")]
    headers: Vec<(HeaderName, HeaderValue)>,

    /// Header that has the token after "Bearer ", such as X-Serverless-Authorization or Proxy-Authorization
    #[arg(long, value_name = "NAME", default_value = "Authorization", value_parser = header_name, help_heading = "Call")]
    authorization_header: String,

    /// Send the token to another host than the audience's, which can then use it there
    #[arg(long, help_heading = "Call")]
    any_host: bool,

    /// Longest time for the call, such as 30s or 2m
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = positive_duration, help_heading = "Call")]
    timeout: Duration,

    /// Call from a pod of this image, which needs sh and curl, in the request's namespace. The pod mounts the Secret, passes the Pod
    /// Security Standard restricted, and is deleted at the end
    #[arg(long, value_name = "IMAGE", help_heading = "Call")]
    from_pod: Option<String>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, help_heading = "Output")]
    output: OutputFormat,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// A call and its answer.
struct Report<'a> {
    object: &'a IdTokenRequest,
    url: &'a Url,
    audience: &'a str,
    account: Option<String>,
    token: Option<&'a IdToken>,
    answer: &'a Answer,
    recognized: Recognized,
    row: Option<PageRow>,
    command: Option<Result<String, &'static str>>,
    now: Timestamp,
}

/// Calls the target, and prints who answered and what to do. Exits with 1 unless the status is 2xx.
///
/// # Errors
/// The request or its token cannot be read, the token may not be sent there, or there is no answer.
pub(crate) async fn run(args: TryArgs) -> Result<ExitCode> {
    let client = KubeClient::connect(&args.cluster)?;
    let object = client.request(&args.name).await?;
    let secret = target_name(&object);
    let url = destination(args.url.as_deref(), &object.spec.audience, args.any_host)?;
    let (answer, token) = match &args.from_pod {
        Some(image) => {
            // The Secret cannot be read here; the status says whose its token is.
            let status = object.status.as_ref().and_then(|status| status.token.as_ref());
            if let Some(issued) = status.and_then(|token| token.audience.as_deref()) {
                destination(Some(url.as_str()), issued, args.any_host).context(ANOTHER_AUDIENCE)?;
            }
            let headers: Vec<String> = args.headers.iter().map(header_line).collect();
            let call = PodCall {
                image,
                secret: &secret,
                key: token_key(&object),
                url: url.as_str(),
                method: args.method.as_str(),
                authorization_header: &args.authorization_header,
                headers: &headers,
                timeout: args.timeout,
            };
            (call_from_pod(&client, &call).await?, None)
        }
        None => {
            let token = read_token(&client, &object, &secret).await?;
            // A Secret that is behind the spec has a token of another audience.
            destination(Some(url.as_str()), &token.claims().aud, args.any_host).context(ANOTHER_AUDIENCE)?;
            (call(&args, &url, &token).await?, Some(token))
        }
    };
    let report = Report::new(&object, &url, token.as_ref(), &answer, &args.authorization_header);
    match args.output {
        OutputFormat::Text => output::print(report.text())?,
        OutputFormat::Json => output::json(&report.json())?,
        OutputFormat::Yaml => output::yaml(&report.json())?,
    }
    Ok(output::exit_code(report.succeeded()))
}

async fn read_token(client: &KubeClient, object: &IdTokenRequest, secret: &str) -> Result<IdToken> {
    let explain = format!(
        "see: kubectl idtoken explain {} -n {}",
        quote(object.metadata.name.as_deref().unwrap_or_default()),
        quote(&client.namespace)
    );
    let secret_name = quote(secret);
    match token_state(&client.secret(secret).await?, token_key(object)) {
        TokenState::Token(token) => Ok(*token),
        TokenState::Unreadable(message) => bail!(
            "you may not read Secret {secret_name}: {message}; a pod can mount it if you may create pods: add --from-pod IMAGE"
        ),
        TokenState::NoSecret => bail!("there is no Secret {secret_name} yet; {explain}"),
        TokenState::NoKey => bail!(
            "Secret {secret_name} has no key {}; {explain}",
            quote(token_key(object))
        ),
        TokenState::NoToken(error) => bail!("Secret {secret_name} has no ID token: {error}; {explain}"),
    }
}

async fn call(args: &TryArgs, url: &Url, token: &IdToken) -> Result<Answer> {
    let loopback = is_loopback(url);
    let mut builder = Client::builder()
        .redirect(redirect::Policy::none())
        .timeout(args.timeout)
        .https_only(!loopback)
        .user_agent(concat!("kubectl-idtoken/", env!("CARGO_PKG_VERSION")));
    if loopback {
        // A proxy would read what is sent to this machine in the clear.
        builder = builder.no_proxy();
    }
    let client = builder.build().map_err(|error| no_answer(url, error))?;
    let mut credential = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
        .map_err(|_| anyhow!("the token has characters that no header can have"))?;
    credential.set_sensitive(true);
    let mut request = client.request(args.method.clone(), url.clone());
    for (name, value) in &args.headers {
        request = request.header(name, value);
    }
    let mut response = request
        .header(&args.authorization_header, credential)
        .send()
        .await
        .map_err(|error| no_answer(url, error))?;
    let headers = response
        .headers()
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())));
    let headers = headers.collect();
    let mut body = Vec::new();
    // A body that ends too soon is still an answer.
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() >= MAX_BODY {
            body.truncate(MAX_BODY);
            break;
        }
    }
    Ok(Answer {
        status: response.status().as_u16(),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

fn no_answer(url: &Url, error: reqwest::Error) -> anyhow::Error {
    let host = printable(&authority(url));
    let error = error.without_url();
    anyhow!(
        "{host} did not answer: {}; if only pods reach it, add --from-pod IMAGE",
        error_chain(&error)
    )
}

/// Creates the pod, waits for it and deletes it, also if this process is asked to end.
async fn call_from_pod(client: &KubeClient, call: &PodCall<'_>) -> Result<Answer> {
    // Before the pod exists: from here on, a signal does not end the process at once.
    let mut interruption = Interruption::new()?;
    let name = client.create_pod(&try_pod::pod(call)).await?;
    let outcome = tokio::select! {
        outcome = wait(client, &name, try_pod::START_LIMIT + call.timeout) => outcome,
        () = interruption.wait() => Err(anyhow!("interrupted")),
    };
    if let Err(error) = client.delete_pod(&name).await {
        output::notice(format_args!(
            "pod {} is left in namespace {}: {}",
            redacted(&name),
            redacted(&client.namespace),
            redacted(&error.to_string())
        ));
    }
    outcome
}

async fn wait(client: &KubeClient, name: &str, limit: Duration) -> Result<Answer> {
    let start = Instant::now();
    loop {
        match try_pod::progress(&client.pod(name).await?) {
            PodProgress::Done(answer) => return Ok(answer?),
            PodProgress::Pending(why) if start.elapsed() > limit => {
                bail!("the pod made no call within {} s: {why}", limit.as_secs())
            }
            PodProgress::Pending(_) => sleep(POLL_INTERVAL).await,
        }
    }
}

/// The signals that ask a process to end.
struct Interruption {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 3],
}

impl Interruption {
    #[cfg(unix)]
    fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ];
        Ok(Self { signals })
    }

    #[cfg(unix)]
    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn wait(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl<'a> Report<'a> {
    fn new(
        object: &'a IdTokenRequest,
        url: &'a Url,
        token: Option<&'a IdToken>,
        answer: &'a Answer,
        authorization_header: &str,
    ) -> Self {
        let spec = &object.spec;
        let status = object.status.as_ref().and_then(|status| status.token.as_ref());
        let audience = token.map_or(spec.audience.as_str(), |token| token.claims().aud.as_str());
        let account = token
            .and_then(|token| token.claims().email.clone())
            .or_else(|| status.and_then(|token| token.email.clone()))
            .or_else(|| {
                spec.service_account
                    .clone()
                    .filter(|account| account.contains('@'))
            });
        let recognized = answer::recognize(answer, answer::target_kind(url, audience));
        let call = Call {
            url,
            namespace: object.metadata.namespace.as_deref().unwrap_or_default(),
            name: object.metadata.name.as_deref().unwrap_or_default(),
            audience,
            account: account.as_deref(),
            expected_audience: answer::expected_audience(answer),
            authorization_header,
        };
        let command = recognized.row.map(|row| target_command::command(row, &call));
        Self {
            object,
            url,
            audience,
            token,
            answer,
            recognized,
            row: recognized.row.and_then(|row| row.on_page()),
            command,
            account,
            now: Timestamp::now(),
        }
    }

    fn succeeded(&self) -> bool {
        (200..300).contains(&self.answer.status)
    }

    fn text(&self) -> String {
        let Self { answer, row, .. } = self;
        let mut pairs = vec![
            ("Called", printable(&authority(self.url))),
            ("Answered by", self.recognized.by.text().to_owned()),
            ("Status", answer.status.to_string()),
            ("Audience", printable(self.audience)),
        ];
        if let Some(account) = &self.account {
            pairs.push(("Account", redacted(account)));
        }
        if let Some(token) = self.token {
            pairs.push(("Expires", relative(token.claims().exp, self.now)));
        }
        if let Some(row) = row {
            pairs.push(("Row", row.link()));
            pairs.push(("Answer", row.answer.clone()));
            pairs.push(("Cause", row.cause.clone()));
            pairs.push(("Fix", row.fix.clone()));
        } else if !self.succeeded() {
            pairs.push((
                "Row",
                "none in docs/targets.md: see the log of who answered".to_owned(),
            ));
        }
        match &self.command {
            Some(Ok(command)) => pairs.push(("Command", printable(command))),
            Some(Err(why)) => pairs.push(("Command", format!("none: {why}"))),
            None => {}
        }
        table::fields(&pairs, 0)
    }

    fn json(&self) -> Value {
        let meta = &self.object.metadata;
        json!({
            "namespace": meta.namespace,
            "name": meta.name,
            "host": authority(self.url),
            "answeredBy": self.recognized.by.name(),
            "status": self.answer.status,
            "succeeded": self.succeeded(),
            "audience": self.audience,
            "account": self.account,
            "expires": self.token.map(|token| token.claims().exp),
            "row": self.row.as_ref().map(|row| json!({
                "link": row.link(), "answer": row.answer, "cause": row.cause, "fix": row.fix,
            })),
            "command": self.command.as_ref().and_then(|command| command.as_ref().ok()),
            "noCommand": self.command.as_ref().and_then(|command| command.as_ref().err()),
        })
    }
}

fn header_line((name, value): &(HeaderName, HeaderValue)) -> String {
    format!("{name}: {}", value.to_str().unwrap_or_default())
}
