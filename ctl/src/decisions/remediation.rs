//! Pure: the reasons of conditions and the state of the Secret → what to do next.

use std::collections::BTreeSet;

use idtoken_operator::api::conditions::{READY, RENEWAL_FAILING, STALLED, reason};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::google::shell::quote;
use jiff::Timestamp;

use crate::decisions::diagnosis::{Difference, Held};

/// What to do about a request, in order; empty where there is nothing to do.
pub(crate) fn next(
    object: &IdTokenRequest,
    held: &Held,
    differences: &[Difference],
    now: Timestamp,
) -> Vec<String> {
    let place = Place::of(object);
    let mut steps = Vec::new();
    let conditions = object
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let is_bad = |type_: &str, status: &str| match type_ {
        READY => status != "True",
        RENEWAL_FAILING | STALLED => status == "True",
        _ => false,
    };
    let suspended = object.spec.suspend.unwrap_or(false);
    let mut reasons: Vec<&str> = Vec::new();
    for condition in conditions
        .iter()
        .filter(|condition| is_bad(&condition.type_, &condition.status))
    {
        if !reasons.contains(&condition.reason.as_str()) {
            reasons.push(&condition.reason);
        }
    }
    if suspended && !reasons.contains(&reason::SUSPENDED) {
        reasons.push(reason::SUSPENDED);
    }
    if conditions.is_empty() {
        steps.push(format!(
            "The operator has not looked at the request yet. If that lasts, see whether it runs and watches namespace {}: \
             kubectl get pods -A -l app.kubernetes.io/name=idtoken-operator",
            place.namespace
        ));
    }
    steps.extend(reasons.iter().map(|reason| for_reason(reason, &place)));
    let is_ended = matches!(held, Held::Token(token) if token.claims().exp <= now);
    if is_ended && reasons.is_empty() && !conditions.is_empty() {
        steps.push(format!(
            "The token has ended although the status does not say so: the operator does not run, or this machine's clock is wrong. \
             See its pods (kubectl get pods -A -l app.kubernetes.io/name=idtoken-operator), then: {}",
            place.renew()
        ));
    }
    if reasons.is_empty() && !is_ended && !conditions.is_empty() {
        steps.extend(for_differences(differences, &place));
    }
    let mut seen = BTreeSet::new();
    steps.retain(|step| seen.insert(step.clone()));
    steps
}

fn for_differences(differences: &[Difference], place: &Place) -> Option<String> {
    if differences.is_empty() {
        return None;
    }
    let owned = differences
        .iter()
        .any(|difference| difference.field.contains("controller"));
    Some(if owned {
        format!(
            "Have the other controller let go of the Secret, then: {}",
            place.renew()
        )
    } else {
        format!(
            "The operator repairs the differences by itself within seconds. If they last: {}",
            place.renew()
        )
    })
}

/// The request, quoted for commands.
struct Place {
    namespace: String,
    name: String,
    secret: String,
    account: String,
    /// The Kubernetes ServiceAccount of a federation.
    workload: String,
    federated: bool,
}

impl Place {
    fn of(object: &IdTokenRequest) -> Self {
        let word = |text: Option<&str>| quote(text.unwrap_or_default()).into_owned();
        let name = object.metadata.name.as_deref();
        let secret = object
            .spec
            .target
            .as_ref()
            .and_then(|target| target.name.as_deref());
        let federation = object
            .spec
            .source
            .as_ref()
            .and_then(|source| source.federation.as_ref());
        Self {
            namespace: word(object.metadata.namespace.as_deref()),
            name: word(name),
            secret: word(secret.or(name)),
            account: word(object.spec.service_account.as_deref()),
            workload: word(federation.map(|federation| federation.service_account_ref.name.as_str())),
            federated: federation.is_some(),
        }
    }

    fn renew(&self) -> String {
        format!("kubectl idtoken renew {} -n {}", self.name, self.namespace)
    }

    fn edit(&self) -> String {
        format!("kubectl edit idtokenrequest {} -n {}", self.name, self.namespace)
    }
}

