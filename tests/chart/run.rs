//! The operator as the chart runs it: the pod of the Deployment that Helm installed, with its arguments, environment, files and
//! ServiceAccount, started as a process in place of a kubelet.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use idtoken_emulator::{
    EmulatorHandle, MetadataServer, Policy, ServiceAccount, WORKLOAD_IDENTITY_USER, WorkloadIdentityProvider,
};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_testenv::{ControlPlane, Options, Port, Process, until};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount as KubernetesServiceAccount;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::cluster::{LIMIT, get, start};
use crate::helm::{CHART, Helm, NAMESPACE, Version};

pub(crate) const PROVIDER: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
const PRINCIPAL: &str = "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/\
    system:serviceaccount:idtoken-system:idtoken-operator";
pub(crate) const OPERATOR: &str = "operator@p.iam.gserviceaccount.com";
pub(crate) const CALLER: &str = "caller@my-project.iam.gserviceaccount.com";
pub(crate) const RELEASE: &str = "idtoken-operator";

/// A cluster with the chart in it, and Google's endpoints.
pub(crate) struct World {
    pub(crate) cluster: ControlPlane,
    pub(crate) google: EmulatorHandle,
    pub(crate) helm: Helm,
}

/// What a kubelet would have started.
pub(crate) struct Pod {
    pub(crate) process: Process,
    pub(crate) address: String,
    name: &'static str,
    /// Where its volumes are, in place of the container's root.
    root: PathBuf,
}

impl World {
    pub(crate) async fn new() -> Result<Self> {
        Self::on(start().await?).await
    }

    async fn on(cluster: ControlPlane) -> Result<Self> {
        let jwks = cluster.kubectl(["get", "--raw", "/openid/v1/jwks"]).await?;
        let policy = Policy {
            service_accounts: vec![
                ServiceAccount::new(OPERATOR).bind(WORKLOAD_IDENTITY_USER, PRINCIPAL),
                ServiceAccount::new(CALLER).impersonated_by(format!("serviceAccount:{OPERATOR}")),
            ],
            workload_identity_providers: vec![WorkloadIdentityProvider::new(
                PROVIDER,
                cluster.service_account_issuer(),
                jwks,
            )],
            metadata_server: MetadataServer {
                service_account: Some(OPERATOR.to_owned()),
                ..MetadataServer::default()
            },
            ..Policy::default()
        };
        let google = EmulatorHandle::start(policy, idtoken_emulator::Options::default()).await?;
        let helm = Helm::new(Version::Three, &cluster.admin_kubeconfig(), cluster.dir()).await?;
        Ok(Self {
            cluster,
            google,
            helm,
        })
    }

    /// Installs or upgrades the release, which trusts the cluster's authority so many times in addition.
    async fn release(&self, grants: &Value, certificates: usize) -> Result<()> {
        let bundle = std::fs::read_to_string(self.cluster.ca_file())?.repeat(certificates);
        let google = format!("http://{}", self.google.address());
        let values = json!({
            "replicaCount": 2,
            "grants": grants,
            "caBundle": {"inline": bundle},
            "google": {
                "workloadIdentityFederation": {"provider": PROVIDER, "serviceAccount": OPERATOR},
                "iamCredentialsUrl": google,
                "stsUrl": google,
                "keysUrl": format!("{google}/oauth2/v3/certs"),
            },
            "log": {"format": "text", "level": "info,idtoken_operator=debug"},
        });
        let file = self.cluster.dir().join("values.yaml");
        std::fs::write(&file, values.to_string())?;
        let file = file.to_string_lossy();
        self.helm
            .release(&["upgrade", "--install", RELEASE, CHART, "--values", &file])
            .await?;
        Ok(())
    }

    async fn object(&self, object: &str) -> Result<Value> {
        get(&self.cluster, NAMESPACE, object)
            .await?
            .context(object.to_owned())
    }

