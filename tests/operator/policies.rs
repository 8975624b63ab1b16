//! The admission policies of `config/admission.yaml`, on a real API server, with users that RBAC gives exactly what is said.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_testenv::until;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::common::{AUDIENCE, CALLER, LIMIT, Setup, USER, World};

/// What a user tries, and whether it is to succeed.
struct Case<'a> {
    what: &'a str,
    user: &'a Path,
    args: Vec<String>,
    /// Standard input.
    body: Value,
    /// None where it is allowed; otherwise a part of the refusal.
    refusal: Option<&'a str>,
}

impl World {
    /// A world without the operator's process, whose policies are at work.
    async fn of_policies(rbac: &'static str) -> Result<Self> {
        let world = Self::with(Setup {
            operator: false,
            rbac,
            ..Setup::default()
        })
        .await?;
        world.namespace("shop").await?;
        world.namespace("bank").await?;
        for name in ["billing", "other"] {
            world
                .cluster
                .kubectl(["create", "serviceaccount", name, "-n", "shop"])
                .await?;
        }
        // The API server compiles a policy some time after it has stored it.
        let nobody = world
            .user("nobody", "bank", &["view-requests", "edit-requests"])
            .await?;
        let labeller = world.user("early", "", &["label-namespaces"]).await?;
        let probes = [
            (&nobody, create(federation("bank", "probe", "billing"))),
            (&labeller, label("bank", "grants.idtoken.dev/probe=x")),
            (
                &world.kubeconfig,
                create(secret("bank", "probe", json!({}), "Opaque")),
            ),
        ];
        for (user, (args, body)) in probes {
            until("the policies are at work", LIMIT, async || {
                let refused = world.kubectl_fed(user, &args, &body, true).await.is_err();
                Ok(refused.then_some(()))
            })
            .await?;
        }
        Ok(world)
    }

