//! Pure: the reasons in the conditions and the state of the Secret → what to do next.

use std::collections::BTreeSet;

use idtoken_operator::api::annotations::{ACCEPT_SUBJECT, ADOPT};
use idtoken_operator::api::conditions::{READY, RENEWAL_FAILING, STALLED, reason};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::shell::quote;
use jiff::Timestamp;

use crate::decisions::diagnosis::{Difference, NO_OTHER_CONTROLLER, TokenState};

/// What to do about a request, in order; empty if there is nothing to do.
pub(crate) fn remediations(
    object: &IdTokenRequest,
    token_state: &TokenState,
    differences: &[Difference],
    now: Timestamp,
) -> Vec<String> {
    let args = CommandArgs::of(object);
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
    let mut reasons: Vec<(&str, &str)> = Vec::new();
    for condition in conditions
        .iter()
        .filter(|condition| is_bad(&condition.type_, &condition.status))
    {
        if !reasons.iter().any(|(reason, _)| *reason == condition.reason) {
            reasons.push((&condition.reason, &condition.message));
        }
    }
    if suspended && !reasons.iter().any(|(reason, _)| *reason == reason::SUSPENDED) {
        reasons.push((reason::SUSPENDED, ""));
    }
    if conditions.is_empty() {
        steps.push(format!(
            "The operator has not reconciled the request yet. If this lasts, check that it runs and watches namespace {}: \
             kubectl get pods -A -l app.kubernetes.io/name=idtoken-operator",
            args.namespace
        ));
    }
    steps.extend(
        reasons
            .iter()
            .map(|(reason, message)| for_reason(reason, message, &args)),
    );
    let is_expired = matches!(token_state, TokenState::Token(token) if token.claims().exp <= now);
    if is_expired && reasons.is_empty() && !conditions.is_empty() {
        steps.push(format!(
            "The token has expired, but the status does not say so: the operator is not running, or the clock of this machine is \
             wrong. Check the operator's pods (kubectl get pods -A -l app.kubernetes.io/name=idtoken-operator), then: {}",
            args.renew()
        ));
    }
    if reasons.is_empty() && !is_expired && !conditions.is_empty() {
        steps.extend(for_differences(differences, &args));
    }
    let mut seen = BTreeSet::new();
    steps.retain(|step| seen.insert(step.clone()));
    steps
}

fn for_differences(differences: &[Difference], args: &CommandArgs) -> Option<String> {
    if differences.is_empty() {
        return None;
    }
    let owned = differences
        .iter()
        .any(|difference| difference.expected == NO_OTHER_CONTROLLER);
    Some(if owned {
        format!(
            "Make the other controller release the Secret, then: {}",
            args.renew()
        )
    } else {
        format!(
            "The operator repairs the differences automatically within seconds. If they last: {}",
            args.renew()
        )
    })
}

/// The names of a request, quoted for the shell.
struct CommandArgs {
    namespace: String,
    name: String,
    secret: String,
    account: String,
    /// The Kubernetes ServiceAccount of source.federation, or empty.
    workload: String,
    federated: bool,
}

