//! Commands for a service account, and the words in them.

use crate::google::vocabulary::Error;
use crate::shell::quote;
use crate::text::printable;

/// The permission that `generateIdToken` needs on the account:
/// <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateIdToken>.
const PERMISSION: &str = "iam.serviceAccounts.getOpenIdToken";

/// The smallest role that has [`PERMISSION`].
const ROLE: &str = "roles/iam.serviceAccountOpenIdTokenCreator";

/// The longest outside word in a message or command, in characters.
pub(super) const MAX_WORD_CHARS: usize = 512;

/// `advice` about a binding, if the 403 is about [`PERMISSION`]; marked as a guess if Google names no cause. None if it is about an organization's
/// policy or a perimeter, which no binding changes.
pub(super) fn if_about_tokens(error: &Error, advice: impl FnOnce() -> String) -> Option<String> {
    let is_named = match error.permission() {
        Some(permission) => permission.starts_with("iam.serviceAccounts."),
        None => error.to_string().contains("'iam.serviceAccounts."),
    };
    match is_named {
        true => Some(advice()),
        false => error.is_unexplained().then(|| guess(&advice())),
    }
}

/// `advice` about a refusal whose cause Google does not name.
pub(super) fn guess(advice: &str) -> String {
    format!("Google names no permission; the likely cause, which is a guess: {advice}")
}

/// The missing permission, and the command that grants it.
pub(super) fn bind_openid(who: &str, account: &str, member: &str) -> String {
    format!(
        "{who} needs {PERMISSION} on {} (a new binding can take 7 minutes or longer to take effect): {}",
        printable(account, MAX_WORD_CHARS),
        bind(account, member, ROLE)
    )
}

/// That the account does not exist, and the command that shows it.
pub(super) fn describe_account(account: &str) -> String {
    format!(
        "The service account {} does not exist, or was deleted. To see it: gcloud iam service-accounts describe {}{}",
        printable(account, MAX_WORD_CHARS),
        word(account),
        project(account)
    )
}

pub(super) fn bind(account: &str, member: &str, role: &str) -> String {
    format!(
        "gcloud iam service-accounts add-iam-policy-binding {} --member={} --role={role}{}",
        word(account),
        word(member),
        project(account)
    )
}

/// A positional argument or an option's value. A leading dash is removed: even in quotes, such a word would be an option.
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

/// The project in a service account's e-mail. The e-mail has the parts of a domain-scoped project, `DOMAIN:NAME`, in reverse order.
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

    #[test]
    fn the_project_is_in_the_email() {
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
}
