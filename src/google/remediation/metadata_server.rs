//! What to do if the metadata server gives no token.

use super::command::{guess, project, word};
use crate::google::transport::error_body::blames_another_rule;
use crate::google::vocabulary::{Endpoint, Error, Principal, Reason};
use crate::text::printable;

/// The role that lets a Kubernetes ServiceAccount of GKE act as a Google one:
/// <https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity>.
const WORKLOAD_IDENTITY_USER: &str = "roles/iam.workloadIdentityUser";

/// The longest outside word, in characters.
const MAX_WORD_CHARS: usize = 256;

/// Adds what to do about a server that is busy or not reachable.
pub(crate) fn for_metadata_server(error: Error) -> Error {
    let remediation = match error.reason() {
        Reason::UpstreamUnreachable | Reason::UpstreamTimeout => {
            "Only GKE, Compute Engine and Cloud Run have metadata servers: elsewhere use another source. There, let the operator's \
             pod reach 169.254.169.254 port 80 (on GKE also 169.254.169.252 port 988), which network policies often forbid, and \
             check the node's gke-metadata-server pod."
        }
        Reason::QuotaExceeded => {
            "The metadata server limits the calls of one node or instance; the operator retries more slowly. If that lasts, run \
             other callers on other nodes, or use the source impersonation."
        }
        Reason::UpstreamUnavailable => {
            "A metadata server is unavailable for moments during maintenance and in the first seconds of a pod's life; the \
             operator retries automatically."
        }
        _ => return error,
    };
    error.with_remediation(remediation)
}

/// Adds what to do if there is no ID token of the attached account. `account` is the account that the request names, if any.
pub(crate) fn for_attached_identity(error: Error, account: Option<&str>) -> Error {
    let account = account
        .filter(|name| name.contains('@'))
        .unwrap_or("ACCOUNT@PROJECT_ID.iam.gserviceaccount.com");
    let text = error.to_string();
    let remediation = match (error.reason(), kubernetes_service_account(&text)) {
        (Reason::IdentityNotAttached, Some((namespace, name))) => format!(
            "Name the Google service account on the operator's Kubernetes ServiceAccount: kubectl annotate serviceaccount {} -n {} \
             {} and let it act as that: {}",
            word(name),
            word(namespace),
            word(&format!("iam.gke.io/gcp-service-account={account}")),
            bind(account, namespace, name),
        ),
        (Reason::IdentityNotAttached, None) => {
            "Attach a service account to the instance, node pool or Cloud Run service that the operator runs on, or use the \
             source impersonation."
                .to_owned()
        }
        (Reason::PermissionDenied, _) if blames_another_rule(&text) => return error,
        (Reason::PermissionDenied, _) => {
            let advice = format!(
                "Let the operator's Kubernetes ServiceAccount act as the Google one that its annotation \
                 iam.gke.io/gcp-service-account names: {}",
                bind(account, "NAMESPACE", "NAME"),
            );
            match text.contains("iam.serviceAccounts.") {
                true => advice,
                false => guess(&advice),
            }
        }
        _ => return error,
    };
    error.with_remediation(remediation)
}

/// The error of a token that Google did not sign. `message` says why.
pub(crate) fn not_signed(message: &str) -> Error {
    let error = Error::new(Endpoint::Metadata, Reason::TokenSignatureInvalid, message);
    error.with_remediation(
        "Nothing is written. If --google-keys-url is set, check that it has the keys of --universe-domain. Otherwise another server \
         than Google's answered at the metadata server's address: check GCE_METADATA_HOST of the operator, and the pods and \
         network of its node.",
    )
}

/// The message if the attached account is not the requested one.
pub(crate) fn account_mismatch(attached: &Principal, requested: &str) -> String {
    format!(
        "the metadata server gives tokens of {}, not of {}: name that account in spec.serviceAccount, leave it out, or use the \
         source impersonation",
        printable(&attached.to_string(), MAX_WORD_CHARS),
        printable(requested, MAX_WORD_CHARS)
    )
}

