//! What to do if the operator may not impersonate a service account.

use super::command::{MAX_WORD_CHARS, bind, bind_openid, describe_account, if_about_tokens, project};
use super::quota_project;
use crate::google::vocabulary::{Error, Principal, Reason};
use crate::text::printable;

/// The role of each link of a delegation chain:
/// <https://cloud.google.com/iam/docs/create-short-lived-credentials-delegated>.
const DELEGATE_ROLE: &str = "roles/iam.serviceAccountTokenCreator";

/// Adds what to do about a failed `generateIdToken`.
pub(crate) fn for_impersonation(
    error: Error,
    principal: Option<&Principal>,
    account: &str,
    delegates: &[String],
) -> Error {
    if let Some(advice) = quota_project::remediation(&error, principal) {
        return error.with_remediation(advice);
    }
    let remediation = match error.reason() {
        Reason::PermissionDenied if error.to_string().contains("insufficient authentication scopes") => {
            "The operator's access token lacks the scope https://www.googleapis.com/auth/cloud-platform: give that scope to \
             the machine or node pool it runs on, or use Workload Identity Federation."
                .to_owned()
        }
        Reason::PermissionDenied => {
            match if_about_tokens(&error, || grant(principal, account, delegates)) {
                Some(advice) => advice,
                None => return error,
            }
        }
        Reason::ServiceAccountNotFound => describe_account(account),
        Reason::ApiDisabled => format!(
            "Enable the API in the project of the operator's identity: gcloud services enable \
             iamcredentials.googleapis.com{}",
            principal.map_or_else(String::new, project_of_principal)
        ),
        Reason::CredentialsRejected => {
            "Google does not accept the operator's own access token: check that its credentials are not deleted or \
             disabled, and its clock."
                .to_owned()
        }
        _ => return error,
    };
    error.with_remediation(remediation)
}

/// The message if a request would make the operator impersonate itself.
pub(crate) fn self_impersonation(account: &str) -> String {
    format!(
        "{} is the operator's own identity, which no request may name: name another service account, and let the operator \
         impersonate it",
        printable(account, MAX_WORD_CHARS)
    )
}

/// The message if a numeric id may be the operator's own.
pub(crate) fn cannot_rule_out_self(id: &str) -> String {
    format!(
        "it cannot be ruled out that {} is the operator's own identity, because its credentials do not contain their numeric unique id: \
         name the account and its delegates by e-mail, or, for the account, set includeEmail",
        printable(id, MAX_WORD_CHARS)
    )
}

/// The message if an e-mail may be the operator's own, because its credentials name it by its unique id.
pub(crate) fn cannot_rule_out_self_by_email(email: &str) -> String {
    format!(
        "it cannot be ruled out that {} is the operator's own identity, because its credentials name it by its unique id: name the \
         account by e-mail in service_account_impersonation_url",
        printable(email, MAX_WORD_CHARS)
    )
}

fn grant(principal: Option<&Principal>, account: &str, delegates: &[String]) -> String {
    let operator = principal.map_or("the operator's identity".to_owned(), |principal| {
        format!(
            "the operator's identity {}",
            printable(&principal.to_string(), MAX_WORD_CHARS)
        )
    });
    let operator_member = principal.map_or("serviceAccount:OPERATOR_EMAIL".to_owned(), Principal::member);
    let (who, member) = match delegates.last() {
        None => (operator, operator_member.clone()),
        Some(last) => (
            format!("the delegate {}", printable(last, MAX_WORD_CHARS)),
            format!("serviceAccount:{last}"),
        ),
    };
    let mut remediation = bind_openid(&who, account, &member);
    if let Some(first) = delegates.first() {
        remediation.push_str(&format!(
            " and each link of the chain needs {DELEGATE_ROLE} on the next, beginning with {}",
            bind(first, &operator_member, DELEGATE_ROLE)
        ));
    }
    remediation
}

