//! A new control plane and emulator, with namespaces and grants.

use std::path::PathBuf;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use idtoken_testenv::{ControlPlane, Options};
use serde_json::json;

use crate::Arguments;
use crate::api::{self, Api};
use crate::emulator::{ACCOUNT, Emulator};

/// The username of the ServiceAccount in config/rbac.yaml.
const OPERATOR_USER: &str = "system:serviceaccount:idtoken-system:idtoken-operator";
/// How many requests of the workload are written at once.
pub(crate) const WRITERS: usize = 32;

/// etcd, kube-apiserver and the emulator.
pub(crate) struct Cluster {
    /// The emulator of Google's endpoints.
    pub(crate) google: Emulator,
    /// A client with all rights.
    pub(crate) admin: Api,
    /// The namespaces of the requests.
    pub(crate) namespaces: Vec<String>,
    /// The control plane.
    pub(crate) plane: ControlPlane,
}

impl Cluster {
    /// Starts everything.
    pub(crate) async fn start(arguments: &Arguments) -> Result<Self> {
        let options = Options {
            // Without the audit log, whose cost would count as cost of the calls.
            apiserver_flags: vec!["--audit-log-path=".to_owned(), "--audit-policy-file=".to_owned()],
            // 100,000 requests with the revisions of five minutes nearly fill etcd's default of 2 GiB.
            etcd_flags: vec!["--quota-backend-bytes=8589934592".to_owned()],
            ..Options::default()
        };
        let plane = ControlPlane::start(options).await?;
        let file = |path: &str| arguments.workspace.join(path);
        for path in [
            "crds/idtokenrequests.yaml",
            "crds/idtokengrants.yaml",
            "config/rbac.yaml",
        ] {
            plane.apply(&std::fs::read_to_string(file(path))?).await?;
        }
        plane.wait_for_crds().await?;
        let policy = file("examples/demo/policy.yaml");
        let google = Emulator::start(&arguments.emulator, &policy, arguments.latency(), plane.dir()).await?;
        let admin = Api::new(&plane.admin_kubeconfig())?;
        let namespaces: Vec<String> = (0..arguments.namespaces.unwrap_or(1))
            .map(|n| format!("load-{n}"))
            .collect();
        let cluster = Self {
            google,
            admin,
            namespaces,
            plane,
        };
        cluster.prepare(arguments.grants.unwrap_or(1)).await?;
        Ok(cluster)
    }

    async fn prepare(&self, grants: usize) -> Result<()> {
        let namespaces = self.namespaces.iter().map(|name| {
            let object = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"bench": "load"}},
            });
            async move { self.admin.create("api/v1/namespaces", &object).await }
        });
        stream::iter(namespaces)
            .buffer_unordered(WRITERS)
            .try_collect::<Vec<_>>()
            .await?;
        let grants = (0..grants).map(|n| {
            // All but one are for other accounts, but match the namespaces.
            let (account, audience) = match n {
                0 => (ACCOUNT.to_owned(), "https://load.example.com/*".to_owned()),
                n => (
                    format!("other-{n}@demo-project.iam.gserviceaccount.com"),
                    format!("https://other-{n}.example.com/*"),
                ),
            };
            let object = json!({
                "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant", "metadata": {"name": format!("bench-{n}")},
                "spec": {
                    "from": [{"namespaceSelector": {"matchLabels": {"bench": "load"}}}],
                    "to": [{"serviceAccounts": [account], "audiences": [audience]}],
                },
            });
            async move { self.admin.create(&api::grants(), &object).await }
        });
        stream::iter(grants)
            .buffer_unordered(WRITERS)
            .try_collect::<Vec<_>>()
            .await?;
        Ok(())
    }

    /// A kubeconfig for the operator, with the rights of config/rbac.yaml.
    pub(crate) fn operator_kubeconfig(&self) -> Result<PathBuf> {
        self.plane.kubeconfig_for(OPERATOR_USER, &[])
    }

    /// Process ids of etcd and the API server.
    pub(crate) async fn pids(&self) -> Vec<u32> {
        self.plane.pids().await
    }

    /// Stops everything.
    pub(crate) async fn stop(self) -> Result<()> {
        self.google.stop().await?;
        self.plane.stop().await
    }
}
