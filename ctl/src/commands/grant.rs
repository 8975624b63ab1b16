//! `grant`: prints the IdTokenGrant that allows a request and nothing else.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use idtoken_operator::request::TokenSpec;
use idtoken_operator::shell::quote;

use crate::args::{ClusterArgs, ReleaseArgs};
use crate::decisions::grant_manifest;
use crate::decisions::grant_sets::{self, Decision, GrantSet, Origin};
use crate::decisions::requested_token::{needs_no_grant, token_spec, with_resolved_account};
use crate::kubernetes::client::{KubeClient, with_notices};
use crate::output;

/// Flags of `grant`.
#[derive(Debug, Args)]
pub(crate) struct GrantArgs {
    /// Name of the IdTokenRequest
    name: String,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, help_heading = "Output")]
    output: GrantFormat,

    #[command(flatten)]
    release: ReleaseArgs,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The output format of a manifest.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum GrantFormat {
    /// YAML
    #[default]
    Yaml,
    /// JSON
    Json,
}

/// Reads the request, and prints the grant on standard output and whether it is needed on standard error.
///
/// # Errors
/// The request cannot be read, is invalid, needs no grant, or no grant can allow it alone.
pub(crate) async fn run(args: GrantArgs) -> Result<ExitCode> {
    let client = KubeClient::connect(&args.cluster)?;
    let request = client.request(&args.name).await?;
    if needs_no_grant(&request) {
        bail!(
            "IdTokenRequest {} needs no grant: with source.federation, Google's IAM decides by the Kubernetes ServiceAccount",
            quote(&args.name)
        );
    }
    let token = with_resolved_account(token_spec(&request)?, &request)?;
    let grant = grant_manifest::grant(&client.namespace, &args.name, &token)?;
    output::notice(current_authorization(&client, &args.release, &token).await);
    match args.output {
        GrantFormat::Yaml => output::print(grant_manifest::yaml(&grant)?)?,
        GrantFormat::Json => output::json(&grant)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a grant already allows the token, as far as the caller may read.
async fn current_authorization(client: &KubeClient, release: &ReleaseArgs, token: &TokenSpec) -> String {
    let grants = match client.grants().await {
        Ok(grants) => grants.with_notices(),
        Err(error) => {
            return format!(
                "unknown whether a grant already allows it: {}",
                output::redacted(&error.to_string())
            );
        }
    };
    let mut sets = vec![GrantSet {
        origin: Origin::default(),
        grants,
    }];
    let found = client.release_grants(release.operator_namespace.as_deref()).await;
    sets.extend(with_notices(found));
    let labels = client.namespace_labels().await.ok();
    match grant_sets::decide(&sets, &client.namespace, &labels, token) {
        Decision::Allowed(grant, origin) => {
            format!(
                "{} already allows it",
                output::redacted(&origin.grant(&grant.name))
            )
        }
        Decision::Denied(_) => "no IdTokenGrant allows it yet".to_owned(),
        Decision::Unknown(names) => format!(
            "IdTokenGrant {} may already allow it, depending on labels of the namespace, which could not be read",
            output::redacted(&names.join(", "))
        ),
    }
}
