//! The emulator as a program: reads a policy, listens, prints its URL, and runs until SIGTERM or SIGINT.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use idtoken_emulator::{EmulatorHandle, Options, Policy};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Google's token endpoints, emulated: for tests, demos and CI. Prints its URL on standard output when ready.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// YAML file of service accounts, who may use them, and identity providers.
    #[arg(long, env = "IDTOKEN_EMULATOR_POLICY", value_name = "FILE")]
    policy: PathBuf,
    /// Address to listen on; port 0 means any free port. Anyone who reaches it can control the emulator.
    #[arg(
        long,
        env = "IDTOKEN_EMULATOR_LISTEN",
        default_value = "127.0.0.1:0",
        value_name = "ADDRESS"
    )]
    listen: SocketAddr,
    /// Base URL for clients, if it differs from the listener's address.
    #[arg(long, env = "IDTOKEN_EMULATOR_URL", value_name = "URL")]
    url: Option<String>,
    /// Lifetime of ID tokens.
    #[arg(long, env = "IDTOKEN_EMULATOR_LIFETIME", default_value = "1h", value_parser = duration, value_name = "DURATION")]
    lifetime: Duration,
    /// Lifetime of access tokens.
    #[arg(long, env = "IDTOKEN_EMULATOR_ACCESS_TOKEN_LIFETIME", default_value = "1h", value_parser = duration, value_name = "DURATION")]
    access_token_lifetime: Duration,
    /// How long before its expiration the metadata server stops returning a cached identity token.
    #[arg(long, env = "IDTOKEN_EMULATOR_METADATA_MARGIN", default_value = "5m", value_parser = duration, value_name = "DURATION")]
    metadata_margin: Duration,
    /// PEM file of the RSA private key that signs ID tokens. Without it, a new key is generated.
    #[arg(long, env = "IDTOKEN_EMULATOR_SIGNING_KEY", value_name = "FILE")]
    signing_key: Option<PathBuf>,
    /// Address of an HTTP proxy that responds as Google's hosts, for clients whose endpoints are fixed.
    #[arg(
        long,
        env = "IDTOKEN_EMULATOR_PROXY",
        value_name = "ADDRESS",
        requires = "proxy_ca"
    )]
    proxy: Option<SocketAddr>,
    /// File to write the proxy's CA certificate to (PEM), for the clients to trust.
    #[arg(
        long,
        env = "IDTOKEN_EMULATOR_PROXY_CA",
        value_name = "FILE",
        requires = "proxy"
    )]
    proxy_ca: Option<PathBuf>,
    /// What to log on standard error, for example `info` or `idtoken_emulator=debug`.
    #[arg(
        long,
        env = "IDTOKEN_EMULATOR_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    log: String,
}

/// Parses a duration such as `20s`, `5m` or `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration = text
        .parse()
        .map_err(|error| format!("{error}; write it like 20s, 5m or 1h"))?;
    Duration::try_from(signed).map_err(|_| "a duration cannot be negative".into())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_new(&arguments.log).with_context(|| format!("--log {}", arguments.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();

    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let policy = Policy::from_file(&arguments.policy)?;
    let signing_key_pem = arguments
        .signing_key
        .map(|path| {
            std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read the signing key {}", path.display()))
        })
        .transpose()?;
    let options = Options {
        listen: arguments.listen,
        url: arguments.url,
        lifetime: arguments.lifetime,
        access_token_lifetime: arguments.access_token_lifetime,
        metadata_margin: arguments.metadata_margin,
        signing_key_pem,
        proxy: arguments.proxy,
    };
    let emulator = EmulatorHandle::start(policy, options).await?;
    if let (Some(pem), Some(path)) = (emulator.proxy_ca_pem(), &arguments.proxy_ca) {
        std::fs::write(path, pem)
            .with_context(|| format!("cannot write the proxy's CA to {}", path.display()))?;
    }
    if let Some(url) = emulator.proxy_url() {
        tracing::info!(url, "proxy");
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", emulator.url())
        .and_then(|()| stdout.flush())
        .context("cannot print the URL")?;

    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
    }
    emulator.stop().await;
    Ok(())
}
