//! Gets a token by the permission of a tenant's Kubernetes ServiceAccount: reads the account, has the API server make a token for it,
//! exchanges that and mints. Nothing here spends the operator's Google identity.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::Api;
use kube::api::PostParams;
use serde::Deserialize;
use thiserror::Error;
use tokio::sync::OnceCell;

use super::Issuer;
use super::mint::MintError;
use crate::api::conditions::reason;
use crate::google::{
    self, CallPriority, FEDERATED_SCOPE, FederatedToken, IdentityProvider, Impersonation, SubjectToken,
    Workload, is_rejected,
};
use crate::kubernetes::error::KubeError;
use crate::kubernetes::service_account::{
    GCP_SERVICE_ACCOUNT, KubernetesServiceAccount, create_token, read_service_account,
};
use crate::request::syntax::is_service_account;
use crate::request::{Federation, SourceSettings, ValidRequest};
use crate::shell;
use crate::single_flight::{Fetched, SingleFlightCache};
use crate::token::{IdToken, unverified_claims};

/// Longest time for which a federated access token is used again.
const LONGEST_USE: Duration = Duration::from_secs(300);

/// Life that an access token must have left: more than a call may take, its wait for the limits included.
const LEAST_LIFE: Duration = Duration::from_secs(60);

/// FederatedTokens access tokens that are kept at once, of some 2 KiB each.
const MAX_TOKENS: usize = 4096;

/// Why a ServiceAccount gets no token, beside what the API server and Google say.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FederationError {
    /// There is no such ServiceAccount.
    #[error(
        "there is no Kubernetes ServiceAccount {name} in namespace {namespace}, which spec.source.federation names: kubectl create \
         serviceaccount {name} -n {namespace}"
    )]
    Missing {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Neither the request nor the ServiceAccount names a Google service account.
    #[error(
        "spec.serviceAccount is absent, and the annotation {GCP_SERVICE_ACCOUNT} of Kubernetes ServiceAccount {name} {problem}: kubectl \
         annotate serviceaccount {name} -n {namespace} {GCP_SERVICE_ACCOUNT}=ACCOUNT@PROJECT.iam.gserviceaccount.com --overwrite"
    )]
    NotAnnotated {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What is wrong with the annotation.
        problem: &'static str,
    },
    /// The ServiceAccount is the operator's own.
    #[error(
        "Kubernetes ServiceAccount {name} of namespace {namespace} is the operator's own, which nobody may federate: name another"
    )]
    Own {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// RBAC does not let the operator make tokens of this ServiceAccount.
    #[error(
        "the operator may not create serviceaccounts/token of {name} in namespace {namespace}: {message}. Whoever administers the \
         namespace can allow it for this account: kubectl create role idtoken-{name} -n {namespace} --verb=create \
         --resource=serviceaccounts/token --resource-name={name} && kubectl create rolebinding idtoken-{name} -n {namespace} \
         --role=idtoken-{name} {subject}"
    )]
    TokenForbidden {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The API server's own words.
        message: String,
        /// The operator, as an option of kubectl.
        subject: String,
    },
}

impl FederationError {
    /// Reason of the condition, the event and the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => reason::KUBERNETES_SERVICE_ACCOUNT_NOT_FOUND,
            Self::NotAnnotated { .. } => reason::SERVICE_ACCOUNT_NOT_ANNOTATED,
            Self::Own { .. } => google::Reason::SelfImpersonation.as_str(),
            Self::TokenForbidden { .. } => reason::TOKEN_REQUEST_FORBIDDEN,
        }
    }
}

/// What decides a federated access token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    namespace: String,
    name: String,
    uid: String,
    provider: IdentityProvider,
    token_audience: String,
    subject: String,
    scope: &'static str,
}

/// FederatedTokens access tokens, and who the operator itself is.
#[derive(Debug)]
pub struct FederatedTokens {
    tokens: SingleFlightCache<Key, FederatedToken, MintError>,
    operator: OnceCell<Operator>,
}

