//! `kubectl idtoken try`, against targets that answer as Google's front ends do, and by a pod on a real API server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::world::{LIMIT, World};
use common::{AUDIENCE, CALLER, Outcome, finish, google, plugin};
use idtoken_emulator::{Application, EmulatorHandle, FrontEnd, Target, Trouble};
use idtoken_testenv::until;
use serde_json::{Value, json};

/// The URL of a function, of either generation.
const FUNCTION: &str = "https://europe-west1-p.cloudfunctions.net/invoices";
const CLIENT: &str = "123456789012-abc.apps.googleusercontent.com";

fn target(name: &str, front_end: FrontEnd, audience: &str, is_member: bool) -> Target {
    Target {
        name: name.to_owned(),
        front_end,
        audience: audience.to_owned(),
        members: is_member.then(|| CALLER.to_owned()).into_iter().collect(),
        internal: name == "internal",
        trouble: match name {
            "run-perimeter" => Some(Trouble::Perimeter),
            "run-busy" => Some(Trouble::NoInstance),
            "gateway-issuer" => Some(Trouble::OtherIssuer),
            "gateway-key" => Some(Trouble::NoApiKey),
            "gateway-path" => Some(Trouble::UnknownPath),
            _ => None,
        },
        application: Application::default(),
    }
}

/// A token, minted as the caller of `kubectl idtoken mint`.
fn mint(world: &World, google: &EmulatorHandle, audience: &str, more: &[&str]) -> String {
    let mut command = plugin(world.cluster.dir());
    command
        .args(["mint", "--service-account", CALLER, "--audience", audience])
        .args(more)
        .arg(format!("--iam-credentials-url={}", google.url()))
        .env("GCE_METADATA_HOST", google.address().to_string());
    finish(&mut command).exits(0).stdout
}

/// A request with a Secret that holds `token`.
async fn issue(world: &World, name: &str, audience: &str, token: &str) {
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"audience": audience, "serviceAccount": CALLER},
        },
        {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "shop"}, "stringData": {"token": token},
        },
    ]});
    world.cluster.apply(&objects.to_string()).await.unwrap();
}

