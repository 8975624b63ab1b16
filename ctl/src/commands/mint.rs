//! `mint`: one token by the operator's code, with the caller's own Google credentials.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{ArgGroup, Args};
use idtoken_operator::cli::GoogleArgs;
use idtoken_operator::google::{Caller, GoogleConfig, Impersonation, Minter};
use idtoken_operator::token::{Account, Expected};
use jiff::Timestamp;

use crate::output;
use crate::output::age::span;
use crate::token_args::TokenArgs;

/// What Google's audit log shows as the reason of the call.
const REQUEST_REASON: &str = "kubectl-idtoken/mint";

/// Flags of `mint`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["audience"]).required(true))]
pub(crate) struct MintArgs {
    #[command(flatten)]
    token: TokenArgs,

    /// Leave the claims email and email_verified out; Identity-Aware Proxy refuses such a token
    #[arg(long, help_heading = "Token")]
    no_email: bool,

    /// Ask for the claim google.organization_number
    #[arg(long, help_heading = "Token")]
    organization_number: bool,

    /// Print the claims as JSON and never the token
    #[arg(long, help_heading = "Output")]
    claims: bool,

    #[command(flatten)]
    google: GoogleArgs,
}

/// Mints and prints.
///
/// # Errors
/// A wrong flag, what Google refused, or a token that is not the one asked for.
pub(crate) async fn run(args: MintArgs) -> Result<ExitCode> {
    let wanted = args.token.token(!args.no_email, args.organization_number)?;
    let service_account = wanted
        .service_account
        .as_deref()
        .context("--service-account is required")?;
    let minter = Minter::new(GoogleConfig::from(args.google))?;
    let token = minter
        .impersonate(&Impersonation {
            service_account,
            audience: &wanted.audience,
            include_email: wanted.include_email,
            include_organization_number: wanted.include_organization_number,
            delegates: wanted.source.delegates(),
            request_reason: REQUEST_REASON,
            caller: Caller::OPERATOR,
        })
        .await
        .context(
            "no token was minted (\"the operator\" below is you, by your Application Default Credentials)",
        )?;
    let now = Timestamp::now();
    let expected = Expected {
        audience: &wanted.audience,
        account: Some(Account::from_name(service_account)),
        include_email: wanted.include_email,
        subject: None,
    };
    token
        .verify(&expected, now)
        .context("Google's answer was refused and is not shown")?;
    if let Some(skew) = token.clock_skew(now) {
        output::note(format_args!(
            "this machine's clock differs from Google's by {}",
            span(skew)
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
