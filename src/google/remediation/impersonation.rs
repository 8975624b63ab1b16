//! What to do about a refusal, with the command that does it.
//!
//! Accounts come from users and answers from outside: every such word is quoted for the shell and made printable, so that a
//! command copied from a message does nothing but what it shows.

use crate::google::vocabulary::{Error, Principal, Reason};
use crate::shell::quote;
use crate::text::printable;

/// The permission that `generateIdToken` needs on the account:
/// <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateIdToken>.
const PERMISSION: &str = "iam.serviceAccounts.getOpenIdToken";

/// The smallest role that has [`PERMISSION`].
const ROLE: &str = "roles/iam.serviceAccountOpenIdTokenCreator";

/// The role of each link of a delegation chain:
/// <https://cloud.google.com/iam/docs/create-short-lived-credentials-delegated>.
const DELEGATE_ROLE: &str = "roles/iam.serviceAccountTokenCreator";

/// The longest outside word in a command, in characters.
const MAX_WORD_CHARS: usize = 512;

/// Adds what to do to a failure of `generateIdToken`.
pub(crate) fn for_impersonation(
    error: Error,
    principal: Option<&Principal>,
    account: &str,
    delegates: &[String],
) -> Error {
    let advice = match error.reason() {
        Reason::PermissionDenied if is_about_tokens(&error) => grant(principal, account, delegates),
        Reason::PermissionDenied if error.to_string().contains("insufficient authentication scopes") => {
            "The operator's access token lacks the scope https://www.googleapis.com/auth/cloud-platform: give that scope to \
             the machine or node pool it runs on, or use Workload Identity Federation."
                .to_owned()
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
    error.with_remediation(advice)
}

/// The error for a request that would have the operator impersonate itself.
pub(crate) fn self_impersonation(account: &str) -> String {
    format!(
        "{} is the operator's own identity, which nobody may ask for: name another service account, and let the operator \
         impersonate that",
        printable(account, MAX_WORD_CHARS)
    )
}

/// The error for a numeric id that may be the operator's own.
pub(crate) fn unknowable(id: &str) -> String {
    format!(
        "whether {} is the operator's own identity cannot be told, since its credentials do not say their numeric unique id: \
         name the account and its delegates by e-mail, or, for the account, set includeEmail",
        printable(id, MAX_WORD_CHARS)
    )
}

/// The error for an e-mail that may be the operator's own, whose credentials name it by its unique id.
pub(crate) fn unknowable_email(email: &str) -> String {
    format!(
        "whether {} is the operator's own identity cannot be told, since its credentials name it by its unique id: name the account          by e-mail in service_account_impersonation_url",
        printable(email, MAX_WORD_CHARS)
    )
}

/// Whether a 403 is about this permission, and not about an organization policy or a perimeter that no binding changes.
pub(super) fn is_about_tokens(error: &Error) -> bool {
    match error.permission() {
        Some(permission) => permission.starts_with("iam.serviceAccounts."),
        None => error.to_string().contains("'iam.serviceAccounts."),
    }
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
    let mut advice = bind_openid(&who, account, &member);
    if let Some(first) = delegates.first() {
        advice.push_str(&format!(
            " and each link of the chain needs {DELEGATE_ROLE} on the next, beginning with {}",
            bind(first, &operator_member, DELEGATE_ROLE)
        ));
    }
    advice
}

/// Who needs the permission, and the command that gives it.
pub(super) fn bind_openid(who: &str, account: &str, member: &str) -> String {
    format!(
        "{who} needs {PERMISSION} on {} (a new binding takes up to 7 minutes to hold): {}",
        printable(account, MAX_WORD_CHARS),
        bind(account, member, ROLE)
    )
}

/// That there is no such account, and the command that shows it.
pub(super) fn describe_account(account: &str) -> String {
    format!(
        "The service account {} does not exist, or was deleted. To see it: gcloud iam service-accounts describe {}{}",
        printable(account, MAX_WORD_CHARS),
        word(account),
        project(account)
    )
}

fn bind(account: &str, member: &str, role: &str) -> String {
    format!(
        "gcloud iam service-accounts add-iam-policy-binding {} --member={} --role={role}{}",
        word(account),
        word(member),
        project(account)
    )
}

/// A positional argument or an option's value. A word that begins with a dash would be read as an option even in quotes.
pub(super) fn word(text: &str) -> String {
    let text = printable(text, MAX_WORD_CHARS);
    let text = text.trim_start_matches('-');
    quote(text).into_owned()
}

pub(super) fn project(account: &str) -> String {
    match project_name(account) {
        Some(name) => format!(" --project={}", word(&name)),
        None => " --project=PROJECT_ID".to_owned(),
    }
}

fn project_of_principal(principal: &Principal) -> String {
    match principal {
        Principal::ServiceAccount { email, .. } => project(email),
        _ => " --project=PROJECT_ID".to_owned(),
    }
}

/// The project in a service account's e-mail; that of a project below a domain is written the other way round.
fn project_name(email: &str) -> Option<String> {
    let (local, host) = email.split_once('@')?;
    if host == "appspot.gserviceaccount.com" {
        return Some(local.to_owned());
    }
    let project = host.strip_suffix(".iam.gserviceaccount.com")?;
    Some(match project.split_once('.') {
        Some((name, domain)) => format!("{domain}:{name}"),
        None => project.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::google::transport::response::Response;
    use crate::google::vocabulary::Endpoint;

    fn answered(status: u16, message: &str) -> Error {
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
    fn says_the_binding() {
        let account = "caller@p.iam.gserviceaccount.com";
        let text = for_impersonation(answered(403, DENIED), Some(&operator()), account, &[]).to_string();
        assert!(
            text.ends_with(
                "the operator's identity op@o.iam.gserviceaccount.com needs iam.serviceAccounts.getOpenIdToken on \
                 caller@p.iam.gserviceaccount.com (a new binding takes up to 7 minutes to hold): gcloud iam \
                 service-accounts add-iam-policy-binding caller@p.iam.gserviceaccount.com \
                 --member=serviceAccount:op@o.iam.gserviceaccount.com \
                 --role=roles/iam.serviceAccountOpenIdTokenCreator --project=p"
            ),
            "{text}"
        );
        let delegates = ["d@p.iam.gserviceaccount.com".to_owned()];
        let text =
            for_impersonation(answered(403, DENIED), Some(&operator()), account, &delegates).to_string();
        assert!(
            text.contains("--member=serviceAccount:d@p.iam.gserviceaccount.com"),
            "{text}"
        );
        assert!(text.contains("serviceAccountTokenCreator"), "{text}");
    }

    #[test]
    fn no_binding_helps_against_a_perimeter() {
        let error = answered(403, "Request is prohibited by organization's policy.");
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
            for error in [answered(403, DENIED), answered(404, "Not found")] {
                let delegates = [hostile.to_owned()];
                let error = for_impersonation(error, None, hostile, &delegates);
                let advice = error.remediation().expect("advice");
                assert!(!advice.contains('\n'), "{advice}");
                let (_, command) = advice.split_once(": gcloud ").expect("a command");
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
    fn names_the_project() {
        assert_eq!(project_name("a@p.iam.gserviceaccount.com").as_deref(), Some("p"));
        assert_eq!(
            project_name("a@p.example.com.iam.gserviceaccount.com").as_deref(),
            Some("example.com:p")
        );
        assert_eq!(
            project_name("p@appspot.gserviceaccount.com").as_deref(),
            Some("p")
        );
        assert_eq!(project_name("12-compute@developer.gserviceaccount.com"), None);
        assert_eq!(project_name("123456"), None);
    }

    #[test]
    fn says_how_to_see_and_enable() {
        let text = for_impersonation(
            answered(404, "Not found"),
            None,
            "a@p.iam.gserviceaccount.com",
            &[],
        )
        .to_string();
        assert!(
            text.contains("gcloud iam service-accounts describe a@p.iam.gserviceaccount.com --project=p"),
            "{text}"
        );
        let disabled = answered(
            403,
            "IAM … API has not been used in project 1 before or it is disabled",
        );
        let text = for_impersonation(disabled, Some(&operator()), "a@b", &[]).to_string();
        assert!(
            text.contains("gcloud services enable iamcredentials.googleapis.com --project=o"),
            "{text}"
        );
    }
}