    /// A token of the pod's ServiceAccount.
    async fn token(&self, namespace: &str, account: &str, audiences: Value) -> Result<String> {
        let accounts: Api<KubernetesServiceAccount> =
            Api::namespaced(self.cluster.client().await?, namespace);
        let request: TokenRequest =
            serde_json::from_value(json!({"spec": {"audiences": audiences, "expirationSeconds": 3600}}))?;
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await?;
        answer.status.and_then(|status| status.token).context("no token")
    }

    /// Writes the volumes of a container below `root`, as a kubelet mounts them. What is in a file is left as it is, but for where it is.
    async fn mount(&self, namespace: &str, pod: &Value, container: &Value, root: &Path) -> Result<()> {
        let volumes = pod["volumes"].as_array().context("no volumes")?;
        let mounts = container["volumeMounts"].as_array().context("no mounts")?;
        for mount in mounts {
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
            let volume = volume.with_context(|| format!("no volume for {mount}"))?;
            let path = mount["mountPath"].as_str().context("no mountPath")?;
            let dir = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(&dir)?;
            let mut sources: Vec<Value> = volume["projected"]["sources"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            sources.extend(volume.get("configMap").map(|source| json!({"configMap": source})));
            ensure!(!sources.is_empty(), "{volume}");
            for source in sources {
                for (name, content) in self.files(namespace, pod, &source).await? {
                    // Whole at once.
                    let new = dir.join(format!("..{name}"));
                    std::fs::write(&new, content.replace(path, &dir.to_string_lossy()))?;
                    std::fs::rename(new, dir.join(name))?;
                }
            }
        }
        Ok(())
    }

    async fn files(&self, namespace: &str, pod: &Value, source: &Value) -> Result<BTreeMap<String, String>> {
        if let Some(name) = source["configMap"]["name"].as_str() {
            let map = get(&self.cluster, namespace, &format!("configmap/{name}")).await?;
            let map = map.with_context(|| format!("there is no ConfigMap {name}"))?;
            return Ok(serde_json::from_value(map["data"].clone())?);
        }
        let token = &source["serviceAccountToken"];
        let path = token["path"].as_str().with_context(|| source.to_string())?;
        let account = pod["serviceAccountName"].as_str().context("no ServiceAccount")?;
        let text = self.token(namespace, account, json!([token["audience"]])).await?;
        Ok(BTreeMap::from([(path.to_owned(), text)]))
    }

    /// A container of a pod as a command: its arguments and variables with `replaced` in them, its files below `root`, its ServiceAccount,
    /// and nothing of whoever runs the tests.
    async fn command(
        &self,
        program: &Path,
        namespace: &str,
        pod: &Value,
        container: &Value,
        root: &Path,
        replaced: &[(&str, &str)],
    ) -> Result<Command> {
        self.mount(namespace, pod, container, root).await?;
        let inside = format!("{}/etc/", root.display());
        let text = |value: &Value| -> Result<String> {
            let text = value.as_str().with_context(|| format!("{value} is no text"))?;
            let paths = text.replace("/etc/", &inside);
            Ok(replaced
                .iter()
                .fold(paths, |text, (from, to)| text.replace(from, to)))
        };
        let mut command = Command::new(program);
        command.env_clear();
        for arg in container["args"].as_array().context("no args")? {
            command.arg(text(arg)?);
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            command.env(text(&variable["name"])?, text(&variable["value"])?);
        }
        if let Some(account) = pod["serviceAccountName"].as_str() {
            ensure!(pod["automountServiceAccountToken"] != false);
            let token = self.token(namespace, account, json!([])).await?;
            command.env("KUBECONFIG", self.kubeconfig(root, &token)?);
        }
        Ok(command)
    }

    /// Starts the Deployment's pod and waits, as a kubelet does, for its startup and readiness probes.
    async fn start(&self, name: &'static str) -> Result<Pod> {
        self.start_with(name, &[], &[]).await
    }

    /// The same with further variables, which stand for what the pod would have of its node, and with `replaced` in its arguments.
    async fn start_with(
        &self,
        name: &'static str,
        env: &[(&str, &str)],
        replaced: &[(&str, &str)],
    ) -> Result<Pod> {
        let operator = Path::new(env!("CARGO_BIN_EXE_idtoken-operator"));
        self.start_program(operator, name, env, replaced).await
    }

    /// The same with the program of the Deployment's image.
    pub(crate) async fn start_program(
        &self,
        program: &Path,
        name: &'static str,
        env: &[(&str, &str)],
        replaced: &[(&str, &str)],
    ) -> Result<Pod> {
        let deployment = self.object("deployment/idtoken-operator").await?;
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let root = self.cluster.dir().join(name);
        let mut command = self
            .command(program, NAMESPACE, pod, container, &root, replaced)
            .await?;
        // Each pod has an address of its own there.
        command
            .env("HOSTNAME", name)
            .env("IDTOKEN_LISTEN", "127.0.0.1:0")
            .envs(env.iter().copied());
        let process = Process::spawn(name, &command, self.cluster.dir())?;
        let line = process.wait_for_line("listen", LIMIT).await?;
        let address = line.split("listen=").nth(1);
        // In JSON.
        let address = address.or_else(|| line.split("\"listen\":\"").nth(1));
        let address = address.and_then(|rest| rest.split([' ', '"']).next());
        let address = address.context("it does not say where it listens")?.to_owned();
        for probe in ["startupProbe", "readinessProbe"] {
            let path = container[probe]["httpGet"]["path"].as_str().context(probe)?;
            process.wait_for_http(&address, path, LIMIT).await?;
        }
        Ok(Pod {
            process,
            address,
            name,
            root,
        })
    }

    /// Beside the folder `root`.
    fn kubeconfig(&self, root: &Path, token: &str) -> Result<PathBuf> {
        let path = root.with_extension("kubeconfig");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster":
                {"server": self.cluster.url(), "certificate-authority": self.cluster.ca_file()}}],
            "users": [{"name": "c", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(&path, kubeconfig.to_string())?;
        Ok(path)
    }

    async fn until_ready(&self, name: &str, status: &str, pods: &[&Pod]) -> Result<IdTokenRequest> {
        let requests: Api<IdTokenRequest> = Api::namespaced(self.cluster.client().await?, "shop");
        let what = format!("{name} is Ready={status}");
        let reported = until(&what, LIMIT, async || {
            let request = requests.get(name).await?;
            let conditions = request.status.as_ref().map(|status| status.conditions.clone());
            let found = conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == status);
            Ok(found.then_some(request))
        });
        reported.await.with_context(|| {
            let logs: Vec<_> = pods.iter().map(|pod| pod.process.log_tail()).collect();
            logs.join("\n---\n")
        })
    }