impl Default for FederatedTokens {
    fn default() -> Self {
        Self {
            tokens: SingleFlightCache::new(MAX_TOKENS),
            operator: OnceCell::new(),
        }
    }
}

impl FederatedTokens {
    /// Drops access tokens that are not used any more.
    pub fn sweep(&self) {
        self.tokens.evict_expired();
    }
}

/// The operator as the API server knows it.
#[derive(Debug)]
struct Operator {
    username: String,
}

impl Operator {
    fn is(&self, namespace: &str, name: &str) -> bool {
        self.service_account() == Some((namespace, name))
    }

    fn service_account(&self) -> Option<(&str, &str)> {
        self.username
            .strip_prefix("system:serviceaccount:")?
            .split_once(':')
    }

    /// The option of `kubectl create rolebinding` that names it.
    fn option(&self) -> String {
        match self.service_account() {
            Some((namespace, name)) => format!("--serviceaccount={namespace}:{name}"),
            None => format!("--user={}", shell::quote(&self.username)),
        }
    }
}

/// A token of a Kubernetes ServiceAccount for a Google service account.
pub(crate) struct FederatedIdToken {
    pub(crate) token: IdToken,
    /// The account it was asked for.
    pub(crate) account: String,
}

/// Gets the token that `request` asks for by `federation`.
///
/// # Errors
/// The ServiceAccount is missing, not annotated or the operator's own; the API server or Google refused or did not answer.
pub(crate) async fn federate(
    issuer: &Issuer<'_>,
    request: &ValidRequest,
    federation: &Federation,
    priority: CallPriority<'_>,
) -> Result<FederatedIdToken, MintError> {
    let settings = issuer.sources;
    let (provider, token_audience) = federation.resolve(settings).map_err(MintError::Spec)?;
    let (namespace, name) = (&request.namespace, &federation.kubernetes_service_account);
    let operator = issuer
        .federated
        .operator
        .get_or_try_init(|| whoami(issuer))
        .await?;
    if operator.is(namespace, name) {
        return Err(FederationError::Own {
            namespace: namespace.clone(),
            name: name.clone(),
        }
        .into());
    }
    let cached = &issuer.federated.tokens;
    let is_its = |key: &Key| key.namespace == *namespace && key.name == *name;
    let Some(kubernetes) = read_service_account(issuer.client, namespace, name).await? else {
        cached.remove(is_its);
        return Err(FederationError::Missing {
            namespace: namespace.clone(),
            name: name.clone(),
        }
        .into());
    };
    // What was made for one that was deleted is not its successor's.
    cached.remove(|key| is_its(key) && key.uid != kubernetes.uid);
    let account = account(request, name, &kubernetes)?;
    let subject = subject(settings, namespace, name, &kubernetes.uid);
    let request_reason = format!("{namespace}/{}", request.name);
    let workload = Workload {
        provider,
        namespace,
        name,
        subject: &subject,
        request_reason: &request_reason,
        priority,
    };
    let key = Key {
        namespace: namespace.clone(),
        name: name.clone(),
        uid: kubernetes.uid.clone(),
        provider: provider.clone(),
        token_audience: token_audience.clone(),
        subject: subject.clone(),
        scope: FEDERATED_SCOPE,
    };
    google::check_subject(&workload)?;
    let bearer = cached
        .get(&key, || async {
            let token =
                kubernetes_token(issuer, &workload, &kubernetes.uid, &token_audience, operator).await?;
            let exchanged = issuer.minter.exchange(&workload, &token).await?;
            let life = exchanged.lifetime().saturating_sub(LEAST_LIFE);
            Ok::<_, MintError>(Fetched::for_lifetime(exchanged, life.min(LONGEST_USE)))
        })
        .await?;
    let asked = Impersonation {
        service_account: &account,
        audience: &request.token.audience,
        include_email: request.token.include_email,
        include_organization_number: request.token.include_organization_number,
        delegates: &[],
        request_reason: &request_reason,
        priority,
    };
    match issuer.minter.federate(&workload, &bearer, &asked).await {
        Ok(token) => Ok(FederatedIdToken { token, account }),
        Err(error) => {
            if is_rejected(&error) {
                cached.invalidate(&key, &bearer);
            }
            Err(error.into())
        }
    }
}

