//! The program: its line on standard output, its log, its end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

const POLICY: &str = r#"
serviceAccounts:
- email: operator@p.iam.gserviceaccount.com
- email: caller@p.iam.gserviceaccount.com
  bindings:
  - role: roles/iam.serviceAccountOpenIdTokenCreator
    members: ["serviceAccount:operator@p.iam.gserviceaccount.com"]
metadataServer:
  serviceAccount: operator@p.iam.gserviceaccount.com
"#;

#[tokio::test]
async fn it_prints_its_url_serves_and_ends_on_sigterm() {
    let directory = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let policy = directory.join("policy.yaml");
    std::fs::write(&policy, POLICY).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_idtoken-emulator"))
        .arg("--policy")
        .arg(&policy)
        .args(["--listen", "127.0.0.1:0", "--log", "trace"])
        .env("IDTOKEN_EMULATOR_LIFETIME", "20s")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = tokio::time::timeout(Duration::from_secs(60), lines.next_line())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let log = tokio::spawn(async move {
        let mut text = String::new();
        stderr.read_to_string(&mut text).await.map(|_| text)
    });

    let client = common::client();
    let token = client
        .get(format!(
            "{url}/computeMetadata/v1/instance/service-accounts/default/token"
        ))
        .header("Metadata-Flavor", "Google");
    let token: Value = token.send().await.unwrap().json().await.unwrap();
    let bearer = token["access_token"].as_str().unwrap();
    let answer = client
        .post(format!(
            "{url}/v1/projects/-/serviceAccounts/{}:generateIdToken",
            common::CALLER
        ))
        .bearer_auth(bearer)
        .json(&json!({"audience": "https://a"}));
    let answer: Value = answer.send().await.unwrap().json().await.unwrap();
    let minted = answer["token"].as_str().unwrap();
    let claims = common::decode(minted).1;
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        20
    );

    let pid = child.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    let status = tokio::time::timeout(Duration::from_secs(60), child.wait())
        .await
        .unwrap()
        .unwrap();
    assert!(status.success());
    let log = log.await.unwrap().unwrap();
    assert!(log.contains("generateIdToken"), "calls are logged");
    let signature = minted.rsplit_once('.').unwrap().1;
    assert!(
        !log.contains(bearer) && !log.contains(signature),
        "tokens are not"
    );
}

#[tokio::test]
async fn a_wrong_policy_is_explained() {
    let policy = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("wrong.yaml");
    std::fs::write(&policy, "serviceAcounts: []").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_idtoken-emulator"))
        .arg("--policy")
        .arg(&policy)
        .output()
        .await
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("serviceAcounts") && error.contains("wrong.yaml"),
        "{error}"
    );
}

#[tokio::test]
async fn it_is_a_proxy_whose_ca_is_in_a_file() {
    let directory = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (policy, ca) = (directory.join("proxied.yaml"), directory.join("proxy-ca.pem"));
    std::fs::write(&policy, POLICY).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_idtoken-emulator"))
        .arg("--policy")
        .arg(&policy)
        .args(["--proxy", "127.0.0.1:0", "--proxy-ca"])
        .arg(&ca)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // The URL of the endpoints comes when all is ready, and the proxy's is in the log.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = tokio::time::timeout(Duration::from_secs(60), lines.next_line());
    ready.await.unwrap().unwrap().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = log.next_line().await.unwrap().unwrap();
    let (_, url) = line.split_once("proxy url=").expect(&line);
    let ca = reqwest::Certificate::from_pem(&std::fs::read(&ca).unwrap()).unwrap();
    let client = common::client_builder()
        .proxy(reqwest::Proxy::https(url.trim_matches('"')).unwrap())
        .tls_certs_only([ca])
        .build()
        .unwrap();
    let certs = client
        .get("https://www.googleapis.com/oauth2/v3/certs")
        .send()
        .await
        .unwrap();
    assert_eq!(certs.status(), 200);
}
