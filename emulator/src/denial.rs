//! Denials that no binding on the account changes: an API that is off, a project that may not be used, a perimeter, a constraint, a bill. And the
//! text in which GKE's metadata server passes a denial on.

use axum::http::StatusCode;
use serde_json::json;

use crate::faults::DeniedBy;
use crate::response::{self, HttpResponse};

const SERVICE: &str = "iamcredentials.googleapis.com";
/// The identifier by which an administrator finds the violation in the audit log.
const VIOLATION: &str = "0123456789abcdefghijklmnopqrstuvwxyz";

/// A fault's denial of a call to an API of Google's.
pub(crate) fn denied(by: DeniedBy, project: u64) -> HttpResponse {
    let message = message(by, project);
    let details = match by {
        DeniedBy::Perimeter => vec![
            json!({
                "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
                "violations": [{"type": "VPC_SERVICE_CONTROLS", "description": VIOLATION}],
            }),
            response::error_info(
                "SECURITY_POLICY_VIOLATED",
                "googleapis.com",
                json!({"uid": VIOLATION, "service": SERVICE, "consumer": format!("projects/{project}")}),
            ),
        ],
        DeniedBy::Billing => vec![
            help("Google developers console billing", &billing_url(project)),
            response::error_info(
                "BILLING_DISABLED",
                "googleapis.com",
                json!({"service": SERVICE, "consumer": format!("projects/{project}")}),
            ),
        ],
        DeniedBy::Constraint | DeniedBy::Unknown => Vec::new(),
    };
    response::api_error(StatusCode::FORBIDDEN, message, &details)
}

/// The same, as GKE's metadata server passes it on.
pub(crate) fn denied_on_gke(by: DeniedBy, project: u64) -> HttpResponse {
    let message = message(by, project);
    response::text(
        StatusCode::FORBIDDEN,
        format!(
            "Unable to generate access token; IAM returned 403 Forbidden: {message}\nThis error could be caused by a missing IAM policy \
             binding on the target IAM service account.\nFor more information, refer to the Workload Identity documentation:\n\t\
             https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity#authenticating_to\n\n"
        ),
    )
}

fn message(by: DeniedBy, project: u64) -> String {
    match by {
        DeniedBy::Perimeter => format!(
            "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: {VIOLATION}"
        ),
        DeniedBy::Constraint => format!(
            "Request is disallowed by organization's constraints/gcp.restrictServiceUsage constraint for 'projects/{project}' attempting to \
             use service '{SERVICE}'."
        ),
        DeniedBy::Billing => format!(
            "This API method requires billing to be enabled. Please enable billing on project #{project} by visiting {} then retry. If you \
             enabled billing for this project recently, wait a few minutes for the action to propagate to our systems and retry.",
            billing_url(project)
        ),
        DeniedBy::Unknown => "The caller does not have permission".to_owned(),
    }
}

fn billing_url(project: u64) -> String {
    format!("https://console.developers.google.com/billing/enable?project={project}")
}

/// The API is not enabled in the caller's project.
pub(crate) fn api_disabled(project: u64) -> HttpResponse {
    let url = format!("https://console.developers.google.com/apis/api/{SERVICE}/overview?project={project}");
    let message = format!(
        "IAM Service Account Credentials API has not been used in project {project} before or it is disabled. \
         Enable it by visiting {url} then retry. If you enabled this API recently, wait a few minutes for the \
         action to propagate to our systems and retry."
    );
    let info = response::error_info(
        "SERVICE_DISABLED",
        "googleapis.com",
        json!({"service": SERVICE, "consumer": format!("projects/{project}")}),
    );
    let help = help("Google developers console API activation", &url);
    response::api_error(StatusCode::FORBIDDEN, message, &[help, info])
}

/// The caller may not let the call count for the project.
pub(crate) fn user_project_denied(project: &str) -> HttpResponse {
    let url = format!("https://console.developers.google.com/iam-admin/iam/project?project={project}");
    let message = format!(
        "Caller does not have required permission to use project {project}. Grant the caller the \
         roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use permission, by visiting \
         {url} and then retry. Propagation of the new permission may take a few minutes."
    );
    let info = response::error_info(
        "USER_PROJECT_DENIED",
        "googleapis.com",
        json!({"service": SERVICE, "consumer": format!("projects/{project}")}),
    );
    let help = help("Google developer console IAM admin", &url);
    response::api_error(StatusCode::FORBIDDEN, message, &[help, info])
}

fn help(description: &str, url: &str) -> serde_json::Value {
    json!({
        "@type": "type.googleapis.com/google.rpc.Help",
        "links": [{"description": description, "url": url}],
    })
}
