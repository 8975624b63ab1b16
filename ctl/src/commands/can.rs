//! `can`: says which grant allows a token, or why none does.

use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgGroup, Args};
use idtoken_operator::api::v1alpha1::GrantRef;
use idtoken_operator::request::TokenSpec;
use idtoken_operator::shell::quote;
use serde::Serialize;

use crate::args::{ClusterArgs, GrantsFileArgs, OutputFormat};
use crate::decisions::near_misses::{self, Labels, Mismatch, NearMiss, Verdict};
use crate::decisions::requested_token::{needs_no_grant, token_spec};
use crate::kubernetes::client::KubeClient;
use crate::output::{self, redacted};
use crate::token_args::TokenArgs;

/// Closest entries that the text shows.
const MAX_SHOWN: usize = 5;

/// Flags of `can`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["name", "audience"]).required(true))]
pub(crate) struct CanArgs {
    /// Name of the IdTokenRequest; without it, set --service-account and --audience
    #[arg(conflicts_with_all = ["service_account", "audience", "delegates"])]
    name: Option<String>,

    #[command(flatten)]
    token: TokenArgs,

    #[command(flatten)]
    grants_file: GrantsFileArgs,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, help_heading = "Output")]
    output: OutputFormat,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The verdict as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Output<'a> {
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
    #[serde(skip_serializing_if = "<[NearMiss]>::is_empty")]
    misses: &'a [NearMiss],
}

/// Reads the grants, and prints the verdict. Exits with 1 if no grant allows the token.
///
/// # Errors
/// An invalid flag, an object that cannot be read, or a verdict that depends on labels that cannot be read.
pub(crate) async fn run(args: CanArgs) -> Result<ExitCode> {
    let client = KubeClient::connect(&args.cluster)?;
    let token = match &args.name {
        None => args.token.token(true, false)?,
        Some(name) => {
            let request = client.request(name).await?;
            if needs_no_grant(&request) {
                return federated(&args, &client);
            }
            token_spec(&request)?
        }
    };
    let mut all = args.grants_file.read()?;
    all.extend(client.grants().await?.with_notices());
    let (labels, unread) = match client.namespace_labels().await {
        Ok(labels) => (Some(labels), None),
        Err(error) => (Labels::None, Some(error)),
    };
    match near_misses::decide(&all, &client.namespace, &labels, &token) {
        Verdict::Allowed(grant) => {
            print_verdict(&args, &client, &token, Some(&grant), &[])?;
            Ok(ExitCode::SUCCESS)
        }
        Verdict::Denied(misses) => {
            print_verdict(&args, &client, &token, None, &misses)?;
            Ok(ExitCode::FAILURE)
        }
        Verdict::Unknown(names) => {
            let message = format!(
                "IdTokenGrant {} may allow it, depending on labels of namespace {}, which cannot be read",
                names.join(", "),
                quote(&client.namespace)
            );
            Err(match unread {
                Some(error) => anyhow::Error::from(error).context(message),
                None => anyhow::anyhow!(message),
            })
        }
    }
}

fn federated(args: &CanArgs, client: &KubeClient) -> Result<ExitCode> {
    let verdict = Output {
        allowed: true,
        namespace: &client.namespace,
        service_account: None,
        audience: None,
        delegates: &[],
        grant: None,
        misses: &[],
    };
    match args.output {
        OutputFormat::Text => output::print(
            "yes: no grant is needed; with source.federation, Google's IAM decides by the Kubernetes ServiceAccount\n",
        )?,
        OutputFormat::Json => output::json(&verdict)?,
        OutputFormat::Yaml => output::yaml(&verdict)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_verdict(
    args: &CanArgs,
    client: &KubeClient,
    token: &TokenSpec,
    grant: Option<&GrantRef>,
    misses: &[NearMiss],
) -> Result<()> {
    let verdict = Output {
        allowed: grant.is_some(),
        namespace: &client.namespace,
        service_account: token.service_account.as_deref(),
        audience: Some(&token.audience),
        delegates: token.source.delegates(),
        grant,
        misses,
    };
    match args.output {
        OutputFormat::Json => return output::json(&verdict),
        OutputFormat::Yaml => return output::yaml(&verdict),
        OutputFormat::Text => {}
    }
    let chain = match token.source.delegates() {
        [] => String::new(),
        chain => format!(" through {}", chain.join(", ")),
    };
    let what = format!(
        "namespace {} to get a token of {} for audience {}{chain}",
        client.namespace,
        token.service_account.as_deref().unwrap_or("the source's account"),
        token.audience
    );
    let text = match grant {
        Some(grant) => format!(
            "yes: IdTokenGrant {} allows {}\n",
            redacted(&grant.name),
            redacted(&what)
        ),
        None => format!(
            "no: no IdTokenGrant allows {}\n{}{}",
            redacted(&what),
            nearest(misses),
            advice(args, client)
        ),
    };
    output::print(text)
}

fn nearest(misses: &[NearMiss]) -> String {
    if misses.is_empty() {
        return "There are no grants.\n".to_owned();
    }
    let near: Vec<&NearMiss> = misses.iter().filter(|miss| miss.shares_something()).collect();
    if near.is_empty() {
        return "No grant names the namespace, the account or the audience.\n".to_owned();
    }
    let mut text = "Closest grants:\n".to_owned();
    for miss in near.iter().take(MAX_SHOWN) {
        text.push_str(&format!("  {}\n", redacted(&miss.grant)));
        for Mismatch {
            field,
            requested,
            has,
        } in &miss.mismatches
        {
            let has = if has.is_empty() {
                "nothing".to_owned()
            } else {
                has.join(", ")
            };
            text.push_str(&format!(
                "    spec.{field} does not contain {}: it contains {}\n",
                redacted(requested),
                redacted(&has)
            ));
        }
    }
    if near.len() > MAX_SHOWN {
        text.push_str(&format!(
            "  and {} more (-o json shows all)\n",
            near.len() - MAX_SHOWN
        ));
    }
    text
}

fn advice(args: &CanArgs, client: &KubeClient) -> String {
    let file = match &args.grants_file.grants_file {
        Some(_) => String::new(),
        None => {
            "Grants of the operator's --grants-file are not checked unless you pass the file with --grants-file.\n"
                .to_owned()
        }
    };
    let next = match &args.name {
        Some(name) => format!(
            "The grant that would allow it: kubectl idtoken grant {} -n {}\n",
            quote(name),
            quote(&client.namespace)
        ),
        None => "After you create an IdTokenRequest for it, kubectl idtoken grant NAME prints the grant that would allow it.\n".to_owned(),
    };
    file + &next
}
