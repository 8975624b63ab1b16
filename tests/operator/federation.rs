//! Federation: tenants' Kubernetes ServiceAccounts, whose tokens the emulated Security Token Service verifies with the keys of the
//! API server that made them.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use futures::{TryStreamExt, stream};
use idtoken_emulator::{
    Endpoint, Fault, GkeCluster, IssuerKeys, Jwks, Policy, ServiceAccount, SigningKey,
    WorkloadIdentityProvider,
};
use k8s_openapi::api::core::v1::ServiceAccount as KubernetesServiceAccount;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::common::{AUDIENCE, CALLER, LIMIT, LOCKED, Setup, World, condition, has, is_ready, of};

/// The provider of [`prepare`].
pub(crate) const PROVIDER: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
const POOL: &str = "iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p";
const PLACE: &str = "q --workload-identity-pool=p --location=global --project=1";
const GKE_POOL: &str = "p.svc.id.goog";
const GKE_CLUSTER: &str = "https://container.googleapis.com/v1/projects/p/locations/l/clusters/c";
/// The account of namespace bank.
const BANK: &str = "bank@p.iam.gserviceaccount.com";

fn principal(namespace: &str, name: &str) -> String {
    format!("principal://{POOL}/subject/system:serviceaccount:{namespace}:{name}")
}

/// The source of a request that federates the ServiceAccount of this name.
pub(crate) fn federated(name: &str) -> Value {
    json!({"source": {"federation": {"serviceAccountRef": {"name": name}}}})
}

/// What every test here needs: a provider that knows the cluster's keys by upload, ServiceAccount billing in namespace shop, which may
/// use [`CALLER`], and its like in bank.
async fn world(flags: &[&str]) -> Result<World> {
    world_with("rbac-federation.yaml", flags).await
}

async fn world_with(rbac: &'static str, flags: &[&str]) -> Result<World> {
    let mut all = vec![format!("--federation-provider={PROVIDER}")];
    all.extend(flags.iter().map(|flag| (*flag).to_owned()));
    let world = World::with(Setup {
        flags: all,
        rbac,
        ..Setup::default()
    })
    .await?;
    prepare(&world).await?;
    Ok(world)
}

/// See [`world`].
pub(crate) async fn prepare(world: &World) -> Result<()> {
    let jwks = world.cluster.kubectl(["get", "--raw", "/openid/v1/jwks"]).await?;
    let issuer = world.cluster.service_account_issuer();
    change(world, |policy| {
        let provider = WorkloadIdentityProvider::new(PROVIDER, issuer, jwks);
        policy.workload_identity_providers.push(provider);
        policy
            .service_accounts
            .push(ServiceAccount::new(BANK).impersonated_by(principal("bank", "billing")));
        let caller = account(policy, CALLER);
        // Nothing that the operator may do by its own identity helps here.
        *caller = ServiceAccount::new(CALLER).impersonated_by(principal("shop", "billing"));
    })?;
    for namespace in ["shop", "bank"] {
        world.namespace(namespace).await?;
        create_account(world, namespace, "billing", json!({})).await?;
    }
    Ok(())
}

fn change(world: &World, change: impl FnOnce(&mut Policy)) -> Result<()> {
    let mut policy = world.google.policy();
    change(&mut policy);
    world.google.set_policy(policy)
}

fn account<'p>(policy: &'p mut Policy, email: &str) -> &'p mut ServiceAccount {
    let mut all = policy.service_accounts.iter_mut();
    all.find(|account| account.email == email)
        .expect("an account of the policy")
}

fn accounts(world: &World, namespace: &str) -> Api<KubernetesServiceAccount> {
    Api::namespaced(world.client.clone(), namespace)
}

async fn create_account(world: &World, namespace: &str, name: &str, annotations: Value) -> Result<()> {
    let object = json!({"metadata": {"name": name, "annotations": annotations}});
    let object = serde_json::from_value(object)?;
    accounts(world, namespace)
        .create(&PostParams::default(), &object)
        .await?;
    Ok(())
}

