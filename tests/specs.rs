//! The API server agrees with the tables of specs and of selectors that the operator's own checks are held against.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use idtoken_operator::api::crds;
use idtoken_operator::api::v1alpha1::{IdTokenGrant, IdTokenRequest};
use idtoken_testenv::{ControlPlane, Options};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use kube::core::Selector;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Row {
    name: String,
    spec: Value,
    #[serde(default = "yes")]
    schema: bool,
}

fn yes() -> bool {
    true
}

/// A merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.as_object_mut().unwrap().remove(key)),
            value => merge(&mut target[key], value),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_says_what_the_table_says() -> Result<()> {
    // An error means that another test was faster, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cluster = ControlPlane::start(Options::default()).await?;
    let crds: Vec<String> = crds()
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<_, _>>()?;
    cluster.apply(&crds.join("\n---\n")).await?;
    cluster.wait_for_crds().await?;
    let kind = ApiResource::erase::<IdTokenRequest>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client().await?, "default", &kind);
    let rows: Vec<Row> = serde_saphyr::from_str(include_str!("data/specs.yaml"))?;
    let mut wrong = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        let mut spec =
            json!({"audience": "https://a.run.app", "serviceAccount": "caller@p.iam.gserviceaccount.com"});
        merge(&mut spec, &row.spec);
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": format!("row-{n}")}, "spec": spec,
        }))?;
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match api.create(&dry, &object).await {
            Ok(_) if row.schema => {}
            Err(kube::Error::Api(status)) if status.code == 422 && !row.schema => {}
            Ok(_) => wrong.push(format!("{}: accepted", row.name)),
            Err(error) => wrong.push(format!("{}: {error}", row.name)),
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[derive(Deserialize)]
struct Selectors {
    name: String,
    selector: Value,
    #[serde(default)]
    empty: bool,
    #[serde(default = "yes")]
    kubernetes: bool,
    schema: Option<bool>,
    #[serde(default)]
    selects: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_agrees_with_the_table_of_selectors() -> Result<()> {
    let cluster = ControlPlane::start(Options::default()).await?;
    let client = cluster.client().await?;
    let definitions: String = crds()
        .iter()
        .map(|crd| Ok(format!("---\n{}\n", serde_json::to_string(crd)?)))
        .collect::<Result<_>>()?;
    let namespaces = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: bare}}\n\
                      ---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}\n\
                      ---\n{apiVersion: v1, kind: Namespace, metadata: {name: bank, labels: {team: bank, tier: gold}}}\n\
                      ---\n{apiVersion: v1, kind: Namespace, metadata: {name: blank, labels: {team: ''}}}\n";
    cluster.apply(&(definitions + namespaces)).await?;
    cluster.wait_for_crds().await?;
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    // A NetworkPolicy's selector is checked by Kubernetes' own rules.
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), "shop");
    let grants: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<IdTokenGrant>(&()));
    let listed: Api<Namespace> = Api::all(client);
    let rows: Vec<Selectors> = serde_saphyr::from_str(include_str!("data/selectors.yaml"))?;
    for row in rows {
        let policy = serde_json::from_value(
            json!({"metadata": {"name": "selector"}, "spec": {"podSelector": row.selector}}),
        )?;
        let taken = match policies.create(&params, &policy).await {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.code == 422 => false,
            Err(error) => return Err(error).with_context(|| row.name.clone()),
        };
        ensure!(
            taken == row.kubernetes,
            "{}: Kubernetes takes it: {taken}",
            row.name
        );
        let to = json!([{"serviceAccounts": ["1"], "audiences": ["aud"]}]);
        let grant = serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant", "metadata": {"name": "selector"},
            "spec": {"from": [{"namespaceSelector": row.selector}], "to": to},
        }))?;
        let taken = match grants.create(&params, &grant).await {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.code == 422 => false,
            Err(error) => return Err(error).with_context(|| row.name.clone()),
        };
        ensure!(
            taken == row.schema.unwrap_or(row.kubernetes),
            "{}: the schema takes it: {taken}",
            row.name
        );
        if row.kubernetes && !row.empty {
            let selector: LabelSelector = serde_json::from_value(row.selector)?;
            let labels = Selector::try_from(selector)?;
            let found = listed.list(&ListParams::default().labels_from(&labels)).await?;
            let mut names: Vec<String> = found.iter().map(ResourceExt::name_any).collect();
            names.retain(|name| ["bare", "shop", "bank", "blank"].contains(&name.as_str()));
            names.sort();
            let mut wanted = row.selects;
            wanted.sort();
            ensure!(names == wanted, "{}: Kubernetes selects {names:?}", row.name);
        }
    }
    Ok(())
}