/// What to do about one reason. The condition's message has the details; this is the command.
fn for_reason(reason: &str, place: &Place) -> String {
    let Place {
        namespace,
        name,
        secret,
        account,
        workload,
        federated: _,
    } = place;
    match reason {
        reason::SUSPENDED => format!(
            "The request is suspended. To go on: kubectl patch idtokenrequest {name} -n {namespace} --type=merge -p \
             '{{\"spec\":{{\"suspend\":false}}}}'"
        ),
        reason::ISSUING => format!("Wait: a token is being issued. To follow: kubectl get idtokenrequest {name} -n {namespace} -w"),
        reason::INTERNAL_ERROR => "Report it as a bug, with the operator's log.".to_owned(),
        reason::INVALID_SPEC => format!("Correct the field that the message names: {}", place.edit()),
        reason::SOURCE_UNAVAILABLE => format!("Use a source that this operator has: {}", place.edit()),
        reason::NOT_GRANTED => format!(
            "An administrator of the cluster must grant it. The grant: kubectl idtoken grant {name} -n {namespace}; the nearest \
             that exist: kubectl idtoken can {name} -n {namespace}"
        ),
        reason::GRANTS_UNAVAILABLE => "The operator cannot read the grants or namespaces: see that the API server answers and that \
             the operator's ClusterRole lets it list and watch idtokengrants and namespaces; then it goes on by itself."
            .to_owned(),
        reason::SECRET_CONFLICT => format!(
            "Secret {secret} is somebody else's. Choose another spec.target.name, or let the request take it over: kubectl annotate \
             secret {secret} -n {namespace} idtoken.dev/adopt={name}"
        ),
        reason::TARGET_CONFLICT => format!(
            "An older IdTokenRequest writes Secret {secret}. Give one of them another spec.target.name: {}",
            place.edit()
        ),
        reason::SECRET_IMMUTABLE => format!(
            "Delete the immutable Secret, and the operator makes a new one: kubectl delete secret {secret} -n {namespace}"
        ),
        reason::CONTESTED => format!(
            "Something else keeps changing Secret {secret}; the message names it. Make it leave the field alone; to see who writes: \
             kubectl get secret {secret} -n {namespace} --show-managed-fields -o jsonpath='{{.metadata.managedFields[*].manager}}'"
        ),
        reason::KUBERNETES_REFUSED => {
            "The API server refuses the operator: give its role the verb and resource that the message names.".to_owned()
        }
        reason::KUBERNETES_UNAVAILABLE => "The API server does not answer the operator; it tries again by itself.".to_owned(),
        reason::TIMED_OUT | "UpstreamTimeout" | "UpstreamUnreachable" => format!(
            "Google did not answer the operator; it tries again by itself. If that lasts, look at its egress, DNS and proxy. The same \
             call from here: {}",
            mint(account)
        ),
        "UpstreamUnavailable" => "Google has a fault; the operator tries again by itself (https://status.cloud.google.com).".to_owned(),
        "QuotaExceeded" => "A quota of Google's is used up; the operator tries again by itself. Lower --google-rate, or ask for a \
             higher quota of the IAM Service Account Credentials API."
            .to_owned(),
        "NotLeading" => "Another replica of the operator takes over: look again in a minute.".to_owned(),
        "LocallyLimited" => "The operator's own limits hold calls back: raise --google-rate or --google-max-in-flight.".to_owned(),
        reason::KUBERNETES_SERVICE_ACCOUNT_NOT_FOUND => format!(
            "Create the Kubernetes ServiceAccount {workload}, or correct spec.source.federation.serviceAccountRef: kubectl create \
             serviceaccount {workload} -n {namespace}"
        ),
        reason::SERVICE_ACCOUNT_NOT_ANNOTATED => format!(
            "Set spec.serviceAccount, or annotate the Kubernetes ServiceAccount: kubectl annotate serviceaccount {workload} -n \
             {namespace} iam.gke.io/gcp-service-account=ACCOUNT@PROJECT.iam.gserviceaccount.com --overwrite"
        ),
        reason::TOKEN_REQUEST_FORBIDDEN => format!(
            "Let the operator make tokens of the Kubernetes ServiceAccount {workload}; the message has the commands. To see who may: \
             kubectl get rolebindings -n {namespace}"
        ),
        "ProviderNotFound" => format!(
            "Correct spec.source.federation.provider (or the operator's --federation-provider), or create or enable the provider: {}",
            place.edit()
        ),
        "AttributeConditionRejected" => {
            "Change the provider's attribute condition so that it lets the Kubernetes ServiceAccount in; the message has the command \
             that shows it."
                .to_owned()
        }
        "SubjectTokenWrongAudience" => format!(
            "Leave spec.source.federation.tokenAudience out, or have the provider accept that audience: {}",
            place.edit()
        ),
        "SubjectTokenWrongIssuer" => "Use the provider of this cluster, or give the provider this cluster's issuer: kubectl get --raw \
             /.well-known/openid-configuration"
            .to_owned(),
        "SubjectTokenStale" => "Check the clock of the cluster's control plane.".to_owned(),
        "SubjectTokenUnverified" => "Upload the cluster's keys to the provider again (kubectl get --raw /openid/v1/jwks); the message \
             has the commands."
            .to_owned(),
        "IssuerUnreachable" => "Make the cluster's OIDC discovery document public, or upload its keys to the provider; the message has \
             the commands."
            .to_owned(),
        "SubjectTooLong" => "Use a shorter name of the namespace or Kubernetes ServiceAccount, or another attribute mapping with \
             --federation-subject-template."
            .to_owned(),
        "ExchangeRefused" => "Google's Security Token Service refuses the exchange; the message has its words and the command that \
             shows the provider."
            .to_owned(),
        "PermissionDenied" if place.federated => format!(
            "Let the Kubernetes ServiceAccount, as the principal that the message names, mint for the account (a new binding takes up to \
             7 minutes to hold): gcloud iam service-accounts add-iam-policy-binding {account} --member=MEMBER \
             --role=roles/iam.serviceAccountOpenIdTokenCreator; then: {}",
            place.renew()
        ),
        "CredentialsRejected" if place.federated => {
            "The federated access token is exchanged anew by itself with the next attempt.".to_owned()
        }
        "PermissionDenied" => format!(
            "Let the operator's Google identity, which the message names, mint for the account (a new binding takes up to 7 minutes to \
             hold): gcloud iam service-accounts add-iam-policy-binding {account} --member=MEMBER \
             --role=roles/iam.serviceAccountOpenIdTokenCreator; then: {}",
            place.renew()
        ),
        "ServiceAccountNotFound" => {
            format!("Correct spec.serviceAccount, or create the account: gcloud iam service-accounts describe {account}")
        }
        "ApiDisabled" => "Enable the API in the project of the operator's identity: gcloud services enable \
             iamcredentials.googleapis.com --project=PROJECT_ID"
            .to_owned(),
        "InvalidArgument" => format!("Google does not accept a value of the spec; the message says which: {}", place.edit()),
        "CredentialsRejected" | "CredentialsUnavailable" => {
            "The operator has no working Google credentials: see GOOGLE_APPLICATION_CREDENTIALS and the Workload Identity of its pod."
                .to_owned()
        }
        "IdentityNotAttached" => "Attach a Google service account to the operator's pod or node (on GKE: annotate its Kubernetes \
             ServiceAccount with iam.gke.io/gcp-service-account), as the message says."
            .to_owned(),
        "AccountMismatch" => format!(
            "Name the account that the message says is attached, or leave spec.serviceAccount out: {}",
            place.edit()
        ),
        "NotUserCredentials" => format!(
            "Give the operator the credentials of gcloud auth application-default login, or use another source: {}",
            place.edit()
        ),
        "SelfImpersonation" => format!("Name another service account than the operator's own: {}", place.edit()),
        "TokenSubjectChanged" => format!(
            "The service account was deleted and made anew. If that was intended, delete the request and create it again: kubectl \
             delete idtokenrequest {name} -n {namespace}"
        ),
        "TokenExpired" => "Check the clock of the operator's node.".to_owned(),
        _ if reason.starts_with("Token") || reason == "UnexpectedResponse" => format!(
            "What answers is not Google, or not as expected: check --iam-credentials-url and proxies. The same call from here: {}",
            mint(account)
        ),
        _ => format!("See the message above; to try again: {}", place.renew()),
    }
}

