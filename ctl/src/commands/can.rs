//! `can`: which grant allows a token, or why none does.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{ArgGroup, Args};
use idtoken_operator::api::v1alpha1::GrantRef;
use idtoken_operator::google::shell::quote;
use idtoken_operator::grants::store as grants;
use idtoken_operator::request::TokenSpec;
use serde::Serialize;

use crate::args::{ClusterArgs, OutputFormat};
use crate::decisions::near_misses::{self, Labels, Mismatch, Miss, Verdict};
use crate::decisions::requested_token::{needs_no_grant, token_spec};
use crate::kubernetes::client::Cluster;
use crate::output::{self, shown};
use crate::token_args::TokenArgs;

/// How many of the nearest entries are shown to people.
const SHOWN: usize = 5;

/// Flags of `can`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["name", "audience"]).required(true))]
pub(crate) struct CanArgs {
    /// Name of the IdTokenRequest; or else name a token by --service-account and --audience
    #[arg(conflicts_with_all = ["service_account", "audience", "delegates"])]
    name: Option<String>,

    #[command(flatten)]
    token: TokenArgs,

    /// File of the operator's --grants-file, to be considered too
    #[arg(
        long,
        value_name = "FILE",
        env = "IDTOKEN_GRANTS_FILE",
        help_heading = "Grants"
    )]
    grants_file: Option<PathBuf>,

    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t, help_heading = "Output")]
    output: OutputFormat,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The answer as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    allowed: bool,
    namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audience: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    delegates: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<&'a GrantRef>,
    #[serde(skip_serializing_if = "<[Miss]>::is_empty")]
    misses: &'a [Miss],
}

/// Answers.
///
/// # Errors
/// The caller may not list grants, or not know what decides.
pub(crate) async fn run(args: CanArgs) -> Result<ExitCode> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let token = match &args.name {
        None => args.token.token(true, false)?,
        Some(name) => {
            let request = cluster.request(name).await?;
            if needs_no_grant(&request) {
                return federated(&args, &cluster);
            }
            token_spec(&request)?
        }
    };
    let mut all = match &args.grants_file {
        Some(path) => grants::read_file(path)
            .with_context(|| format!("the grants file {} cannot be used", path.display()))?,
        None => Vec::new(),
    };
    all.extend(cluster.grants().await?);
    let (labels, unread) = match cluster.namespace_labels().await {
        Ok(labels) => (Some(labels), None),
        Err(error) => (Labels::None, Some(error)),
    };
    match near_misses::decide(&all, &cluster.namespace, &labels, &token) {
        Verdict::Allowed(grant) => {
            answer(&args, &cluster, &token, Some(&grant), &[])?;
            Ok(ExitCode::SUCCESS)
        }
        Verdict::Denied(misses) => {
            answer(&args, &cluster, &token, None, &misses)?;
            Ok(ExitCode::FAILURE)
        }
        Verdict::Unknown(names) => {
            let message = format!(
                "IdTokenGrant {} may allow it by labels of namespace {}, which cannot be read",
                names.join(", "),
                quote(&cluster.namespace)
            );
            Err(match unread {
                Some(error) => anyhow::Error::from(error).context(message),
                None => anyhow::anyhow!(message),
            })
        }
    }
}

fn federated(args: &CanArgs, cluster: &Cluster) -> Result<ExitCode> {
    match args.output {
        OutputFormat::Text => {
            output::print(
                "yes: the source federation needs no grant; Google's IAM decides on its Kubernetes ServiceAccount\n",
            )?;
        }
        OutputFormat::Json => output::json(&Answer {
            allowed: true,
            namespace: &cluster.namespace,
            service_account: None,
            audience: None,
            delegates: &[],
            grant: None,
            misses: &[],
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(
    args: &CanArgs,
    cluster: &Cluster,
    token: &TokenSpec,
    grant: Option<&GrantRef>,
    misses: &[Miss],
) -> Result<()> {
    if args.output == OutputFormat::Json {
        return output::json(&Answer {
            allowed: grant.is_some(),
            namespace: &cluster.namespace,
            service_account: token.service_account.as_deref(),
            audience: Some(&token.audience),
            delegates: token.source.delegates(),
            grant,
            misses,
        });
    }
    let chain = match token.source.delegates() {
        [] => String::new(),
        chain => format!(" by way of {}", chain.join(", ")),
    };
    let what = format!(
        "namespace {} to get a token of {} for audience {}{chain}",
        cluster.namespace,
        token.service_account.as_deref().unwrap_or("that of the source"),
        token.audience
    );
    let text = match grant {
        Some(grant) => format!(
            "yes: IdTokenGrant {} allows {}\n",
            shown(&grant.name),
            shown(&what)
        ),
        None => format!(
            "no: no IdTokenGrant allows {}\n{}{}",
            shown(&what),
            nearest(misses),
            advice(args, cluster)
        ),
    };
    output::print(text)
}

fn nearest(misses: &[Miss]) -> String {
    if misses.is_empty() {
        return "There are no grants.\n".to_owned();
    }
    let near: Vec<&Miss> = misses.iter().filter(|miss| miss.is_near()).collect();
    if near.is_empty() {
        return "No grant names the namespace, the account or the audience.\n".to_owned();
    }
    let mut text = "The nearest:\n".to_owned();
    for miss in near.iter().take(SHOWN) {
        text.push_str(&format!("  {}\n", shown(&miss.grant)));
        for Mismatch { field, asked, has } in &miss.mismatches {
            let has = if has.is_empty() {
                "nothing".to_owned()
            } else {
                has.join(", ")
            };
            text.push_str(&format!(
                "    spec.{field} does not have {}: it has {}\n",
                shown(asked),
                shown(&has)
            ));
        }
    }
    if near.len() > SHOWN {
        text.push_str(&format!(
            "  and {} that are further away (-o json shows all)\n",
            near.len() - SHOWN
        ));
    }
    text
}

fn advice(args: &CanArgs, cluster: &Cluster) -> String {
    let file = match &args.grants_file {
        Some(_) => String::new(),
        None => {
            "Grants that the operator has from a file are not seen here; name the file by --grants-file.\n"
                .to_owned()
        }
    };
    let next = match &args.name {
        Some(name) => format!(
            "The grant that would allow it: kubectl idtoken grant {} -n {}\n",
            quote(name),
            quote(&cluster.namespace)
        ),
        None => "Once there is an IdTokenRequest for it, kubectl idtoken grant NAME prints the grant that would allow it.\n".to_owned(),
    };
    file + &next
}
