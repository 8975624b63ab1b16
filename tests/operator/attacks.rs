//! Attacks on the operator's identity and on others' Secrets, in tables: each is refused for its own reason, and what is nearly the
//! same and legal is allowed.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use idtoken_emulator::Endpoint;
use idtoken_operator::api::v1alpha1::{IdTokenGrant, IdTokenRequest};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use serde_json::{Value, json};

use crate::common::{AUDIENCE, CALLER, OPERATOR, World, condition, has, is_ready, text, token};

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The API server refuses the object, with a message that names this field.
    Rejected(&'static str),
    /// Ready is False for this reason.
    Denied(&'static str),
    /// Ready is True.
    Allowed,
}
use Fate::{Allowed, Denied, Rejected};

/// One attack or legal neighbour: what it is, in which namespace, which fields differ from the legal request, what becomes of it.
struct Case(&'static str, &'static str, Value, Fate);

/// An account that the operator may impersonate by Google's IAM, and that only the namespace `bank` is granted.
const VAULT: &str = "vault@p.iam.gserviceaccount.com";
/// A link of the chain that `bank` is granted.
const MIDDLE: &str = "middle@p.iam.gserviceaccount.com";

const GRANTS: &str = "
apiVersion: idtoken.dev/v1alpha1
kind: IdTokenGrant
metadata: {name: shop}
spec:
  from: [{namespace: shop}]
  to:
  - serviceAccounts: [caller@p.iam.gserviceaccount.com, operator@p.iam.gserviceaccount.com]
    audiences: ['https://billing-x.run.app', 'https://api.example.com/*']
  - serviceAccounts: ['*@q.iam.gserviceaccount.com']
    audiences: ['https://q.example.com']
---
apiVersion: idtoken.dev/v1alpha1
kind: IdTokenGrant
metadata: {name: bank}
spec:
  from: [{namespace: bank}]
  to:
  - serviceAccounts: [vault@p.iam.gserviceaccount.com]
    audiences: ['https://bank.example.com']
    delegates: [middle@p.iam.gserviceaccount.com]
";

/// Makes two accounts that the operator could reach, so that nothing but the grants stands between.
fn more_accounts(world: &World) -> Result<()> {
    let mut policy = world.google.policy();
    for email in [VAULT, MIDDLE, "free@q.iam.gserviceaccount.com"] {
        let account = idtoken_emulator::ServiceAccount::new(email);
        let operator = format!("serviceAccount:{OPERATOR}");
        let account = match email {
            MIDDLE => account.bind("roles/iam.serviceAccountTokenCreator", operator),
            _ => account
                .impersonated_by(operator)
                .impersonated_by(format!("serviceAccount:{MIDDLE}")),
        };
        policy.service_accounts.push(account);
    }
    world.google.set_policy(policy)
}

async fn submit(world: &World, index: usize, case: &Case) -> Result<(), kube::Error> {
    let Case(_, namespace, changes, _) = case;
    let mut spec = json!({"audience": AUDIENCE, "serviceAccount": CALLER});
    for (key, value) in changes.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(spec.as_object_mut().and_then(|spec| spec.remove(key))),
            value => spec[key] = value.clone(),
        }
    }
    let object = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {"name": format!("case-{index}")}, "spec": spec,
        // What a status says is the operator's to say: the API server drops this.
        "status": {"observedGeneration": 1, "grant": {"name": "forged"}, "secret": {"name": "theirs", "resourceVersion": "1"}},
    });
    let object: DynamicObject = serde_json::from_value(object).expect("an object");
    let api = Api::namespaced_with(
        world.client.clone(),
        namespace,
        &ApiResource::erase::<IdTokenRequest>(&()),
    );
    api.create(&PostParams::default(), &object).await.map(drop)
}