fn mint(account: &str) -> String {
    format!("kubectl idtoken mint --claims --service-account {account} --audience AUDIENCE")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(conditions: serde_json::Value, suspend: bool) -> IdTokenRequest {
        serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "billing", "namespace": "shop"},
            "spec": {"audience": "https://a", "serviceAccount": "caller@p.iam.gserviceaccount.com", "suspend": suspend},
            "status": {"observedGeneration": 1, "conditions": conditions},
        }))
        .unwrap()
    }

    fn condition(type_: &str, status: &str, reason: &str) -> serde_json::Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    fn steps(conditions: serde_json::Value) -> Vec<String> {
        next(
            &request(conditions, false),
            &Held::NoSecret,
            &[],
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn healthy_needs_nothing() {
        let healthy = json!([
            condition("Ready", "True", "Issued"),
            condition("RenewalFailing", "False", "Renewed"),
            condition("Reconciling", "False", "Reconciled"),
            condition("Stalled", "False", "Reconciled"),
        ]);
        assert_eq!(steps(healthy), Vec::<String>::new());
    }

    #[test]
    fn each_reason_is_said_once() {
        let denied = json!([
            condition("Ready", "False", "NotGranted"),
            condition("Stalled", "True", "NotGranted")
        ]);
        let steps = steps(denied);
        assert_eq!(steps.len(), 1);
        assert!(
            steps[0].contains("kubectl idtoken grant billing -n shop"),
            "{steps:?}"
        );
    }

    #[test]
    fn every_reason_has_its_own_step() {
        let general = steps(json!([condition("Ready", "False", "Unheard")]));
        for known in [
            "Suspended",
            "Issuing",
            "InternalError",
            "InvalidSpec",
            "SourceUnavailable",
            "NotGranted",
            "KubernetesServiceAccountNotFound",
            "ServiceAccountNotAnnotated",
            "TokenRequestForbidden",
            "ProviderNotFound",
            "AttributeConditionRejected",
            "SubjectTokenWrongAudience",
            "SubjectTokenWrongIssuer",
            "SubjectTokenStale",
            "SubjectTokenUnverified",
            "IssuerUnreachable",
            "SubjectTooLong",
            "ExchangeRefused",
            "GrantsUnavailable",
            "SecretConflict",
            "TargetConflict",
            "SecretImmutable",
            "Contested",
            "KubernetesRefused",
            "KubernetesUnavailable",
            "TimedOut",
            "PermissionDenied",
            "ServiceAccountNotFound",
            "ApiDisabled",
            "InvalidArgument",
            "CredentialsRejected",
            "CredentialsUnavailable",
            "SelfImpersonation",
            "IdentityNotAttached",
            "AccountMismatch",
            "NotUserCredentials",
            "QuotaExceeded",
            "LocallyLimited",
            "NotLeading",
            "UpstreamUnavailable",
            "UpstreamTimeout",
            "UpstreamUnreachable",
            "UnexpectedResponse",
            "TokenMalformed",
            "TokenWrongAlgorithm",
            "TokenWrongIssuer",
            "TokenWrongAudience",
            "TokenWrongAccount",
            "TokenEmailMissing",
            "TokenEmailNotVerified",
            "TokenSubjectChanged",
            "TokenExpired",
        ] {
            let steps = steps(json!([condition("Ready", "False", known)]));
            assert_eq!(steps.len(), 1, "{known}");
            assert_ne!(steps, general, "{known}");
        }
    }

    #[test]
    fn unseen_and_suspended() {
        assert!(steps(json!([]))[0].contains("has not looked at the request yet"));
        let suspended = request(json!([condition("Ready", "True", "Suspended")]), true);
        let steps = next(&suspended, &Held::NoSecret, &[], Timestamp::UNIX_EPOCH);
        assert!(steps[0].starts_with("The request is suspended"), "{steps:?}");
    }
}
