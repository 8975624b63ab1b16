//! `mint` against the emulator of Google's endpoints.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{AUDIENCE, CALLER, FAR, ME, Outcome, finish, google, plugin};
use idtoken_emulator::{EmulatorHandle, Endpoint};

fn home(test: &str) -> PathBuf {
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&home).unwrap();
    home
}

/// `mint` with the identity of the metadata server.
fn mint(google: &EmulatorHandle, home: &std::path::Path) -> Command {
    let mut command = plugin(home);
    command
        .args(["mint", "--audience", AUDIENCE])
        .arg(format!("--iam-credentials-url={}", google.url()))
        .arg(format!("--google-keys-url={}/oauth2/v3/certs", google.url()))
        .env("GCE_METADATA_HOST", google.address().to_string());
    command
}

fn ran(command: &mut Command, args: &[&str]) -> Outcome {
    finish(command.args(args))
}

fn assert_no_token(outcome: &Outcome) {
    for text in [&outcome.stdout, &outcome.stderr] {
        assert!(!text.contains("eyJ"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prints_the_token_alone() {
    let google = google().await;
    let home = home("alone");
    let mut command = plugin(&home);
    command
        .args(["mint", "--audience", AUDIENCE, "--service-account", CALLER])
        .env("IDTOKEN_IAM_CREDENTIALS_URL", google.url())
        .env("GCE_METADATA_HOST", google.address().to_string());
    let outcome = finish(&mut command).exits(0);
    assert_eq!(outcome.stderr, "");
    assert!(!outcome.stdout.ends_with('\n'));
    let claims = google.verify(&outcome.stdout).unwrap();
    assert_eq!(
        (claims["aud"].as_str(), claims["email"].as_str()),
        (Some(AUDIENCE), Some(CALLER))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mints_with_a_key_file() {
    let google = google().await;
    let home = home("key-file");
    let key = home.join("key.json");
    std::fs::write(&key, google.service_account_key(ME).unwrap().to_string()).unwrap();
    let mut command = plugin(&home);
    command
        .args([
            "mint",
            "--audience",
            AUDIENCE,
            "--service-account",
            CALLER,
            "--claims",
        ])
        .env("IDTOKEN_IAM_CREDENTIALS_URL", google.url())
        .env("GOOGLE_APPLICATION_CREDENTIALS", &key);
    let outcome = finish(&mut command).exits(0);
    assert_eq!(outcome.json()["email"], CALLER);
    // The call counts for the user's project, which only this header names.
    finish(command.env("GOOGLE_CLOUD_QUOTA_PROJECT", "mine")).exits(0);
    let calls = google.calls().into_iter();
    let counted: Vec<_> = calls
        .filter(|call| call.endpoint == Endpoint::GenerateIdToken)
        .map(|call| call.user_project)
        .collect();
    assert_eq!(counted, [None, Some("mine".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn prints_claims_without_the_token() {
    let google = google().await;
    let home = home("claims");
    let outcome = ran(
        &mut mint(&google, &home),
        &["--service-account", CALLER, "--claims", "--organization-number"],
    )
    .exits(0);
    assert_no_token(&outcome);
    let claims = outcome.json();
    assert_eq!(claims["aud"], AUDIENCE);
    assert_eq!(claims["email"], CALLER);
    assert_eq!(claims["google"]["organization_number"], 42);
    assert!(
        outcome.stdout.contains("\n  \"aud\""),
        "pretty: {}",
        outcome.stdout
    );

    let outcome = ran(
        &mut mint(&google, &home),
        &["--service-account", CALLER, "--claims", "--no-email"],
    )
    .exits(0);
    assert!(outcome.json().get("email").is_none(), "{}", outcome.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn mints_through_delegates() {
    let google = google().await;
    let home = home("chain");
    let outcome = ran(
        &mut mint(&google, &home),
        &["--service-account", FAR, "--delegate", CALLER, "--claims"],
    )
    .exits(0);
    assert_eq!(outcome.json()["email"], FAR);
    ran(&mut mint(&google, &home), &["--service-account", FAR, "--claims"]).exits(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do() {
    let google = google().await;
    let home = home("refusals");
    let denied = ran(&mut mint(&google, &home), &["--service-account", FAR])
        .exits(1)
        .warns("error: no token was minted")
        .warns("gcloud iam service-accounts add-iam-policy-binding")
        .warns(ME);
    assert_eq!(denied.stdout, "");
    assert_no_token(&denied);
    ran(&mut mint(&google, &home), &["--service-account", ME])
        .exits(1)
        .warns("own identity");
    let missing = format!("--credentials-file={}", home.join("missing.json").display());
    ran(
        &mut mint(&google, &home),
        &["--service-account", CALLER, &missing],
    )
    .exits(1)
    .warns("missing.json");
    let before = google.mint_count();
    ran(&mut mint(&google, &home), &["--service-account", "Nobody"])
        .exits(2)
        .warns("error: --service-account must be");
    ran(&mut mint(&google, &home), &[]).exits(2);
    assert_eq!(google.mint_count(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn help_names_each_variable() {
    let home = home("help");
    let help = finish(plugin(&home).args(["mint", "--help"])).exits(0);
    for text in [
        "Token:",
        "Output:",
        "Google:",
        "[env: IDTOKEN_IAM_CREDENTIALS_URL=]",
        "[env: IDTOKEN_CA_FILE=]",
    ] {
        assert!(help.stdout.contains(text), "no {text} in\n{}", help.stdout);
    }
}
