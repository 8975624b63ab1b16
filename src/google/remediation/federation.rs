//! What to do about a refusal of a federated workload, with the command that does it.

use super::impersonation::{bind_openid, describe_account, is_about_tokens, word};
use crate::google::vocabulary::{
    Endpoint, Error, IdentityProvider, MAX_SUBJECT_BYTES, Reason, SubjectToken, Workload,
};
use crate::text::printable;

/// The longest outside word in a message, in characters.
const MAX_WORD_CHARS: usize = 512;

/// Reports a subject that no exchange accepts, before any call.
///
/// # Errors
/// [`Reason::SubjectTooLong`].
pub fn check_subject(workload: &Workload<'_>) -> Result<(), Error> {
    if matches!(workload.provider, IdentityProvider::Gke { .. })
        || workload.subject.len() <= MAX_SUBJECT_BYTES
    {
        return Ok(());
    }
    let message = format!(
        "the subject {} has {} bytes, and google.subject at most {MAX_SUBJECT_BYTES}",
        shown(workload.subject),
        workload.subject.len()
    );
    let error = Error::new(Endpoint::Sts, Reason::SubjectTooLong, &message);
    Err(error.with_remediation(shorter_subject(workload)))
}

fn shorter_subject(workload: &Workload<'_>) -> String {
    format!(
        "Shorten the names of namespace or ServiceAccount, or have the provider map a shorter attribute, and tell the operator by \
         --federation-subject-template: {}",
        update(
            workload.provider,
            "--attribute-mapping='google.subject=assertion[\"kubernetes.io\"].serviceaccount.uid'"
        )
    )
}

/// Adds what to do to a failure of the exchange.
pub(crate) fn for_exchange(error: Error, workload: &Workload<'_>, token: &SubjectToken) -> Error {
    let provider = workload.provider;
    let advice = match error.reason() {
        Reason::ProviderNotFound => format!(
            "The provider {} is disabled, deleted or was never there. To see it: {}",
            shown(provider.name()),
            describe(provider)
        ),
        Reason::InvalidArgument => format!(
            "Check the provider's name, {}. To see it: {}",
            shown(provider.name()),
            describe(provider)
        ),
        Reason::SubjectTokenWrongAudience => match provider {
            IdentityProvider::Pool { .. } => format!(
                "The Kubernetes token is for {audience}. Leave spec.source.federation.tokenAudience out, or have the provider accept \
                 it: {command}",
                audience = shown(&token.audience),
                command = update(
                    provider,
                    &format!("--allowed-audiences={}", word(&token.audience))
                )
            ),
            IdentityProvider::Gke { .. } => format!(
                "The Kubernetes token is for {}; GKE wants {}: leave spec.source.federation.tokenAudience out",
                shown(&token.audience),
                provider.token_audience()
            ),
        },
        Reason::SubjectTokenWrongIssuer => format!(
            "The cluster's issuer is {}. Have the provider know it: {}",
            shown(&token.issuer),
            update(provider, &format!("--issuer-uri={}", word(&token.issuer)))
        ),
        Reason::SubjectTokenStale => {
            "Check the clock of the cluster's control plane: Google finds the Kubernetes token, which was just made, too old."
                .to_owned()
        }
        Reason::SubjectTokenUnverified => format!(
            "The provider does not know the key that the cluster signs with: most often an uploaded JWKS from before a rotation. \
             Upload it again: {}",
            upload(provider)
        ),
        Reason::IssuerUnreachable => format!(
            "Google cannot read {}/.well-known/openid-configuration: make it public, or upload the cluster's keys: {}",
            shown(token.issuer.trim_end_matches('/')),
            upload(provider)
        ),
        Reason::AttributeConditionRejected => format!(
            "The provider's attribute condition does not let {} in. To see it: {}",
            shown(workload.subject),
            describe(provider)
        ),
        Reason::SubjectTooLong => shorter_subject(workload),
        Reason::ExchangeRefused => format!("To see the provider: {}", describe(provider)),
        Reason::PermissionDenied | Reason::ApiDisabled => {
            "Enable the API in the project of the provider: gcloud services enable sts.googleapis.com".to_owned()
                + &project(provider)
        }
        _ => return error,
    };
    error.with_remediation(advice)
}

/// Adds what to do to a failure of `generateIdToken` with a federated token.
pub(crate) fn for_mint(error: Error, workload: &Workload<'_>, account: &str) -> Error {
    let advice = match error.reason() {
        Reason::PermissionDenied if is_about_tokens(&error) => {
            let member = member(workload);
            bind_openid(&shown(&member), account, &member)
        }
        Reason::ServiceAccountNotFound => describe_account(account),
        Reason::ApiDisabled => format!(
            "Enable the API in the project of the provider: gcloud services enable iamcredentials.googleapis.com{}",
            project(workload.provider)
        ),
        Reason::CredentialsRejected => {
            "Google does not accept the federated access token: it is dropped, and exchanged anew with the next attempt.".to_owned()
        }
        _ => return error,
    };
    error.with_remediation(advice)
}

/// How an IAM policy names the workload (<https://cloud.google.com/iam/docs/principal-identifiers>).
pub(crate) fn member(workload: &Workload<'_>) -> String {
    match workload.provider {
        IdentityProvider::Pool { name } => {
            let (pool, _) = name.split_once("/providers/").unwrap_or((name, ""));
            format!(
                "principal://{}/subject/{}",
                pool.trim_start_matches('/'),
                workload.subject
            )
        }
        IdentityProvider::Gke { .. } => format!(
            "serviceAccount:{}[{}/{}]",
            workload.provider.token_audience(),
            workload.namespace,
            workload.name
        ),
    }
}

fn shown(text: &str) -> String {
    printable(text, MAX_WORD_CHARS)
}

/// Flags that name a provider of a pool.
fn place(provider: &IdentityProvider) -> Option<String> {
    let [number, location, pool, id] = provider.pool_parts()?;
    Some(format!(
        "{} --workload-identity-pool={} --location={} --project={}",
        word(id),
        word(pool),
        word(location),
        word(number)
    ))
}

fn describe(provider: &IdentityProvider) -> String {
    match place(provider) {
        Some(place) => format!("gcloud iam workload-identity-pools providers describe {place}"),
        None => {
            "gcloud container clusters list --format='table(selfLink, workloadIdentityConfig.workloadPool)'"
                .to_owned()
                + &project(provider)
        }
    }
}

fn update(provider: &IdentityProvider, change: &str) -> String {
    match place(provider) {
        Some(place) => format!("gcloud iam workload-identity-pools providers update-oidc {place} {change}"),
        None => describe(provider),
    }
}

fn upload(provider: &IdentityProvider) -> String {
    match place(provider) {
        Some(_) => format!(
            "kubectl get --raw /openid/v1/jwks > cluster-jwks.json && {}",
            update(provider, "--jwk-json-path=cluster-jwks.json")
        ),
        // GKE's own issuer is not for users to change: another cluster was named.
        None => describe(provider),
    }
}

fn project(provider: &IdentityProvider) -> String {
    let name = match provider {
        IdentityProvider::Pool { .. } => provider.pool_parts().map(|[number, ..]| number.to_owned()),
        IdentityProvider::Gke { .. } => provider
            .token_audience()
            .strip_suffix(".svc.id.goog")
            .map(str::to_owned),
    };
    name.map_or_else(String::new, |name| format!(" --project={}", word(&name)))
}

#[cfg(test)]
#[path = "federation_tests.rs"]
mod tests;