fn bind(account: &str, namespace: &str, name: &str) -> String {
    let member = format!("serviceAccount:PROJECT_ID.svc.id.goog[{namespace}/{name}]");
    format!(
        "gcloud iam service-accounts add-iam-policy-binding {} --member={} --role={WORKLOAD_IDENTITY_USER}{}",
        word(account),
        word(&member),
        project(account)
    )
}

/// Namespace and name in GKE's `Your Kubernetes service account (ns/name) is not annotated …`.
fn kubernetes_service_account(message: &str) -> Option<(&str, &str)> {
    let (_, rest) = message.split_once("Kubernetes service account (")?;
    let (namespace, name) = rest.split_once(')')?.0.split_once('/')?;
    let is_name = |text: &str| {
        !text.is_empty()
            && text.len() <= 253
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
    };
    (is_name(namespace) && is_name(name)).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::google::vocabulary::Endpoint;

    fn error(reason: Reason, message: &str) -> Error {
        Error::new(Endpoint::Metadata, reason, message)
    }

    #[test]
    fn an_unannotated_service_account_gets_the_command_that_annotates_it() {
        let message = "Your Kubernetes service account (idtoken-system/op) is not annotated with a target Google service account";
        let error = for_attached_identity(
            error(Reason::IdentityNotAttached, message),
            Some("a@p.iam.gserviceaccount.com"),
        );
        let remediation = error.remediation().expect("a remediation");
        assert!(
            remediation.contains(
                "kubectl annotate serviceaccount op -n idtoken-system \
                 iam.gke.io/gcp-service-account=a@p.iam.gserviceaccount.com and"
            ),
            "{remediation}"
        );
        assert!(
            remediation.ends_with(
                "gcloud iam service-accounts add-iam-policy-binding a@p.iam.gserviceaccount.com \
                 --member='serviceAccount:PROJECT_ID.svc.id.goog[idtoken-system/op]' --role=roles/iam.workloadIdentityUser \
                 --project=p"
            ),
            "{remediation}"
        );
    }

    #[test]
    fn the_servers_message_becomes_no_command() {
        for message in [
            "Your Kubernetes service account ($(id)/x) is not annotated",
            "Your Kubernetes service account (x) is not annotated",
            "Your Kubernetes service account (a/b;id) is not annotated",
        ] {
            let error = for_attached_identity(error(Reason::IdentityNotAttached, message), None);
            let remediation = error.remediation().expect("a remediation");
            assert!(
                remediation.starts_with("Attach a service account"),
                "{remediation}"
            );
        }
    }

    #[test]
    fn iam_names_a_permission_or_the_advice_is_a_guess_or_another_rule_refuses() {
        let advice = |message| {
            for_attached_identity(
                error(Reason::PermissionDenied, message),
                Some("a@p.iam.gserviceaccount.com"),
            )
            .remediation()
            .map(str::to_owned)
        };
        let named =
            advice("IAM returned 403 Forbidden: Permission 'iam.serviceAccounts.getOpenIdToken' denied")
                .unwrap();
        assert!(
            named.contains("roles/iam.workloadIdentityUser") && !named.contains("guess"),
            "{named}"
        );
        let bare = advice("IAM returned 403 Forbidden: Permission denied").unwrap();
        assert!(bare.contains("which is a guess: Let the operator's"), "{bare}");
        let perimeter = "IAM returned 403 Forbidden: Request is prohibited by organization's policy";
        assert_eq!(advice(perimeter), None);
    }

    #[test]
    fn each_failure_has_its_own_remediation() {
        let remediation = |reason| {
            for_metadata_server(error(reason, "x"))
                .remediation()
                .map(str::to_owned)
        };
        let all = [
            Reason::UpstreamUnreachable,
            Reason::QuotaExceeded,
            Reason::UpstreamUnavailable,
        ]
        .map(remediation);
        assert!(
            all.iter().all(Option::is_some) && all[0] != all[1] && all[1] != all[2],
            "{all:?}"
        );
        assert_eq!(remediation(Reason::InvalidArgument), None);
    }
}
