//! `mint`: mints one token with the operator's code and the caller's own Google credentials.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{ArgGroup, Args};
use idtoken_operator::google::args::GoogleArgs;
use idtoken_operator::google::{CallPriority, GoogleConfig, Impersonation, Minter};
use idtoken_operator::token::{Account, Expected};
use jiff::Timestamp;

use crate::output;
use crate::output::age::age;
use crate::token_args::TokenArgs;

/// The reason of the call in Google's audit log.
const REQUEST_REASON: &str = "kubectl-idtoken/mint";

/// Flags of `mint`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["audience"]).required(true))]
pub(crate) struct MintArgs {
    #[command(flatten)]
    token: TokenArgs,

    /// Leave out the claims email and email_verified; Identity-Aware Proxy rejects such a token
    #[arg(long, help_heading = "Token")]
    no_email: bool,

    /// Request the claim google.organization_number
    #[arg(long, help_heading = "Token")]
    organization_number: bool,

    /// Print the claims as JSON instead of the token
    #[arg(long, help_heading = "Output")]
    claims: bool,

    #[command(flatten)]
    google: GoogleArgs,
}

/// Mints a token, checks it and prints it or its claims.
///
/// # Errors
/// An invalid flag, an error of Google, or a token that is not the requested one.
pub(crate) async fn run(args: MintArgs) -> Result<ExitCode> {
    let spec = args.token.token(!args.no_email, args.organization_number)?;
    let service_account = spec
        .service_account
        .as_deref()
        .context("--service-account is required")?;
    if let Some(deprecation) = args.google.deprecation() {
        output::notice(deprecation);
    }
    let minter = Minter::new(GoogleConfig::from(args.google))?;
    let token = minter
        .impersonate(&Impersonation {
            service_account,
            audience: &spec.audience,
            include_email: spec.include_email,
            include_organization_number: spec.include_organization_number,
            delegates: spec.source.delegates(),
            request_reason: REQUEST_REASON,
            priority: CallPriority::OPERATOR,
        })
        .await
        .context(
            "no token was minted (below, \"the operator\" stands for your Application Default Credentials)",
        )?;
    let now = Timestamp::now();
    let expected = Expected {
        audience: &spec.audience,
        account: Some(Account::from_name(service_account)),
        include_email: spec.include_email,
        subject: None,
    };
    token
        .verify(&expected, now)
        .context("Google returned a token that is not the requested one; it is not shown")?;
    if let Some(skew) = token.clock_skew(now) {
        output::notice(format_args!(
            "the clock of this machine differs from Google's by {}",
            age(skew)
        ));
    }
    if args.claims {
        output::json(&token.all_claims().context("the token's claims cannot be read")?)?;
    } else {
        let newline = if std::io::stdout().is_terminal() { "\n" } else { "" };
        output::print(format_args!("{}{newline}", token.expose()))?;
    }
    Ok(ExitCode::SUCCESS)
}
