//! The plugin beside kubectl: the same kubeconfig, environment and flags lead both to the same API server, through the same proxy, as the
//! same user, in the same namespace; or neither.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::proxy::Proxy;
use common::{AUDIENCE, CALLER, Outcome, clean, finish, plugin};
use idtoken_testenv::{ControlPlane, Options, until};
use serde_json::{Value, json};

/// Longest wait for the audit log; long, because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

/// A name in the API server's certificate that no resolver knows.
const UNRESOLVABLE: &str = "kubernetes.default.svc";

struct World {
    cluster: ControlPlane,
    proxy: Proxy,
    /// Kubeconfig of an administrator.
    admin: Value,
    port: u16,
    events: usize,
}

/// What one program did.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    is_success: bool,
    /// What it asked the proxy for.
    proxy: BTreeSet<String>,
    /// Namespace, user and impersonated user of the request for the object, if it succeeded.
    request: Option<Value>,
}

/// What both programs are run with.
#[derive(Clone, Default)]
struct Setting {
    kubeconfig: Option<Value>,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Setting {
    fn of(kubeconfig: &Value) -> Self {
        Self {
            kubeconfig: Some(kubeconfig.clone()),
            ..Self::default()
        }
    }

    fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }
}

/// `kubeconfig` with `value` at the JSON pointer `at`.
fn with(kubeconfig: &Value, at: &str, value: impl Into<Value>) -> Value {
    let mut changed = kubeconfig.clone();
    let (parent, key) = at.rsplit_once('/').unwrap();
    changed.pointer_mut(parent).unwrap()[key] = value.into();
    changed
}

const CLUSTER: &str = "/clusters/0/cluster";
const USER: &str = "/users/0/user";

impl World {
    async fn start() -> Self {
        let cluster = ControlPlane::start(Options::default()).await.unwrap();
        let mut manifests = String::new();
        for crd in idtoken_operator::api::crds() {
            manifests.push_str(&format!("---\n{}\n", serde_json::to_string(&crd).unwrap()));
        }
        cluster.apply(&manifests).await.unwrap();
        cluster.wait_for_crds().await.unwrap();
        for namespace in ["default", "shop"] {
            cluster.kubectl(["create", "namespace", namespace]).await.ok();
            let request = format!(
                "{{apiVersion: idtoken.dev/v1alpha1, kind: IdTokenRequest, metadata: {{name: billing, namespace: {namespace}}}, \
                 spec: {{audience: '{AUDIENCE}', serviceAccount: {CALLER}}}}}"
            );
            cluster.apply(&request).await.unwrap();
        }
        let port: u16 = cluster.url().rsplit_once(':').unwrap().1.parse().unwrap();
        let proxy = Proxy::start(([127, 0, 0, 1], port).into()).await;
        let admin = std::fs::read_to_string(cluster.admin_kubeconfig()).unwrap();
        Self {
            admin: serde_json::from_str(&admin).unwrap(),
            proxy,
            port,
            events: 0,
            cluster,
        }
    }

