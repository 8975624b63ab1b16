//! Starts real control planes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use idtoken_testenv::{ControlPlane, Options, until};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

const LIMIT: Duration = Duration::from_secs(60);
const CONFIG_MAP: &str =
    "{apiVersion: v1, kind: ConfigMap, metadata: {name: greeting, namespace: default}, data: {text: hello}}";

async fn greeting(cluster: &ControlPlane) -> Option<String> {
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client().await.unwrap());
    Some(
        api.get_opt("greeting")
            .await
            .unwrap()?
            .data?
            .remove("text")
            .unwrap(),
    )
}

#[tokio::test]
async fn two_at_once_share_nothing() {
    let (one, two) = tokio::join!(
        ControlPlane::start(Options::default()),
        ControlPlane::start(Options::default())
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    one.apply(CONFIG_MAP).await.unwrap();
    assert_eq!(greeting(&one).await.as_deref(), Some("hello"));
    assert_eq!(greeting(&two).await, None);

    let version = one.kubectl(["version"]).await.unwrap();
    // Downloaded programs have another patch version.
    let pinned = idtoken_testenv::binaries::KUBERNETES_VERSION;
    let (minor, _) = pinned.rsplit_once('.').unwrap();
    let expected = format!("Server Version: {minor}.");
    if std::env::var_os("KUBEBUILDER_ASSETS").is_none() {
        assert!(version.contains(&expected), "{version}");
    }

    let dirs = [one.dir().to_owned(), two.dir().to_owned()];
    one.stop().await.unwrap();
    drop(two);
    if std::env::var_os("IDTOKEN_TESTENV_KEEP").is_none() {
        assert!(dirs.iter().all(|dir| !dir.exists()));
    }
}

#[tokio::test]
async fn rbac_denies_and_the_audit_log_says_so() {
    let cluster = ControlPlane::start(Options::default()).await.unwrap();
    let jane = cluster
        .kubeconfig_for("jane", &["developers", "night shift", "a=b,c"])
        .unwrap();

    let error = format!(
        "{:#}",
        cluster
            .kubectl_as(&jane, ["get", "secret", "x"])
            .await
            .unwrap_err()
    );
    assert!(
        error.contains("Forbidden") && error.contains("\"jane\""),
        "{error}"
    );
    let denied = until("the audit log has the denial", LIMIT, async || {
        let events = cluster.audit()?;
        Ok(events
            .into_iter()
            .find(|event| event.user == "jane" && event.resource == "secrets"))
    })
    .await
    .unwrap();
    assert_eq!(
        (
            denied.verb.as_str(),
            denied.namespace.as_str(),
            denied.name.as_str()
        ),
        ("get", "default", "x")
    );
    assert_eq!((denied.code, denied.stage.as_str()), (403, "ResponseComplete"));
    assert!(denied.user_agent.starts_with("kubectl"), "{}", denied.user_agent);
    assert_eq!(
        denied.groups,
        ["developers", "night shift", "a=b,c", "system:authenticated"]
    );

    // A rule for the second of three groups: each organization of the certificate is a group.
    cluster
        .kubectl(["create", "role", "reader", "--verb=get", "--resource=configmaps"])
        .await
        .unwrap();
    cluster
        .kubectl([
            "create",
            "rolebinding",
            "reader",
            "--role=reader",
            "--group=night shift",
        ])
        .await
        .unwrap();
    cluster.apply(CONFIG_MAP).await.unwrap();
    until("the rule holds", LIMIT, async || {
        let read = cluster
            .kubectl_as(
                &jane,
                ["get", "configmap", "greeting", "--output=jsonpath={.data.text}"],
            )
            .await;
        Ok(read.ok().filter(|text| text == "hello"))
    })
    .await
    .unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn the_data_outlives_the_api_server() {
    let cluster = ControlPlane::start(Options::default()).await.unwrap();
    cluster.apply(CONFIG_MAP).await.unwrap();
    let url = cluster.url();

    cluster.stop_apiserver().await.unwrap();
    assert!(
        cluster
            .kubectl(["get", "configmaps", "--request-timeout=5s"])
            .await
            .is_err()
    );
    assert!(
        cluster.pause_apiserver().await.is_err(),
        "there is nothing to pause"
    );
    cluster.start_apiserver().await.unwrap();
    assert_eq!(cluster.url(), url);
    assert_eq!(greeting(&cluster).await.as_deref(), Some("hello"));

    cluster.pause_apiserver().await.unwrap();
    assert!(
        cluster
            .kubectl(["get", "--raw=/readyz", "--request-timeout=2s"])
            .await
            .is_err()
    );
    cluster.resume_apiserver().await.unwrap();
    until("it answers again", LIMIT, async || {
        Ok(cluster.kubectl(["get", "--raw=/readyz"]).await.ok())
    })
    .await
    .unwrap();

    let audit = cluster.audit().unwrap();
    let applied = audit
        .iter()
        .any(|event| event.verb == "patch" && event.name == "greeting" && event.code == 201);
    assert!(applied, "the audit log outlives the API server too");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn service_account_tokens_can_be_verified_from_outside() {
    let cluster = ControlPlane::start(Options::default()).await.unwrap();
    cluster
        .kubectl(["create", "serviceaccount", "billing"])
        .await
        .unwrap();
    let token = cluster
        .kubectl(["create", "token", "billing", "--audience=somebody"])
        .await
        .unwrap();
    assert_eq!(token.trim().split('.').count(), 3);

    // As an outside party does it: no credentials, the issuer's URL and the certificate authority only.
    let mut config = kube::Config::new(cluster.service_account_issuer().parse().unwrap());
    config.root_cert_file = Some(cluster.ca_file().to_owned());
    let anonymous = kube::Client::try_from(config).unwrap();
    let get = async |path: &str| {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        anonymous.request::<serde_json::Value>(request).await.unwrap()
    };
    let discovery = get("/.well-known/openid-configuration").await;
    assert_eq!(discovery["issuer"], cluster.service_account_issuer());
    assert_eq!(discovery["jwks_uri"], format!("{}/openid/v1/jwks", cluster.url()));
    assert_eq!(get("/openid/v1/jwks").await["keys"][0]["alg"], "RS256");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn admission_guards_owner_references_and_runs_policies() {
    let cluster = ControlPlane::start(Options::default()).await.unwrap();
    cluster
        .apply(
            "apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-bad}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  validations: [{expression: \"object.metadata.name != 'bad'\", message: not that name}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-bad}
spec: {policyName: no-bad, validationActions: [Deny]}
",
        )
        .await
        .unwrap();
    let error = until("the policy is in force", LIMIT, async || {
        let result = cluster
            .kubectl(["create", "configmap", "bad", "--dry-run=server"])
            .await;
        Ok(result.err().map(|error| format!("{error:#}")))
    })
    .await
    .unwrap();
    assert!(error.contains("not that name"), "{error}");

    // OwnerReferencesPermissionEnforcement: who may not delete the object may not change whose it is.
    cluster
        .kubectl([
            "create",
            "role",
            "editor",
            "--verb=get,create,patch",
            "--resource=configmaps",
        ])
        .await
        .unwrap();
    cluster
        .kubectl(["create", "rolebinding", "editor", "--role=editor", "--user=joe"])
        .await
        .unwrap();
    cluster.apply(CONFIG_MAP).await.unwrap();
    let joe = cluster.kubeconfig_for("joe", &[]).unwrap();
    until("joe's rule holds", LIMIT, async || {
        Ok(cluster
            .kubectl_as(&joe, ["annotate", "configmap", "greeting", "a=b", "--overwrite"])
            .await
            .ok())
    })
    .await
    .unwrap();
    let owner =
        r#"{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Secret","name":"s","uid":"u"}]}}"#;
    let patch = ["patch", "configmap", "greeting", "--patch", owner];
    let error = format!("{:#}", cluster.kubectl_as(&joe, patch).await.unwrap_err());
    assert!(error.contains("cannot set an ownerRef"), "{error}");
    cluster.stop().await.unwrap();
}