impl CommandArgs {
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

/// What to do about one reason: mostly a command. The condition's message has the details.
fn for_reason(reason: &str, message: &str, args: &CommandArgs) -> String {
    let CommandArgs {
        namespace,
        name,
        secret,
        account,
        workload,
        federated: _,
    } = args;
    match reason {
        reason::SUSPENDED => format!(
            "The request is suspended. To resume it: kubectl patch idtokenrequest {name} -n {namespace} --type=merge -p \
             '{{\"spec\":{{\"suspend\":false}}}}'"
        ),
        reason::ISSUING => format!("Wait: a token is being issued. To watch: kubectl get idtokenrequest {name} -n {namespace} -w"),
        reason::INTERNAL_ERROR => "Report a bug, with the operator's log.".to_owned(),
        reason::INVALID_SPEC => format!("Correct the field that the message names: {}", args.edit()),
        reason::TOO_LARGE => format!("Shorten the template: {}", args.edit()),
        reason::CACHE_FULL => format!(
            "Delete requests that are not needed: kubectl get idtr -n {namespace}. Or an administrator raises the flag that the message names, and \
             the operator's memory limit"
        ),
        reason::SOURCE_UNAVAILABLE => format!("Use a source that this operator supports: {}", args.edit()),
        reason::NOT_GRANTED => format!(
            "A cluster administrator must grant it. The grant: kubectl idtoken grant {name} -n {namespace}; the closest existing \
             grants: kubectl idtoken can {name} -n {namespace}"
        ),
        reason::GRANTS_UNAVAILABLE => "The operator cannot read grants or namespaces, and resumes automatically once it can. Check that \
             the API server responds, and that the operator's ClusterRole allows it to list and watch idtokengrants and namespaces."
            .to_owned(),
        reason::SECRET_CONFLICT => format!(
            "Secret {secret} does not belong to the operator. Choose another spec.target.name, or let the request adopt it: kubectl annotate \
             secret {secret} -n {namespace} {ADOPT}={name}"
        ),
        reason::TARGET_CONFLICT => format!(
            "Another IdTokenRequest owns Secret {secret}. Set another spec.target.name in one of them: {}",
            args.edit()
        ),
        reason::SECRET_IMMUTABLE => format!(
            "Delete the immutable Secret; the operator creates a new one: kubectl delete secret {secret} -n {namespace}"
        ),
        reason::CONTESTED => format!(
            "Another client keeps changing Secret {secret}; the message names its field manager. Stop it from changing the field. To list all field managers: \
             kubectl get secret {secret} -n {namespace} --show-managed-fields -o jsonpath='{{.metadata.managedFields[*].manager}}'"
        ),
        reason::KUBERNETES_REFUSED => {
            "The API server rejects calls of the operator. If RBAC denies them, add the verb and resource in the message to its role.".to_owned()
        }
        reason::KUBERNETES_UNAVAILABLE => "The API server does not respond to the operator, which retries automatically.".to_owned(),
        reason::TIMED_OUT | "UpstreamTimeout" | "UpstreamUnreachable" => format!(
            "Google did not respond to the operator, which retries automatically. If this lasts, check its egress, DNS and proxy. The \
             same call from here: {}",
            mint(account)
        ),
        "UpstreamUnavailable" => "Google is unavailable (https://status.cloud.google.com); the operator retries automatically.".to_owned(),
        "QuotaExceeded" => "A Google quota is exceeded; the operator retries automatically. Lower --google-rate, or request a \
             higher quota of the IAM Service Account Credentials API."
            .to_owned(),
        "NotLeading" => "Another replica of the operator is taking over: check again in a minute.".to_owned(),
        "LocallyLimited" => "The operator's own limits delay calls: raise --google-rate or --google-max-in-flight.".to_owned(),
        reason::KUBERNETES_SERVICE_ACCOUNT_NOT_FOUND => format!(
            "Create the Kubernetes ServiceAccount {workload}, or correct spec.source.federation.serviceAccountRef: kubectl create \
             serviceaccount {workload} -n {namespace}"
        ),
        reason::SERVICE_ACCOUNT_NOT_ANNOTATED => format!(
            "Set spec.serviceAccount, or annotate the Kubernetes ServiceAccount: kubectl annotate serviceaccount {workload} -n \
             {namespace} iam.gke.io/gcp-service-account=ACCOUNT@PROJECT.iam.gserviceaccount.com --overwrite"
        ),
        reason::TOKEN_REQUEST_FORBIDDEN => format!(
            "Allow the operator to create tokens of the Kubernetes ServiceAccount {workload}; the message has the commands. The existing bindings: \
             kubectl get rolebindings -n {namespace}"
        ),
        "ProviderNotFound" => format!(
            "Correct spec.source.federation.provider (or the operator's --federation-provider), or create or enable the provider: {}",
            args.edit()
        ),
        "AttributeConditionRejected" => {
            "Change the provider's attribute condition so that it accepts the Kubernetes ServiceAccount; the message has the command \
             that shows it."
                .to_owned()
        }
        "SubjectTokenWrongAudience" => format!(
            "Remove spec.source.federation.tokenAudience, or make the provider accept that audience: {}",
            args.edit()
        ),
        "SubjectTokenWrongIssuer" => "Use the provider of this cluster, or set the provider's issuer to that of this cluster: kubectl get --raw \
             /.well-known/openid-configuration"
            .to_owned(),
        "SubjectTokenStale" => "Check the clock of the cluster's control plane.".to_owned(),
        "SubjectTokenUnverified" => "Upload the cluster's keys to the provider again (kubectl get --raw /openid/v1/jwks); the message \
             has the commands."
            .to_owned(),
        "IssuerUnreachable" => "Make the cluster's OIDC discovery document public, or upload the cluster's keys to the provider; the message has \
             the commands."
            .to_owned(),
        "SubjectTooLong" => "Use a shorter name of the namespace or Kubernetes ServiceAccount, or another attribute mapping with \
             --federation-subject-template."
            .to_owned(),
        "ExchangeRefused" => "Google's Security Token Service rejects the exchange; the message quotes its error and has the command that \
             shows the provider."
            .to_owned(),
        "ApiDisabled" | "PermissionDenied" if message.contains("set-quota-project") => format!(
            "The calls of the operator's identity count for a project in which the API is off, or which it may not use. Name another one, by \
             gcloud auth application-default set-quota-project PROJECT_ID or the operator's variable GOOGLE_CLOUD_QUOTA_PROJECT, or run \
             the other command of the message, if it has one; then: {}",
            args.renew()
        ),
        "PermissionDenied" if !message.contains("add-iam-policy-binding") => format!(
            "Google's message names another cause than a missing binding, such as a perimeter or an organization's policy. No binding \
             changes that. Whoever administers the perimeter or the policy can allow the call; then: {}",
            args.renew()
        ),
        "PermissionDenied" if args.federated => format!(
            "{}Allow the Kubernetes ServiceAccount, as the principal in the message, to mint tokens of the account (a new binding can take \
             7 minutes or longer to take effect): gcloud iam service-accounts add-iam-policy-binding {account} --member=MEMBER \
             --role=roles/iam.serviceAccountOpenIdTokenCreator; then: {}",
            likely(message),
            args.renew()
        ),
        "CredentialsRejected" if args.federated => {
            "The operator exchanges a new federated access token automatically at the next attempt.".to_owned()
        }
        "PermissionDenied" => format!(
            "{}Allow the operator's Google identity, named in the message, to mint tokens of the account (a new binding can take 7 minutes \
             or longer to take effect): gcloud iam service-accounts add-iam-policy-binding {account} --member=MEMBER \
             --role=roles/iam.serviceAccountOpenIdTokenCreator; then: {}",
            likely(message),
            args.renew()
        ),
        "ServiceAccountNotFound" => {
            format!("Correct spec.serviceAccount, or create the account: gcloud iam service-accounts describe {account}")
        }
        "ApiDisabled" => "Enable the API in the project that the message names, by its command: gcloud services enable API \
             --project=PROJECT_ID"
            .to_owned(),
        "InvalidArgument" => format!("Google rejects a value of the spec; the message says which: {}", args.edit()),
        "CredentialsRejected" | "CredentialsUnavailable" => {
            "The operator has no working Google credentials: check GOOGLE_APPLICATION_CREDENTIALS and the Workload Identity of its pod."
                .to_owned()
        }
        "IdentityNotAttached" => "Attach a Google service account to the operator's pod or node (on GKE: annotate its Kubernetes \
             ServiceAccount with iam.gke.io/gcp-service-account), as the message says."
            .to_owned(),
        "AccountMismatch" => format!(
            "Set spec.serviceAccount to the attached account, which the message names, or remove it: {}",
            args.edit()
        ),
        "NotUserCredentials" => format!(
            "Give the operator the credentials of gcloud auth application-default login, or use another source: {}",
            args.edit()
        ),
        "SelfImpersonation" => format!("Use a service account other than the operator's own: {}", args.edit()),
        "TokenSubjectChanged" => format!(
            "The service account was deleted and created again, with another unique ID. If that was intended, accept it; the Secret stays: \
             kubectl annotate idtokenrequest {name} -n {namespace} {ACCEPT_SUBJECT}={} --overwrite",
            refused_subject(message)
        ),
        "TokenSignatureInvalid" => "Google did not sign the token. Check GCE_METADATA_HOST and --google-keys-url of the operator, and what \
             answers as the metadata server on its node."
            .to_owned(),
        "SigningKeysUnavailable" => "Let the operator reach Google's signing keys, as the message says, or name another URL of them with \
             --google-keys-url (the chart's value google.keysUrl)."
            .to_owned(),
        "TokenExpired" => "Check the clock of the operator's node.".to_owned(),
        _ if reason.starts_with("Token") || reason == "UnexpectedResponse" => format!(
            "The response is not the expected one of Google: check --iam-credentials-url and proxies. The same call from here: {}",
            mint(account)
        ),
        _ => format!("See the message above. To retry: {}", args.renew()),
    }
}

/// What the advice about a binding begins with, if the message of the condition marks it as a guess.
fn likely(message: &str) -> &'static str {
    match message.contains("which is a guess") {
        true => "Google names no permission, so this is a guess. ",
        false => "",
    }
}

/// The unique ID that the message of the condition asks to accept. Only digits: what else stands there is no ID.
fn refused_subject(message: &str) -> &str {
    let (_, rest) = message
        .split_once(&format!("{ACCEPT_SUBJECT}="))
        .unwrap_or_default();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    match &rest[..end] {
        "" => "UNIQUE_ID",
        id => id,
    }
}

fn mint(account: &str) -> String {
    format!("kubectl idtoken mint --claims --service-account {account} --audience AUDIENCE")
}

#[cfg(test)]
#[path = "remediation_tests.rs"]
mod tests;
