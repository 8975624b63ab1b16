//! `kubectl idtoken doctor`, on a real API server with the objects of config/install.yaml.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::world::World;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const NAMESPACE: &str = "idtoken-system";

/// The level of each area, the worst of several.
fn level(report: &Value, area: &str) -> String {
    let order = ["Ok", "Unseen", "Warning", "Failure"];
    let checks = report["checks"].as_array().unwrap();
    let levels = checks
        .iter()
        .filter(|check| check["area"] == area)
        .map(|check| check["level"].as_str().unwrap());
    let worst = levels.max_by_key(|level| order.iter().position(|known| known == level));
    worst.unwrap_or("none").to_owned()
}

fn levels(report: &Value, areas: &[&str]) -> Vec<(String, String)> {
    let of = |area: &&str| ((*area).to_owned(), level(report, area));
    areas.iter().map(of).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(area, level): &(&str, &str)| ((*area).to_owned(), (*level).to_owned());
    expected.iter().map(owned).collect()
}

/// An address of this machine that is not loopback: the API server's proxy refuses those. No packet is sent.
fn address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// What a real operator served, which tests/telemetry/recorded.rs holds up to date.
const METRICS: &str = include_str!("recorded/metrics.txt");

/// Answers as a leader that issued a token and refused one. Its own checks pass while `is_well`.
async fn serve(is_well: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let is_well = is_well.load(Ordering::SeqCst);
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap_or_default();
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                let (status, body) = match (head.starts_with("GET /readyz?verbose "), is_well) {
                    (false, _) => ("200 OK", METRICS),
                    (true, true) => ("200 OK", "[+]caches ok\n[+]grants-file ok\n"),
                    (true, false) => (
                        "503 Service Unavailable",
                        "[-]caches the caches are not synced yet\n[+]grants-file ok\n[-]unknown <html>a body</html>\n",
                    ),
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

/// A pod of the operator in this state.
async fn pod(world: &World, name: &str, port: u16, status: Value) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {
            "app.kubernetes.io/name": "idtoken-operator", "app.kubernetes.io/instance": "idtoken-operator",
            "app.kubernetes.io/component": "controller",
        }},
        "spec": {"containers": [{"name": "idtoken-operator", "image": "x", "ports": [{"containerPort": port}]}], "nodeName": "node"},
    });
    world.cluster.apply(&pod.to_string()).await.unwrap();
    patch_status(world, &format!("pod/{name}"), status).await;
}

async fn patch_status(world: &World, what: &str, status: Value) {
    let patch = json!({ "status": status }).to_string();
    let subresource = ["--subresource=status", "--type=merge", "-p", &patch];
    let args = [&["patch", what, "-n", NAMESPACE][..], &subresource].concat();
    world.cluster.kubectl(args).await.unwrap();
}