fn project_of_principal(principal: &Principal) -> String {
    match principal {
        Principal::ServiceAccount { email, .. } => project(email),
        _ => " --project=PROJECT_ID".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::google::transport::response::Response;
    use crate::google::vocabulary::Endpoint;

    fn error(status: u16, message: &str) -> Error {
        let body =
            serde_json::json!({"error": {"code": status, "message": message, "status": "X"}}).to_string();
        Response::of(status, body).error(Endpoint::IamCredentials)
    }

    fn operator() -> Principal {
        Principal::ServiceAccount {
            email: "op@o.iam.gserviceaccount.com".into(),
            unique_id: None,
        }
    }

    const DENIED: &str =
        "Permission 'iam.serviceAccounts.getOpenIdToken' denied on resource (or it may not exist).";

    #[test]
    fn names_the_missing_binding() {
        let account = "caller@p.iam.gserviceaccount.com";
        let text = for_impersonation(error(403, DENIED), Some(&operator()), account, &[]).to_string();
        assert!(
            text.ends_with(
                "the operator's identity op@o.iam.gserviceaccount.com needs iam.serviceAccounts.getOpenIdToken on \
                 caller@p.iam.gserviceaccount.com (a new binding can take 7 minutes or longer to take effect): gcloud iam \
                 service-accounts add-iam-policy-binding caller@p.iam.gserviceaccount.com \
                 --member=serviceAccount:op@o.iam.gserviceaccount.com \
                 --role=roles/iam.serviceAccountOpenIdTokenCreator --project=p"
            ),
            "{text}"
        );
        let delegates = ["d@p.iam.gserviceaccount.com".to_owned()];
        let text = for_impersonation(error(403, DENIED), Some(&operator()), account, &delegates).to_string();
        assert!(
            text.contains("--member=serviceAccount:d@p.iam.gserviceaccount.com"),
            "{text}"
        );
        assert!(text.contains("serviceAccountTokenCreator"), "{text}");
    }

    /// The advice about a 403 with these words and these details.
    fn advice(message: &str, details: serde_json::Value) -> Option<String> {
        let error = serde_json::json!({"code": 403, "message": message, "status": "PERMISSION_DENIED", "details": details});
        let body = serde_json::json!({"error": error}).to_string();
        let error = Response::of(403, body).error(Endpoint::IamCredentials);
        let error = for_impersonation(error, Some(&operator()), "caller@p.iam.gserviceaccount.com", &[]);
        error.remediation().map(str::to_owned)
    }

    #[test]
    fn a_refusal_that_names_no_permission_has_the_likely_binding_as_a_guess() {
        let denied = serde_json::json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "IAM_PERMISSION_DENIED"}]);
        for details in [serde_json::json!([]), denied] {
            let advice = advice("The caller does not have permission", details).expect("advice");
            for part in [
                "which is a guess: ",
                "the operator's identity op@o.iam.gserviceaccount.com needs iam.serviceAccounts.getOpenIdToken on \
                 caller@p.iam.gserviceaccount.com",
                "add-iam-policy-binding caller@p.iam.gserviceaccount.com --member=serviceAccount:op@o.iam.gserviceaccount.com",
            ] {
                assert!(advice.contains(part), "{part}: {advice}");
            }
        }
        let named = advice(DENIED, serde_json::json!([])).expect("advice");
        assert!(!named.contains("guess"), "{named}");
    }

    #[test]
    fn no_binding_helps_against_another_rule() {
        let info = |reason: &str| serde_json::json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]);
        let violation = serde_json::json!([{
            "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": [{"type": "VPC_SERVICE_CONTROLS", "description": "x"}],
        }]);
        let other = serde_json::json!([{
            "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "IAM_PERMISSION_DENIED",
            "metadata": {"permission": "serviceusage.services.use"},
        }]);
        let none = serde_json::json!([]);
        for (message, details) in [
            (
                "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: x",
                none.clone(),
            ),
            ("Denied", violation),
            ("Denied", info("SECURITY_POLICY_VIOLATED")),
            ("Denied", info("CUSTOM_ORG_POLICY_VIOLATION")),
            (
                "Operation denied by org policy: [\"constraints/iam.x\": \"no\"]",
                none.clone(),
            ),
            ("This API method requires billing to be enabled.", none.clone()),
            (
                "Caller does not have required permission. Grant the caller the roles/x role.",
                none,
            ),
            ("Denied", other),
        ] {
            assert_eq!(advice(message, details), None, "{message}");
        }
        // Another server than Google answered.
        let error = Response::of(403, "<html>").error(Endpoint::IamCredentials);
        assert_eq!(for_impersonation(error, None, "a@b", &[]).remediation(), None);
    }

    #[test]
    fn commands_are_inert() {
        for hostile in [
            "$(reboot)@p.iam.gserviceaccount.com",
            "a@$(id).iam.gserviceaccount.com",
            "';id;'",
            "--flag",
            "a\nid",
            "`id`",
        ] {
            for error in [error(403, DENIED), error(404, "Not found")] {
                let delegates = [hostile.to_owned()];
                let error = for_impersonation(error, None, hostile, &delegates);
                let remediation = error.remediation().expect("a remediation");
                assert!(!remediation.contains('\n'), "{remediation}");
                let (_, command) = remediation.split_once(": gcloud ").expect("a command");
                let command = command.split(" and each link").next().expect("a command");
                let script = format!("gcloud() {{ printf '<%s>' \"$@\"; }}; gcloud {command}");
                let output = std::process::Command::new("sh")
                    .args(["-c", &script])
                    .output()
                    .expect("sh runs");
                let output = String::from_utf8_lossy(&output.stdout);
                assert!(
                    output.starts_with("<iam><service-accounts>"),
                    "{script} gave {output}"
                );
                assert!(
                    !output.contains("uid=") && !output.contains("<--flag>"),
                    "{script} gave {output}"
                );
            }
        }
    }

    #[test]
    fn names_the_commands_that_show_and_enable() {
        let text =
            for_impersonation(error(404, "Not found"), None, "a@p.iam.gserviceaccount.com", &[]).to_string();
        assert!(
            text.contains("gcloud iam service-accounts describe a@p.iam.gserviceaccount.com --project=p"),
            "{text}"
        );
        let disabled = error(
            403,
            "IAM … API has not been used in project 1 before or it is disabled",
        );
        let text = for_impersonation(disabled, Some(&operator()), "a@b", &[]).to_string();
        assert!(
            text.contains("gcloud services enable iamcredentials.googleapis.com --project=1"),
            "{text}"
        );
    }
}