    fn server(&self, host: &str) -> String {
        format!("https://{host}:{}", self.port)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.cluster.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A program that both start as a credential plugin. It counts its starts in a file.
    fn program(&self, name: &str, body: &str) -> (String, PathBuf) {
        use std::os::unix::fs::PermissionsExt;
        let starts = self.cluster.dir().join(format!("{name}.starts"));
        let text = format!("#!/bin/sh\necho >> '{}'\n{body}\n", starts.display());
        let path = self.file(name, &text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (path.display().to_string(), starts)
    }

    fn run(&self, mut command: Command, setting: &Setting) -> Outcome {
        clean(&mut command, self.cluster.dir());
        command.env_remove("NO_PROXY").env_remove("no_proxy");
        match &setting.kubeconfig {
            Some(kubeconfig) => command.env(
                "KUBECONFIG",
                self.file("case.kubeconfig", &kubeconfig.to_string()),
            ),
            None => command.env_remove("KUBECONFIG"),
        };
        let env = setting.env.iter().map(|(name, value)| (name, value));
        finish(
            command
                .args(&setting.args)
                .envs(env)
                .current_dir(self.cluster.dir()),
        )
    }

    fn kubectl(&self, setting: &Setting) -> Outcome {
        let mut kubectl = Command::new(&self.cluster.assets().kubectl);
        kubectl
            .args(["get", "idtokenrequests.idtoken.dev", "billing"])
            .env("KUBECACHEDIR", self.cluster.dir().join("cache"));
        self.run(kubectl, setting)
    }

    fn plugin(&self, setting: &Setting) -> Outcome {
        let mut command = plugin(self.cluster.dir());
        command.args(["grant", "billing"]);
        self.run(command, setting)
    }

    /// The next requests for the object in the audit log, after a program that succeeded.
    async fn seen(&mut self, outcome: &Outcome) -> Seen {
        let is_success = outcome.code == Some(0);
        let log = self.cluster.dir().join("audit.jsonl");
        let mut request = None;
        let all = async || {
            let text = std::fs::read_to_string(&log)?;
            let events = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let is_get = |event: &Value| {
                event["verb"] == "get"
                    && event["objectRef"]["resource"] == "idtokenrequests"
                    && event["stage"] == "ResponseComplete"
            };
            Ok::<Vec<Value>, std::io::Error>(events.filter(is_get).collect())
        };
        if is_success {
            let events = until("the request is in the audit log", LIMIT, async || {
                Ok(Some(all().await?).filter(|events| events.len() > self.events))
            })
            .await
            .unwrap();
            let event = events.last().unwrap();
            let (user, impersonated) = (&event["user"]["username"], &event["impersonatedUser"]);
            request = Some(json!([event["objectRef"]["namespace"], user, impersonated]));
        }
        self.events = all().await.unwrap().len();
        Seen {
            is_success,
            proxy: self.proxy.take(),
            request,
        }
    }

    /// Runs both, and asserts that they do the same. Returns the plugin's outcome and what it did.
    async fn same(&mut self, case: &str, setting: Setting) -> (Outcome, Seen) {
        let kubectl = self.kubectl(&setting);
        let wanted = self.seen(&kubectl).await;
        let plugin = self.plugin(&setting);
        let found = self.seen(&plugin).await;
        assert_eq!(
            found, wanted,
            "{case}\nkubectl: {}\nplugin: {}",
            kubectl.stderr, plugin.stderr
        );
        (plugin, found)
    }

    /// As [`Self::same`], where both succeed as `user`, in namespace default.
    async fn as_user(&mut self, case: &str, user: &str, setting: Setting) {
        let (plugin, seen) = self.same(case, setting).await;
        let request = seen
            .request
            .unwrap_or_else(|| panic!("{case}: {}", plugin.stderr));
        assert_eq!(
            request.as_array().unwrap()[..2],
            [json!("default"), json!(user)],
            "{case}"
        );
    }

    /// As [`Self::same`], where both succeed and ask the proxy for `asked`.
    async fn through(&mut self, case: &str, asked: &[&str], setting: Setting) {
        let (plugin, seen) = self.same(case, setting).await;
        assert!(seen.is_success, "{case}: {}", plugin.stderr);
        assert_eq!(
            seen.proxy,
            asked.iter().map(|one| (*one).to_owned()).collect(),
            "{case}"
        );
    }

    /// As [`Self::same`], where both fail, and the plugin says `text`.
    async fn refused(&mut self, case: &str, text: &str, setting: Setting) {
        let (plugin, seen) = self.same(case, setting).await;
        assert_eq!((seen.is_success, seen.proxy.len()), (false, 0), "{case}");
        plugin.warns(text);
    }

    /// The kubeconfig of another user, who has all rights.
    fn boss(&self) -> Value {
        let path = self.cluster.kubeconfig_for("boss", &["system:masters"]).unwrap();
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// A token of a ServiceAccount that has all rights.
    async fn token(&self) -> String {
        self.cluster
            .kubectl(["create", "serviceaccount", "robot", "-n", "shop"])
            .await
            .unwrap();
        let (role, robot) = ("--clusterrole=cluster-admin", "--serviceaccount=shop:robot");
        self.cluster
            .kubectl(["create", "clusterrolebinding", "robot", role, robot])
            .await
            .unwrap();
        let token = self
            .cluster
            .kubectl(["create", "token", "robot", "-n", "shop"])
            .await
            .unwrap();
        token.trim().to_owned()
    }
}

const ROBOT: &str = "system:serviceaccount:shop:robot";

#[tokio::test(flavor = "multi_thread")]
async fn flags_mean_what_they_mean_to_kubectl() {
    let mut world = World::start().await;
    let admin = world.admin.clone();
    let plain = Setting::of(&admin);
    world.as_user("no flags", "admin", plain.clone()).await;

    // Whose rights.
    let jane = plain
        .clone()
        .arg("--as=jane")
        .arg("--as-group=system:masters")
        .arg("--as-group=buyers");
    let jane = jane
        .arg("--as-uid=u1")
        .arg("--as-user-extra=team=shop")
        .arg("--as-user-extra=team=till");
    let (_, seen) = world.same("impersonation", jane).await;
    let request = seen.request.unwrap();
    assert_eq!(
        (&request[2]["username"], &request[2]["uid"]),
        (&json!("jane"), &json!("u1"))
    );
    assert_eq!(request[2]["extra"]["team"], json!(["shop", "till"]));
    let configured = with(&admin, &format!("{USER}/as"), "joe");
    let configured = with(
        &configured,
        &format!("{USER}/as-groups"),
        json!(["system:masters"]),
    );
    world
        .as_user("impersonation by kubeconfig", "admin", Setting::of(&configured))
        .await;
    world
        .as_user("and by flag", "admin", Setting::of(&configured).arg("--as=jim"))
        .await;
    let alone = plain.clone().arg("--as-group=system:masters");
    world.refused("a group without a user", "need --as", alone).await;
    world
        .refused(
            "no rights",
            "you may not get idtokenrequests",
            plain.clone().arg("--as=nobody"),
        )
        .await;

    // Which part of the kubeconfig.
    let mut two = admin.clone();
    let mut other = world.boss()["users"][0].clone();
    other["name"] = json!("other");
    two["users"].as_array_mut().unwrap().push(other);
    let mut broken = admin["clusters"][0].clone();
    broken["name"] = json!("broken");
    broken["cluster"]["server"] = json!("https://127.0.0.1:1");
    two["clusters"].as_array_mut().unwrap().push(broken);
    let shop =
        json!({"name": "shop", "context": {"cluster": "broken", "user": "admin", "namespace": "shop"}});
    two["contexts"].as_array_mut().unwrap().push(shop);
    let two = Setting::of(&two);
    world
        .as_user("another user", "boss", two.clone().arg("--user=other"))
        .await;
    world
        .as_user(
            "empty flags",
            "admin",
            two.clone().arg("--user=").arg("--context=").arg("--as="),
        )
        .await;
    world
        .same("an unreachable cluster", two.clone().arg("--context=shop"))
        .await;
    let (_, seen) = world
        .same(
            "context and cluster",
            two.clone().arg("--context=shop").arg("--cluster=testenv"),
        )
        .await;
    assert_eq!(seen.request.unwrap()[0], "shop");
    let named = two
        .clone()
        .arg("--context=shop")
        .arg("--cluster=testenv")
        .arg("-n=default");
    world.as_user("namespace", "admin", named).await;
    for (flag, what) in [
        ("--user=x", "no user x"),
        ("--cluster=x", "no cluster x"),
        ("--context=x", "no context x"),
    ] {
        world.refused(flag, what, two.clone().arg(flag)).await;
    }

    // Which server.
    let elsewhere = with(&admin, &format!("{CLUSTER}/server"), "https://127.0.0.1:1");
    let elsewhere = with(&elsewhere, &format!("{CLUSTER}/tls-server-name"), "wrong.example");
    let server = world.server("127.0.0.1");
    world
        .as_user(
            "a server, without the name of the other",
            "admin",
            Setting::of(&elsewhere).arg("--server").arg(&server),
        )
        .await;
    let zero = Setting::of(&admin).arg("-s").arg(world.server("0.0.0.0"));
    world
        .refused("no such name in its certificate", "certificate", zero.clone())
        .await;
    world
        .as_user(
            "its name",
            "admin",
            zero.clone().arg("--tls-server-name=localhost"),
        )
        .await;
    world
        .as_user(
            "no check",
            "admin",
            zero.clone().arg("--insecure-skip-tls-verify"),
        )
        .await;
    world
        .refused(
            "a check",
            "certificate",
            zero.clone().arg("--insecure-skip-tls-verify=false"),
        )
        .await;
    let ca = world.cluster.ca_file().display().to_string();
    let mut no_ca = admin.clone();
    no_ca["clusters"][0]["cluster"] = json!({"server": server});
    world
        .refused("no authority", "certificate", Setting::of(&no_ca))
        .await;
    world
        .as_user(
            "an authority",
            "admin",
            Setting::of(&no_ca).arg(format!("--certificate-authority={ca}")),
        )
        .await;
    let both = Setting::of(&admin)
        .arg(format!("--certificate-authority={ca}"))
        .arg("--insecure-skip-tls-verify");
    world
        .refused("an authority and no check", "keep one of them", both)
        .await;

    // Without a kubeconfig.
    let boss = world.boss();
    let pem = |field: &str| {
        use base64::Engine;
        let text = boss["users"][0]["user"][field].as_str().unwrap();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    };
    let (certificate, key) = (
        world.cluster.dir().join("boss.crt"),
        world.cluster.dir().join("boss.key"),
    );
    std::fs::write(&certificate, pem("client-certificate-data")).unwrap();
    std::fs::write(&key, pem("client-key-data")).unwrap();
    let bare = Setting::default()
        .arg(format!("--server={server}"))
        .arg(format!("--certificate-authority={ca}"));
    let certified = [
        format!("--client-certificate={}", certificate.display()),
        format!("--client-key={}", key.display()),
    ];
    let by_certificate = bare.clone().arg(&certified[0]).arg(&certified[1]);
    world.as_user("flags alone", "boss", by_certificate).await;
    let over = plain.clone().arg(&certified[0]).arg(&certified[1]);
    world.as_user("another certificate", "boss", over).await;
    let token = world.token().await;
    world
        .as_user("a token", ROBOT, bare.clone().arg(format!("--token={token}")))
        .await;
    world
        .refused("nothing", "there is no usable kubeconfig", Setting::default())
        .await;
    let can = |format: &str| {
        let mut command = plugin(world.cluster.dir());
        command.args(["can", "billing"]);
        world.run(command, &plain.clone().arg(format)).exits(1)
    };
    let yaml: Value = serde_saphyr::from_str(&can("-oyaml").stdout).unwrap();
    assert_eq!((&yaml, &yaml["allowed"]), (&can("-ojson").json(), &json!(false)));
    let odd = world.plugin(&bare.arg("--token=top\nsecret"));
    assert!(!odd.stderr.contains("secret"), "{}", odd.stderr);
    odd.exits(1).warns("control character");
    world.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_are_those_of_kubectl() {
    let mut world = World::start().await;
    let address = world.proxy.address;
    let hidden = with(
        &world.admin,
        &format!("{CLUSTER}/server"),
        world.server(UNRESOLVABLE),
    );
    let connect = format!("CONNECT {UNRESOLVABLE}:{} ", world.port);
    let socks = format!("SOCKS5 {UNRESOLVABLE}:{} ", world.port);
    let password = format!("{connect}Basic dXNlcjpwQHNz");
    let socks_password = format!("{socks}user:p@ss");
    for (url, asked) in [
        (format!("http://{address}"), &connect),
        (format!("http://user:p%40ss@{address}"), &password),
        (format!("socks5://{address}"), &socks),
        (format!("socks5://user:p%40ss@{address}"), &socks_password),
    ] {
        let configured = Setting::of(&with(&hidden, &format!("{CLUSTER}/proxy-url"), url.clone()));
        world
            .through(&format!("proxy-url {url}"), &[asked], configured.clone())
            .await;
        let bypassed = configured.env("NO_PROXY", "*");
        world
            .through("NO_PROXY is not for proxy-url", &[asked], bypassed)
            .await;
        let flag = Setting::of(&hidden).arg(format!("--proxy-url={url}"));
        world.through("--proxy-url", &[asked], flag).await;
        let environment = Setting::of(&hidden).env("HTTPS_PROXY", url.clone());
        world
            .through(&format!("HTTPS_PROXY {url}"), &[asked], environment)
            .await;
    }
    // A proxy by TLS is checked as the API server is: by the cluster's authority and name.
    let file = |name: &str| world.cluster.dir().join(name);
    let (certificate, key) = (file("apiserver.crt"), file("apiserver.key"));
    let by_tls = world.proxy.by_tls(&certificate, &key).await;
    for (user, asked) in [("", &connect), ("user:p%40ss@", &password)] {
        let url = format!("https://{user}{by_tls}");
        let configured = Setting::of(&with(&hidden, &format!("{CLUSTER}/proxy-url"), url.clone()));
        world
            .through(&format!("proxy-url {url}"), &[asked], configured)
            .await;
        let environment = Setting::of(&hidden).env("HTTPS_PROXY", url.clone());
        world
            .through(&format!("HTTPS_PROXY {url}"), &[asked], environment)
            .await;
    }
    let wrong = format!("https://0.0.0.0:{}", by_tls.port());
    let wrong = Setting::of(&with(&hidden, &format!("{CLUSTER}/proxy-url"), wrong));
    world
        .refused("a proxy of another name", "certificate", wrong)
        .await;
    let mut untrusted = hidden.clone();
    untrusted["clusters"][0]["cluster"] =
        json!({"server": world.server(UNRESOLVABLE), "proxy-url": format!("https://{by_tls}")});
    world
        .refused(
            "a proxy of another authority",
            "certificate",
            Setting::of(&untrusted),
        )
        .await;
    let proxied = Setting::of(&hidden).env("HTTPS_PROXY", format!("http://{address}"));
    for other in [
        "127.0.0.1",
        "127.0.0.0/8,localhost",
        "example.com,,",
        "svc.example, .kubernetes.default.svc",
        "kubernetes.default.svc:1",
    ] {
        let case = format!("NO_PROXY={other}");
        world
            .through(&case, &[&connect], proxied.clone().env("NO_PROXY", other))
            .await;
    }
    for bypass in [
        "*",
        "kubernetes.default.svc",
        "default.svc",
        ".svc",
        "10.0.0.0/8, SVC",
    ] {
        let case = format!("NO_PROXY={bypass}");
        world
            .refused(&case, "dns error", proxied.clone().env("NO_PROXY", bypass))
            .await;
    }
    let bare = Setting::of(&hidden).env("https_proxy", address.to_string());
    world.through("no scheme", &[&connect], bare).await;
    let socks5h = Setting::of(&hidden).env("HTTPS_PROXY", format!("socks5h://{address}"));
    world.through("socks5h", &[&socks], socks5h).await;

    // An address of this machine that is no loopback address to either.
    let zero = with(
        &world.admin,
        &format!("{CLUSTER}/server"),
        world.server("0.0.0.0"),
    );
    let zero = with(&zero, &format!("{CLUSTER}/tls-server-name"), "localhost");
    let zero = Setting::of(&zero).env("HTTPS_PROXY", format!("http://{address}"));
    let asked = format!("CONNECT 0.0.0.0:{} ", world.port);
    world.through("an address", &[&asked], zero.clone()).await;
    for bypass in ["0.0.0.0", "0.0.0.0/8", "x.example,0.0.0.0"] {
        let case = format!("NO_PROXY={bypass}");
        world
            .through(&case, &[], zero.clone().env("NO_PROXY", bypass))
            .await;
    }
    let loopback = Setting::of(&world.admin).env("HTTPS_PROXY", format!("http://{address}"));
    world.through("loopback", &[], loopback).await;
    let unusable = Setting::of(&hidden).arg("--proxy-url=ftp://user:secret@127.0.0.1");
    let (plugin, _) = world.same("a scheme that is none", unusable).await;
    assert!(!plugin.stderr.contains("secret"), "{}", plugin.stderr);
    plugin
        .exits(1)
        .warns("must begin with http://, https:// or socks5://");
    world.cluster.stop().await.unwrap();
}

fn exec(kubeconfig: &Value, command: &str, more: Value) -> Value {
    let mut exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "command": command, "interactiveMode": "IfAvailable",
    });
    let more = more.as_object().unwrap().clone();
    exec.as_object_mut().unwrap().extend(more);
    with(kubeconfig, USER, json!({"exec": exec}))
}

fn starts(path: &Path) -> usize {
    let count = std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
    std::fs::remove_file(path).ok();
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_plugins_and_files_are_used_as_kubectl_uses_them() {
    let mut world = World::start().await;
    let admin = world.admin.clone();
    let token = world.token().await;
    let credential = |status: Value| json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status});
    for (case, expiry) in [
        ("a token", json!({})),
        (
            "one that expires",
            json!({"expirationTimestamp": "2100-01-01T00:00:00Z"}),
        ),
    ] {
        let mut status = json!({"token": token});
        status
            .as_object_mut()
            .unwrap()
            .extend(expiry.as_object().unwrap().clone());
        let (command, count) = world.program("token", &format!("echo '{}'", credential(status)));
        let setting = Setting::of(&exec(&admin, &command, json!({})));
        assert_eq!(
            (world.kubectl(&setting).code, starts(&count)),
            (Some(0), 1),
            "{case}"
        );
        world.events += 1;
        assert_eq!(
            (world.plugin(&setting).code, starts(&count)),
            (Some(0), 1),
            "{case}"
        );
        world.events += 1;
        world.as_user(case, ROBOT, setting.clone()).await;
        starts(&count);
        world
            .as_user(
                "--token before the plugin",
                ROBOT,
                setting.arg(format!("--token={token}")),
            )
            .await;
        assert_eq!(starts(&count), 0, "{case}");
    }
    // It is told the cluster, arguments and environment.
    let told = format!(
        "test \"$1 $SETTING\" = 'get it' && case \"$KUBERNETES_EXEC_INFO\" in *{}*certificate-authority-data*) echo '{}' ;; esac",
        world.server("127.0.0.1"),
        credential(json!({"token": token}))
    );
    let (command, _) = world.program("told", &told);
    let more =
        json!({"args": ["get"], "env": [{"name": "SETTING", "value": "it"}], "provideClusterInfo": true});
    world
        .as_user("its input", ROBOT, Setting::of(&exec(&admin, &command, more)))
        .await;
    // A relative path begins at the kubeconfig.
    world
        .as_user(
            "a relative path",
            ROBOT,
            Setting::of(&exec(&admin, "./token", json!({}))),
        )
        .await;
    use base64::Engine;
    let boss = world.boss()["users"][0]["user"].clone();
    let pem = |field: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(boss[field].as_str().unwrap());
        String::from_utf8(bytes.unwrap()).unwrap()
    };
    let status = json!({
        "clientCertificateData": pem("client-certificate-data"), "clientKeyData": pem("client-key-data"),
    });
    let output = world.file("certificate.json", &credential(status).to_string());
    let (command, _) = world.program("certificate", &format!("cat '{}'", output.display()));
    world
        .as_user(
            "a certificate",
            "boss",
            Setting::of(&exec(&admin, &command, json!({}))),
        )
        .await;
    // Its output stays out of errors.
    let (command, _) = world.program("failing", "echo top-secret; exit 3");
    let (plugin, _) = world
        .same("it fails", Setting::of(&exec(&admin, &command, json!({}))))
        .await;
    assert!(!plugin.stderr.contains("secret"), "{}", plugin.stderr);
    plugin.exits(1).warns("failed with exit status: 3");
    let (command, _) = world.program("odd", "echo 'token: top-secret: [' ");
    let (plugin, _) = world
        .same(
            "it prints no credential",
            Setting::of(&exec(&admin, &command, json!({}))),
        )
        .await;
    assert!(!plugin.stderr.contains("secret"), "{}", plugin.stderr);
    plugin.exits(1).warns("printed no valid ExecCredential");
    let missing = exec(
        &admin,
        "no-such-plugin",
        json!({"installHint": "install it by hand"}),
    );
    let (plugin, _) = world.same("it is not there", Setting::of(&missing)).await;
    plugin
        .exits(1)
        .warns("cannot be started")
        .warns("install it by hand");

