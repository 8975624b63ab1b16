//! The cluster's Google: the emulator in a pod, which is asked, and made to fail, by the API server's proxy.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::suite::{LIFETIME, Suite, namespace};

const PROJECT: &str = "my-project";
/// The pool and provider that trust the cluster's ServiceAccounts.
pub(crate) const PROVIDER: &str = "//iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/cluster/providers/cluster";
const PRINCIPAL: &str = "principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/cluster/subject";
const EMULATOR: &str = "emulator:8090";

/// What the cluster's Google is.
pub(crate) struct Google {
    /// The issuer of the cluster's ServiceAccount tokens.
    pub(crate) issuer: String,
}

/// The account `NAME@my-project.iam.gserviceaccount.com`.
pub(crate) fn account(name: &str) -> String {
    format!("{name}@{PROJECT}.iam.gserviceaccount.com")
}

/// Starts the emulator and the service that wants its tokens.
pub(crate) async fn start(suite: &Suite<'_>) -> Result<Google> {
    let cluster = suite.cluster;
    let discovery = cluster.kubectl_with(&["get", "--raw", "/.well-known/openid-configuration"], "");
    let discovery: Value = serde_json::from_str(&discovery.await?)?;
    let issuer = discovery["issuer"]
        .as_str()
        .context("the cluster has no issuer")?
        .to_owned();
    publish_issuer(suite).await?;
    for name in ["google", "cloud-run"] {
        namespace(cluster, name, "").await?;
    }
    let ca = cluster
        .get("configmap", "kube-root-ca.crt", "kube-system")
        .await?;
    let policy = policy(&issuer, ca["data"]["ca.crt"].as_str());
    config_map(suite, "google", "policy", "policy.yaml", &policy.to_string()).await?;
    let lifetime = format!("{}s", LIFETIME.as_secs());
    let words = [("VERSION", env!("CARGO_PKG_VERSION")), ("LIFETIME", &lifetime)];
    cluster.apply(&suite.manifest("google.yaml", &words)?).await?;
    cluster
        .kubectl("rollout status -n google deployment/emulator --timeout=300s")
        .await?;

    let certificate = cluster.service("google", EMULATOR, "/_emulator/proxy-ca").await?;
    namespace(
        cluster,
        crate::suite::NAMESPACE,
        "pod-security.kubernetes.io/enforce: restricted",
    )
    .await?;
    for namespace in ["cloud-run", crate::suite::NAMESPACE] {
        config_map(suite, namespace, "google-ca", "ca.crt", &certificate).await?;
    }
    cluster.apply(&suite.manifest("target.yaml", &[])?).await?;
    cluster
        .kubectl("rollout status -n cloud-run deployment/billing --timeout=300s")
        .await?;
    Ok(Google { issuer })
}

/// Lets anyone read the cluster's issuer and keys, as Google's STS must.
async fn publish_issuer(suite: &Suite<'_>) -> Result<()> {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "idtoken-e2e-public-issuer"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "system:service-account-issuer-discovery",
        },
        "subjects": [{
            "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated",
        }],
    });
    suite.cluster.apply(&binding.to_string()).await
}

/// Applies a ConfigMap with one key.
pub(crate) async fn config_map(
    suite: &Suite<'_>,
    namespace: &str,
    name: &str,
    key: &str,
    value: &str,
) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: value},
    });
    suite.cluster.apply(&object.to_string()).await
}

fn policy(issuer: &str, ca: Option<&str>) -> Value {
    let minted_by = |name: &str, subject: &str| {
        json!({
            "email": account(name),
            "bindings": [{
                "role": "roles/iam.serviceAccountOpenIdTokenCreator",
                "members": [format!("{PRINCIPAL}/system:serviceaccount:{subject}")],
            }],
        })
    };
    let operator = "idtoken-system:idtoken-operator";
    json!({
        "project": {"id": PROJECT, "number": 123_456_789_012_u64},
        "serviceAccounts": [
            minted_by("caller", operator),
            minted_by("drill", operator),
            minted_by("a", "tenant-a:workload"),
            minted_by("b", "tenant-b:workload"),
        ],
        "workloadIdentityProviders": [{
            "name": PROVIDER,
            "issuer": issuer,
            "keys": {"caCertificates": ca},
        }],
    })
}

impl Google {
    /// Makes calls about an account's ID tokens take `millis` longer, until the faults are cleared.
    pub(crate) async fn delay(&self, suite: &Suite<'_>, account: &str, millis: u64) -> Result<()> {
        let fault = json!({
            "endpoint": "generateIdToken", "account": account,
            "kind": {"type": "delay", "millis": millis},
        });
        let path = format!("/api/v1/namespaces/google/services/{EMULATOR}/proxy/_emulator/faults");
        let arguments = ["create", "--raw", &path, "-f", "-"];
        suite
            .cluster
            .kubectl_with(&arguments, &fault.to_string())
            .await
            .map(drop)
    }

    /// Ends all faults.
    pub(crate) async fn heal(&self, suite: &Suite<'_>) -> Result<()> {
        let path = format!("/api/v1/namespaces/google/services/{EMULATOR}/proxy/_emulator/faults");
        suite
            .cluster
            .kubectl_with(&["delete", "--raw", &path], "")
            .await
            .map(drop)
    }

    /// The calls for ID tokens of an account so far.
    pub(crate) async fn calls(&self, suite: &Suite<'_>, account: &str) -> Result<Vec<Value>> {
        let text = suite
            .cluster
            .service("google", EMULATOR, "/_emulator/calls")
            .await?;
        let calls: Vec<Value> = serde_json::from_str(&text)?;
        let wanted = |call: &Value| call["endpoint"] == "generateIdToken" && call["account"] == account;
        Ok(calls.into_iter().filter(wanted).collect())
    }

    /// What the service has seen: calls and tokens of each account, and refusals.
    pub(crate) async fn seen(&self, suite: &Suite<'_>) -> Result<Value> {
        let text = suite
            .cluster
            .service("cloud-run", "billing:80", "/-/seen")
            .await?;
        Ok(serde_json::from_str(&text)?)
    }
}