    /// A user with these rights in `namespace`, or in the cluster where it is empty.
    async fn user(&self, name: &str, namespace: &str, rights: &[&str]) -> Result<PathBuf> {
        let rules = |rules: Value| -> Result<(Value, Option<String>)> { Ok((rules, None)) };
        for right in rights {
            let (rules, role) = match *right {
                "view-requests" => (json!(null), Some("idtoken-operator-view".to_owned())),
                "edit-requests" => (json!(null), Some("idtoken-operator-edit".to_owned())),
                // What the built-in ClusterRole edit is made of, besides the above.
                "edit" => (json!(null), Some("system:aggregate-to-edit".to_owned())),
                "tokens-of-billing" => rules(json!([{
                    "apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"], "resourceNames": ["billing"],
                }]))?,
                "serviceaccounts" => rules(json!([{
                    "apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["*"],
                }]))?,
                "label-namespaces" => rules(json!([{
                    "apiGroups": [""], "resources": ["namespaces", "namespaces/status", "namespaces/finalize"], "verbs": ["*"],
                }]))?,
                "bind-grants" => rules(json!([{
                    "apiGroups": ["idtoken.dev"], "resources": ["idtokengrants"], "verbs": ["bind"],
                }]))?,
                "write-grants" => rules(json!([{
                    "apiGroups": ["idtoken.dev"], "resources": ["idtokengrants"], "verbs": ["create", "update", "patch", "delete"],
                }]))?,
                "collect-garbage" => (
                    json!(null),
                    Some("system:controller:generic-garbage-collector".to_owned()),
                ),
                other => anyhow::bail!("{other} is no right"),
            };
            let own = format!("{name}-{right}");
            let mut documents = Vec::new();
            let api = "rbac.authorization.k8s.io/v1";
            if role.is_none() {
                documents.push(json!({"apiVersion": api, "kind": "ClusterRole", "metadata": {"name": own}, "rules": rules}));
            }
            let (kind, metadata) = match namespace {
                "" => ("ClusterRoleBinding", json!({"name": own})),
                namespace => ("RoleBinding", json!({"name": own, "namespace": namespace})),
            };
            documents.push(json!({
                "apiVersion": api, "kind": kind, "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role.unwrap_or(own)},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
            }));
            let yaml: String = documents
                .iter()
                .map(|document| format!("---\n{document}\n"))
                .collect();
            self.cluster.apply(&yaml).await?;
        }
        self.cluster.kubeconfig_for(name, &[])
    }

    async fn kubectl_fed(&self, user: &Path, args: &[String], body: &Value, dry: bool) -> Result<String> {
        let path = self.cluster.dir().join("body.json");
        std::fs::write(&path, body.to_string())?;
        let mut args: Vec<String> = args
            .iter()
            .map(|arg| arg.replace("BODY", &path.display().to_string()))
            .collect();
        if dry {
            args.push("--dry-run=server".to_owned());
        }
        self.cluster.kubectl_as(user, &args).await
    }

    async fn try_all(&self, cases: Vec<Case<'_>>) -> Result<()> {
        let mut wrong = Vec::new();
        for case in cases {
            let result = self.kubectl_fed(case.user, &case.args, &case.body, false).await;
            match (case.refusal, result) {
                (None, Ok(_)) => {}
                (None, Err(error)) => wrong.push(format!("{}: refused: {error:#}", case.what)),
                (Some(_), Ok(said)) => wrong.push(format!("{}: allowed: {said}", case.what)),
                (Some(part), Err(error)) => {
                    let error = format!("{error:#}");
                    // Otherwise RBAC or the schema refused, and the policy was not asked.
                    if !error.contains("ValidatingAdmissionPolicy") || !error.contains(part) {
                        wrong.push(format!("{}: refused for another reason: {error}", case.what));
                    }
                }
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn create(body: Value) -> (Vec<String>, Value) {
    (strings(&["create", "--filename=BODY"]), body)
}

fn patch(namespace: &str, kind: &str, name: &str, patch: Value) -> (Vec<String>, Value) {
    let patch = patch.to_string();
    let args = ["patch", kind, name, "-n", namespace, "--type=merge", "-p", &patch];
    (strings(&args), json!(null))
}

fn delete(namespace: &str, kind: &str, name: &str) -> (Vec<String>, Value) {
    (strings(&["delete", kind, name, "-n", namespace]), json!(null))
}

fn label(namespace: &str, label: &str) -> (Vec<String>, Value) {
    (
        strings(&["label", "--overwrite", "namespace", namespace, label]),
        json!(null),
    )
}

fn request(namespace: &str, name: &str, source: Value) -> Value {
    json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest", "metadata": {"namespace": namespace, "name": name},
        "spec": {"audience": AUDIENCE, "serviceAccount": CALLER, "source": source},
    })
}

fn federation(namespace: &str, name: &str, account: &str) -> Value {
    request(
        namespace,
        name,
        json!({"federation": {"serviceAccountRef": {"name": account}}}),
    )
}

fn secret(namespace: &str, name: &str, metadata: Value, type_: &str) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": type_, "stringData": {"username": "u", "password": "p"},
    });
    object["metadata"]["namespace"] = json!(namespace);
    object["metadata"]["name"] = json!(name);
    object
}

