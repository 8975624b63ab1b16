//! The operator as an AWS identity: from environment variables, and from EC2's metadata server.

use idtoken_emulator::{
    Aws, AwsAccessKey, EmulatorHandle, Endpoint, Fault, Secret, ServiceAccount, WorkloadIdentityProvider,
};
use idtoken_operator::google::{ErrorClass, GoogleConfig, Minter};
use serde_json::{Value, json};

use crate::support::*;

const PROVIDER: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/aws";
const ARN: &str = "arn:aws:sts::123456789012:assumed-role/operator/i-0123456789";
const KEY: &str = "ASIAEXAMPLEEXAMPLE00";
const SECRET: &str = "aws-secret/EXAMPLE+key";
const SESSION: &str = "aws-session-token-EXAMPLE==";

fn principal() -> String {
    format!(
        "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/{ARN}"
    )
}

/// Google that trusts an AWS account, and an instance of EC2 of that account.
async fn google_and_aws() -> EmulatorHandle {
    let google = google().await;
    let mut policy = google.policy();
    policy.workload_identity_providers = vec![WorkloadIdentityProvider::aws(PROVIDER, "123456789012")];
    policy.aws = Aws {
        access_keys: vec![AwsAccessKey {
            id: KEY.to_owned(),
            secret: Secret(SECRET.to_owned()),
            session_token: Some(Secret(SESSION.to_owned())),
            arn: ARN.to_owned(),
        }],
        instance_access_key: Some(KEY.to_owned()),
        ..Aws::default()
    };
    policy
        .service_accounts
        .iter_mut()
        .filter(|account| account.email == CALLER)
        .for_each(|account| {
            let unbound = std::mem::replace(account, ServiceAccount::new(CALLER));
            *account = unbound.impersonated_by(principal());
        });
    google.set_policy(policy).expect("a policy");
    google
}

/// What `gcloud iam workload-identity-pools create-cred-config --aws --enable-imdsv2` writes.
fn as_aws(google: &EmulatorHandle) -> Value {
    let url = google.url();
    json!({
        "universe_domain": "googleapis.com",
        "type": "external_account",
        "audience": PROVIDER,
        "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
        "token_url": format!("{url}/v1/token"),
        "credential_source": {
            "environment_id": "aws1",
            "region_url": format!("{url}/latest/meta-data/placement/availability-zone"),
            "url": format!("{url}/latest/meta-data/iam/security-credentials"),
            "regional_cred_verification_url":
                "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
            "imdsv2_session_token_url": format!("{url}/latest/api/token"),
        },
    })
}

/// The same without a session of the metadata server.
fn as_aws_without_session(google: &EmulatorHandle) -> Value {
    let mut file = as_aws(google);
    let source = file["credential_source"].as_object_mut().expect("an object");
    source.remove("imdsv2_session_token_url");
    file
}

#[tokio::test]
async fn an_aws_identity_gets_tokens() {
    let google = google_and_aws().await;
    let (v2, v1) = (as_aws(&google), as_aws_without_session(&google));
    let key = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", SESSION),
    ];
    let with = |variables: &[(&'static str, &'static str)]| [&key, variables].concat();
    for (what, file, variables, calls_of_ec2) in [
        ("EC2, version 2", &v2, vec![], 4),
        ("EC2, version 1", &v1, vec![], 3),
        ("variables", &v2, with(&[("AWS_REGION", "eu-west-1")]), 0),
        (
            "variables, default region",
            &v2,
            with(&[("AWS_DEFAULT_REGION", "eu-west-1")]),
            0,
        ),
        ("variables, the region of EC2", &v2, with(&[]), 2),
        (
            "EC2, the region of a variable",
            &v2,
            vec![("AWS_REGION", "eu-west-1")],
            3,
        ),
    ] {
        let mut policy = google.policy();
        policy.aws.requires_session = what != "EC2, version 1";
        google.set_policy(policy).expect("a policy");
        google.reset_counts();
        let file = File::with(file);
        let mut variables = variables;
        variables.extend([("TEST_CREDENTIALS", file.path()), ("TEST_GOOGLE", google.url())]);
        in_process("aws::child_gets_a_token", &variables).await;
        let calls = google.calls();
        let asked = calls
            .iter()
            .rfind(|call| call.endpoint == Endpoint::GenerateIdToken);
        let asked = asked.map(|call| (call.principal.clone(), call.status));
        assert_eq!(asked, Some((Some(principal()), Some(200))), "{what}");
        assert_eq!(google.count(Endpoint::Ec2Metadata), calls_of_ec2, "{what}");
    }
}

