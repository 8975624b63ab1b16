//! The built-in ClusterRoles view, edit and admin, and the garbage collector, as the real kube-controller-manager has them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use idtoken_testenv::{Process, Progress, binaries, until};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;

use crate::common::{LIMIT, World};

/// Where kube-controller-manager is; built where `KUBEBUILDER_ASSETS` does not have it.
async fn controller_manager() -> Result<PathBuf> {
    const NAME: &str = "kube-controller-manager";
    let given = std::env::var_os("KUBEBUILDER_ASSETS").map(|dir| Path::new(&dir).join(NAME));
    if let Some(given) = given.filter(|path| path.is_file()) {
        return Ok(given);
    }
    let build = || binaries::KUBERNETES.build(&[NAME], Progress::default());
    Ok(tokio::task::spawn_blocking(build).await??.join(NAME))
}

impl World {
    async fn may(&self, user: &str, verb: &str, resource: &str) -> Result<bool> {
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let review: SubjectAccessReview = serde_json::from_value(
            json!({"spec": {"user": user, "resourceAttributes": {
                "namespace": "shop", "group": group, "resource": resource, "subresource": subresource, "verb": verb,
            }}}),
        )?;
        let answer = Api::all(self.client.clone())
            .create(&Default::default(), &review)
            .await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_users_reach_requests_by_the_built_in_roles_and_the_collector_passes() -> Result<()> {
    let world = World::new().await?;
    let mut command = Command::new(controller_manager().await?);
    command
        .arg(format!("--kubeconfig={}", world.cluster.admin_kubeconfig().display()))
        .arg(format!(
            "--service-account-private-key-file={}",
            world.cluster.service_account_key_file().display()
        ))
        .args(["--leader-elect=false", "--use-service-account-credentials", "--secure-port=0"])
        .arg("--controllers=clusterrole-aggregation-controller,garbage-collector-controller,namespace-controller");
    let _manager = Process::spawn("kube-controller-manager", &command, world.cluster.dir())?;
    world.granted("shop").await?;
    for role in ["view", "edit", "admin"] {
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={role}"));
        world
            .cluster
            .kubectl(["create", "rolebinding", &role[14..], &role, &user, "-n", "shop"])
            .await?;
    }
    until("the roles are aggregated", LIMIT, async || {
        let all = [
            world.may("view", "get", "idtokenrequests.idtoken.dev").await?,
            world.may("edit", "create", "idtokenrequests.idtoken.dev").await?,
            world
                .may("admin", "create", "idtokenrequests.idtoken.dev")
                .await?,
            world.may("edit", "create", "serviceaccounts/token").await?,
        ];
        Ok(all.iter().all(|yes| *yes).then_some(()))
    })
    .await?;

    let (requests, status) = (
        "idtokenrequests.idtoken.dev",
        "idtokenrequests/status.idtoken.dev",
    );
    let (grants, reported) = ("idtokengrants.idtoken.dev", "idtokengrants/status.idtoken.dev");
    let read = ["get", "list", "watch"];
    let write = ["create", "update", "patch", "delete", "deletecollection"];
    // What view, edit and admin may.
    let table: [(&str, &[&str], [bool; 3]); 6] = [
        (requests, &read, [true, true, true]),
        (requests, &write, [false, true, true]),
        (status, &["get"], [true, true, true]),
        (status, &["update", "patch"], [false, false, false]),
        (
            grants,
            &[&read[..], &write, &["bind"]].concat(),
            [false, false, false],
        ),
        (reported, &["get", "update", "patch"], [false, false, false]),
    ];
    let mut wrong = Vec::new();
    for (resource, verbs, expected) in table {
        for verb in verbs {
            for (user, expected) in ["view", "edit", "admin"].into_iter().zip(expected) {
                if world.may(user, verb, resource).await? != expected {
                    wrong.push(format!("{user} {verb} {resource}: not {expected}"));
                }
            }
        }
    }
    if world.may("view", "get", "secrets").await? {
        wrong.push("view reads Secrets".to_owned());
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));

    // The edit role has what the admission policy of federation asks for.
    let edit = world.cluster.kubeconfig_for("edit", &[])?;
    let federated = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest", "metadata": {"namespace": "shop", "name": "federated"},
        "spec": {"audience": "https://billing-x.run.app", "source": {"federation": {"serviceAccountRef": {"name": "billing"}}}},
    });
    world.cluster.apply_as(&edit, &federated.to_string()).await?;

    // The real garbage collector, with rights and an identity of its own, takes the Secret of a deleted request.
    world.issued("shop", "billing", json!({})).await?;
    world
        .requests("shop")
        .delete("billing", &DeleteParams::default())
        .await?;
    world
        .wait("the Secret is collected", async || {
            Ok(world.secrets("shop").get_opt("billing").await?.is_none())
        })
        .await?;
    Ok(())
}