fn case<'a>(
    what: &'a str,
    user: &'a Path,
    (args, body): (Vec<String>, Value),
    refusal: Option<&'a str>,
) -> Case<'a> {
    Case {
        what,
        user,
        args,
        body,
        refusal,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authors_of_federation_requests_may_create_tokens_of_its_account() -> Result<()> {
    let world = World::of_policies("rbac-federation.yaml").await?;
    let author = world
        .user("author", "shop", &["view-requests", "edit-requests"])
        .await?;
    let editor = world
        .user("editor", "shop", &["view-requests", "edit-requests", "edit"])
        .await?;
    let narrow = world
        .user(
            "narrow",
            "shop",
            &["view-requests", "edit-requests", "tokens-of-billing"],
        )
        .await?;
    // All of the ServiceAccounts, but not their tokens.
    let keeper = world
        .user(
            "keeper",
            "shop",
            &["view-requests", "edit-requests", "serviceaccounts"],
        )
        .await?;
    let away = world
        .user("away", "shop", &["view-requests", "edit-requests"])
        .await?;
    world
        .user("away", "bank", &["view-requests", "edit-requests", "edit"])
        .await?;
    let collector = world
        .user(
            "system:serviceaccount:kube-system:generic-garbage-collector",
            "",
            &["collect-garbage"],
        )
        .await?;

    let may_not = |user: &str, account: &str| {
        format!("{user} may not create serviceaccounts/token of {account} in namespace shop")
    };
    let (author_may_not, narrow_may_not) = (may_not("author", "billing"), may_not("narrow", "other"));
    let (away_may_not, keeper_may_not) = (may_not("away", "billing"), may_not("keeper", "billing"));
    let to_other = json!({"spec": {"source": {"federation": {"serviceAccountRef": {"name": "other"}}}}});
    let to_billing = json!({"spec": {"source": {"impersonation": null, "federation": {"serviceAccountRef": {"name": "billing"}}}}});
    let change = |patch_: Value| patch("shop", "idtr", "federated", patch_);
    let annotation = json!({"metadata": {"annotations": {"idtoken.dev/renew": "1"}}});
    let spec = json!({"audience": "https://other.run.app"});
    let apply = strings(&["apply", "--server-side", "--filename=BODY"]);
    let mut unnamed = federation("shop", "", "billing");
    unnamed["metadata"] = json!({"namespace": "shop", "generateName": "federated-"});
    world
        .try_all(vec![
            case(
                "create",
                &author,
                create(federation("shop", "a", "billing")),
                Some(&author_may_not),
            ),
            case("create unnamed", &author, create(unnamed), Some(&author_may_not)),
            case(
                "create with null for the sources that are not set",
                &author,
                create(request(
                    "shop",
                    "nulls",
                    json!({"impersonation": {}, "federation": null}),
                )),
                None,
            ),
            case(
                "create with null for the source",
                &author,
                create(request("shop", "no-source", json!(null))),
                None,
            ),
            case(
                "apply",
                &author,
                (apply.clone(), federation("shop", "a", "billing")),
                Some(&author_may_not),
            ),
            case(
                "create for a name that does not exist",
                &author,
                create(federation("shop", "a", "ghost")),
                Some("of ghost in"),
            ),
            case(
                "create as who may do all but tokens",
                &keeper,
                create(federation("shop", "a", "billing")),
                Some(&keeper_may_not),
            ),
            case(
                "create with rights elsewhere",
                &away,
                create(federation("shop", "a", "billing")),
                Some(&away_may_not),
            ),
            case(
                "the same where the rights are",
                &away,
                create(federation("bank", "a", "billing")),
                None,
            ),
            case(
                "create with another account's right",
                &narrow,
                create(federation("shop", "a", "other")),
                Some(&narrow_may_not),
            ),
            case(
                "create with this account's right",
                &narrow,
                create(federation("shop", "narrow", "billing")),
                None,
            ),
            case(
                "edit creates",
                &editor,
                create(federation("shop", "federated", "billing")),
                None,
            ),
            case(
                "another source is not asked",
                &author,
                create(request("shop", "own", json!({"impersonation": {}}))),
                None,
            ),
            case(
                "to federation",
                &author,
                patch("shop", "idtr", "own", to_billing.clone()),
                Some(&author_may_not),
            ),
            case("annotation", &author, change(annotation), None),
            case(
                "label",
                &author,
                change(json!({"metadata": {"labels": {"a": "b"}}})),
                None,
            ),
            case(
                "audience",
                &author,
                change(json!({"spec": spec})),
                Some(&author_may_not),
            ),
            case(
                "suspend",
                &author,
                change(json!({"spec": {"suspend": true}})),
                Some(&author_may_not),
            ),
            case(
                "target",
                &author,
                change(json!({"spec": {"target": {"name": "x"}}})),
                Some(&author_may_not),
            ),
            case(
                "account, with its right",
                &narrow,
                change(json!({"spec": {"suspend": false}})),
                None,
            ),
            case(
                "to an account without its right",
                &narrow,
                change(to_other),
                Some(&narrow_may_not),
            ),
            case(
                "apply of the same",
                &author,
                (apply, federation("shop", "federated", "billing")),
                None,
            ),
            case(
                "the garbage collector's ownerReferences",
                &collector,
                change(json!({"metadata": {"ownerReferences": []}})),
                None,
            ),
            case(
                "away from federation",
                &author,
                patch("shop", "idtr", "narrow", json!({"spec": {"source": null}})),
                None,
            ),
            case(
                "the garbage collector's delete",
                &collector,
                delete("shop", "idtr", "narrow"),
                None,
            ),
            case("delete", &author, delete("shop", "idtr", "federated"), None),
        ])
        .await?;

    // The operator's status is not the spec, and none comes in by way of it.
    let client = world.cluster.client_of(&world.kubeconfig).await?;
    let requests: Api<IdTokenRequest> = Api::namespaced(client, "bank");
    let both = json!({"spec": {"audience": "https://other.run.app"}, "status": {"source": "Federation"}});
    let written = requests
        .patch_status("a", &PatchParams::default(), &Patch::Merge(both))
        .await?;
    assert_eq!(written.spec.audience, AUDIENCE);
    assert_eq!(
        written.status.and_then(|status| status.source).as_deref(),
        Some("Federation")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_that_grants_select_are_for_those_who_may_bind_grants() -> Result<()> {
    let world = World::of_policies("rbac.yaml").await?;
    let owner = world
        .user("owner", "", &["label-namespaces", "write-grants"])
        .await?;
    let binder = world
        .user("binder", "", &["label-namespaces", "bind-grants"])
        .await?;
    let refusal = Some("owner may not change grants.idtoken.dev/billing");
    let by = |subresource: &str, labels: Value| {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}, "spec": {"finalizers": ["kubernetes"]}});
        let path = format!("/api/v1/namespaces/shop/{subresource}");
        (strings(&["replace", "--raw", &path, "--filename=BODY"]), body)
    };
    let new = |name: &str, labels: Value| {
        create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))
    };
    let (set, unset) = (
        json!({"grants.idtoken.dev/billing": "yes"}),
        json!({"team": "shop"}),
    );
    world
        .try_all(vec![
            case(
                "set",
                &owner,
                label("shop", "grants.idtoken.dev/billing=yes"),
                refusal,
            ),
            case("set by status", &owner, by("status", set.clone()), refusal),
            case("set by finalize", &owner, by("finalize", set.clone()), refusal),
            case("create with it", &owner, new("fresh", set.clone()), refusal),
            case("create with another", &owner, new("fresh", unset.clone()), None),
            case("create without any", &owner, new("bare", json!(null)), None),
            case("another label", &owner, label("shop", "team=shop"), None),
            case(
                "the bare word",
                &owner,
                label("shop", "grants.idtoken.dev=yes"),
                None,
            ),
            case(
                "another prefix",
                &owner,
                label("shop", "grants.idtoken.dev.evil.io/billing=yes"),
                None,
            ),
            case(
                "a binder sets it",
                &binder,
                label("shop", "grants.idtoken.dev/billing=yes"),
                None,
            ),
            case("a binder creates with it", &binder, new("bound", set), None),
            case(
                "change",
                &owner,
                label("shop", "grants.idtoken.dev/billing=no"),
                refusal,
            ),
            case(
                "remove",
                &owner,
                label("shop", "grants.idtoken.dev/billing-"),
                refusal,
            ),
            case("remove by status", &owner, by("status", unset), refusal),
            case(
                "another label beside it",
                &owner,
                label("shop", "team=other"),
                None,
            ),
            case(
                "a binder removes it",
                &binder,
                label("shop", "grants.idtoken.dev/billing-"),
                None,
            ),
        ])
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_writes_no_secrets_but_its_own() -> Result<()> {
    let world = World::of_policies("rbac-federation.yaml").await?;
    let admin = world.cluster.admin_kubeconfig();
    let operator = &world.kubeconfig;
    let ours = json!({"labels": {"app.kubernetes.io/managed-by": "idtoken-operator"}});
    let theirs = json!({"labels": {"app.kubernetes.io/managed-by": "Helm"}});
    let handed = json!({"annotations": {"idtoken.dev/adopt": "billing"}});
    let make =
        |name: &str, metadata: &Value, type_: &str| create(secret("shop", name, metadata.clone(), type_));
    let change = |name: &str, metadata: Value| {
        patch(
            "shop",
            "secret",
            name,
            json!({"metadata": metadata, "stringData": {"token": "x"}}),
        )
    };
    // kubectl get before it deletes would need no more than the operator has.
    let gone = |name: &str| {
        let path = format!("/api/v1/namespaces/shop/secrets/{name}");
        (strings(&["delete", "--raw", &path]), json!(null))
    };
    let mut of_billing = ours.clone();
    of_billing["annotations"] = json!({"kubernetes.io/service-account.name": "billing"});
    let tokens = "kubernetes.io/service-account-token";
    let write = Some("may only write Secrets that it labels");
    let changed = Some("may only change Secrets that it wrote");
    let deleted = Some("may only delete Secrets that bear its label and");
    let typed = Some("may only write Secrets of type");
    let robbed = json!({"labels": null, "annotations": {"idtoken.dev/request-uid": "u"}});
    world
        .try_all(vec![
            case("somebody's", &admin, make("theirs", &theirs, "Opaque"), None),
            case(
                "somebody's, handed over",
                &admin,
                make("handed", &handed, "Opaque"),
                None,
            ),
            case(
                "create without the label",
                operator,
                make("a", &json!({}), "Opaque"),
                write,
            ),
            case(
                "create with another's label",
                operator,
                make("a", &theirs, "Opaque"),
                write,
            ),
            case(
                "create a token of a ServiceAccount",
                operator,
                make("a", &of_billing, tokens),
                typed,
            ),
            case(
                "create a registry's password",
                operator,
                make("a", &ours, "example.com/other"),
                typed,
            ),
            case("create", operator, make("ours", &ours, "Opaque"), None),
            case(
                "create of basic-auth",
                operator,
                make("basic", &ours, "kubernetes.io/basic-auth"),
                None,
            ),
            case(
                "create of a service binding",
                operator,
                make("bound", &ours, "servicebinding.io/google"),
                None,
            ),
            case("change", operator, change("ours", json!({})), None),
            case(
                "change that drops the label",
                operator,
                change("ours", json!({"labels": null})),
                write,
            ),
            case(
                "change of another's",
                operator,
                change("theirs", json!({})),
                write,
            ),
            case("take over", operator, change("theirs", ours.clone()), changed),
            case(
                "take over and mark as handed",
                operator,
                change("theirs", {
                    let mut both = ours.clone();
                    both["annotations"] = handed["annotations"].clone();
                    both
                }),
                changed,
            ),
            case("delete another's", operator, gone("theirs"), deleted),
            case(
                "delete one that is handed over",
                operator,
                gone("handed"),
                deleted,
            ),
            case("adopt", operator, change("handed", ours.clone()), None),
            case(
                "somebody takes the label away",
                &admin,
                change("ours", robbed),
                None,
            ),
            case("delete by the UID alone", operator, gone("ours"), deleted),
            case("put it back", operator, change("ours", ours.clone()), None),
            case("delete", operator, gone("ours"), None),
            case("delete by the label alone", operator, gone("basic"), deleted),
        ])
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_gets_kubernetes_tokens_for_google_alone() -> Result<()> {
    let world = World::of_policies("rbac-federation.yaml").await?;
    let admin = world.cluster.admin_kubeconfig();
    let ask = |audiences: &[&str]| {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": audiences}});
        let path = "/api/v1/namespaces/shop/serviceaccounts/billing/token";
        (strings(&["create", "--raw", path, "--filename=BODY"]), body)
    };
    let provider =
        "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/kube-1";
    let https = format!("https:{provider}");
    let issuer = world.cluster.service_account_issuer();
    let refusal = Some("may not get Kubernetes tokens for");
    let evil = [
        format!(
            "https:{}",
            provider.replace("googleapis.com", "googleapis.com.evil.io")
        ),
        format!("https:{}", provider.replace('.', "x")),
        format!("http:{provider}"),
        format!("{https}/more"),
        format!("{https}\n"),
        format!("{}{https}", "https://kubernetes.default.svc\n"),
        "project.svc.id.goog.evil.io".to_owned(),
        "https://evil.io/project.svc.id.goog".to_owned(),
        "https://kubernetes.default.svc".to_owned(),
        "https://billing-x.run.app".to_owned(),
        String::new(),
    ];
    let mut cases = vec![
        case("the provider", &world.kubeconfig, ask(&[provider]), None),
        case("the provider as a URL", &world.kubeconfig, ask(&[&https]), None),
        case(
            "the pool of GKE",
            &world.kubeconfig,
            ask(&["project.svc.id.goog"]),
            None,
        ),
        case(
            "none, which means the API server",
            &world.kubeconfig,
            ask(&[]),
            Some(&issuer),
        ),
        case("the API server", &world.kubeconfig, ask(&[&issuer]), refusal),
        case(
            "the API server beside the provider",
            &world.kubeconfig,
            ask(&[provider, &issuer]),
            refusal,
        ),
        case("anybody else is not asked", &admin, ask(&[]), None),
    ];
    cases.extend(
        evil.iter()
            .map(|audience| case(audience, &world.kubeconfig, ask(&[audience]), refusal)),
    );
    world.try_all(cases).await.with_context(|| format!("as {USER}"))
}
