//! `doctor`: whether the operator's installation is well.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::args::{ClusterArgs, OutputFormat, ReleaseArgs};
use crate::decisions::checkup::{Check, Level, Seen};
use crate::decisions::{doctor_cluster, doctor_history, doctor_release, grant_sets};
use crate::kubernetes::client::KubeClient;
use crate::output;
use crate::output::table;

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
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
struct Report<'a> {
    ok: bool,
    checks: &'a [Check],
}

/// Reads the installation, and prints the checks. Exits with 1 if one of them fails.
///
/// # Errors
/// The kubeconfig cannot be used, or the API server does not answer at all.
pub(crate) async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let client = KubeClient::connect(&args.cluster)?;
    let checks = checks(&client, args.release.operator_namespace.as_deref()).await;
    let ok = checks.iter().all(|check| check.level != Level::Failure);
    let report = Report { ok, checks: &checks };
    match args.output {
        OutputFormat::Json => output::json(&report)?,
        OutputFormat::Yaml => output::yaml(&report)?,
        OutputFormat::Text => output::print(text(&checks))?,
    }
    Ok(output::exit_code(ok))
}

async fn checks(client: &KubeClient, namespace: Option<&str>) -> Vec<Check> {
    let now = Timestamp::now();
    let server = match client.server_version().await {
        Ok(version) => Check::ok("cluster", format!("the API server is {version}")),
        // Without it, there is nothing else to see.
        Err(why) => return vec![Check::failure("cluster", why, "kubectl get --raw /version")],
    };
    let mut checks = vec![server];
    for own in idtoken_operator::api::crds() {
        let name = own.metadata.name.clone().unwrap_or_default();
        let own = serde_json::to_value(&own).unwrap_or_default();
        checks.push(doctor_cluster::definition(
            &name,
            &client.definition(&name).await,
            &own,
        ));
    }
    let releases = client.releases(namespace).await;
    match &releases {
        Err(why) => checks.push(Check::unseen("releases", why)),
        Ok(releases) if releases.is_empty() => checks.push(Check::failure(
            "releases",
            "there is no Deployment of the operator",
            "docs/installation.md; if the chart's name is overridden, name its namespace with --operator-namespace",
        )),
        Ok(releases) => {
            let plugin = env!("CARGO_PKG_VERSION");
            checks.extend(
                releases
                    .iter()
                    .flat_map(|release| doctor_release::checks(release, plugin, now)),
            );
        }
    }
    checks.push(doctor_cluster::policies(&client.chart_policies().await));
    let grants = grants(client, namespace, &mut checks).await;
    checks.extend(doctor_cluster::grants(&grants, &client.namespaces().await));
    let requests = client.requests_and_undecodable().await;
    checks.extend(doctor_cluster::requests(&requests, &releases, now));
    checks.extend(doctor_history::check(&requests, now));
    checks.push(doctor_cluster::prometheus(&client.monitors().await));
    checks
}

/// Grants of the cluster and of the chart's values.
async fn grants(
    client: &KubeClient,
    namespace: Option<&str>,
    checks: &mut Vec<Check>,
) -> Seen<doctor_cluster::Grants> {
    const AREA: &str = "grants";
    let listed = client.grants().await.map_err(|error| error.to_string())?;
    let mut grants = listed.decoded;
    match client.release_grants(namespace).await {
        Ok(found) => {
            let problem = |problem| Check::failure(AREA, problem, "Correct the chart's value grants");
            checks.extend(found.problems.iter().map(problem));
            grants.extend(found.sets.into_iter().flat_map(grant_sets::GrantSet::named));
        }
        Err(error) => checks.push(Check::unseen(
            AREA,
            format!("those of the chart's values: {error}"),
        )),
    }
    Ok((grants, listed.undecodable))
}

fn text(checks: &[Check]) -> String {
    let rows: Vec<[String; 3]> = checks
        .iter()
        .map(|check| {
            [
                check.level.mark().to_owned(),
                check.area.to_owned(),
                check.message.clone(),
            ]
        })
        .collect();
    let mut text = table::render([" ", "CHECK", "RESULT"], &rows);
    let fixes: Vec<&Check> = checks.iter().filter(|check| !check.fix.is_empty()).collect();
    if !fixes.is_empty() {
        text.push_str("\nNext:\n");
        for check in fixes {
            text.push_str(&format!(
                "  {} {}: {}\n    {}\n",
                check.level.mark(),
                check.area,
                check.message,
                check.fix
            ));
        }
    }
    let count = |level: Level| checks.iter().filter(|check| check.level == level).count();
    text.push_str(&format!(
        "\n{} ok, {} warnings, {} failed, {} unknown\n",
        count(Level::Ok),
        count(Level::Warning),
        count(Level::Failure),
        count(Level::Unseen)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_its_mark_and_each_trouble_its_fix() {
        let text = text(&[
            Check::ok("cluster", "fine"),
            Check::warning("policies", "absent\u{1b}[2J", "apply them"),
            Check::failure("releases", "none", "install one"),
            Check::unseen("pods", "you may not"),
        ]);
        assert!(text.contains("✓   cluster    fine\n"), "{text}");
        assert!(text.contains("!   policies   absent\\u{1b}[2J\n"), "{text}");
        assert!(text.contains("?   pods       not seen: you may not\n"), "{text}");
        assert!(text.contains("  ✗ releases: none\n    install one\n"), "{text}");
        assert!(
            text.ends_with("1 ok, 1 warnings, 1 failed, 1 unknown\n"),
            "{text}"
        );
    }
}
