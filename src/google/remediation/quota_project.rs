//! What to do about the project that calls of the operator's own identity count for.

use super::command::{MAX_WORD_CHARS, word};
use crate::google::vocabulary::{Error, Principal, Reason};
use crate::text::printable;

/// The projects of gcloud's own OAuth clients. Users can enable no API in them.
const OF_GCLOUD: [&str; 2] = ["764086051850", "32555940559"];

/// The role that lets a principal name a project for the quota: <https://cloud.google.com/docs/quotas/set-quota-project>.
const CONSUMER_ROLE: &str = "roles/serviceusage.serviceUsageConsumer";

const SET: &str =
    "gcloud auth application-default set-quota-project PROJECT_ID, or set GOOGLE_CLOUD_QUOTA_PROJECT";

/// What to do if an API is off in the project, or the identity may not use it. None if the error is about something else.
pub(crate) fn remediation(error: &Error, principal: Option<&Principal>) -> Option<String> {
    let project = error.consumer()?;
    if error.is_quota_project_denied() {
        let member = principal.map_or("MEMBER".to_owned(), Principal::member);
        return Some(format!(
            "The operator's identity may not use the quota project {shown}. Let it: gcloud projects add-iam-policy-binding {} \
             --member={} --role={CONSUMER_ROLE}. Or name another project: {SET}.",
            word(project),
            word(&member),
            shown = printable(project, MAX_WORD_CHARS)
        ));
    }
    if error.reason() != Reason::ApiDisabled {
        return None;
    }
    if OF_GCLOUD.contains(&project) {
        return Some(format!(
            "The operator's credentials are a user's and name no quota project, so that the call counts for gcloud's own. Name a project \
             in which iamcredentials.googleapis.com is enabled: {SET}."
        ));
    }
    Some(format!(
        "Enable the API in the project that the call counts for: gcloud services enable iamcredentials.googleapis.com --project={}",
        word(project)
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::google::transport::response::Response;
    use crate::google::vocabulary::Endpoint;

    fn advised(reason: Option<&str>, consumer: &str, message: &str) -> Option<String> {
        let info = json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason,
            "domain": "googleapis.com", "metadata": {"consumer": consumer}});
        let details = reason.map(|_| vec![info]).unwrap_or_default();
        let body = json!({"error": {"code": 403, "status": "PERMISSION_DENIED", "message": message, "details": details}});
        let error = Response::of(403, body.to_string()).error(Endpoint::IamCredentials);
        let user = Principal::User {
            email: "dev@example.com".to_owned(),
        };
        remediation(&error, Some(&user))
    }

    #[test]
    fn gclouds_own_project_is_not_the_users_to_enable_an_api_in() {
        for project in OF_GCLOUD {
            let unused = format!(
                "IAM Service Account Credentials API has not been used in project {project} before or it is disabled."
            );
            for reason in [Some("SERVICE_DISABLED"), None] {
                let advice = advised(reason, &format!("projects/{project}"), &unused).expect("advice");
                assert!(
                    advice.contains("gcloud auth application-default set-quota-project PROJECT_ID"),
                    "{advice}"
                );
                assert!(!advice.contains("services enable"), "{advice}");
            }
        }
    }

    #[test]
    fn an_api_is_enabled_in_the_project_that_google_names() {
        let unused =
            "IAM Service Account Credentials API has not been used in project 12 before or it is disabled.";
        for reason in [Some("SERVICE_DISABLED"), None] {
            let advice = advised(reason, "projects/12", unused).expect("advice");
            assert!(
                advice.ends_with("gcloud services enable iamcredentials.googleapis.com --project=12"),
                "{advice}"
            );
        }
    }

    #[test]
    fn a_project_that_may_not_be_used() {
        let denied = "Caller does not have required permission to use project my-project. Grant the caller the \
                      roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use permission";
        for reason in [Some("USER_PROJECT_DENIED"), None] {
            let advice = advised(reason, "projects/my-project", denied).expect("advice");
            assert!(
                advice.contains(
                    "gcloud projects add-iam-policy-binding my-project --member=user:dev@example.com \
                     --role=roles/serviceusage.serviceUsageConsumer"
                ) && advice.contains("set-quota-project"),
                "{advice}"
            );
        }
    }

    #[test]
    fn other_errors_and_hostile_projects() {
        let permission =
            "Permission 'iam.serviceAccounts.getOpenIdToken' denied on resource (or it may not exist).";
        assert_eq!(
            advised(Some("IAM_PERMISSION_DENIED"), "projects/12", permission),
            None
        );
        assert_eq!(advised(None, "", permission), None);
        let advice = advised(Some("USER_PROJECT_DENIED"), "projects/$(id)\n", "no").expect("advice");
        assert!(advice.contains("add-iam-policy-binding '$(id)"), "{advice}");
        assert!(!advice.contains('\n'), "{advice}");
    }
}