/// Deletes a ServiceAccount and recreates it, so that the next token costs an exchange.
pub(crate) async fn recreate(world: &World, namespace: &str, name: &str) -> Result<()> {
    accounts(world, namespace)
        .delete(name, &DeleteParams::default())
        .await?;
    create_account(world, namespace, name, json!({})).await
}

fn exchanges(world: &World) -> u64 {
    world.google.count(Endpoint::SecurityToken)
}

/// Waits until Ready is False for this reason, and returns the message.
async fn refused(world: &World, namespace: &str, name: &str, reason: &str) -> Result<String> {
    reported(world, namespace, name, reason, "").await
}

/// Waits until Ready is False for this reason with this in its message, and returns the message.
async fn reported(world: &World, namespace: &str, name: &str, reason: &str, part: &str) -> Result<String> {
    let message = |object: &_| condition(object, "Ready").map(|ready| ready.message.clone());
    let object = world
        .until(
            namespace,
            name,
            &format!("it is refused for {reason} {part}"),
            |object| {
                has(object, "Ready", "False", reason)
                    && message(object).is_some_and(|message| message.contains(part))
            },
        )
        .await?;
    let message = message(&object).unwrap_or_default();
    assert!(!message.contains("eyJ") && !message.contains("ya29"), "{message}");
    Ok(message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_account_gets_its_token_and_renews_it() -> Result<()> {
    let world = World::with(Setup {
        flags: vec![format!("--federation-provider={PROVIDER}")],
        rbac: "rbac-federation.yaml",
        ..Setup::lifetime(20)
    })
    .await?;
    prepare(&world).await?;
    let object = world.issued("shop", "billing", federated("billing")).await?;
    let status = object.status.context("a status")?;
    assert_eq!(status.source.as_deref(), Some("Federation"));
    assert_eq!(status.grant, None);
    let (_, claims) = world.claims("shop", "billing").await?;
    assert_eq!(
        (&claims["aud"], &claims["email"]),
        (&json!(AUDIENCE), &json!(CALLER))
    );
    let call = world
        .google
        .calls()
        .into_iter()
        .find(|call| call.endpoint == Endpoint::SecurityToken);
    let call = call.context("an exchange")?;
    assert_eq!(call.principal, Some(principal("shop", "billing")));
    assert_eq!(call.request_reason.as_deref(), Some("shop/billing"));
    // One token, for the provider and nobody else, of this very account.
    let requests = world.calls_since(0)?;
    let requests = of(&requests, "create", "serviceaccounts/token");
    assert_eq!(requests.len(), 1);

    // By the clock, half-way through its life.
    let ends = claims["exp"].clone();
    world
        .wait("it is renewed", async || {
            Ok(world.claims("shop", "billing").await?.1["exp"] != ends)
        })
        .await?;
    assert!(is_ready(&world.get("shop", "billing").await?));
    assert_eq!(exchanges(&world), 1, "the access token is good for minutes");
    // The operator's own identity has no part in it.
    for endpoint in [
        Endpoint::MetadataToken,
        Endpoint::GenerateAccessToken,
        Endpoint::Metadata,
    ] {
        assert_eq!(world.google.count(endpoint), 0, "{endpoint:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_namespace_gets_the_others_account() -> Result<()> {
    let world = world(&[]).await?;
    for (namespace, foreign) in [("shop", BANK), ("bank", CALLER)] {
        let mut spec = federated("billing");
        spec["serviceAccount"] = json!(foreign);
        world.request(namespace, "foreign", spec).await?;
        let message = refused(&world, namespace, "foreign", "PermissionDenied").await?;
        let member = principal(namespace, "billing");
        let bind = format!(
            "{member} needs iam.serviceAccounts.getOpenIdToken on {foreign} (a new binding can take 7 minutes or longer to take effect): gcloud iam \
             service-accounts add-iam-policy-binding {foreign} --member={member} \
             --role=roles/iam.serviceAccountOpenIdTokenCreator --project=p"
        );
        assert!(message.ends_with(&bind), "{message}");
        assert!(world.secrets(namespace).get_opt("foreign").await?.is_none());
    }
    // Each has its own meanwhile, and the other's once its owner allows it.
    let mut own = federated("billing");
    own["serviceAccount"] = json!(BANK);
    world.issued("shop", "own", federated("billing")).await?;
    world.issued("bank", "own", own).await?;
    change(&world, |policy| {
        let caller = account(policy, CALLER);
        *caller = caller.clone().impersonated_by(principal("bank", "billing"));
    })?;
    world.renew("bank", "foreign", "allowed").await?;
    world.ready("bank", "foreign").await?;
    assert!(has(
        &world.get("shop", "foreign").await?,
        "Ready",
        "False",
        "PermissionDenied"
    ));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_recovers_from_outages_of_either_endpoint() -> Result<()> {
    let world = world(&["--google-timeout=2"]).await?;
    for (n, fault, endpoint, reason) in [
        (
            1,
            Fault::status(503),
            Endpoint::SecurityToken,
            "UpstreamUnavailable",
        ),
        (2, Fault::hang(), Endpoint::SecurityToken, "UpstreamTimeout"),
        (3, Fault::reset(), Endpoint::SecurityToken, "UpstreamUnreachable"),
        (4, Fault::status(429), Endpoint::SecurityToken, "QuotaExceeded"),
        (
            5,
            Fault::status_body(404, "<html>"),
            Endpoint::SecurityToken,
            "UnexpectedResponse",
        ),
        (
            6,
            Fault::status(503),
            Endpoint::GenerateIdToken,
            "UpstreamUnavailable",
        ),
        (
            7,
            Fault::status(401),
            Endpoint::GenerateIdToken,
            "CredentialsRejected",
        ),
    ] {
        // A provider of its own has limits and access tokens of its own.
        let name = format!("r{n}");
        let provider = format!("{PROVIDER}{n}");
        change(&world, |policy| {
            let mut another = policy.workload_identity_providers[0].clone();
            another.name = provider.clone();
            policy.workload_identity_providers.push(another);
        })?;
        let mut spec = federated("billing");
        spec["source"]["federation"]["provider"] = json!(provider);
        world.google.fault(fault.on(endpoint))?;
        world.request("shop", &name, spec).await?;
        refused(&world, "shop", &name, reason).await?;
        let before = exchanges(&world);
        world.google.clear_faults();
        world.ready("shop", &name).await?;
        let again = u64::from(endpoint == Endpoint::SecurityToken || reason == "CredentialsRejected");
        assert!(
            exchanges(&world) - before >= again,
            "{reason}: a rejected access token is not used again"
        );

        // The same with a token held.
        let held = world.secret("shop", &name).await?;
        world
            .google
            .fault(Fault::status(503).on(Endpoint::GenerateIdToken))?;
        world.renew("shop", &name, "held").await?;
        let object = world
            .until("shop", &name, "the failed renewal is reported", |object| {
                has(object, "RenewalFailing", "True", "")
            })
            .await?;
        assert!(is_ready(&object));
        assert_eq!(held, world.secret("shop", &name).await?);
        world.google.clear_faults();
        world
            .until("shop", &name, "it has recovered", |object| {
                has(object, "RenewalFailing", "False", "")
            })
            .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_pool_that_hangs_does_not_delay_another() -> Result<()> {
    let world = world(&["--google-timeout=30", "--google-max-in-flight=1"]).await?;
    let slow = format!("{PROVIDER}-slow");
    world
        .google
        .fault(Fault::hang().on(Endpoint::SecurityToken).for_account(&slow))?;
    for n in 0..5 {
        let name = format!("slow{n}");
        create_account(&world, "bank", &name, json!({})).await?;
        let mut spec = federated(&name);
        spec["source"]["federation"]["provider"] = json!(slow);
        world.request("bank", &name, spec).await?;
    }
    world
        .wait("the slow pool hangs", async || {
            let calls = world.google.calls();
            Ok(calls.iter().any(|call| call.account.as_deref() == Some(&slow)))
        })
        .await?;
    let started = std::time::Instant::now();
    world.issued("shop", "billing", federated("billing")).await?;
    assert!(started.elapsed().as_secs() < 30, "it waited for the other pool");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_requests_that_hang_take_few_connections_and_hold_up_no_neighbour() -> Result<()> {
    /// More than the operator's permits, of each of two namespaces.
    const REQUESTS: usize = 60;
    let world = world(&[]).await?;
    // It accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("https://{}/", silent.local_addr()?);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let accepted = Arc::clone(&calls);
    std::thread::spawn(move || {
        for stream in silent.incoming().flatten() {
            accepted.lock().expect("no panic").push(stream);
        }
    });
    let object = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "tokens.example.com"},
        "webhooks": [{
            "name": "tokens.example.com", "clientConfig": {"url": url}, "failurePolicy": "Fail", "timeoutSeconds": 30,
            "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["bank", "zoo"]}]},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["serviceaccounts/token"]}],
        }],
    });
    world.cluster.apply(&object.to_string()).await?;
    world.namespace("zoo").await?;
    for namespace in ["bank", "zoo"] {
        for number in 0..REQUESTS {
            let name = format!("r{number}");
            create_account(&world, namespace, &name, json!({})).await?;
            world.request(namespace, &name, federated(&name)).await?;
        }
    }
    let count = || calls.lock().expect("no panic").len();
    world
        .wait("token requests hang", async || Ok(count() >= 20))
        .await?;
    let before = count();
    world.issued("shop", "billing", federated("billing")).await?;
    let message = refused(&world, "bank", "r0", "KubernetesUnavailable").await?;
    assert!(message.contains("webhook"), "{message}");
    assert!(before <= 40, "{before} calls at once, with 32 permits");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_may_come_later_go_and_come_again() -> Result<()> {
    let world = world(&[]).await?;
    change(&world, |policy| {
        let caller = account(policy, CALLER);
        *caller = caller.clone().impersonated_by(principal("shop", "late"));
    })?;
    world.request("shop", "late", federated("late")).await?;
    let message = refused(&world, "shop", "late", "KubernetesServiceAccountNotFound").await?;
    let (_, command) = message.split_once(": kubectl ").context("a command")?;
    assert_eq!(command, "create serviceaccount late -n shop");
    world.cluster.kubectl(command.split_whitespace()).await?;
    world.ready("shop", "late").await?;
    assert_eq!(exchanges(&world), 1);

    accounts(&world, "shop")
        .delete("late", &DeleteParams::default())
        .await?;
    world.renew("shop", "late", "gone").await?;
    let object = world
        .until("shop", "late", "it is missed", |object| {
            has(
                object,
                "RenewalFailing",
                "True",
                "KubernetesServiceAccountNotFound",
            )
        })
        .await?;
    assert!(is_ready(&object), "the token that is there still holds");
    assert_eq!(
        world.asked(),
        1,
        "the access token of a deleted account is not used"
    );

    create_account(&world, "shop", "late", json!({})).await?;
    world.renew("shop", "late", "there").await?;
    world
        .until("shop", "late", "it is renewed", |object| {
            has(object, "RenewalFailing", "False", "")
        })
        .await?;
    assert_eq!(exchanges(&world), 2, "another account of the same name");
    // Recreated before anybody missed it.
    accounts(&world, "shop")
        .delete("late", &DeleteParams::default())
        .await?;
    create_account(&world, "shop", "late", json!({})).await?;
    world.renew("shop", "late", "again").await?;
    world
        .wait("it is renewed by a token of the new account", async || {
            Ok(world.asked() == 3)
        })
        .await?;
    assert_eq!(exchanges(&world), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_of_kubernetes_are_needed_and_named() -> Result<()> {
    let world = world_with("rbac-federation-strict.yaml", &[]).await?;
    // The operator's own account, and tokens for others than Google, are nobody's.
    create_account(&world, "idtoken-system", "idtoken-operator", json!({}))
        .await
        .ok();
    world
        .request("idtoken-system", "own", federated("idtoken-operator"))
        .await?;
    let message = refused(&world, "idtoken-system", "own", "SelfImpersonation").await?;
    assert!(message.contains("the operator's own"), "{message}");
    for audience in [
        "https://kubernetes.default.svc",
        &world.cluster.service_account_issuer(),
        "vault",
    ] {
        let mut spec = federated("billing");
        spec["source"]["federation"]["tokenAudience"] = json!(audience);
        world.request("shop", "elsewhere", spec).await?;
        let message = refused(&world, "shop", "elsewhere", "InvalidSpec").await?;
        assert!(message.contains("--allowed-token-audience"), "{message}");
        world
            .requests("shop")
            .delete("elsewhere", &DeleteParams::default())
            .await?;
    }
    assert!(of(&world.calls_since(0)?, "create", "serviceaccounts/token").is_empty());

    // The strict mode: tenants allow it themselves, by the commands of the message.
    world.request("shop", "billing", federated("billing")).await?;
    let message = refused(&world, "shop", "billing", "TokenRequestForbidden").await?;
    let (_, commands) = message.split_once("for this account: ").context("commands")?;
    for command in commands.split(" && ") {
        let words = command.strip_prefix("kubectl ").context("kubectl")?;
        world.cluster.kubectl(words.split_whitespace()).await?;
    }
    world.ready("shop", "billing").await?;
    // Only that account.
    create_account(&world, "shop", "other", json!({})).await?;
    world.request("shop", "other", federated("other")).await?;
    refused(&world, "shop", "other", "TokenRequestForbidden").await?;
    Ok(())
}

/// How a provider is spoilt, the reason, and what the message must say.
type Case = (
    &'static str,
    Box<dyn Fn(&mut WorkloadIdentityProvider)>,
    &'static str,
    Vec<String>,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_of_the_exchange_says_what_to_do() -> Result<()> {
    let world = world(&[]).await?;
    let issuer = world.cluster.service_account_issuer();
    let stale = serde_json::to_string(&Jwks {
        keys: vec![SigningKey::generate()?.jwk()],
    })?;
    let update = format!("gcloud iam workload-identity-pools providers update-oidc {PLACE}");
    let describe = format!("gcloud iam workload-identity-pools providers describe {PLACE}");
    let upload = format!(
        "kubectl get --raw /openid/v1/jwks > cluster-jwks.json && {update} --jwk-json-path=cluster-jwks.json"
    );
    let cases: Vec<Case> = vec![
        (
            "disabled",
            Box::new(|provider| provider.disabled = true),
            "ProviderNotFound",
            vec![describe.clone()],
        ),
        (
            "audience",
            Box::new(|provider| provider.allowed_audiences = vec!["another".into()]),
            "SubjectTokenWrongAudience",
            vec![format!("{update} --allowed-audiences=https:{PROVIDER}")],
        ),
        (
            "issuer",
            Box::new(|provider| provider.issuer = "https://another.example".into()),
            "SubjectTokenWrongIssuer",
            vec![format!("{update} --issuer-uri={issuer}")],
        ),
        (
            "stale-jwks",
            Box::new(move |provider| provider.keys.jwks_json = Some(stale.clone())),
            "SubjectTokenUnverified",
            vec![upload.clone(), "older than a key rotation".into()],
        ),
        (
            "unreachable",
            Box::new(|provider| {
                provider.keys = IssuerKeys {
                    jwks_url: Some("http://127.0.0.1:9/jwks".into()),
                    ..IssuerKeys::default()
                }
            }),
            "IssuerUnreachable",
            vec![upload, format!("{issuer}/.well-known/openid-configuration")],
        ),
        (
            "condition",
            Box::new(|provider| provider.attribute_condition = Some("assertion.sub == 'nobody'".into())),
            "AttributeConditionRejected",
            vec![describe.clone(), "system:serviceaccount:shop:billing".into()],
        ),
        (
            "mapping",
            Box::new(|provider| {
                provider
                    .attribute_mapping
                    .insert("google.subject".into(), "assertion.exp".into());
            }),
            "ExchangeRefused",
            vec![describe],
        ),
    ];
    let whole = world.google.policy();
    for (name, spoil, reason, parts) in cases {
        change(&world, |policy| spoil(&mut policy.workload_identity_providers[0]))?;
        world.request("shop", name, federated("billing")).await?;
        let message = refused(&world, "shop", name, reason).await?;
        for part in parts {
            assert!(message.contains(&part), "{part} is missing in: {message}");
        }
        world.google.set_policy(whole.clone())?;
        world.renew("shop", name, "mended").await?;
        world.ready("shop", name).await?;
        // Its access token would serve the next case.
        accounts(&world, "shop")
            .delete("billing", &DeleteParams::default())
            .await?;
        create_account(&world, "shop", "billing", json!({})).await?;
    }
    let token = crate::common::token(&world.secret("shop", "mapping").await?);
    for (n, (error, words, reason)) in [
        (
            "invalid_grant",
            "ID Token issued at 1 is stale to sign-in.".to_owned(),
            "SubjectTokenStale",
        ),
        (
            "invalid_request",
            "Invalid value for \"audience\".".to_owned(),
            "InvalidArgument",
        ),
        ("invalid_grant", format!("What is {token}?"), "ExchangeRefused"),
    ]
    .into_iter()
    .enumerate()
    {
        let body = json!({"error": error, "error_description": words}).to_string();
        world
            .google
            .fault(Fault::status_body(400, body).on(Endpoint::SecurityToken))?;
        let name = format!("reported-{n}");
        world.request("shop", &name, federated("billing")).await?;
        refused(&world, "shop", &name, reason).await?;
        world.google.clear_faults();
    }
    // The provider of the example is nobody's here.
    world
        .cluster
        .apply(include_str!("../../examples/federation.yaml"))
        .await?;
    for name in ["billing", "reports"] {
        refused(&world, "shop", name, "ProviderNotFound").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_that_is_too_long_is_told_before_any_call() -> Result<()> {
    let world = world(&[]).await?;
    let (namespace, name) = ("n".repeat(63), "s".repeat(60));
    world.namespace(&namespace).await?;
    create_account(&world, &namespace, &name, json!({})).await?;
    world.request(&namespace, "long", federated(&name)).await?;
    let message = refused(&world, &namespace, "long", "SubjectTooLong").await?;
    assert!(
        message.contains("146 bytes")
            && message.contains("127")
            && message.contains("--federation-subject-template"),
        "{message}"
    );
    assert_eq!((exchanges(&world), world.asked()), (0, 0));
    assert!(of(&world.calls_since(0)?, "create", "serviceaccounts/token").is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_mapping_is_told_by_the_template() -> Result<()> {
    let world = world(&["--federation-subject-template={uid}"]).await?;
    change(&world, |policy| {
        let mapping = &mut policy.workload_identity_providers[0].attribute_mapping;
        mapping.insert(
            "google.subject".into(),
            "assertion['kubernetes.io'].serviceaccount.uid".into(),
        );
    })?;
    let (namespace, name) = ("n".repeat(63), "s".repeat(60));
    world.namespace(&namespace).await?;
    create_account(&world, &namespace, &name, json!({})).await?;
    world.request(&namespace, "billing", federated(&name)).await?;
    let message = refused(&world, &namespace, "billing", "PermissionDenied").await?;
    let uid = accounts(&world, &namespace)
        .get(&name)
        .await?
        .metadata
        .uid
        .context("a UID")?;
    let (_, rest) = message.split_once("--member=").context("a member")?;
    let member = rest.split(' ').next().unwrap_or_default();
    assert_eq!(member, format!("principal://{POOL}/subject/{uid}"));
    change(&world, |policy| {
        let caller = account(policy, CALLER);
        *caller = caller.clone().impersonated_by(member);
    })?;
    world.renew(&namespace, "billing", "allowed").await?;
    world.ready(&namespace, "billing").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gke_knows_accounts_by_their_annotation() -> Result<()> {
    let world = world(&[]).await?;
    let keys = world.google.policy().workload_identity_providers[0].keys.clone();
    let issuer = world.cluster.service_account_issuer();
    change(&world, |policy| {
        policy.gke_clusters.push(GkeCluster {
            name: GKE_CLUSTER.into(),
            workload_pool: GKE_POOL.into(),
            issuer: Some(issuer),
            keys,
        });
        let caller = account(policy, CALLER);
        *caller = ServiceAccount::new(CALLER).impersonated_by(format!("serviceAccount:{GKE_POOL}[shop/gke]"));
    })?;
    let mut spec = federated("gke");
    spec["source"]["federation"]["provider"] = json!(format!("identitynamespace:{GKE_POOL}:{GKE_CLUSTER}"));
    spec["serviceAccount"] = Value::Null;
    create_account(&world, "shop", "gke", json!({})).await?;
    world.request("shop", "gke", spec).await?;
    let message = refused(&world, "shop", "gke", "ServiceAccountNotAnnotated").await?;
    assert!(
        message.contains("iam.gke.io/gcp-service-account=ACCOUNT@PROJECT"),
        "{message}"
    );
    let annotate = async |account: &str| {
        let patch = json!({"metadata": {"annotations": {"iam.gke.io/gcp-service-account": account}}});
        accounts(&world, "shop")
            .patch("gke", &PatchParams::default(), &Patch::Merge(patch))
            .await
    };
    annotate("nonsense").await?;
    world.renew("shop", "gke", "1").await?;
    reported(
        &world,
        "shop",
        "gke",
        "ServiceAccountNotAnnotated",
        "names no Google service account",
    )
    .await?;
    annotate(LOCKED).await?;
    world.renew("shop", "gke", "2").await?;
    let message = refused(&world, "shop", "gke", "PermissionDenied").await?;
    assert!(
        message.contains(&format!("--member='serviceAccount:{GKE_POOL}[shop/gke]'")),
        "{message}"
    );
    annotate(CALLER).await?;
    world.renew("shop", "gke", "3").await?;
    world.ready("shop", "gke").await?;
    let (_, claims) = world.claims("shop", "gke").await?;
    assert_eq!(claims["email"], CALLER);
    // Another account now is what its owner wants, and no account that was recreated.
    annotate(BANK).await?;
    change(&world, |policy| {
        let bank = account(policy, BANK);
        *bank = bank
            .clone()
            .impersonated_by(format!("serviceAccount:{GKE_POOL}[shop/gke]"));
    })?;
    world.renew("shop", "gke", "4").await?;
    world
        .wait("the token is of the other account", async || {
            Ok(world.claims("shop", "gke").await?.1["email"] == BANK)
        })
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_audiences_cost_one_exchange() -> Result<()> {
    const COUNT: usize = 200;
    let world = world(&[]).await?;
    stream::iter((0..COUNT).map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(8, async |n| {
            let mut spec = federated("billing");
            spec["audience"] = json!(format!("{AUDIENCE}/{n}"));
            world.request("shop", &format!("r{n}"), spec).await?;
            Ok(())
        })
        .await?;
    world
        .wait("all are ready", async || {
            tokio::time::sleep(LIMIT / 120).await;
            let all = world.requests("shop").list(&ListParams::default()).await?;
            Ok(all.items.iter().filter(|object| is_ready(object)).count() == COUNT)
        })
        .await?;
    assert_eq!((exchanges(&world), world.google.mint_count()), (1, COUNT as u64));
    assert_eq!(
        of(&world.calls_since(0)?, "create", "serviceaccounts/token").len(),
        1
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_issuer_needs_no_upload() -> Result<()> {
    let world = world(&[]).await?;
    let anonymous = "system:unauthenticated";
    let role = "system:service-account-issuer-discovery";
    world
        .cluster
        .kubectl([
            "create",
            "clusterrolebinding",
            "discovery",
            &format!("--clusterrole={role}"),
            &format!("--group={anonymous}"),
        ])
        .await?;
    let ca = std::fs::read_to_string(world.cluster.ca_file())?;
    change(&world, |policy| {
        policy.workload_identity_providers[0].keys = IssuerKeys {
            ca_certificates: Some(ca),
            ..IssuerKeys::default()
        };
    })?;
    world.issued("shop", "billing", federated("billing")).await?;
    world.claims("shop", "billing").await?;
    Ok(())
}