/// Puts all cases to the API server at once and compares what becomes of them; the requests that were stored, by index.
async fn judge(world: &World, cases: &[Case]) -> Result<BTreeMap<usize, IdTokenRequest>> {
    let mut wrong = Vec::new();
    let mut stored = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let Case(what, _, _, fate) = case;
        match (submit(world, index, case).await, fate) {
            (Err(kube::Error::Api(refused)), Rejected(field)) if refused.message.contains(field) => {}
            (Err(error), fate) => wrong.push(format!("{what}: {fate:?} expected, but {error}")),
            (Ok(()), Rejected(_)) => wrong.push(format!("{what}: the API server took it")),
            (Ok(()), _) => stored.push(index),
        }
    }
    let fates = stored.iter().map(async |index| {
        let Case(what, namespace, _, fate) = &cases[*index];
        let settled = |object: &IdTokenRequest| match fate {
            Denied(reason) => has(object, "Ready", "False", reason),
            _ => is_ready(object),
        };
        let what = format!("{what}: {fate:?}");
        let object = world
            .until(namespace, &format!("case-{index}"), &what, settled)
            .await?;
        anyhow::Ok((*index, object))
    });
    let objects = try_join_all(fates).await?;
    if !wrong.is_empty() {
        bail!("{} cases went wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
    Ok(objects.into_iter().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_spends_the_operators_identity_beyond_a_grant() -> Result<()> {
    let world = World::new().await?;
    more_accounts(&world)?;
    for namespace in ["shop", "bank", "shop-evil"] {
        world.namespace(namespace).await?;
    }
    world.cluster.apply(GRANTS).await?;
    let shop = |what, changes, fate| Case(what, "shop", changes, fate);
    let audience = |what, audience: &str, fate| Case(what, "shop", json!({"audience": audience}), fate);
    let account = |what, account: &str, fate| Case(what, "shop", json!({"serviceAccount": account}), fate);
    let chain = |delegates: Value| json!({"impersonation": {"delegates": delegates}});
    let caller_id = world.unique_id(CALLER);
    let cases = [
        // The confused deputy, across namespaces.
        shop("the legal request", json!({}), Allowed),
        account("another tenant's account", VAULT, Denied("NotGranted")),
        audience(
            "another tenant's audience",
            "https://bank.example.com",
            Denied("NotGranted"),
        ),
        shop(
            "both of another tenant",
            json!({"serviceAccount": VAULT, "audience": "https://bank.example.com"}),
            Denied("NotGranted"),
        ),
        shop(
            "an account of one entry with an audience of another",
            json!({"audience": "https://q.example.com"}),
            Denied("NotGranted"),
        ),
        shop(
            "both of one entry",
            json!({"serviceAccount": "free@q.iam.gserviceaccount.com", "audience": "https://q.example.com"}),
            Allowed,
        ),
        Case(
            "a namespace whose name begins like a granted one",
            "shop-evil",
            json!({}),
            Denied("NotGranted"),
        ),
        Case(
            "a namespace with a grant of its own",
            "bank",
            json!({}),
            Denied("NotGranted"),
        ),
        // Globs of audiences.
        audience("below the host", "https://api.example.com/v1", Allowed),
        audience("the host's slash", "https://api.example.com/", Allowed),
        audience(
            "a star is an ordinary character of an audience",
            "https://api.example.com/*",
            Allowed,
        ),
        audience(
            "a longer host",
            "https://api.example.com.evil.io/",
            Denied("NotGranted"),
        ),
        audience(
            "a longer host below",
            "https://api.example.com.evil.io/https://api.example.com/",
            Denied("NotGranted"),
        ),
        audience(
            "without the slash",
            "https://api.example.com",
            Denied("NotGranted"),
        ),
        audience(
            "the root's dot",
            "https://api.example.com./",
            Denied("NotGranted"),
        ),
        audience(
            "user information",
            "https://api.example.com@evil.io/",
            Denied("NotGranted"),
        ),
        audience(
            "user information before the host",
            "https://evil@api.example.com/",
            Denied("NotGranted"),
        ),
        audience("a port", "https://api.example.com:443/", Denied("NotGranted")),
        audience(
            "case of the host",
            "https://API.example.com/",
            Denied("NotGranted"),
        ),
        audience(
            "case of the scheme",
            "HTTPS://api.example.com/",
            Denied("NotGranted"),
        ),
        audience("another scheme", "http://api.example.com/", Denied("NotGranted")),
        audience(
            "a backslash",
            "https://api.example.com\\@evil.io/",
            Denied("NotGranted"),
        ),
        audience(
            "an encoded slash",
            "https://api.example.com%2f.evil.io/",
            Denied("NotGranted"),
        ),
        audience(
            "a trailing slash on an exact audience",
            "https://billing-x.run.app/",
            Denied("NotGranted"),
        ),
        audience(
            "a granted URL inside another",
            "https://evil.io/?https://api.example.com/",
            Denied("NotGranted"),
        ),
        audience(
            "a Cyrillic letter",
            "https://\u{430}pi.example.com/",
            Rejected("spec.audience"),
        ),
        audience(
            "a full-width dot",
            "https://api\u{ff0e}example.com/",
            Rejected("spec.audience"),
        ),
        audience(
            "a zero-width space",
            "https://api.example.com/\u{200b}",
            Rejected("spec.audience"),
        ),
        audience(
            "a right-to-left override",
            "https://api.example.com/\u{202e}",
            Rejected("spec.audience"),
        ),
        audience(
            "a leading space",
            " https://api.example.com/",
            Rejected("spec.audience"),
        ),
        audience(
            "a header in a line of its own",
            "https://api.example.com/\r\nX-Evil: 1",
            Rejected("spec.audience"),
        ),
        audience(
            "a second line",
            "https://api.example.com/\n",
            Rejected("spec.audience"),
        ),
        audience("an empty audience", "", Rejected("spec.audience")),
        audience(
            "an oversize audience",
            &format!("https://api.example.com/{}", "x".repeat(2048)),
            Rejected("spec.audience"),
        ),
        // Accounts.
        account(
            "the numeric id of an account that is granted by e-mail",
            &caller_id,
            Denied("NotGranted"),
        ),
        account(
            "a longer domain",
            "caller@p.iam.gserviceaccount.com.evil.io",
            Denied("NotGranted"),
        ),
        account(
            "a longer local part",
            "x.caller@p.iam.gserviceaccount.com",
            Denied("NotGranted"),
        ),
        account(
            "a glob",
            "*@q.iam.gserviceaccount.com",
            Rejected("spec.serviceAccount"),
        ),
        account(
            "case",
            "Caller@p.iam.gserviceaccount.com",
            Rejected("spec.serviceAccount"),
        ),
        account(
            "a path",
            "../../../v1/projects/-/serviceAccounts/caller@p.iam.gserviceaccount.com",
            Rejected("spec.serviceAccount"),
        ),
        account(
            "an encoded path",
            "caller%40p.iam.gserviceaccount.com",
            Rejected("spec.serviceAccount"),
        ),
        account(
            "another method",
            "caller@p.iam.gserviceaccount.com:generateAccessToken",
            Rejected("spec.serviceAccount"),
        ),
        account(
            "a query",
            "caller@p.iam.gserviceaccount.com?alt=media",
            Rejected("spec.serviceAccount"),
        ),
        account("the wildcard of the API", "-", Rejected("spec.serviceAccount")),
        account(
            "a signed number",
            "+123456789012345678901",
            Rejected("spec.serviceAccount"),
        ),
        shop(
            "no account",
            json!({"serviceAccount": null}),
            Rejected("spec.serviceAccount"),
        ),
        // The operator itself, although a grant names it.
        account(
            "the operator's own account",
            OPERATOR,
            Denied("SelfImpersonation"),
        ),
        // Chains.
        shop(
            "a chain where none is granted",
            json!({"source": chain(json!([MIDDLE]))}),
            Denied("NotGranted"),
        ),
        shop(
            "a chain to reach a granted account by another tenant's link",
            json!({"source": chain(json!([VAULT]))}),
            Denied("NotGranted"),
        ),
        shop(
            "a chain over the operator",
            json!({"source": chain(json!([OPERATOR]))}),
            Denied("NotGranted"),
        ),
        shop("an empty chain", json!({"source": chain(json!([]))}), Allowed),
        Case(
            "a granted chain",
            "bank",
            json!({"serviceAccount": VAULT, "audience": "https://bank.example.com", "source": chain(json!([MIDDLE]))}),
            Allowed,
        ),
        Case(
            "a granted link twice",
            "bank",
            json!({"serviceAccount": VAULT, "audience": "https://bank.example.com", "source": chain(json!([MIDDLE, CALLER]))}),
            Denied("NotGranted"),
        ),
        shop(
            "a chain that is too long",
            json!({"source": chain(json!([MIDDLE, MIDDLE, MIDDLE, MIDDLE, MIDDLE]))}),
            Rejected("delegates"),
        ),
        shop(
            "a path in a chain",
            json!({"source": chain(json!(["../x@p.iam.gserviceaccount.com"]))}),
            Rejected("delegates"),
        ),
        // Sources.
        shop("no source", json!({"source": {}}), Rejected("spec.source")),
        shop(
            "an unknown source",
            json!({"source": {"evil": {}}}),
            Rejected("spec.source"),
        ),
        shop(
            "two sources",
            json!({"source": {"impersonation": {}, "metadataServer": {}}}),
            Rejected("spec.source"),
        ),
        shop(
            "the operator's attached identity where impersonation is granted",
            json!({"serviceAccount": null, "source": {"metadataServer": {}}}),
            Denied("NotGranted"),
        ),
        shop(
            "a developer's identity, which is off",
            json!({"serviceAccount": null, "source": {"developer": {}}}),
            Denied(""),
        ),
    ];
    let objects = judge(&world, &cases).await?;

    let allowed = cases
        .iter()
        .filter(|Case(_, _, _, fate)| matches!(fate, Allowed))
        .count();
    assert_eq!(world.google.mint_count(), u64::try_from(allowed)?);
    assert_eq!(
        world.asked(),
        u64::try_from(allowed)?,
        "Google was asked on behalf of an attack"
    );
    assert_eq!(world.google.count(Endpoint::GenerateAccessToken), 0);
    for (index, object) in &objects {
        let Case(what, namespace, changes, fate) = &cases[*index];
        let message = condition(object, "Ready")
            .map(|ready| ready.message.clone())
            .unwrap_or_default();
        let secret = world.secrets(namespace).get_opt(&format!("case-{index}")).await?;
        assert_eq!(secret.is_some(), matches!(fate, Allowed), "{what}");
        // A denial tells what was asked for and nothing of what others may.
        let secret_of_others = [VAULT, MIDDLE, "bank.example.com", "q.example.com"];
        if *namespace != "bank" && matches!(fate, Denied(_)) {
            for reported in secret_of_others
                .iter()
                .filter(|reported| !changes.to_string().contains(**reported))
            {
                assert!(!message.contains(reported), "{what}: {message}");
            }
        }
    }
    // What was allowed is exactly what was asked for.
    for call in world
        .google
        .calls()
        .iter()
        .filter(|call| call.endpoint == Endpoint::GenerateIdToken)
    {
        assert!(call.account.as_deref() != Some(OPERATOR), "{call:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_at_anothers_secret() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    let secrets = world.secrets("shop");
    let victim = world.issued("shop", "victim", json!({})).await?;
    // Of two requests of one second, the lower UID comes first: it is to be older than those that follow.
    world.another_second(&victim).await?;
    let uid = victim.metadata.uid.context("a UID")?;
    let owner = |uid: &str| json!([{"apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest", "name": "case-0", "uid": uid}]);
    let certificate = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Certificate", "name": "case-3",
        "uid": "7f3a5b1e-0000-4000-8000-000000000001", "controller": true,
    });
    let foreign = [
        ("plain", json!({})),
        (
            "adopted-by-another",
            json!({"annotations": {"idtoken.dev/adopt": "victim"}}),
        ),
        ("owned", json!({"ownerReferences": owner(&uid)})),
        (
            "controlled",
            json!({"ownerReferences": [certificate], "annotations": {"idtoken.dev/adopt": "case-3"}}),
        ),
        (
            "labelled",
            json!({"labels": {"app.kubernetes.io/managed-by": "idtoken-operator"}}),
        ),
        (
            "sa-token",
            json!({"annotations": {"kubernetes.io/service-account.name": "default"}}),
        ),
    ];
    let mut before = BTreeMap::new();
    for (name, mut metadata) in foreign.clone() {
        metadata["name"] = json!(name);
        let object: Secret =
            serde_json::from_value(json!({"metadata": metadata, "stringData": {"token": "theirs"}}))?;
        before.insert(name, secrets.create(&PostParams::default(), &object).await?);
    }
    let target = |name: &str| json!({"target": {"name": name}});
    let template = |template: Value| json!({"target": {"template": template}});
    let shop = |what, changes, fate| Case(what, "shop", changes, fate);
    let bomb = |values: usize| -> serde_json::Map<_, _> {
        let value = |n| (format!("k{n}"), json!("$(token)".repeat(1000)));
        (0..values).map(value).collect()
    };
    let cases = [
        shop("a Secret of somebody", target("plain"), Denied("SecretConflict")),
        shop(
            "one that is handed to another request",
            target("adopted-by-another"),
            Denied("SecretConflict"),
        ),
        shop(
            "one with a forged owner",
            target("owned"),
            Denied("SecretConflict"),
        ),
        shop(
            "another controller's, handed over",
            target("controlled"),
            Denied("SecretConflict"),
        ),
        shop(
            "one with a forged label",
            target("labelled"),
            Denied("SecretConflict"),
        ),
        shop("another request's", target("victim"), Denied("TargetConflict")),
        shop("a Secret of its own", json!({}), Allowed),
        shop(
            "a path as the name",
            target("../victim"),
            Rejected("spec.target.name"),
        ),
        shop(
            "a path as the key",
            json!({"target": {"key": "../token"}}),
            Rejected("spec.target.key"),
        ),
        shop(
            "a ServiceAccount's token",
            template(json!({"type": "kubernetes.io/service-account-token"})),
            Rejected("type"),
        ),
        shop(
            "a bootstrap token",
            template(json!({"type": "bootstrap.kubernetes.io/token"})),
            Rejected("type"),
        ),
        shop(
            "a registry's credentials",
            template(json!({"type": "kubernetes.io/dockerconfigjson"})),
            Rejected("type"),
        ),
        shop(
            "a Helm release",
            template(json!({"type": "helm.sh/release.v1"})),
            Rejected("type"),
        ),
        shop(
            "our own label",
            template(json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}})),
            Denied("InvalidSpec"),
        ),
        shop(
            "our own annotation",
            template(json!({"metadata": {"annotations": {"idtoken.dev/request": "victim"}}})),
            Denied("InvalidSpec"),
        ),
        shop(
            "a subdomain of ours",
            template(json!({"metadata": {"annotations": {"x.idtoken.dev/request": "victim"}}})),
            Denied("InvalidSpec"),
        ),
        shop(
            "a ServiceAccount's annotation",
            template(json!({"metadata": {"annotations": {"kubernetes.io/service-account.name": "default"}}})),
            Denied("InvalidSpec"),
        ),
        shop(
            "a substitution bomb",
            template(json!({"data": bomb(2)})),
            Denied(""),
        ),
        shop(
            "a template of another language",
            template(json!({"data": {"x": "{{ range loop }}{{ .token }}{{ end }}"}})),
            Allowed,
        ),
        shop(
            "an unknown variable",
            template(json!({"data": {"x": "$(env.HOME)"}})),
            Denied("InvalidSpec"),
        ),
        shop(
            "nested variables",
            template(json!({"data": {"x": "$($(token))"}})),
            Denied("InvalidSpec"),
        ),
        shop(
            "the token in an annotation",
            template(json!({"metadata": {"annotations": {"x": "$(token)"}}})),
            Allowed,
        ),
        // What other software trusts.
        shop(
            "a Helm release by its name",
            target("sh.helm.release.v1.app.v1"),
            Rejected("spec.target.name"),
        ),
        shop(
            "a Helm release by its label",
            template(json!({"metadata": {"labels": {"owner": "helm"}}})),
            Rejected("labels"),
        ),
        shop(
            "a cluster of Argo CD",
            template(json!({"metadata": {"labels": {"argocd.argoproj.io/secret-type": "cluster"}}})),
            Rejected("labels"),
        ),
        shop(
            "a key of Sealed Secrets",
            template(
                json!({"metadata": {"labels": {"sealedsecrets.bitnami.com/sealed-secrets-key": "active"}}}),
            ),
            Rejected("labels"),
        ),
        shop(
            "a CA of cert-manager",
            template(
                json!({"metadata": {"annotations": {"cert-manager.io/allow-direct-injection": "true"}}}),
            ),
            Denied("InvalidSpec"),
        ),
        shop(
            "a larger substitution bomb",
            template(json!({"data": bomb(32)})),
            Rejected("16384 characters"),
        ),
        shop(
            "a label that is nearly Helm's",
            template(json!({"metadata": {"labels": {"owner": "team-a"}}})),
            Allowed,
        ),
    ];
    // The schema does not see that the name of the request is the name of the Secret.
    world
        .request("shop", "sh.helm.release.v1.app.v1", json!({}))
        .await?;
    let minted = world.google.mint_count();
    let objects = judge(&world, &cases).await?;
    assert!(world.google.mint_count() >= minted + 3);

    for (name, secret) in &before {
        assert_eq!(secret, &secrets.get(name).await?, "{name} was touched");
    }
    world.google.verify(&token(&secrets.get("victim").await?))?;
    for (index, object) in &objects {
        let Case(what, _, _, fate) = &cases[*index];
        if matches!(fate, Allowed) {
            let secret = secrets.get(&format!("case-{index}")).await?;
            let token = token(&secret);
            world.google.verify(&token)?;
            let metadata = serde_json::to_string(&secret.metadata)?;
            assert!(!metadata.contains(&token), "{what}: the token is in the metadata");
            let owners = secret.metadata.owner_references.unwrap_or_default();
            assert_eq!(
                owners.iter().map(|owner| &owner.uid).collect::<Vec<_>>(),
                [object.metadata.uid.as_ref().context("a UID")?]
            );
        }
    }
    let object = world
        .until("shop", "sh.helm.release.v1.app.v1", "it is rejected", |object| {
            has(object, "Stalled", "True", "InvalidSpec")
        })
        .await?;
    let message = condition(&object, "Ready").map(|ready| ready.message.clone());
    assert!(message.is_some_and(|message| message.contains("Helm")));
    assert!(secrets.get_opt("sh.helm.release.v1.app.v1").await?.is_none());
    let literal = secrets.get("case-18").await?;
    assert_eq!(text(&literal, "x"), "{{ range loop }}{{ .token }}{{ end }}");

    // A forged name of the old Secret in nobody's status makes the operator delete nothing: renaming removes only what is its own.
    world
        .meddle(
            "shop",
            "plain",
            json!({"metadata": {"annotations": {"idtoken.dev/request": "case-6"}}}),
        )
        .await?;
    world
        .change("shop", "case-6", json!({"spec": {"target": {"name": "moved"}}}))
        .await?;
    world
        .wait(
            "the renamed target is written and the old one is gone",
            async || {
                Ok(secrets.get_opt("moved").await?.is_some() && secrets.get_opt("case-6").await?.is_none())
            },
        )
        .await?;
    for name in before.keys() {
        assert!(secrets.get_opt(name).await?.is_some(), "{name} was deleted");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_request_does_not_become_another() -> Result<()> {
    let world = World::new().await?;
    more_accounts(&world)?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let first = token(&world.secret("shop", "billing").await?);
    for (what, spec, back) in [
        (
            "the account",
            json!({"serviceAccount": VAULT, "audience": "https://bank.example.com"}),
            json!({"serviceAccount": CALLER, "audience": AUDIENCE}),
        ),
        (
            "the source",
            json!({"source": {"metadataServer": {}}}),
            json!({"source": null}),
        ),
        (
            "the chain",
            json!({"source": {"impersonation": {"delegates": [MIDDLE]}}}),
            json!({"source": null}),
        ),
    ] {
        let asked = world.google.calls().len();
        world.change("shop", "billing", json!({"spec": spec})).await?;
        world
            .until("shop", "billing", &format!("{what} is denied"), |object| {
                has(object, "Ready", "False", "NotGranted")
            })
            .await?;
        assert_eq!(world.google.calls().len(), asked, "{what}: Google was asked");
        world.change("shop", "billing", json!({"spec": back})).await?;
        world.ready("shop", "billing").await?;
    }
    assert_eq!(
        first,
        token(&world.secret("shop", "billing").await?),
        "the token was lost over it"
    );

    // A forged answer of the past: the annotations of the Secret are not trusted over the token in it.
    let hash = world
        .secret("shop", "billing")
        .await?
        .metadata
        .annotations
        .context("annotations")?;
    let other = world
        .issued("shop", "other", json!({"audience": format!("{AUDIENCE}/other")}))
        .await?;
    let stolen = token(&world.secret("shop", "other").await?);
    let digest = world
        .secret("shop", "other")
        .await?
        .metadata
        .annotations
        .context("annotations")?;
    let digest = digest.get("idtoken.dev/token-digest").context("a digest")?;
    assert!(hash.contains_key("idtoken.dev/token-digest"));
    world.meddle("shop", "billing", json!({"metadata": {"annotations": {"idtoken.dev/token-digest": digest}}, "data": {"token": stolen}})).await?;
    world
        .wait("the token of another audience is replaced", async || {
            let held = token(&world.secret("shop", "billing").await?);
            Ok(held != stolen && world.google.verify(&held)?["aud"] == AUDIENCE)
        })
        .await?;
    drop(other);
    Ok(())
}

/// What a message suggests to run is run by people, so what an attacker wrote must stay one inert word of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suggested_commands_are_inert() -> Result<()> {
    let world = World::new().await?;
    world.namespace("shop").await?;
    let planted = world.cluster.dir().join("planted");
    let evil = format!(
        "https://x/';touch${{IFS}}{0};'\"$(touch${{IFS}}{0})`touch${{IFS}}{0}`&&touch${{IFS}}{0}",
        planted.display()
    );
    world
        .request("shop", "billing", json!({"audience": evil}))
        .await?;
    let object = world
        .until("shop", "billing", "it is denied", |object| {
            has(object, "Ready", "False", "NotGranted")
        })
        .await?;
    let message = condition(&object, "Ready")
        .map(|ready| ready.message.clone())
        .unwrap_or_default();
    let at = message.find("kubectl ").context("a command is suggested")?;
    // The whole rest of the message as one script, with a kubectl that does nothing.
    let script = format!("kubectl() {{ :; }}\n{}", &message[at..]);
    Command::new("sh").args(["-c", &script]).output()?;
    assert!(!planted.exists(), "the suggested command did more: {message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_cannot_be_wider_than_it_looks() -> Result<()> {
    let world = World::with(crate::common::Setup {
        operator: false,
        ..Default::default()
    })
    .await?;
    let to = |account: &str, audience: &str| json!({"from": [{"namespace": "shop"}], "to": [{"serviceAccounts": [account], "audiences": [audience]}]});
    let mut wrong = Vec::new();
    for (n, (what, spec, legal)) in [
        ("exact", to(CALLER, AUDIENCE), true),
        ("a domain", to("*@p.iam.gserviceaccount.com", "https://api.example.com/v1/*"), true),
        ("every account", to("*", AUDIENCE), false),
        ("a part of a name", to("call*@p.iam.gserviceaccount.com", AUDIENCE), false),
        ("a part of a domain", to("caller@*.iam.gserviceaccount.com", AUDIENCE), false),
        ("every audience", to(CALLER, "*"), false),
        ("every host", to(CALLER, "https://*"), false),
        ("a part of a host", to(CALLER, "https://*.example.com/x"), false),
        ("a host without its slash", to(CALLER, "https://api.example.com*"), false),
        ("a star in the middle", to(CALLER, "https://api.example.com/*/x"), false),
        ("two stars", to(CALLER, "https://api.example.com/*/*"), false),
        ("a port's star", to(CALLER, "https://api.example.com:*/"), false),
        ("no namespace", json!({"from": [{}], "to": to(CALLER, AUDIENCE)["to"]}), false),
        ("a namespace's star", json!({"from": [{"namespace": "*"}], "to": to(CALLER, AUDIENCE)["to"]}), false),
        ("nobody", json!({"from": [], "to": to(CALLER, AUDIENCE)["to"]}), false),
        ("no account", json!({"from": [{"namespace": "shop"}], "to": [{"audiences": [AUDIENCE]}]}), false),
        ("no audience", json!({"from": [{"namespace": "shop"}], "to": [{"serviceAccounts": [CALLER]}]}), false),
        ("an unknown source", json!({"from": [{"namespace": "shop"}], "to": [{"serviceAccounts": [CALLER], "audiences": [AUDIENCE], "sources": ["Federation"]}]}), false),
    ].into_iter().enumerate() {
        let object: DynamicObject = serde_json::from_value(json!({"apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant", "metadata": {"name": format!("case-{n}")}, "spec": spec}))?;
        let api = Api::all_with(world.client.clone(), &ApiResource::erase::<IdTokenGrant>(&()));
        match (api.create(&PostParams::default(), &object).await, legal) {
            (Ok(_), true) => {}
            (Err(kube::Error::Api(refused)), false) if refused.code == 422 => {}
            (other, _) => wrong.push(format!("{what}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