/// Asks the API server who the operator is: every user may, by the ClusterRole `system:basic-user`.
async fn whoami(issuer: &Issuer<'_>) -> Result<Operator, KubeError> {
    let reviews: Api<SelfSubjectReview> = Api::all(issuer.client.clone());
    let review = reviews
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .map_err(|error| KubeError::new("create", "selfsubjectreviews", "(none)", &error))?;
    let username = review
        .status
        .and_then(|status| status.user_info?.username)
        .unwrap_or_default();
    Ok(Operator { username })
}

/// The Google service account: the request's, or the one that the Kubernetes ServiceAccount is annotated with.
fn account(
    request: &ValidRequest,
    name: &str,
    kubernetes: &KubernetesServiceAccount,
) -> Result<String, FederationError> {
    if let Some(account) = &request.token.service_account {
        return Ok(account.clone());
    }
    let problem = match &kubernetes.gcp_service_account {
        Some(account) if is_service_account(account) => return Ok(account.clone()),
        Some(_) => "names no Google service account",
        None => "is absent too",
    };
    Err(FederationError::NotAnnotated {
        namespace: request.namespace.clone(),
        name: name.to_owned(),
        problem,
    })
}

/// The `google.subject` of a ServiceAccount.
fn subject(settings: &SourceSettings, namespace: &str, name: &str, uid: &str) -> String {
    match &settings.federation_subject_template {
        None => format!("system:serviceaccount:{namespace}:{name}"),
        // One after the other would be wrong if a name could hold a placeholder; none can hold a brace.
        Some(template) => template
            .replace("{namespace}", namespace)
            .replace("{name}", name)
            .replace("{uid}", uid),
    }
}

/// The claims of a Kubernetes token that are compared with what was asked for
/// (<https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>).
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Deserialize)]
struct Bound {
    serviceaccount: Identity,
}

#[derive(Deserialize)]
struct Identity {
    uid: String,
}

async fn kubernetes_token(
    issuer: &Issuer<'_>,
    workload: &Workload<'_>,
    uid: &str,
    audience: &str,
    operator: &Operator,
) -> Result<SubjectToken, MintError> {
    let (namespace, name) = (workload.namespace, workload.name);
    let token = match create_token(issuer.client, namespace, name, uid, audience).await {
        Ok(Some(token)) => token,
        Ok(None) => {
            return Err(FederationError::Missing {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }
            .into());
        }
        Err(KubeError::Forbidden { message, .. }) => {
            return Err(FederationError::TokenForbidden {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                message,
                subject: operator.option(),
            }
            .into());
        }
        Err(fault) => return Err(fault.into()),
    };
    let claims = unverified_claims::<Claims>(&token).filter(|claims| {
        // Older API servers do not compare the UID themselves.
        claims.sub == format!("system:serviceaccount:{namespace}:{name}")
            && claims.kubernetes.serviceaccount.uid == uid
            && claims.aud == [audience]
    });
    let claims = claims.ok_or_else(|| KubeError::Unavailable {
        verb: "create",
        resource: "serviceaccounts/token",
        namespace: namespace.to_owned(),
        problem: "the token that came back is of another ServiceAccount or audience than was asked for"
            .into(),
    })?;
    Ok(SubjectToken {
        token,
        issuer: claims.iss,
        audience: audience.to_owned(),
    })
}

#[cfg(test)]
#[path = "federation_tests.rs"]
mod tests;