fn assert_no_token(outcome: &Outcome, tokens: &[&str]) {
    for text in [&outcome.stdout, &outcome.stderr] {
        assert!(!text.contains("eyJ"), "{text}");
        for token in tokens {
            let signature = token.rsplit('.').next().unwrap();
            assert!(!text.contains(signature), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_front_end_is_recognized_and_the_token_stays_out_of_the_output() {
    let google = google().await;
    let mut policy = google.policy();
    let echo = |name: &str, front_end, status| Target {
        application: Application {
            status,
            body: "<h1>{token}</h1>".to_owned(),
        },
        ..target(name, front_end, AUDIENCE, true)
    };
    policy.targets = vec![
        target("run", FrontEnd::CloudRun, AUDIENCE, true),
        target("run-audience", FrontEnd::CloudRun, "https://other", true),
        target("run-role", FrontEnd::CloudRun, AUDIENCE, false),
        target("internal", FrontEnd::CloudRun, AUDIENCE, true),
        target("run-perimeter", FrontEnd::CloudRun, AUDIENCE, true),
        target("run-busy", FrontEnd::CloudRun, AUDIENCE, true),
        target("function", FrontEnd::CloudFunctions, FUNCTION, true),
        // Of the 2nd generation, and its audience is that of its Cloud Run service.
        target(
            "function-audience",
            FrontEnd::CloudFunctions,
            "https://invoices-x.run.app",
            true,
        ),
        target("function-role", FrontEnd::CloudFunctions, FUNCTION, false),
        target("gateway-issuer", FrontEnd::Gateway, AUDIENCE, false),
        target("gateway-key", FrontEnd::Gateway, AUDIENCE, false),
        target("gateway-path", FrontEnd::Gateway, AUDIENCE, false),
        echo("own-redirect", FrontEnd::None, 307),
        echo("run-application", FrontEnd::CloudRun, 401),
        target("iap", FrontEnd::Iap, CLIENT, true),
        target("iap-role", FrontEnd::Iap, CLIENT, false),
        target("iap-google", FrontEnd::IapOfGoogle, CLIENT, true),
        target("gateway", FrontEnd::Gateway, AUDIENCE, false),
        target("gateway-audience", FrontEnd::Gateway, "https://other", false),
        target("api", FrontEnd::GoogleApi, AUDIENCE, false),
        target("balancer", FrontEnd::LoadBalancer, CLIENT, false),
        echo("own", FrontEnd::None, 403),
    ];
    google.set_policy(policy).unwrap();
    let world = World::start().await;
    world.install().await;
    let billing = mint(&world, &google, AUDIENCE, &[]);
    let console = mint(&world, &google, CLIENT, &[]);
    let mute = mint(&world, &google, CLIENT, &["--no-email"]);
    issue(&world, "billing", AUDIENCE, &billing).await;
    issue(&world, "console", CLIENT, &console).await;
    issue(&world, "mute", CLIENT, &mute).await;
    let invoices = mint(&world, &google, FUNCTION, &[]);
    issue(&world, "invoices", FUNCTION, &invoices).await;
    google.set_lifetime(Duration::from_secs(1));
    let old = mint(&world, &google, AUDIENCE, &[]);
    issue(&world, "old", AUDIENCE, &old).await;
    issue(&world, "broken", AUDIENCE, "no token").await;
    // The spec's audience was changed since the token was issued.
    issue(
        &world,
        "behind",
        &format!("{}/targets/run", google.url()),
        &billing,
    )
    .await;
    let tokens = [&billing, &console, &mute, &invoices, &old].map(String::as_str);
    // Until the short one has expired.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let call = |request: &str, name: &str, more: &[&str]| {
        let url = format!("{}/targets/{name}", google.url());
        let args = [&["try", request, &url, "-n", "shop", "--any-host"], more].concat();
        let outcome = world.run(&args);
        assert_no_token(&outcome, &tokens);
        outcome
    };
    let cloud_run = "docs/targets.md#cloud-run";
    let iap = "docs/targets.md#iap-with-an-oauth-client-of-your-own";
    let gateway = "docs/targets.md#api-gateway-and-cloud-endpoints";
    let function = "docs/targets.md#functions-at-their-cloudfunctions-url";
    let own = "docs/targets.md#a-service-of-your-own";
    let mut rows = BTreeSet::new();
    for (request, name, more, by, link, says) in [
        (
            "billing",
            "run-perimeter",
            &[][..],
            "FrontEnd",
            cloud_run,
            "gcloud logging read",
        ),
        (
            "billing",
            "run-busy",
            &[],
            "FrontEnd",
            cloud_run,
            "has no instance for the call",
        ),
        (
            "invoices",
            "function-audience",
            &[],
            "FrontEnd",
            function,
            "2nd generation, serviceConfig.uri",
        ),
        (
            "invoices",
            "function-audience",
            &["--header=X-Mine: a"],
            "FrontEnd",
            function,
            "gcloud functions describe ",
        ),
        (
            "invoices",
            "function-role",
            &[],
            "FrontEnd",
            function,
            "gcloud functions add-invoker-policy-binding",
        ),
        (
            "billing",
            "gateway-issuer",
            &[],
            "Gateway",
            gateway,
            "Correct x-google-issuer",
        ),
        (
            "old",
            "gateway",
            &[],
            "Gateway",
            gateway,
            "kubectl idtoken renew old",
        ),
        (
            "broken-by-hand",
            "gateway",
            &[],
            "Gateway",
            gateway,
            "Correct x-google-jwks_uri",
        ),
        ("billing", "gateway-key", &[], "Gateway", gateway, "x-api-key"),
        (
            "billing",
            "gateway-path",
            &[],
            "Gateway",
            gateway,
            "Call a path and a method",
        ),
        (
            "console",
            "own-redirect",
            &[],
            "Application",
            own,
            "is not sent where an answer points to",
        ),
        (
            "billing",
            "run-audience",
            &[][..],
            "FrontEnd",
            cloud_run,
            "permission to the requested URL",
        ),
        (
            "billing",
            "run-role",
            &[],
            "FrontEnd",
            cloud_run,
            "--role=roles/run.invoker",
        ),
        (
            "billing",
            "run",
            &["--authorization-header=X-Other"],
            "FrontEnd",
            cloud_run,
            "permission to get URL",
        ),
        (
            "billing",
            "internal",
            &[],
            "FrontEnd",
            cloud_run,
            "internal traffic only",
        ),
        (
            "billing",
            "run-application",
            &[],
            "Application",
            cloud_run,
            "after Cloud Run let the call in",
        ),
        ("billing", "iap", &[], "IdentityAwareProxy", iap, CLIENT),
        (
            "console",
            "iap",
            &["--authorization-header=X-Other"],
            "IdentityAwareProxy",
            iap,
            "No token arrived",
        ),
        (
            "console",
            "iap-role",
            &[],
            "IdentityAwareProxy",
            iap,
            "roles/iap.httpsResourceAccessor",
        ),
        ("mute", "iap", &[], "IdentityAwareProxy", iap, "includeEmail"),
        (
            "broken-by-hand",
            "iap",
            &[],
            "IdentityAwareProxy",
            iap,
            "no token of Google's",
        ),
        (
            "billing",
            "iap-google",
            &[],
            "IdentityAwareProxy",
            "docs/targets.md#iap-with-googles-own-client",
            "not on the list",
        ),
        (
            "billing",
            "gateway-audience",
            &[],
            "Gateway",
            gateway,
            "x-google-audiences",
        ),
        (
            "billing",
            "gateway",
            &["--authorization-header=X-Other"],
            "Gateway",
            gateway,
            "No token arrived",
        ),
        (
            "billing",
            "api",
            &[],
            "GoogleApi",
            "docs/targets.md#googles-apis",
            "access tokens",
        ),
        (
            "console",
            "balancer",
            &[],
            "LoadBalancer",
            "docs/targets.md#load-balancers",
            "no backend",
        ),
        (
            "console",
            "own",
            &[],
            "Application",
            "docs/targets.md#a-service-of-your-own",
            "which refused",
        ),
    ] {
        if request == "broken-by-hand" {
            // Cut off, as a copy by hand may be.
            issue(
                &world,
                request,
                CLIENT,
                &format!("{}AAAA", &console[..console.len() - 4]),
            )
            .await;
        }
        let found = call(request, name, &[more, &["-o", "json"]].concat())
            .exits(1)
            .json();
        assert_eq!(found["answeredBy"], by, "{name}: {found}");
        assert_eq!(found["row"]["link"], link, "{name}: {found}");
        assert!(found.to_string().contains(says), "{name}: no {says:?} in {found}");
        assert!(
            found["command"].is_string() != found["noCommand"].is_string(),
            "{name}: {found}"
        );
        rows.insert(found["row"].to_string());
        call(request, name, more).exits(1).says(link).says(says);
    }
    // Each row of the page that a call can lead to.
    assert_eq!(rows.len(), 25, "{rows:#?}");
    for (request, name, more) in [
        ("billing", "run", &[][..]),
        (
            "billing",
            "run",
            &["--authorization-header=X-Serverless-Authorization"],
        ),
        ("billing", "run", &["--method=POST", "--header=X-Mine: a"]),
        ("invoices", "function", &[]),
        ("console", "iap", &[]),
        ("console", "iap", &["--authorization-header=Proxy-Authorization"]),
        ("billing", "gateway", &[]),
    ] {
        call(request, name, more)
            .exits(0)
            .says("Answered by:  the application");
    }

    // Where the token may not go, nothing is sent.
    let before = google.counts();
    let url = format!("{}/targets/run", google.url());
    let refused = |args: &[&str], why: &str| {
        let outcome = world.run(&[&["try"], args, &["-n", "shop"]].concat());
        assert_no_token(&outcome, &tokens);
        outcome.exits(2).warns(why);
    };
    refused(&["billing", &url], "is not the host of the audience");
    refused(&["billing", "http://billing-x.run.app"], "only https://");
    refused(&["console"], "is no https URL");
    refused(&["behind"], "the Secret's token is not of the spec's audience");
    assert_eq!(google.counts(), before);
    world
        .run(&["try", "broken", &url, "--any-host", "-n", "shop"])
        .exits(1)
        .warns("Secret broken has no ID token");
    world
        .run(&[
            "try",
            "billing",
            "http://127.0.0.1:1/",
            "--any-host",
            "-n",
            "shop",
        ])
        .exits(1)
        .warns("127.0.0.1:1 did not answer")
        .warns("--from-pod");
    world.request("shop", "waiting", "").await;
    world
        .run(&["try", "waiting", &url, "--any-host", "-n", "shop"])
        .exits(1)
        .warns("there is no Secret waiting yet; see: kubectl idtoken explain waiting -n shop");
    let jane = world
        .user("jane", &[("get", "idtokenrequests.idtoken.dev", false)])
        .await;
    world
        .run_as(&jane, &["try", "billing", &url, "--any-host", "-n", "shop"])
        .exits(1)
        .warns("you may not read Secret billing")
        .warns("add --from-pod IMAGE");
    world.cluster.stop().await.unwrap();
}

/// The pods of the namespace that the plugin made.
async fn pods(world: &World) -> Vec<Value> {
    let list = world
        .cluster
        .kubectl([
            "get",
            "pods",
            "-n",
            "shop",
            "-l",
            "app.kubernetes.io/managed-by=kubectl-idtoken",
            "-o",
            "json",
        ])
        .await
        .unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    list["items"].as_array().unwrap().clone()
}

async fn one_pod(world: &World) -> Value {
    until("the pod exists", LIMIT, async || Ok(pods(world).await.pop()))
        .await
        .unwrap()
}

fn start(world: &World) -> Child {
    let mut command = plugin(world.cluster.dir());
    command
        .args([
            "try",
            "billing",
            "-n",
            "shop",
            "--from-pod=curl:test",
            "--header=X-Mine: a",
            "-o",
            "json",
        ])
        .env("KUBECONFIG", &world.admin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn ended(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_passes_restricted_calls_and_is_removed_in_any_case() {
    let google = google().await;
    let world = World::start().await;
    world.install().await;
    let token = mint(&world, &google, AUDIENCE, &[]);
    issue(&world, "billing", AUDIENCE, &token).await;
    let kubectl = async |args: &[&str]| world.cluster.kubectl(args.to_vec()).await.unwrap();
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    kubectl(&["label", "namespace", "shop", enforce]).await;
    // No controller makes it here.
    kubectl(&["create", "serviceaccount", "default", "-n", "shop"]).await;

    let child = start(&world);
    let pod = one_pod(&world).await;
    assert!(!pod.to_string().contains("eyJ"), "{pod}");
    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
    // As the kubelet reports a container that has ended.
    let message = "curl 0\nHTTP/1.1 403 Forbidden\nserver: Google Frontend\n\n<h2>Your client does not have permission to get URL <code>/\
                   </code> from this server.</h2>\u{1b}[2J";
    let status = json!({"status": {"phase": "Succeeded", "containerStatuses": [{
        "name": "try", "image": "curl:test", "imageID": "x", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 0, "message": message}},
    }]}});
    kubectl(&[
        "patch",
        "pod",
        &name,
        "-n",
        "shop",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ])
    .await;
    let outcome = ended(child).exits(1);
    assert_no_token(&outcome, &[&token]);
    let found = outcome.json();
    assert_eq!(
        (&found["status"], &found["answeredBy"]),
        (&403.into(), &"FrontEnd".into())
    );
    assert_eq!(pods(&world).await, Vec::<Value>::new());

    for signal in ["-INT", "-TERM"] {
        let child = start(&world);
        one_pod(&world).await;
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        ended(child).exits(1).warns("interrupted");
        assert_eq!(pods(&world).await, Vec::<Value>::new(), "{signal}");
    }

    let requests = "idtokenrequests.idtoken.dev";
    let jane = world.user("jane", &[("get", requests, false)]).await;
    world
        .run_as(&jane, &["try", "billing", "-n", "shop", "--from-pod=curl:test"])
        .exits(1)
        .warns("you may not create pods in namespace shop");

    // The Secret is behind the spec, and its token is another service's.
    let status = json!({"status": {"token": {"audience": "https://payroll-x.run.app"}}}).to_string();
    let request = ["patch", "idtokenrequest", "billing", "-n", "shop"];
    kubectl(
        &[
            &request[..],
            &["--subresource=status", "--type=merge", "-p", &status],
        ]
        .concat(),
    )
    .await;
    ended(start(&world))
        .exits(2)
        .warns("the Secret's token is not of the spec's audience");
    assert_eq!(pods(&world).await, Vec::<Value>::new());
    world.cluster.stop().await.unwrap();
}
