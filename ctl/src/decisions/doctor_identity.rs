//! Pure: the Deployment, the ServiceAccount and the credential configuration of a release → the operator's identity at Google.

use k8s_openapi::api::core::v1::{PodSpec, Volume};
use serde_json::Value;

use crate::decisions::checkup::{Check, Seen};

/// The annotation by which GKE links a ServiceAccount to one of Google's.
pub(crate) const GOOGLE_ACCOUNT: &str = "iam.gke.io/gcp-service-account";

/// Longest provider and e-mail address that are shown, in characters.
const MAX_PROVIDER: usize = 300;
const MAX_EMAIL: usize = 128;

/// What a cluster knows of the identity.
#[derive(Debug, Default)]
pub(crate) struct IdentityFacts {
    /// The credential configuration, which has no secret; none if the Deployment mounts none.
    pub(crate) configuration: Option<Seen<Option<Value>>>,
    /// The annotation [`GOOGLE_ACCOUNT`] of the ServiceAccount; none if it was not read.
    pub(crate) annotation: Option<Seen<Option<String>>>,
}

/// The Kubernetes ServiceAccount of the pods.
pub(crate) fn service_account(spec: Option<&PodSpec>) -> String {
    spec.and_then(|spec| spec.service_account_name.clone())
        .unwrap_or_else(|| "default".to_owned())
}

fn google_volume(spec: Option<&PodSpec>) -> Option<&Volume> {
    let mut volumes = spec?.volumes.as_ref()?.iter();
    volumes.find(|volume| volume.name == "google")
}

/// The ConfigMap with the credential configuration. A credential file in a Secret is never read.
pub(crate) fn configuration_map(spec: Option<&PodSpec>) -> Option<&str> {
    let sources = google_volume(spec)?.projected.as_ref()?.sources.as_ref()?;
    let mut maps = sources.iter().filter_map(|source| source.config_map.as_ref());
    maps.next().map(|map| map.name.as_str())
}

/// The check of a release's identity.
pub(crate) fn check(
    release: &str,
    namespace: &str,
    spec: Option<&PodSpec>,
    has_credentials_file: bool,
    facts: &IdentityFacts,
) -> Check {
    const AREA: &str = "identity";
    let account = service_account(spec);
    let secret = google_volume(spec)
        .and_then(|volume| volume.secret.as_ref())
        .and_then(|secret| secret.secret_name.as_deref());
    let text = match (has_credentials_file, secret) {
        (true, Some(secret)) => {
            format!("the credential file of Secret {secret}, which doctor does not read")
        }
        (true, None) => federated(namespace, &account, facts),
        (false, _) => {
            let given = format!("what the metadata server gives to ServiceAccount {account}");
            match &facts.annotation {
                Some(Ok(Some(email))) if is_email(email) => format!("{email}: {given}, by its annotation"),
                Some(Ok(Some(_))) => format!("{given}; its annotation {GOOGLE_ACCOUNT} is no e-mail address"),
                Some(Err(why)) => format!("{given}; its annotation is not seen: {why}"),
                Some(Ok(None)) => format!("{given}, which has no annotation {GOOGLE_ACCOUNT}"),
                None => given,
            }
        }
    };
    Check::ok(AREA, format!("{release}: {text}"))
}

fn federated(namespace: &str, account: &str, facts: &IdentityFacts) -> String {
    let subject = format!("system:serviceaccount:{namespace}:{account}");
    let federation =
        format!("workload identity federation of ServiceAccount {account}, whose subject is {subject}");
    match &facts.configuration {
        Some(Ok(Some(configuration))) => {
            let text = |field: &str| configuration[field].as_str().unwrap_or_default();
            let by = match text("audience").trim_start_matches('/') {
                "" => String::new(),
                provider => {
                    let provider: String = provider.chars().take(MAX_PROVIDER).collect();
                    format!(", by {provider}")
                }
            };
            match impersonated(text("service_account_impersonation_url")) {
                Some(email) => format!("{email}: {federation}{by}"),
                None => format!("{federation}{by}, without an account of Google's"),
            }
        }
        Some(Err(why)) => format!("{federation}; its configuration is not seen: {why}"),
        Some(Ok(None)) | None => federation,
    }
}

/// The account in `…/serviceAccounts/EMAIL:generateAccessToken`.
fn impersonated(url: &str) -> Option<&str> {
    let (_, rest) = url.rsplit_once("/serviceAccounts/")?;
    rest.strip_suffix(":generateAccessToken")
        .filter(|email| is_email(email))
}

fn is_email(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"@.-_:".contains(&byte);
    text.len() <= MAX_EMAIL && text.contains('@') && text.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(volumes: Value, file: bool, facts: &IdentityFacts) -> String {
        let spec: PodSpec = serde_json::from_value(
            json!({"serviceAccountName": "operator", "containers": [], "volumes": volumes}),
        )
        .unwrap();
        check("ops/idtoken-operator", "ops", Some(&spec), file, facts).message
    }

    #[test]
    fn the_identity_is_what_flags_and_configuration_say() {
        let none = IdentityFacts::default();
        let secret = json!([{"name": "google", "secret": {"secretName": "key"}}]);
        assert!(
            told(secret, true, &none).contains("credential file of Secret key, which doctor does not read")
        );
        let projected =
            json!([{"name": "google", "projected": {"sources": [{"configMap": {"name": "x-google"}}]}}]);
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [], "volumes": projected.clone()})).unwrap();
        assert_eq!(configuration_map(Some(&spec)), Some("x-google"));
        let provider = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/a/providers/b";
        let url = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/op@p.iam.gserviceaccount.com:generateAccessToken";
        let configured = |more: Value| {
            let mut file = json!({"audience": provider});
            file.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            IdentityFacts {
                configuration: Some(Ok(Some(file))),
                annotation: None,
            }
        };
        let direct = told(projected.clone(), true, &configured(json!({})));
        assert!(
            direct
                .contains("subject is system:serviceaccount:ops:operator, by iam.googleapis.com/projects/1"),
            "{direct}"
        );
        assert!(direct.ends_with("without an account of Google's"), "{direct}");
        let account = told(
            projected.clone(),
            true,
            &configured(json!({"service_account_impersonation_url": url})),
        );
        assert!(
            account.contains(": op@p.iam.gserviceaccount.com: workload identity federation"),
            "{account}"
        );
        let hostile =
            json!({"service_account_impersonation_url": "x/serviceAccounts/a@\u{1b}[2J:generateAccessToken"});
        let hostile = told(projected.clone(), true, &configured(hostile));
        assert!(hostile.ends_with("without an account of Google's"), "{hostile}");
        let unseen = IdentityFacts {
            configuration: Some(Err("you may not get configmaps".to_owned())),
            annotation: None,
        };
        assert!(told(projected, true, &unseen).ends_with("not seen: you may not get configmaps"));
    }

    #[test]
    fn the_metadata_servers_account_is_that_of_the_annotation() {
        let annotated = |annotation: Seen<Option<String>>| {
            let facts = IdentityFacts {
                configuration: None,
                annotation: Some(annotation),
            };
            told(json!([]), false, &facts)
        };
        let email = "op@p.iam.gserviceaccount.com";
        let known = annotated(Ok(Some(email.to_owned())));
        assert!(
            known.contains(email) && known.contains("ServiceAccount operator"),
            "{known}"
        );
        assert!(annotated(Ok(None)).contains("has no annotation"));
        assert!(annotated(Ok(Some("none".to_owned()))).contains("is no e-mail address"));
        assert!(annotated(Err("you may not".to_owned())).ends_with("not seen: you may not"));
    }
}
