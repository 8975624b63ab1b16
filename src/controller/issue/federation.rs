//! Gets a token by the permission of a tenant's Kubernetes ServiceAccount: reads the account, has the API server make a token for it,
//! exchanges that and mints. Nothing here spends the operator's Google identity.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::error::{FederationError, MintError};
use crate::clock::Clock;
use crate::controller::queue::permit::Permit;
use crate::google::{
    self, CallPriority, FEDERATED_SCOPE, FederatedToken, IdentityProvider, Impersonation, Minter,
    SubjectToken, Workload, is_rejected,
};
use crate::grants::store::GrantStore;
use crate::kubernetes::error::KubeError;
use crate::kubernetes::service_account::{
    CALL_TIMEOUT, KubernetesServiceAccount, create_token, read_service_account,
};
use crate::request::syntax::is_service_account;
use crate::request::{Federation, SourceSettings, ValidRequest};
use crate::shell;
use crate::single_flight::{Fetched, SingleFlightCache};
use crate::token::{IdToken, unverified_claims};

/// Longest time for which a federated access token is used again.
const MAX_REUSE: Duration = Duration::from_secs(300);

/// Life that an access token must have left: more than a call may take, its wait for the limits included.
const MIN_REMAINING: Duration = Duration::from_secs(60);

/// Federated access tokens that are kept at once, of some 2 KiB each.
const MAX_TOKENS: usize = 4096;

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

/// Federated access tokens, and who the operator itself is.
#[derive(Debug)]
pub struct FederatedTokens {
    tokens: SingleFlightCache<Key, FederatedToken, MintError>,
    operator: OnceCell<OperatorIdentity>,
}

impl FederatedTokens {
    /// Holds no token yet.
    pub fn new(clock: Clock) -> Self {
        Self {
            tokens: SingleFlightCache::new(MAX_TOKENS, clock),
            operator: OnceCell::new(),
        }
    }

    /// Drops access tokens that are not used any more.
    pub fn evict_expired(&self) {
        self.tokens.evict_expired();
    }
}

/// The operator as the API server knows it.
#[derive(Debug)]
struct OperatorIdentity {
    username: String,
}

impl OperatorIdentity {
    fn is(&self, namespace: &str, name: &str) -> bool {
        self.service_account() == Some((namespace, name))
    }

    fn service_account(&self) -> Option<(&str, &str)> {
        self.username
            .strip_prefix("system:serviceaccount:")?
            .split_once(':')
    }

    /// The option of `kubectl create rolebinding` that names it.
    fn kubectl_subject_flag(&self) -> String {
        match self.service_account() {
            Some((namespace, name)) => format!("--serviceaccount={namespace}:{name}"),
            None => format!("--user={}", shell::quote(&self.username)),
        }
    }
}

/// What the flows of tokens need. Borrows it for one reconcile.
#[derive(Clone, Copy)]
pub struct TokenSources<'a> {
    /// Client of the Kubernetes API.
    pub client: &'a Client,
    /// Google's endpoints.
    pub minter: &'a Minter,
    /// Who may have which token.
    pub grants: &'a GrantStore,
    /// Access tokens of federated ServiceAccounts.
    pub federated: &'a FederatedTokens,
    /// What the flags permit of sources.
    pub settings: &'a SourceSettings,
    /// The time.
    pub clock: &'a Clock,
}

/// A token of a Kubernetes ServiceAccount for a Google service account.
pub(crate) struct FederatedIdToken {
    pub(crate) token: IdToken,
    /// The account it was asked for.
    pub(crate) account: String,
}

/// Gets the token that `request` asks for by `federation`. The permit is held for each call of the API server, and released while Google
/// answers.
///
/// # Errors
/// The ServiceAccount is missing, not annotated or the operator's own; the API server or Google refused or did not answer.
pub(crate) async fn federate(
    sources: &TokenSources<'_>,
    request: &ValidRequest,
    federation: &Federation,
    priority: CallPriority<'_>,
    permit: &mut Permit,
) -> Result<FederatedIdToken, MintError> {
    let settings = sources.settings;
    let (provider, token_audience) = federation.resolve(settings).map_err(MintError::Spec)?;
    let (namespace, name) = (&request.namespace, &federation.kubernetes_service_account);
    let operator = sources
        .federated
        .operator
        .get_or_try_init(|| whoami(sources))
        .await?;
    if operator.is(namespace, name) {
        return Err(FederationError::IsOperator {
            namespace: namespace.clone(),
            name: name.clone(),
        }
        .into());
    }
    let cached = &sources.federated.tokens;
    let is_its = |key: &Key| key.namespace == *namespace && key.name == *name;
    let Some(kubernetes) = read_service_account(sources.client, namespace, name).await? else {
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
    // Another request may fetch this token already. The wait for it holds no permit.
    permit.release();
    let bearer = cached
        .get(&key, || async {
            let token = kubernetes_token(sources, &workload, &kubernetes.uid, &token_audience, operator);
            let token = permit.holding(Box::pin(token)).await;
            permit.release();
            let token = token?;
            let exchanged = sources.minter.exchange(&workload, &token).await?;
            let life = exchanged.lifetime().saturating_sub(MIN_REMAINING);
            let now = sources.clock.boot();
            Ok::<_, MintError>(Fetched::for_lifetime(exchanged, life.min(MAX_REUSE), now))
        })
        .await;
    permit.acquire().await;
    let bearer = bearer?;
    let call = Impersonation {
        service_account: &account,
        audience: &request.token.audience,
        include_email: request.token.include_email,
        include_organization_number: request.token.include_organization_number,
        delegates: &[],
        request_reason: &request_reason,
        priority,
    };
    let minted = permit.released_while(Box::pin(sources.minter.federate(&workload, &bearer, &call)));
    match minted.await {
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
async fn whoami(sources: &TokenSources<'_>) -> Result<OperatorIdentity, KubeError> {
    let reviews: Api<SelfSubjectReview> = Api::all(sources.client.clone());
    let (parameters, review) = (PostParams::default(), SelfSubjectReview::default());
    let call = reviews.create(&parameters, &review);
    let review = KubeError::within(CALL_TIMEOUT, "create", "selfsubjectreviews", "(none)", call)
        .await?
        .map_err(|error| KubeError::new("create", "selfsubjectreviews", "(none)", &error))?;
    let username = review
        .status
        .and_then(|status| status.user_info?.username)
        .unwrap_or_default();
    Ok(OperatorIdentity { username })
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
    kubernetes: KubernetesClaims,
}

#[derive(Deserialize)]
struct KubernetesClaims {
    serviceaccount: ServiceAccountClaim,
}

#[derive(Deserialize)]
struct ServiceAccountClaim {
    uid: String,
}

async fn kubernetes_token(
    sources: &TokenSources<'_>,
    workload: &Workload<'_>,
    uid: &str,
    audience: &str,
    operator: &OperatorIdentity,
) -> Result<SubjectToken, MintError> {
    let (namespace, name) = (workload.namespace, workload.name);
    let token = match create_token(sources.client, namespace, name, uid, audience).await {
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
                subject: operator.kubectl_subject_flag(),
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
