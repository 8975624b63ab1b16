//! What to do if a workload cannot federate.

use super::command::{MAX_WORD_CHARS, bind_openid, describe_account, guess, if_about_tokens, word};
use crate::google::vocabulary::{
    Endpoint, Error, IdentityProvider, MAX_SUBJECT_BYTES, Reason, SubjectToken, Workload,
};
use crate::text::printable;

/// Checks that the exchange can accept the workload's subject, before any call.
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
        bounded(workload.subject),
        workload.subject.len()
    );
    let error = Error::new(Endpoint::Sts, Reason::SubjectTooLong, &message);
    Err(error.with_remediation(shorter_subject(workload)))
}

fn shorter_subject(workload: &Workload<'_>) -> String {
    format!(
        "Shorten the names of namespace or ServiceAccount, or map a shorter attribute to google.subject and set \
         --federation-subject-template accordingly: {}",
        update(
            workload.provider,
            "--attribute-mapping='google.subject=assertion[\"kubernetes.io\"].serviceaccount.uid'"
        )
    )
}

/// Adds what to do about a failed exchange.
pub(crate) fn for_exchange(error: Error, workload: &Workload<'_>, token: &SubjectToken) -> Error {
    let provider = workload.provider;
    let remediation = match error.reason() {
        Reason::ProviderNotFound => format!(
            "The provider {} is disabled, deleted or never existed. To see it: {}",
            bounded(provider.name()),
            describe(provider)
        ),
        Reason::InvalidArgument => format!(
            "Check the provider's name, {}. To see it: {}",
            bounded(provider.name()),
            describe(provider)
        ),
        Reason::SubjectTokenWrongAudience => match provider {
            IdentityProvider::Pool { .. } => format!(
                "The Kubernetes token is for {audience}. Leave spec.source.federation.tokenAudience out, or let the provider accept \
                 it: {command}",
                audience = bounded(&token.audience),
                command = update(
                    provider,
                    &format!("--allowed-audiences={}", word(&token.audience))
                )
            ),
            IdentityProvider::Gke { .. } => format!(
                "The Kubernetes token is for {}; GKE expects {}: leave spec.source.federation.tokenAudience out",
                bounded(&token.audience),
                provider.token_audience()
            ),
        },
        Reason::SubjectTokenWrongIssuer => format!(
            "The cluster's issuer is {}. Set it as the provider's issuer: {}",
            bounded(&token.issuer),
            update(provider, &format!("--issuer-uri={}", word(&token.issuer)))
        ),
        Reason::SubjectTokenStale => {
            "Check the clock of the cluster's control plane: to Google the Kubernetes token is too old, although it was just issued."
                .to_owned()
        }
        Reason::SubjectTokenUnverified => format!(
            "The provider does not know the key that the cluster signs with. Most often its uploaded JWKS is older than a key \
             rotation. Upload the JWKS again: {}",
            upload(provider)
        ),
        Reason::IssuerUnreachable => format!(
            "Google cannot read {}/.well-known/openid-configuration: make it public, or upload the cluster's keys: {}",
            bounded(token.issuer.trim_end_matches('/')),
            upload(provider)
        ),
        Reason::AttributeConditionRejected => format!(
            "The provider's attribute condition rejects {}. To see it: {}",
            bounded(workload.subject),
            describe(provider)
        ),
        Reason::SubjectTooLong => shorter_subject(workload),
        Reason::ExchangeRefused => format!("To see the provider: {}", describe(provider)),
        Reason::PermissionDenied if error.is_unexplained() => guess(&enable(provider)),
        Reason::ApiDisabled => enable(provider),
        _ => return error,
    };
    error.with_remediation(remediation)
}

/// Adds what to do about a failed `generateIdToken` with a federated access token.
pub(crate) fn for_mint(error: Error, workload: &Workload<'_>, account: &str) -> Error {
    let remediation = match error.reason() {
        Reason::PermissionDenied => {
            let member = member(workload);
            match if_about_tokens(&error, || bind_openid(&bounded(&member), account, &member)) {
                Some(advice) => advice,
                None => return error,
            }
        }
        Reason::ServiceAccountNotFound => describe_account(account),
        Reason::ApiDisabled => format!(
            "Enable the API in the project of the provider: gcloud services enable iamcredentials.googleapis.com{}",
            project(workload.provider)
        ),
        Reason::CredentialsRejected => {
            "Google does not accept the federated access token: it is dropped, and the next attempt exchanges a new one.".to_owned()
        }
        _ => return error,
    };
    error.with_remediation(remediation)
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

fn bounded(text: &str) -> String {
    printable(text, MAX_WORD_CHARS)
}

/// The arguments of gcloud that name a provider of a pool.
fn arguments(provider: &IdentityProvider) -> Option<String> {
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
    match arguments(provider) {
        Some(arguments) => format!("gcloud iam workload-identity-pools providers describe {arguments}"),
        None => {
            "gcloud container clusters list --format='table(selfLink, workloadIdentityConfig.workloadPool)'"
                .to_owned()
                + &project(provider)
        }
    }
}

fn enable(provider: &IdentityProvider) -> String {
    "Enable the API in the project of the provider: gcloud services enable sts.googleapis.com".to_owned()
        + &project(provider)
}

fn update(provider: &IdentityProvider, change: &str) -> String {
    match arguments(provider) {
        Some(arguments) => {
            format!("gcloud iam workload-identity-pools providers update-oidc {arguments} {change}")
        }
        None => describe(provider),
    }
}

fn upload(provider: &IdentityProvider) -> String {
    match arguments(provider) {
        Some(_) => format!(
            "kubectl get --raw /openid/v1/jwks > cluster-jwks.json && {}",
            update(provider, "--jwk-json-path=cluster-jwks.json")
        ),
        // Users cannot change GKE's own issuer: the request names another cluster.
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
