//! The operator's rights are least: a run uses each of them and asks for no other, and without any one of them something fails.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use idtoken_testenv::until;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::Api;
use serde_json::{Value, json};

use crate::common::{AUDIENCE, CALLER, LIMIT, Setup, USER, World, config, has};
use crate::federation;

/// API group, resource with its subresource, verb.
type Right = (String, String, String);

/// One of several replicas, as the chart has it.
const ELECTION: [&str; 3] = [
    "--leader-elect=true",
    "--lease-namespace=idtoken-system",
    "--lease-name=tokens",
];

fn right(group: &str, resource: &str, verb: &str) -> Right {
    (group.to_owned(), resource.to_owned(), verb.to_owned())
}

fn expand(rules: &[PolicyRule]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                rights.extend(rule.verbs.iter().map(|verb| right(group, resource, verb)));
            }
        }
    }
    rights
}

/// The rules of a file of `config/`, by namespace; an empty one for the cluster's.
fn granted(file: &str) -> Result<BTreeMap<String, BTreeSet<Right>>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(&config(file)?)?;
    let mut all = BTreeMap::new();
    for document in documents {
        if document["kind"] == "ClusterRole" || document["kind"] == "Role" {
            let rules: Vec<PolicyRule> = serde_json::from_value(document["rules"].clone())?;
            let namespace = document["metadata"]["namespace"].as_str().unwrap_or_default();
            all.insert(namespace.to_owned(), expand(&rules));
        }
    }
    Ok(all)
}

impl World {
    /// What the operator was let do and what it was refused, by namespace.
    async fn used(&self) -> Result<[BTreeMap<String, BTreeSet<Right>>; 2]> {
        self.mark().await?;
        let (mut used, mut refused) = (BTreeMap::new(), BTreeMap::new());
        for event in self
            .cluster
            .audit()?
            .into_iter()
            .filter(|event| event.user == USER)
        {
            let into = match event.code {
                403 => &mut refused,
                // What does not exist is looked for after the right to it.
                ..400 | 404 => &mut used,
                // Not an answer to the right that was asked for.
                _ => continue,
            };
            let resource = match event.subresource.as_str() {
                "" => event.resource.clone(),
                subresource => format!("{}/{subresource}", event.resource),
            };
            let rights: &mut BTreeSet<Right> = into.entry(event.namespace).or_default();
            rights.insert(right(&event.api_group, &resource, &event.verb));
        }
        Ok([used, refused])
    }

    /// A Lease as a version has left it that named Leases after its flags. Nobody holds it.
    async fn former_lease(&self, name: &str) -> Result<()> {
        let lease = format!(
            "{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: {name}, namespace: idtoken-system}}, spec: {{holderIdentity: ''}}}}"
        );
        self.cluster.apply(&lease).await.map(drop)
    }

