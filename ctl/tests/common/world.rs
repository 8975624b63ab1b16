//! A real API server with our kinds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_testenv::{ControlPlane, Options, until};
use kube::Api;

use super::{AUDIENCE, CALLER, Outcome, finish, plugin};

/// Longest wait for the operator; long, because the machine may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// An API server, and the kubeconfig of its administrator.
pub(crate) struct World {
    pub(crate) cluster: ControlPlane,
    pub(crate) admin: PathBuf,
}

impl World {
    pub(crate) async fn start() -> Self {
        let cluster = ControlPlane::start(Options::default()).await.unwrap();
        let admin = cluster.admin_kubeconfig();
        Self { cluster, admin }
    }

    pub(crate) async fn install(&self) {
        let mut manifests = String::new();
        for crd in idtoken_operator::api::crds() {
            manifests.push_str(&format!("---\n{}\n", serde_json::to_string(&crd).unwrap()));
        }
        for (name, labels) in [("shop", r#"{"team": "shop"}"#), ("other", "{}")] {
            manifests.push_str(&format!(
                "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {labels}}}}}\n"
            ));
        }
        self.cluster.apply(&manifests).await.unwrap();
        self.cluster.wait_for_crds().await.unwrap();
    }

    pub(crate) async fn request(&self, namespace: &str, name: &str, more: &str) {
        let yaml = format!(
            "{{apiVersion: idtoken.dev/v1alpha1, kind: IdTokenRequest, metadata: {{name: {name}, namespace: {namespace}}}, \
             spec: {{audience: '{AUDIENCE}', serviceAccount: {CALLER}{more}}}}}"
        );
        self.cluster.apply(&yaml).await.unwrap();
    }

    /// Creates a user with `rules` of verbs, resource and whether they hold in all namespaces or in namespace shop only.
    pub(crate) async fn user(&self, name: &str, rules: &[(&str, &str, bool)]) -> PathBuf {
        for (index, (verbs, resource, whole)) in rules.iter().enumerate() {
            let id = format!("{name}-{index}");
            let (role, binding) = if *whole {
                ("clusterrole", "clusterrolebinding")
            } else {
                ("role", "rolebinding")
            };
            let namespace: &[&str] = if *whole { &[] } else { &["-n", "shop"] };
            let (verbs, resource) = (format!("--verb={verbs}"), format!("--resource={resource}"));
            let made = [&["create", role, &id, &verbs, &resource][..], namespace].concat();
            self.cluster.kubectl(made).await.unwrap();
            let (role, user) = (format!("--{role}={id}"), format!("--user={name}"));
            let bound = [&["create", binding, &id, &role, &user][..], namespace].concat();
            self.cluster.kubectl(bound).await.unwrap();
        }
        self.cluster.kubeconfig_for(name, &[]).unwrap()
    }

    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        self.run_as(&self.admin, args)
    }

    pub(crate) fn run_as(&self, kubeconfig: &Path, args: &[&str]) -> Outcome {
        finish(
            plugin(self.cluster.dir())
                .args(args)
                .env("KUBECONFIG", kubeconfig),
        )
    }

    pub(crate) async fn object(&self, name: &str) -> IdTokenRequest {
        let api: Api<IdTokenRequest> = Api::namespaced(self.cluster.client().await.unwrap(), "shop");
        api.get(name).await.unwrap()
    }

    pub(crate) async fn until(
        &self,
        what: &str,
        name: &str,
        check: impl Fn(&IdTokenRequest) -> bool,
    ) -> IdTokenRequest {
        until(what, LIMIT, async || {
            let object = self.object(name).await;
            Ok(check(&object).then_some(object))
        })
        .await
        .unwrap()
    }
}