    async fn leader(&self) -> Result<String> {
        let lease = self.object("lease/idtoken-operator").await?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        Ok(holder.split('_').next().unwrap_or_default().to_owned())
    }
}

fn grant(audience: &str) -> Value {
    json!([{"name": "shop-billing", "from": [{"namespace": "shop"}],
        "to": [{"serviceAccounts": [CALLER], "audiences": [audience]}]}])
}

fn request(name: &str, audience: &str) -> String {
    json!({"apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"audience": audience, "serviceAccount": CALLER}})
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_install_brings_a_token_two_replicas_share_the_work_and_grants_change() -> Result<()> {
    let world = World::new().await?;
    world.release(&grant("https://billing-x.run.app"), 1).await?;
    let first = world.start("first").await?;
    let second = world.start("second").await?;

    // The example that the README shows: the first grants came with the install.
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/idtokenrequest.yaml");
    world.cluster.apply(&std::fs::read_to_string(example)?).await?;
    let issued = world.until_ready("billing", "True", &[&first, &second]).await?;
    let grant_name = issued
        .status
        .and_then(|status| status.grant)
        .map(|grant| grant.name);
    assert_eq!(grant_name.as_deref(), Some("file:shop-billing"));
    owned_without_blocking(&world).await?;

    // What `helm test` runs, here against each pod in place of the Service.
    for pod in [&first, &second] {
        probe(&world, &pod.address).await?;
    }

    // One leads, and the other takes over.
    let leader = world.leader().await?;
    let (leading, other) = match leader == first.name {
        true => (first, second),
        false => (second, first),
    };
    assert_eq!(leader, leading.name);
    world
        .cluster
        .apply(&request("denied", "https://other.example.com"))
        .await?;
    world.until_ready("denied", "False", &[&leading, &other]).await?;
    leading.process.request_stop()?;
    ensure!(leading.process.wait(LIMIT).await?.success());
    until("the other leads", LIMIT, async || {
        Ok((world.leader().await? == other.name).then_some(()))
    })
    .await?;

    // Other grants and certificates arrive in the mounted files, and the Deployment is left alone.
    let before = world.object("deployment/idtoken-operator").await?;
    world.release(&grant("https://other.example.com"), 2).await?;
    let after = world.object("deployment/idtoken-operator").await?;
    assert_eq!(before["spec"], after["spec"]);
    let pod = &after["spec"]["template"]["spec"];
    world
        .mount(NAMESPACE, pod, &pod["containers"][0], &other.root)
        .await?;
    world.until_ready("denied", "True", &[&other]).await?;
    other.process.wait_for_line("CA file reloaded", LIMIT).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn install_yaml_has_all_that_a_token_needs() -> Result<()> {
    let world = World::new().await?;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/install.yaml");
    let apply = ["apply", "--server-side", "--validate=strict", "-f", file];
    world.cluster.kubectl(apply).await?;
    let google = format!("http://{}", world.google.address());
    let metadata_server = world.google.address().to_string();
    let env = [
        ("IDTOKEN_IAM_CREDENTIALS_URL", google.as_str()),
        ("GCE_METADATA_HOST", &metadata_server),
        ("HOME", "/nonexistent"),
    ];
    let pod = world.start_with("installed", &env, &[]).await?;

    for example in ["grant", "idtokenrequest"] {
        let path = format!("{}/examples/{example}.yaml", env!("CARGO_MANIFEST_DIR"));
        world.cluster.apply(&std::fs::read_to_string(path)?).await?;
    }
    world.until_ready("billing", "True", &[&pod]).await?;

    // Everything that the chart installs by default is there, and nothing of Helm's.
    let installed = crate::helm::read(&std::fs::read_to_string(file)?)?;
    let chart = world.helm.objects(&["--no-hooks"]).await?;
    let kinds = |objects: &[Value]| {
        let mut kinds: Vec<_> = objects.iter().map(|object| object["kind"].to_string()).collect();
        kinds.sort();
        kinds
    };
    let mut expected = chart;
    expected.push(json!({"kind": "Namespace"}));
    assert_eq!(kinds(&installed), kinds(&expected));
    assert!(!std::fs::read_to_string(file)?.contains("managed-by: Helm"));
    Ok(())
}

/// What a kubelet would run of examples/try/, each container with its own arguments, files and ServiceAccount.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_apply_of_the_file_to_try_brings_a_token() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let world = World::on(ControlPlane::start(Options::default()).await?).await?;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/try/try.yaml");
    world.cluster.kubectl(["apply", "-f", file]).await?;

    // Of the pod's loopback there is one here for all.
    let port = Port::reserve()?;
    let address = format!("127.0.0.1:{}", port.number());
    let replaced = [("127.0.0.1:8090", address.as_str())];
    drop(port);
    let deployment = world.object("deployment/idtoken-operator").await?;
    let pod = &deployment["spec"]["template"]["spec"];
    let program = Path::new(env!("CARGO_BIN_EXE_idtoken-operator")).with_file_name("idtoken-emulator");
    ensure!(
        program.is_file(),
        "there is no idtoken-emulator: run cargo build --workspace"
    );
    let (sidecar, root) = (&pod["initContainers"][0], world.cluster.dir().join("emulator"));
    ensure!(sidecar["restartPolicy"] == "Always");
    let mut emulator = world
        .command(&program, NAMESPACE, pod, sidecar, &root, &replaced)
        .await?;
    // It has no use for it.
    emulator.env_remove("KUBECONFIG");
    let emulator = Process::spawn("emulator", &emulator, world.cluster.dir())?;
    emulator
        .wait_for_http(&address, "/_emulator/healthz", LIMIT)
        .await?;
    let operator = world.start_with("tried", &[], &replaced).await?;

    let job = get(&world.cluster, "shop", "job/example")
        .await?
        .context("no Job")?;
    let (pod, root) = (&job["spec"]["template"]["spec"], world.cluster.dir().join("job"));
    let kubectl = &world.cluster.assets().kubectl;
    let kubectl = world
        .command(kubectl, "shop", pod, &pod["containers"][0], &root, &[])
        .await?;
    let job = Process::spawn("job", &kubectl, world.cluster.dir())?;
    ensure!(job.wait(LIMIT).await?.success(), "{}", job.log());

    world.until_ready("billing", "True", &[&operator]).await?;
    let secret = get(&world.cluster, "shop", "secret/billing").await?;
    ensure!(secret.is_some_and(|secret| secret["data"]["token"].is_string()));
    // What is there already does not matter.
    world.cluster.kubectl(["apply", "-f", file]).await?;
    Ok(())
}

/// The Secret is owned in a way that the admission plugin OwnerReferencesPermissionEnforcement, which is on, lets the operator write
/// without a right to finalizers; with `blockOwnerDeletion` it would not.
async fn owned_without_blocking(world: &World) -> Result<()> {
    let secret = get(&world.cluster, "shop", "secret/billing")
        .await?
        .context("no Secret")?;
    let owner = &secret["metadata"]["ownerReferences"][0];
    assert_eq!(owner["kind"], "IdTokenRequest");
    ensure!(owner.get("blockOwnerDeletion").is_none(), "{owner}");
    let mut blocking = owner.clone();
    blocking["blockOwnerDeletion"] = json!(true);
    let attempt = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "attempt", "namespace": "shop",
        "labels": {"app.kubernetes.io/managed-by": "idtoken-operator"}, "ownerReferences": [blocking]}});
    let file = world.cluster.dir().join("attempt.json");
    std::fs::write(&file, attempt.to_string())?;
    let user = world.cluster.dir().join("first.kubeconfig");
    let refused = world
        .cluster
        .kubectl_as(&user, ["create", "-f", &file.to_string_lossy()])
        .await;
    let refused = refused.unwrap_err().to_string();
    ensure!(refused.contains("cannot set blockOwnerDeletion"), "{refused}");
    Ok(())
}

/// Runs the container of the release's test hook, the Service's address replaced.
async fn probe(world: &World, address: &str) -> Result<()> {
    let hooks = world.helm.run(["get", "hooks", RELEASE]).await?;
    let hooks = crate::helm::read(&hooks)?;
    let args = hooks[0]["spec"]["containers"][0]["args"]
        .as_array()
        .context("no args")?;
    ensure!(args.contains(&json!("--timeout=120")), "{args:?}");
    let run = async |address: &str, timeout: &str| -> Result<bool> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_idtoken-operator"));
        for arg in args.iter().filter_map(Value::as_str) {
            let arg = arg.replace("--timeout=120", timeout);
            command.arg(arg.replace("idtoken-operator:8080", address));
        }
        Ok(tokio::process::Command::from(command)
            .output()
            .await?
            .status
            .success())
    };
    ensure!(
        run(address, "--timeout=120").await?,
        "the probe of {address} fails"
    );
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1)).to_string();
    ensure!(
        !run(&nobody, "--timeout=0").await?,
        "the probe passes where nobody listens"
    );
    Ok(())
}