    /// All that the operator does for a request in `namespace`. `allow` gives and takes the grant.
    async fn whole_life(&self, namespace: &str, allow: impl AsyncFn(bool) -> Result<()>) -> Result<()> {
        self.issued(namespace, "billing", json!({})).await?;
        self.renewed(namespace, "billing", "1").await?;
        // Read in full only where it is not as it was left.
        let label = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}});
        self.meddle(namespace, "billing", label).await?;
        self.wait("the label is put back", async || {
            let labels = self.secret(namespace, "billing").await?.metadata.labels;
            Ok(labels.is_some_and(|all| all["app.kubernetes.io/managed-by"] == "idtoken-operator"))
        })
        .await?;
        self.change(
            namespace,
            "billing",
            json!({"spec": {"target": {"name": "renamed"}}}),
        )
        .await?;
        self.wait("the old Secret is gone", async || {
            Ok(self.secrets(namespace).get_opt("billing").await?.is_none())
        })
        .await?;
        // The same event twice is one whose count goes up.
        for _ in 0..2 {
            allow(false).await?;
            self.until(namespace, "billing", "it is denied", |request| {
                has(request, "RenewalFailing", "True", "NotGranted")
            })
            .await?;
            allow(true).await?;
            self.until(namespace, "billing", "it is allowed", |request| {
                has(request, "RenewalFailing", "False", "")
            })
            .await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_cluster_takes_these_rights_and_no_others() -> Result<()> {
    let world = World::with(Setup {
        operator: false,
        flags: ELECTION.map(str::to_owned).to_vec(),
        ..Setup::default()
    })
    .await?;
    world.former_lease("idtoken-operator").await?;
    world.start_operator().await?;
    world.granted("shop").await?;
    let allow = async |yes| match yes {
        true => world.grant("shop").await,
        false => world.revoke("shop").await,
    };
    world.whole_life("shop", allow).await?;
    world.allows("shop", 1).await?;
    world.stop_operator(false).await?;
    let [used, refused] = world.used().await?;
    assert_eq!(refused, BTreeMap::new());
    let used: BTreeSet<Right> = used.into_values().flatten().collect();
    let granted: BTreeSet<Right> = granted("rbac.yaml")?.into_values().flatten().collect();
    assert_eq!(used, granted);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_take_these_rights_in_them_and_no_others() -> Result<()> {
    let file = |namespaces: &[&str]| {
        let from: Vec<Value> = namespaces.iter().map(|name| json!({"namespace": name})).collect();
        json!([{"name": "both", "from": from, "to": [{"serviceAccounts": [CALLER], "audiences": [AUDIENCE]}]}]).to_string()
    };
    let world = World::with(Setup {
        operator: false,
        rbac: "rbac-namespaces.yaml",
        namespaces: &["shop", "yard"],
        flags: ["--namespace=shop", "--namespace=yard"]
            .into_iter()
            .chain(ELECTION)
            .map(str::to_owned)
            .collect(),
        grants_file: Some(file(&["shop", "yard"])),
        ..Setup::default()
    })
    .await?;
    // As `--namespace` alone would name it.
    let shard = idtoken_operator::shard::Shard::new(vec!["shop".to_owned(), "yard".to_owned()], None);
    world.former_lease(&shard.lease_name()).await?;
    world.start_operator().await?;
    for namespace in ["shop", "yard"] {
        let allow = async |yes: bool| {
            let other = if namespace == "shop" { "yard" } else { "shop" };
            let both = [other, namespace];
            Ok(std::fs::write(
                world.grants_file(),
                file(&both[..if yes { 2 } else { 1 }]),
            )?)
        };
        world.whole_life(namespace, allow).await?;
    }
    world.stop_operator(false).await?;
    let [used, refused] = world.used().await?;
    assert_eq!(refused, BTreeMap::new());
    assert_eq!(used, granted("rbac-namespaces.yaml")?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_one_right_something_fails() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "base", json!({})).await?;
    let roles: Api<ClusterRole> = Api::all(world.client.clone());
    let whole = roles.get("idtoken-operator").await?;
    let rights = granted("rbac.yaml")?.remove("").context("no ClusterRole")?;
    for (number, lost) in rights.iter().enumerate() {
        let (group, resource, verb) = lost;
        world.restrict(&whole, Some(lost)).await?;
        let name = format!("r{number}");
        match (resource.as_str(), verb.as_str()) {
            (_, "list" | "watch") => {
                world.stop_operator(true).await?;
                // Not until it is ready, which without a list it never is.
                let google = world.google.address();
                let election = ELECTION.map(str::to_owned);
                let flags = if resource == "leases" { &election[..] } else { &[] };
                let operator = world.replica(google, &world.kubeconfig, flags, &[]).await?;
                world.refused(lost).await?;
                if resource == "leases" {
                    // It is for a report only.
                    operator.ready().await?;
                } else if verb == "list" {
                    assert_eq!(operator.get("/readyz").await?.status(), 503, "without {lost:?}");
                }
                drop(operator);
                world.restrict(&whole, None).await?;
                world.start_operator().await?;
                continue;
            }
            ("secrets" | "idtokenrequests/status", "patch") => world.renew("shop", "base", &name).await?,
            ("secrets", "get") => {
                let label = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}});
                world.meddle("shop", "base", label).await?;
            }
            ("secrets", "delete") => {
                let rename = json!({"spec": {"target": {"name": name}}});
                world.change("shop", "base", rename).await?;
            }
            ("events", "patch") => {
                for _ in 0..2 {
                    world.revoke("shop").await?;
                    world
                        .until("shop", "base", "it is denied", |request| {
                            has(request, "RenewalFailing", "True", "NotGranted")
                        })
                        .await?;
                    world.grant("shop").await?;
                    world
                        .until("shop", "base", "it is allowed", |request| {
                            has(request, "RenewalFailing", "False", "")
                        })
                        .await?;
                }
            }
            // The secrets and events of a new request, its status, and the count of its grant.
            _ => drop(world.request("shop", &name, json!({})).await?),
        }
        world
            .refused(lost)
            .await
            .with_context(|| format!("{group} {resource} {verb}"))?;
        world.restrict(&whole, None).await?;
    }
    Ok(())
}

