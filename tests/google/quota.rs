//! The project whose quota the calls of the operator's own credentials count for.

use idtoken_emulator::{Endpoint, Fault};
use idtoken_operator::google::{CallPriority, IdentityProvider, Minter, SubjectToken, Workload};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::support::*;
use crate::types::{ISSUER, PROVIDER, SUBJECT, World};

/// The project that each call of the endpoint counted for.
fn counted(world: &World, endpoint: Endpoint) -> Vec<Option<String>> {
    let calls = world.google.calls().into_iter();
    calls
        .filter(|call| call.endpoint == endpoint)
        .map(|call| call.user_project)
        .collect()
}

fn with_quota(mut credentials: Value, project: &str) -> Value {
    credentials["quota_project_id"] = json!(project);
    credentials
}

async fn mint(world: &World, credentials: &Value) {
    let file = File::with(credentials);
    let minter = Minter::new(config(&world.google, &file.0)).expect("a client");
    minter.impersonate(&asking(CALLER)).await.expect("a token");
}

#[tokio::test]
async fn calls_count_for_the_project_of_the_file() {
    let world = World::new().await;
    mint(&world, &acting_as(&world.google, USER)).await;
    mint(&world, &with_quota(acting_as(&world.google, USER), "mine")).await;
    let chained = json!({"type": "impersonated_service_account",
        "source_credentials": with_quota(acting_as(&world.google, USER), "inner")});
    mint(
        &world,
        &with_quota(world.impersonating(chained, DELEGATE), "outer"),
    )
    .await;
    let project = |name: &str| Some(name.to_owned());
    assert_eq!(
        counted(&world, Endpoint::GenerateIdToken),
        [None, project("mine"), project("outer")]
    );
    assert_eq!(counted(&world, Endpoint::GenerateAccessToken), [project("inner")]);
    // Not a call of an API with a quota.
    assert_eq!(counted(&world, Endpoint::OauthToken), [None, None, None]);

    let file = File::with(&with_quota(acting_as(&world.google, USER), "a\r\nb"));
    let minter = Minter::new(config(&world.google, &file.0)).expect("a client");
    let error = rejected(&minter, &asking(CALLER)).await;
    assert!(error.to_string().contains("quota_project_id"), "{error}");
}

#[tokio::test]
async fn calls_of_a_tenant_count_for_no_project_of_the_operator() {
    in_process(
        "quota::child_with_a_quota_project",
        &[("GOOGLE_CLOUD_QUOTA_PROJECT", "from-environment")],
    )
    .await;
}

#[tokio::test]
#[ignore = "run by calls_of_a_tenant_count_for_no_project_of_the_operator"]
async fn child_with_a_quota_project() {
    let world = World::new().await;
    let file = File::with(&with_quota(acting_as(&world.google, USER), "mine"));
    let mut config = config(&world.google, &file.0);
    config.sts_url = config.iam_credentials_url.clone();
    let minter = Minter::new(config).expect("a client");
    minter.impersonate(&asking(CALLER)).await.expect("a token");
    let ours = Some("from-environment".to_owned());
    assert_eq!(
        counted(&world, Endpoint::GenerateIdToken),
        std::slice::from_ref(&ours)
    );
    let provider: IdentityProvider = PROVIDER.parse().expect("a provider");
    let workload = Workload {
        provider: &provider,
        namespace: "idtoken-system",
        name: "operator",
        subject: SUBJECT,
        request_reason: "shop/billing",
        priority: CallPriority::OPERATOR,
    };
    let token = SubjectToken {
        token: Zeroizing::new(world.subject_token()),
        issuer: ISSUER.to_owned(),
        audience: format!("https:{PROVIDER}"),
    };
    let federated = minter.exchange(&workload, &token).await.expect("a token");
    let asked = minter.federate(&workload, &federated, &asking(CALLER)).await;
    asked.expect("a token");
    assert_eq!(counted(&world, Endpoint::SecurityToken), [None]);
    assert_eq!(counted(&world, Endpoint::GenerateIdToken), [ours, None]);
}

#[tokio::test]
async fn a_project_that_is_not_named_or_may_not_be_used_is_told() {
    let world = World::new().await;
    let error_info = |reason: &str, consumer: &str, message: &str| {
        let info = json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason,
            "domain": "googleapis.com", "metadata": {"consumer": consumer, "service": "iamcredentials.googleapis.com"}});
        json!({"error": {"code": 403, "status": "PERMISSION_DENIED", "message": message, "details": [info]}})
    };
    let unnamed = error_info(
        "SERVICE_DISABLED",
        "projects/764086051850",
        "Your application is authenticating by using local Application Default Credentials. The iamcredentials.googleapis.com \
         API requires a quota project, which is not set by default.",
    );
    let denied = error_info(
        "USER_PROJECT_DENIED",
        "projects/mine",
        "Caller does not have required permission to use project mine. Grant the caller the \
         roles/serviceusage.serviceUsageConsumer role.",
    );
    let chained =
        json!({"type": "impersonated_service_account", "source_credentials": acting_as(&world.google, USER)});
    for (credentials, endpoint) in [
        (acting_as(&world.google, USER), Endpoint::GenerateIdToken),
        (
            world.impersonating(chained, DELEGATE),
            Endpoint::GenerateAccessToken,
        ),
    ] {
        for (body, right) in [
            (&unnamed, "gcloud auth application-default set-quota-project"),
            (&denied, "gcloud projects add-iam-policy-binding mine --member="),
        ] {
            let file = File::with(&credentials);
            let minter = Minter::new(config(&world.google, &file.0)).expect("a client");
            world
                .google
                .fault(Fault::status_body(403, body.to_string()).on(endpoint).times(1))
                .expect("a fault");
            let error = rejected(&minter, &asking(CALLER)).await;
            let advice = error.remediation().unwrap_or_default();
            assert!(
                advice.contains(right) && !advice.contains("services enable"),
                "{error}"
            );
        }
    }
}
