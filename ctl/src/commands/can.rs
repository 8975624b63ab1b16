//! `can`: says which grant allows a token, or why none does.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use idtoken_operator::api::v1alpha1::{GrantRef, IdTokenRequest};
use idtoken_operator::request::TokenSpec;
use idtoken_operator::shell::quote;
use serde::Serialize;

use crate::args::{ClusterArgs, GrantsFileArgs, ManifestArgs, OutputFormat, ReleaseArgs};
use crate::decisions::grant_sets::{self, Decision, GrantSet, Origin};
use crate::decisions::manifests::Manifests;
use crate::decisions::near_misses::{Labels, Mismatch, NearMiss};
use crate::decisions::requested_token::{needs_no_grant, token_spec};
use crate::kubernetes::client::KubeClient;
use crate::output::{self, redacted};
use crate::token_args::TokenArgs;

/// Closest entries that the text shows.
const MAX_SHOWN: usize = 5;

/// Flags of `can`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["name", "audience", "filenames"]).required(true))]
pub(crate) struct CanArgs {
    /// Name of the IdTokenRequest; without it, set --service-account and --audience, or --filename
    #[arg(conflicts_with_all = ["service_account", "audience", "delegates"])]
    name: Option<String>,

    #[command(flatten)]
    token: TokenArgs,

    #[command(flatten)]
    manifests: ManifestArgs,

    #[command(flatten)]
    grants_file: GrantsFileArgs,

    #[command(flatten)]
    release: ReleaseArgs,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, help_heading = "Output")]
    output: OutputFormat,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// A verdict as JSON.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    allowed: bool,
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audience: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    delegates: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<GrantRef>,
    #[serde(rename = "configMap", skip_serializing_if = "Origin::is_named")]
    origin: Origin,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    misses: Vec<NearMiss>,
    /// Why there is neither yes nor no.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// The verdicts on the requests of files as JSON.
#[derive(Serialize)]
struct Verdicts<'a> {
    allowed: bool,
    requests: &'a [Verdict],
}

/// Reads the grants, and prints the verdict. Exits with 1 if no grant allows the token.
///
/// # Errors
/// An invalid flag, an object that cannot be read, or a verdict that depends on labels that cannot be read.
pub(crate) async fn run(args: CanArgs) -> Result<ExitCode> {
    if !args.manifests.filenames.is_empty() {
        return run_files(&args);
    }
    let client = KubeClient::connect(&args.cluster)?;
    let token = match &args.name {
        None => args.token.token(true, false)?,
        Some(name) => {
            let request = client.request(name).await?;
            if needs_no_grant(&request) {
                let verdict = Verdict {
                    allowed: true,
                    namespace: client.namespace.clone(),
                    ..Verdict::default()
                };
                return print_one(&args, &client.namespace, &verdict, None);
            }
            token_spec(&request)?
        }
    };
    let mut sets = vec![file_set(&args)?];
    sets[0].grants.extend(client.grants().await?.with_notices());
    // A file of the flag stands for the operator's own.
    let unread = match &args.grants_file.grants_file {
        Some(_) => None,
        None => match client
            .release_grants(args.release.operator_namespace.as_deref())
            .await
        {
            Ok(found) => {
                found.problems.iter().for_each(output::notice);
                sets.extend(found.sets);
                None
            }
            Err(error) => Some(error.to_string()),
        },
    };
    let (labels, unknown_labels) = match client.namespace_labels().await {
        Ok(labels) => (Some(labels), None),
        Err(error) => (Labels::None, Some(error)),
    };
    match grant_sets::decide(&sets, &client.namespace, &labels, &token) {
        Decision::Unknown(names) => {
            let message = depends_on_labels(&names, &client.namespace);
            Err(match unknown_labels {
                Some(error) => anyhow::Error::from(error).context(message),
                None => anyhow::anyhow!(message),
            })
        }
        decision => {
            let verdict = verdict(decision, &client.namespace, None, &token);
            print_one(&args, &client.namespace, &verdict, unread.as_deref())
        }
    }
}

/// Decides on all requests of files by the grants of files.
fn run_files(args: &CanArgs) -> Result<ExitCode> {
    let mut found = Manifests::default();
    for (name, text) in args.manifests.read()? {
        found
            .add(&text)
            .with_context(|| format!("the manifests of {name} cannot be used"))?;
    }
    if found.requests.is_empty() {
        bail!("the files have no IdTokenRequest");
    }
    let mut sets = vec![file_set(args)?];
    sets[0].grants.append(&mut found.grants);
    let releases = grant_sets::of_config_maps(std::mem::take(&mut found.config_maps));
    if let [problem, ..] = releases.problems.as_slice() {
        bail!("{problem}");
    }
    sets.extend(releases.sets);
    let verdicts: Vec<Verdict> = found
        .requests
        .iter()
        .map(|request| file_verdict(args, &found, &sets, request))
        .collect();
    let allowed = verdicts.iter().all(|verdict| verdict.allowed);
    let all = Verdicts {
        allowed,
        requests: &verdicts,
    };
    match args.output {
        OutputFormat::Json => output::json(&all)?,
        OutputFormat::Yaml => output::yaml(&all)?,
        OutputFormat::Text => output::print(verdicts.iter().map(text).collect::<String>())?,
    }
    Ok(output::exit_code(allowed))
}

