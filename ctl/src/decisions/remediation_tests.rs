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
    remediations(
        &request(conditions, false),
        &TokenState::NoSecret,
        &[],
        Timestamp::UNIX_EPOCH,
    )
}

#[test]
fn a_healthy_request_needs_nothing() {
    let healthy = json!([
        condition("Ready", "True", "Issued"),
        condition("RenewalFailing", "False", "Renewed"),
        condition("Reconciling", "False", "Reconciled"),
        condition("Stalled", "False", "Reconciled"),
    ]);
    assert_eq!(steps(healthy), Vec::<String>::new());
}

#[test]
fn each_reason_is_listed_once() {
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
fn every_reason_has_its_own_remediation() {
    let general = steps(json!([condition("Ready", "False", "Unknown")]));
    for known in [
        "Suspended",
        "Issuing",
        "InternalError",
        "InvalidSpec",
        "TooLarge",
        "CacheFull",
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
        "TokenSignatureInvalid",
        "SigningKeysUnavailable",
        "TokenExpired",
    ] {
        let steps = steps(json!([condition("Ready", "False", known)]));
        assert_eq!(steps.len(), 1, "{known}");
        assert_ne!(steps, general, "{known}");
    }
}

#[test]
fn a_binding_is_advised_only_where_the_message_has_one() {
    let advice = |message: &str| {
        let mut refused = condition("Ready", "False", "PermissionDenied");
        refused["message"] = message.into();
        steps(json!([refused])).remove(0)
    };
    let named =
        "needs iam.serviceAccounts.getOpenIdToken on a: gcloud iam service-accounts add-iam-policy-binding a";
    let certain = advice(named);
    assert!(
        certain.starts_with("Allow ") && certain.contains("add-iam-policy-binding"),
        "{certain}"
    );
    let guess = advice(&format!(
        "Google names no permission; the likely cause, which is a guess: {named}"
    ));
    assert_eq!(
        guess,
        format!("Google names no permission, so this is a guess. {certain}")
    );
    let other = advice("Request is prohibited by organization's policy.");
    assert!(
        !other.contains("gcloud") && other.contains("kubectl idtoken renew"),
        "{other}"
    );
}

#[test]
fn a_quota_project_is_named_where_the_message_says_so() {
    let advice = |reason: &str, message: &str| {
        let mut refused = condition("Ready", "False", reason);
        refused["message"] = message.into();
        steps(json!([refused])).remove(0)
    };
    let set =
        "gcloud auth application-default set-quota-project PROJECT_ID, or set GOOGLE_CLOUD_QUOTA_PROJECT";
    let denied = format!(
        "The operator's identity may not use the quota project mine. Let it: gcloud projects add-iam-policy-binding mine \
         --member=user:dev@example.com --role=roles/serviceusage.serviceUsageConsumer. Or name another project: {set}."
    );
    let of_gcloud = format!("Name a project in which iamcredentials.googleapis.com is enabled: {set}.");
    for (reason, message) in [("ApiDisabled", &of_gcloud), ("PermissionDenied", &denied)] {
        let advice = advice(reason, message);
        assert!(
            advice.contains("gcloud auth application-default set-quota-project PROJECT_ID"),
            "{advice}"
        );
        assert!(
            !advice.contains("services enable") && !advice.contains("OpenIdTokenCreator"),
            "{advice}"
        );
    }
    let other = advice(
        "ApiDisabled",
        "gcloud services enable sts.googleapis.com --project=1",
    );
    assert!(
        other.contains("gcloud services enable") && other.contains("the message names"),
        "{other}"
    );
}

#[test]
fn another_account_of_the_same_email_is_accepted_by_the_command() {
    let advice = |message: &str| {
        let mut refused = condition("RenewalFailing", "True", "TokenSubjectChanged");
        refused["message"] = message.into();
        steps(json!([refused])).remove(0)
    };
    let command =
        "kubectl annotate idtokenrequest billing -n shop idtoken.dev/accept-subject=123 --overwrite";
    assert!(advice(&format!("…; if that is intended: {command}")).ends_with(command));
    let hostile = advice("idtoken.dev/accept-subject=1;reboot --overwrite");
    assert!(hostile.ends_with("accept-subject=1 --overwrite"), "{hostile}");
    assert!(advice("of an older version").ends_with("accept-subject=UNIQUE_ID --overwrite"));
}

#[test]
fn a_new_request_and_a_suspended_one() {
    assert!(steps(json!([]))[0].contains("has not reconciled the request yet"));
    let suspended = request(json!([condition("Ready", "True", "Suspended")]), true);
    let steps = remediations(&suspended, &TokenState::NoSecret, &[], Timestamp::UNIX_EPOCH);
    assert!(steps[0].starts_with("The request is suspended"), "{steps:?}");
}

#[test]
fn another_controller_has_to_release_the_secret_first() {
    let healthy = request(json!([condition("Ready", "True", "Issued")]), false);
    let difference = |expected: &str| Difference {
        field: "metadata.ownerReferences".to_owned(),
        expected: expected.to_owned(),
        found: "Deployment x".to_owned(),
    };
    let steps = |difference| {
        let now = Timestamp::UNIX_EPOCH;
        remediations(&healthy, &TokenState::NoSecret, &[difference], now)
    };
    let foreign = steps(difference(NO_OTHER_CONTROLLER));
    assert!(
        foreign[0].starts_with("Make the other controller release the Secret"),
        "{foreign:?}"
    );
    let repaired = steps(difference("IdTokenRequest billing (u-1)"));
    assert!(repaired[0].starts_with("The operator repairs"), "{repaired:?}");
}