/// What kubelet, scheduler and the Deployment's controller would write for a pod that runs.
async fn run_a_pod(world: &World, address: IpAddr, port: u16) {
    let kubectl = async |args: &[&str]| world.cluster.kubectl(args.to_vec()).await.unwrap();
    kubectl(&["create", "serviceaccount", "default", "-n", NAMESPACE]).await;
    let ready = json!([{"type": "Ready", "status": "True"}]);
    let status =
        json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready});
    pod(world, "operator-a", port, status).await;
    let ports = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/ports/0/containerPort", "value": port}]);
    kubectl(&[
        "patch",
        "deployment/idtoken-operator",
        "-n",
        NAMESPACE,
        "--type=json",
        "-p",
        &ports.to_string(),
    ])
    .await;
    let counts = json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 1});
    patch_status(world, "deployment/idtoken-operator", counts).await;
    let now = jiff::Timestamp::now();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "idtoken-operator", "namespace": NAMESPACE},
        "spec": {"holderIdentity": "operator-a_1", "leaseDurationSeconds": 15, "renewTime": format!("{now:.6}")},
    });
    world.cluster.apply(&lease.to_string()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_is_checked_from_nothing_to_well() {
    let world = World::start().await;
    let doctor = |code: i32, more: &[&str]| {
        let args = [&["doctor", "-o", "json"], more].concat();
        let outcome = world.run(&args).exits(code);
        outcome.json()
    };
    let empty = doctor(1, &[]);
    assert_eq!(empty["ok"], false);
    assert_eq!(
        levels(
            &empty,
            &[
                "cluster",
                "definitions",
                "releases",
                "policies",
                "grants",
                "requests",
                "prometheus"
            ]
        ),
        pairs(&[
            ("cluster", "Ok"),
            ("definitions", "Failure"),
            ("releases", "Failure"),
            ("policies", "Warning"),
            ("grants", "Unseen"),
            ("requests", "Unseen"),
            ("prometheus", "Ok"),
        ])
    );

    let install = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/install.yaml");
    world
        .cluster
        .kubectl(["apply", "--server-side", "-f", install])
        .await
        .unwrap();
    world.cluster.wait_for_crds().await.unwrap();
    world.install().await;
    world.request("shop", "billing", "").await;
    let installed = doctor(1, &[]);
    let areas = [
        "definitions",
        "version",
        "replicas",
        "leader",
        "metrics",
        "policies",
        "grants",
        "requests",
    ];
    assert_eq!(
        levels(&installed, &areas),
        pairs(&[
            ("definitions", "Ok"),
            ("version", "Ok"),
            ("replicas", "Failure"),
            ("leader", "Failure"),
            ("metrics", "Unseen"),
            ("policies", "Ok"),
            ("grants", "Warning"),
            // It was created a moment ago.
            ("requests", "Ok"),
        ])
    );
    let text = world.run(&["doctor"]).exits(1);
    for says in [
        "✗   replicas",
        "there is no Lease idtoken-system/idtoken-operator",
        "docs/metrics.md#idtokennoleader",
        "kubectl describe pods -n idtoken-system -l",
    ] {
        assert!(text.stdout.contains(says), "no {says:?} in {}", text.stdout);
    }
    // Another namespace has no release, so nobody serves the request.
    let elsewhere = doctor(1, &["--operator-namespace=shop"]);
    assert_eq!(
        levels(&elsewhere, &["releases", "requests"]),
        pairs(&[("releases", "Failure"), ("requests", "Failure")])
    );

    if let Some(address) = address() {
        let is_well = Arc::new(AtomicBool::new(true));
        let port = serve(is_well.clone()).await;
        run_a_pod(&world, address, port).await;
        let annotate = [
            "annotate",
            "serviceaccount/idtoken-operator",
            "-n",
            NAMESPACE,
            "iam.gke.io/gcp-service-account=op@p.iam.gserviceaccount.com",
        ];
        world.cluster.kubectl(annotate).await.unwrap();
        let grant = "{apiVersion: idtoken.dev/v1alpha1, kind: IdTokenGrant, metadata: {name: shop}, \
                     spec: {from: [{namespace: shop}], to: [{serviceAccounts: ['1'], audiences: [a]}]}}";
        world.cluster.apply(grant).await.unwrap();
        let well = doctor(0, &[]);
        assert_eq!(
            levels(
                &well,
                &[
                    "replicas", "pods", "leader", "health", "tokens", "egress", "grants"
                ]
            ),
            pairs(&[
                ("replicas", "Ok"),
                ("pods", "none"),
                ("leader", "Ok"),
                ("health", "Ok"),
                ("tokens", "Warning"),
                ("egress", "Ok"),
                ("grants", "Ok"),
            ])
        );
        for says in [
            "refused: PermissionDenied 1",
            "all 2 checks pass in the 1 pods",
            "op@p.iam.gserviceaccount.com: what the metadata server gives",
            "no request has one yet; no request fails",
        ] {
            assert!(well.to_string().contains(says), "no {says:?} in {well}");
        }

        // What the pod says of itself, and another pod that never started.
        is_well.store(false, Ordering::SeqCst);
        let waiting = json!({"reason": "ImagePullBackOff", "message": "401 Unauthorized: <html>secret"});
        let container = json!({
            "name": "idtoken-operator", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": waiting},
        });
        let status = json!({"phase": "Pending", "containerStatuses": [container]});
        pod(&world, "operator-b", port, status).await;
        let ill = doctor(1, &[]);
        assert_eq!(
            levels(&ill, &["pods", "health", "leader"]),
            pairs(&[("pods", "Failure"), ("health", "Failure"), ("leader", "Ok")])
        );
        for says in [
            "caches: the caches are not synced yet (operator-a)",
            "unknown: it fails (operator-a)",
            "operator-b is not ready: container idtoken-operator waits: ImagePullBackOff",
        ] {
            assert!(ill.to_string().contains(says), "no {says:?} in {ill}");
        }
        assert!(!ill.to_string().contains("<html>"), "{ill}");
    }

    // Who may see nothing is told so, and no more fails than what was seen.
    let jane = world.user("jane", &[]).await;
    let blind = world.run_as(&jane, &["doctor", "-o", "json"]).exits(0).json();
    let checks = blind["checks"].as_array().unwrap();
    let unseen = checks.iter().filter(|check| check["level"] == "Unseen").count();
    assert_eq!(unseen, checks.len() - 1, "{blind}");
    assert!(
        blind.to_string().contains("you may not list deployments"),
        "{blind}"
    );
    world.cluster.stop().await.unwrap();
}