fn file_verdict(args: &CanArgs, found: &Manifests, sets: &[GrantSet], request: &IdTokenRequest) -> Verdict {
    let name = request.metadata.name.clone().unwrap_or_default();
    let namespace = request.metadata.namespace.clone();
    let undecided = |namespace: Option<String>, problem: String| Verdict {
        namespace: namespace.unwrap_or_default(),
        name: Some(name.clone()),
        problem: Some(problem),
        ..Verdict::default()
    };
    let Some(namespace) = namespace.or_else(|| args.cluster.namespace.clone()) else {
        let problem = "it has no namespace: set metadata.namespace, or --namespace as for kubectl apply";
        return undecided(None, problem.to_owned());
    };
    if needs_no_grant(request) {
        return Verdict {
            allowed: true,
            namespace,
            name: Some(name),
            ..Verdict::default()
        };
    }
    let token = match token_spec(request) {
        Ok(token) => token,
        Err(error) => return undecided(Some(namespace), format!("{error:#}")),
    };
    let labels = found.labels(&namespace);
    match grant_sets::decide(sets, &namespace, &labels, &token) {
        Decision::Unknown(names) => {
            let message = depends_on_labels(&names, &namespace);
            undecided(
                Some(namespace),
                format!("{message}; add the manifest of the Namespace"),
            )
        }
        decision => verdict(decision, &namespace, Some(name), &token),
    }
}

fn file_set(args: &CanArgs) -> Result<GrantSet> {
    Ok(GrantSet {
        origin: Origin::default(),
        grants: args.grants_file.read()?,
    })
}

fn depends_on_labels(names: &[String], namespace: &str) -> String {
    format!(
        "IdTokenGrant {} may allow it, depending on labels of namespace {}, which cannot be read",
        names.join(", "),
        quote(namespace)
    )
}

fn verdict(decision: Decision, namespace: &str, name: Option<String>, token: &TokenSpec) -> Verdict {
    let (grant, origin, misses) = match decision {
        Decision::Allowed(grant, origin) => (Some(grant), origin, Vec::new()),
        Decision::Denied(misses) => (None, Origin::Named, misses),
        Decision::Unknown(_) => (None, Origin::Named, Vec::new()),
    };
    Verdict {
        allowed: grant.is_some(),
        namespace: namespace.to_owned(),
        name,
        service_account: token.service_account.clone(),
        audience: Some(token.audience.clone()),
        delegates: token.source.delegates().to_vec(),
        grant,
        origin,
        misses,
        problem: None,
    }
}

/// Prints one verdict. `unread` says why grants of the chart's values could not be read.
fn print_one(args: &CanArgs, namespace: &str, verdict: &Verdict, unread: Option<&str>) -> Result<ExitCode> {
    match args.output {
        OutputFormat::Json => output::json(verdict)?,
        OutputFormat::Yaml => output::yaml(verdict)?,
        OutputFormat::Text => {
            let mut shown = text(verdict);
            if !verdict.allowed {
                shown.push_str(&advice(args, namespace, unread));
            }
            output::print(shown)?;
        }
    }
    Ok(output::exit_code(verdict.allowed))
}

fn text(verdict: &Verdict) -> String {
    let request = match &verdict.name {
        Some(name) => format!("{}: ", redacted(&format!("{}/{name}", verdict.namespace))),
        None => String::new(),
    };
    if let Some(problem) = &verdict.problem {
        return format!("no: {request}{}\n", redacted(problem));
    }
    let Some(audience) = &verdict.audience else {
        return format!(
            "yes: {request}no grant is needed; with source.federation, Google's IAM decides by the Kubernetes ServiceAccount\n"
        );
    };
    let chain = match verdict.delegates.as_slice() {
        [] => String::new(),
        chain => format!(" through {}", chain.join(", ")),
    };
    let what = format!(
        "namespace {} to get a token of {} for audience {audience}{chain}",
        verdict.namespace,
        verdict
            .service_account
            .as_deref()
            .unwrap_or("the source's account"),
    );
    match &verdict.grant {
        Some(grant) => format!(
            "yes: {request}{} allows {}\n",
            redacted(&verdict.origin.grant(&grant.name)),
            redacted(&what)
        ),
        None => format!(
            "no: {request}no IdTokenGrant allows {}\n{}",
            redacted(&what),
            nearest(&verdict.misses)
        ),
    }
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

fn advice(args: &CanArgs, namespace: &str, unread: Option<&str>) -> String {
    let unread = match unread {
        Some(problem) => format!(
            "Grants of the chart's values are not checked: {}. Name the operator's namespace with --operator-namespace, or pass its file \
             with --grants-file.\n",
            redacted(problem)
        ),
        None => String::new(),
    };
    let next = match &args.name {
        Some(name) => format!(
            "The grant that would allow it: kubectl idtoken grant {} -n {}\n",
            quote(name),
            quote(namespace)
        ),
        None => "After you create an IdTokenRequest for it, kubectl idtoken grant NAME prints the grant that would allow it.\n".to_owned(),
    };
    unread + &next
}