    // Files.
    let file = world.file("token.txt", &format!("{token}\n"));
    let by_file = with(&admin, USER, json!({"tokenFile": file.display().to_string()}));
    world
        .as_user("a token file with a newline", ROBOT, Setting::of(&by_file))
        .await;
    let mut first = admin.clone();
    first["contexts"] = json!([]);
    first["current-context"] = json!("");
    let mut second = admin.clone();
    second["users"] = json!([]);
    second["clusters"] = json!([]);
    second["contexts"][0]["context"]["namespace"] = json!("shop");
    world.file("first", &first.to_string());
    let second = world.file("second", &second.to_string());
    let dir = world.cluster.dir().display().to_string();
    let files = Setting::default().env("KUBECONFIG", format!("{dir}/first::{dir}/missing:{dir}/second"));
    let (plugin, seen) = world.same("several files", files.clone()).await;
    let request = seen.request.unwrap_or_else(|| panic!("{}", plugin.stderr));
    assert_eq!((&request[0], &request[1]), (&json!("shop"), &json!("admin")));
    let one = files.arg("--kubeconfig").arg(second.display().to_string());
    world
        .refused("--kubeconfig is the only file", "no cluster testenv", one)
        .await;
    world
        .refused(
            "a file that is not there",
            "does not exist",
            Setting::of(&admin).arg("--kubeconfig=missing"),
        )
        .await;
    let odd = world.file("odd.kubeconfig", "users: [{name: a, user: {token: top-secret\n");
    let odd = Setting::default().env("KUBECONFIG", odd.display().to_string());
    let (plugin, _) = world.same("a file that cannot be parsed", odd).await;
    assert!(!plugin.stderr.contains("secret"), "{}", plugin.stderr);
    plugin.exits(1).warns("is not valid YAML");
    world.cluster.stop().await.unwrap();
}