#[tokio::test]
#[ignore = "run by an_aws_identity_gets_tokens"]
async fn child_gets_a_token() {
    let variable = |name| std::env::var(name).expect("a variable");
    let minter = Minter::new(GoogleConfig {
        iam_credentials_url: Some(variable("TEST_GOOGLE").parse().expect("a URL")),
        credentials_file: Some(variable("TEST_CREDENTIALS").into()),
        ..GoogleConfig::default()
    });
    let minter = minter.expect("a client");
    minter.impersonate(&asking(CALLER)).await.expect("a token");
    assert_eq!(
        minter.principal().await.as_deref(),
        Some("an identity of projects/1/locations/global/workloadIdentityPools/p")
    );
}

#[tokio::test]
async fn what_aws_lacks_is_said_without_a_secret() {
    in_process("aws::child_whose_identity_is_refused", &[]).await;
}

#[tokio::test]
#[ignore = "run by what_aws_lacks_is_said_without_a_secret"]
async fn child_whose_identity_is_refused() {
    let google = google_and_aws().await;
    let refusal = async |file: &Value, change: fn(&mut Aws)| {
        let mut policy = google.policy();
        policy.aws.requires_session = true;
        policy.aws.instance_access_key = Some(KEY.to_owned());
        policy.aws.access_keys[0].secret = Secret(SECRET.to_owned());
        change(&mut policy.aws);
        google.set_policy(policy).expect("a policy");
        let file = File::with(file);
        let minter = Minter::new(config(&google, &file.0)).expect("a client");
        let error = rejected(&minter, &asking(CALLER)).await;
        let shown = format!("{error} {error:?}");
        for secret in [SECRET, SESSION, "AWS4-HMAC"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        error
    };
    let v2 = as_aws(&google);
    let v1 = as_aws_without_session(&google);
    let error = refusal(&v1, |_| {}).await;
    assert!(
        error
            .remediation()
            .is_some_and(|advice| advice.contains("--enable-imdsv2")),
        "{error}"
    );
    let error = refusal(&v2, |aws| aws.instance_access_key = None).await;
    assert!(error.to_string().contains("EC2's metadata server"), "{error}");
    let stranger = refusal(&v2, |aws| {
        aws.access_keys[0].arn = ARN.replace("123456789012", "210987654321")
    })
    .await;
    assert!(stranger.to_string().contains("invalid_grant"), "{stranger}");
    assert_eq!(stranger.class(), ErrorClass::Rejected);
    let no_region = json!({"environment_id": "aws1", "regional_cred_verification_url":
        "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15"});
    let mut file = v2.clone();
    file["credential_source"] = no_region;
    let error = refusal(&file, |_| {}).await;
    assert!(error.to_string().contains("AWS_REGION"), "{error}");
    google
        .fault(Fault::reset().on(Endpoint::Ec2Metadata))
        .expect("a fault");
    let error = refusal(&v2, |_| {}).await;
    assert!(
        error
            .remediation()
            .is_some_and(|advice| advice.contains("hop-limit")),
        "{error}"
    );
    assert_eq!(google.count(Endpoint::GenerateIdToken), 0);
}

#[tokio::test]
async fn keys_that_cannot_be_used_are_no_reason_to_be_another_identity() {
    // As a Secret has them that was made with `echo`.
    let variables = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", concat!("unusable", "\n")),
    ];
    in_process("aws::child_whose_keys_cannot_be_used", &variables).await;
}

#[tokio::test]
#[ignore = "run by keys_that_cannot_be_used_are_no_reason_to_be_another_identity"]
async fn child_whose_keys_cannot_be_used() {
    let google = google_and_aws().await;
    let file = File::with(&as_aws(&google));
    let minter = Minter::new(config(&google, &file.0)).expect("a client");
    let error = rejected(&minter, &asking(CALLER)).await;
    let shown = format!("{error} {error:?}");
    assert!(
        shown.contains("AWS_SECRET_ACCESS_KEY") && shown.contains("line break"),
        "{shown}"
    );
    assert!(!shown.contains("unusable"), "{shown}");
    assert_eq!(google.count(Endpoint::Ec2Metadata), 0);
}