impl World {
    /// Leaves the operator all rights but `lost`, and waits until the API server knows.
    async fn restrict(&self, whole: &ClusterRole, lost: Option<&Right>) -> Result<()> {
        let mut rules = Vec::new();
        for (group, resource, verb) in expand(whole.rules.as_deref().unwrap_or_default()) {
            if lost != Some(&right(&group, &resource, &verb)) {
                rules.push(json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]}));
            }
        }
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "idtoken-operator"}, "rules": rules,
        });
        self.cluster.apply(&role.to_string()).await?;
        let all = expand(whole.rules.as_deref().unwrap_or_default());
        for (group, resource, verb) in all.iter().filter(|one| lost.is_none_or(|lost| lost == *one)) {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let review = json!({"spec": {"user": USER, "resourceAttributes": {
                "namespace": "shop", "group": group, "resource": resource, "subresource": subresource, "verb": verb,
            }}});
            let review: k8s_openapi::api::authorization::v1::SubjectAccessReview =
                serde_json::from_value(review)?;
            let reviews = Api::all(self.client.clone());
            until("the API server knows the rules", LIMIT, async || {
                let answer = reviews.create(&Default::default(), &review).await?;
                let allowed = answer.status.is_some_and(|status| status.allowed);
                Ok((allowed == lost.is_none()).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until the operator was refused what it may no longer do, and has said so in its log.
    async fn refused(&self, lost: &Right) -> Result<()> {
        let (_, resource, verb) = lost;
        let reported = format!("cannot {verb} resource \"{resource}\"");
        let refused = async || {
            let [_, refused] = self.used().await?;
            let refused: BTreeSet<Right> = refused.into_values().flatten().collect();
            let said = self.operator_log().contains(&reported);
            Ok((said && refused.contains(lost)).then_some(()))
        };
        until("the operator is refused and says so", LIMIT, refused).await
    }
}

/// All rules of a file of `config/`, wherever they hold.
fn everywhere(file: &str) -> Result<BTreeSet<Right>> {
    Ok(granted(file)?.into_values().flatten().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn federation_takes_two_rights_more_and_its_strict_mode_one() -> Result<()> {
    let without = everywhere("rbac.yaml")?;
    let more = |file: &str| anyhow::Ok(&everywhere(file)? - &without);
    let account = right("", "serviceaccounts", "get");
    let token = right("", "serviceaccounts/token", "create");
    let both = BTreeSet::from([account.clone(), token]);
    assert_eq!(more("rbac-federation.yaml")?, both);
    assert_eq!(more("rbac-federation-strict.yaml")?, BTreeSet::from([account]));

    let world = World::with(Setup {
        flags: vec![format!("--federation-provider={}", federation::PROVIDER)],
        rbac: "rbac-federation.yaml",
        ..Setup::default()
    })
    .await?;
    federation::prepare(&world).await?;
    world
        .issued("shop", "billing", federation::federated("billing"))
        .await?;
    let [used, refused] = world.used().await?;
    assert_eq!(refused, BTreeMap::new());
    let used: BTreeSet<Right> = used.into_values().flatten().collect();
    assert!(used.is_superset(&both), "{used:?}");
    // Who it is, the API server tells everybody: ClusterRole system:basic-user.
    let mut allowed = everywhere("rbac-federation.yaml")?;
    allowed.insert(right("authentication.k8s.io", "selfsubjectreviews", "create"));
    assert!(used.is_subset(&allowed), "{used:?}");

    let roles: Api<ClusterRole> = Api::all(world.client.clone());
    let whole = roles.get("idtoken-operator").await?;
    for (number, lost) in both.iter().enumerate() {
        world.restrict(&whole, Some(lost)).await?;
        // So that the next token needs an exchange.
        federation::recreate(&world, "shop", "billing").await?;
        world.renew("shop", "billing", &number.to_string()).await?;
        world
            .until(
                "shop",
                "billing",
                &format!("the loss of {lost:?} is reported"),
                |request| has(request, "RenewalFailing", "True", ""),
            )
            .await?;
        let [_, refused] = world.used().await?;
        assert!(
            refused.into_values().any(|rights| rights.contains(lost)),
            "{lost:?}"
        );
        world.restrict(&whole, None).await?;
        // Not by itself so soon: what an administrator mends is reconciled when it is due, or on request.
        world.renew("shop", "billing", &format!("{number} again")).await?;
        world
            .until("shop", "billing", "it is well again", |request| {
                has(request, "RenewalFailing", "False", "")
            })
            .await?;
    }
    Ok(())
}