/// A server without TLS that never finishes its answer, and the requests that it got.
fn unfinished() -> (String, std::sync::mpsc::Receiver<String>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (send, requests) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut client in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            client
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")
                .ok();
            open.push(client);
            if send.send(String::from_utf8_lossy(&head).to_lowercase()).is_err() {
                return;
            }
        }
    });
    (url, requests)
}

#[test]
fn without_tls_no_credential_is_sent_and_a_timeout_ends_a_response() {
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("unfinished");
    std::fs::create_dir_all(&home).unwrap();
    let (url, requests) = unfinished();
    let server = format!("--server={url}");
    let flags = [&server, "--token=secret", "--as=jane", "--request-timeout=1s"];
    let kubectl = idtoken_testenv::Assets::locate(idtoken_testenv::Progress::default())
        .unwrap()
        .kubectl;
    let mut kubectl = Command::new(kubectl);
    clean(&mut kubectl, &home);
    finish(kubectl.args(["get", "--raw=/version"]).args(flags)).exits(1);
    finish(plugin(&home).args(["grant", "billing"]).args(flags))
        .exits(1)
        .warns("timed out");
    drop(url);
    for request in requests.try_iter() {
        assert!(!request.contains("secret"), "{request}");
        assert!(request.contains("impersonate-user: jane"), "{request}");
    }
}
