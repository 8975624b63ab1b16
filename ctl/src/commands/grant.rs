//! `grant`: the IdTokenGrant that would allow a request.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use idtoken_operator::google::shell::quote;
use idtoken_operator::request::TokenSpec;

use crate::args::ClusterArgs;
use crate::decisions::grant_manifest;
use crate::decisions::near_misses::{self, Verdict};
use crate::decisions::requested_token::{needs_no_grant, token_spec, with_resolved_account};
use crate::kubernetes::client::Cluster;
use crate::output;

/// Flags of `grant`.
#[derive(Debug, Args)]
pub(crate) struct GrantArgs {
    /// Name of the IdTokenRequest
    name: String,

    /// Form of the grant
    #[arg(short, long, value_enum, default_value_t, help_heading = "Output")]
    output: GrantFormat,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// How the grant is printed.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum GrantFormat {
    /// YAML, as people write it.
    #[default]
    Yaml,
    /// JSON.
    Json,
}

/// Reads the request and prints the grant.
///
/// # Errors
/// The request cannot be read, is invalid, needs no grant, or can be allowed by none.
pub(crate) async fn run(args: GrantArgs) -> Result<ExitCode> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let request = cluster.request(&args.name).await?;
    if needs_no_grant(&request) {
        bail!(
            "IdTokenRequest {} has the source federation, which needs no grant: Google's IAM decides on its Kubernetes \
             ServiceAccount",
            quote(&args.name)
        );
    }
    let token = with_resolved_account(token_spec(&request)?, &request)?;
    let grant = grant_manifest::grant(&cluster.namespace, &args.name, &token)?;
    output::note(standing(&cluster, &token).await);
    match args.output {
        GrantFormat::Yaml => output::print(grant_manifest::yaml(&grant)?)?,
        GrantFormat::Json => output::json(&grant)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a grant allows it already, as far as the caller may know.
async fn standing(cluster: &Cluster, token: &TokenSpec) -> String {
    let grants = match cluster.grants().await {
        Ok(grants) => grants,
        Err(error) => {
            return format!(
                "whether a grant allows it already is not known: {}",
                output::shown(&error.to_string())
            );
        }
    };
    let labels = cluster.namespace_labels().await.ok();
    match near_misses::decide(&grants, &cluster.namespace, &labels, token) {
        Verdict::Allowed(grant) => format!("IdTokenGrant {} allows it already", output::shown(&grant.name)),
        Verdict::Denied(_) => "no IdTokenGrant allows it yet".to_owned(),
        Verdict::Unknown(names) => format!(
            "IdTokenGrant {} may allow it already, by labels of the namespace that you may not read",
            output::shown(&names.join(", "))
        ),
    }
}
