//! `audit`: lists grants that grant nothing, and requests with source.federation whose author no admission policy has checked.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::args::{ClusterArgs, GrantsFileArgs, OutputFormat, ReleaseArgs};
use crate::decisions::admission_policy::{self, PolicyCoverage};
use crate::decisions::grant_sets::GrantSet;
use crate::decisions::invalid_grants::{InvalidGrant, invalid};
use crate::decisions::unverified_requests::{UnverifiedRequest, unverified};
use crate::kubernetes::client::{KubeClient, with_notices};
use crate::output::table;
use crate::output::{self, redacted};

/// Flags of `audit`.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// List the requests of all namespaces, whatever --namespace says
    #[arg(short = 'A', long, help_heading = "Cluster")]
    all_namespaces: bool,

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

/// The result as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(rename = "unchecked")]
    unverified: Vec<UnverifiedRequest>,
    invalid_grants: Vec<InvalidGrant>,
}

/// Reads grants, requests and policies, and prints the invalid grants and the unverified requests. Exits with 1 if there are any.
///
/// # Errors
/// The caller may not list the grants, requests, policies or bindings, or the grants file cannot be used.
pub(crate) async fn run(args: AuditArgs) -> Result<ExitCode> {
    let client = KubeClient::connect(&args.cluster)?;
    let (policies, bindings) = client.admission_policies(admission_policy::LABEL).await?;
    let coverage = admission_policy::coverage(&policies, &bindings);
    let requests = match args.all_namespaces {
        true => client.all_requests().await?,
        false => client.requests().await?,
    };
    let unverified = unverified(&requests, &coverage);
    let listed = client.grants().await?;
    let mut grants = args.grants_file.read()?;
    grants.extend(listed.decoded);
    let found = client
        .release_grants(args.release.operator_namespace.as_deref())
        .await;
    grants.extend(with_notices(found).into_iter().flat_map(GrantSet::named));
    let invalid = invalid(&grants, listed.undecodable);
    let code = output::exit_code(unverified.is_empty() && invalid.is_empty());
    match args.output {
        OutputFormat::Json => output::json(&Output::new(coverage, unverified, invalid))?,
        OutputFormat::Yaml => output::yaml(&Output::new(coverage, unverified, invalid))?,
        OutputFormat::Text => output::print(format!(
            "{}\n{}",
            text(&coverage, &unverified),
            grants_text(&invalid)
        ))?,
    }
    Ok(code)
}

impl Output {
    fn new(
        coverage: PolicyCoverage,
        unverified: Vec<UnverifiedRequest>,
        invalid_grants: Vec<InvalidGrant>,
    ) -> Self {
        let (policy, since, problem) = match coverage {
            PolicyCoverage::Since { policy, since } => (Some(redacted(&policy)), Some(since), None),
            PolicyCoverage::Missing(problem) => (None, None, Some(redacted(&problem))),
        };
        Self {
            policy,
            since,
            problem,
            unverified,
            invalid_grants,
        }
    }
}

fn text(coverage: &PolicyCoverage, unverified: &[UnverifiedRequest]) -> String {
    let mut text = match coverage {
        PolicyCoverage::Since { policy, since } => format!(
            "ValidatingAdmissionPolicy {} has checked every author since {since}.\n",
            redacted(policy)
        ),
        PolicyCoverage::Missing(problem) => format!(
            "No admission policy checks the authors of requests with source.federation: {}.\n",
            redacted(problem)
        ),
    };
    if unverified.is_empty() {
        text.push_str("No request with source.federation has an unchecked author.\n");
        return text;
    }
    let rows: Vec<[String; 4]> = unverified
        .iter()
        .map(|one| {
            [
                redacted(&one.namespace),
                redacted(&one.name),
                redacted(&one.service_account),
                one.created.map(|time| time.to_string()).unwrap_or_default(),
            ]
        })
        .collect();
    text.push_str("\nThe authors of these requests may not have been checked:\n\n");
    text.push_str(&table::render(
        ["NAMESPACE", "NAME", "SERVICEACCOUNT", "CREATED"],
        &rows,
    ));
    text.push_str(
        "\nDelete the requests that you cannot account for. Have the others recreated by a user who may create tokens of their \
         ServiceAccount.\n",
    );
    text
}

fn grants_text(invalid: &[InvalidGrant]) -> String {
    if invalid.is_empty() {
        return "All parts of all grants are valid.\n".to_owned();
    }
    let row = |one: &InvalidGrant| [one.grant.clone(), one.field.clone(), one.problem.clone()];
    let rows: Vec<[String; 3]> = invalid.iter().map(row).collect();
    let mut text =
        "These parts of grants are invalid, and this version grants nothing by them:\n\n".to_owned();
    text.push_str(&table::render(["GRANT", "FIELD", "PROBLEM"], &rows));
    if invalid.iter().any(|one| one.was_everything) {
        text.push_str(
            "\nIn earlier versions, a selector without a requirement selects all namespaces. Correct these grants before you upgrade the \
             operator. If all namespaces are meant, this selects them in every version:\n\n  \
             namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: Exists}]}\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_namespace_name_and_service_account() {
        let one = UnverifiedRequest {
            namespace: "shop".to_owned(),
            name: "after".to_owned(),
            service_account: "billing".to_owned(),
            created: None,
        };
        let text = text(&PolicyCoverage::Missing("none".to_owned()), &[one]);
        assert!(text.contains("shop        after   billing"), "{text}");
    }
    #[test]
    fn lists_grants_that_grant_nothing_and_how_to_keep_all_namespaces() {
        let one = |was_everything| InvalidGrant {
            grant: "everyone".to_owned(),
            field: "spec.from[0]".to_owned(),
            problem: "it selects nothing".to_owned(),
            was_everything,
        };
        let text = grants_text(&[one(true)]);
        assert!(
            text.contains("everyone   spec.from[0]   it selects nothing"),
            "{text}"
        );
        assert!(text.contains("operator: Exists"), "{text}");
        assert!(!grants_text(&[one(false)]).contains("operator: Exists"));
        assert!(grants_text(&[]).contains("are valid"));
    }
}
