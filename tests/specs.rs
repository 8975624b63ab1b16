//! The API server agrees with the tables of specs and of selectors that the operator's own checks are held against.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use idtoken_operator::api::v1alpha1::{IdTokenGrant, IdTokenGrantSpec, IdTokenRequest, IdTokenRequestSpec};
use idtoken_operator::api::{crds, decode_spec};
use idtoken_operator::grants::object::spec_problem;
use idtoken_operator::request::validate;
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

/// An API server with the CRDs.
async fn cluster() -> Result<ControlPlane> {
    // An error means that another test was faster, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cluster = ControlPlane::start(Options::default()).await?;
    let crds: Vec<String> = crds()
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<_, _>>()?;
    cluster.apply(&crds.join("\n---\n")).await?;
    cluster.wait_for_crds().await?;
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_says_what_the_table_says() -> Result<()> {
    let cluster = cluster().await?;
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
    let cluster = cluster().await?;
    let client = cluster.client().await?;
    let namespaces = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: bare}}\n\
                      ---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}\n\
                      ---\n{apiVersion: v1, kind: Namespace, metadata: {name: bank, labels: {team: bank, tier: gold}}}\n\
                      ---\n{apiVersion: v1, kind: Namespace, metadata: {name: blank, labels: {team: ''}}}\n";
    cluster.apply(namespaces).await?;
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

/// Every value of `value` as a JSON pointer, and how a message names it: `/to/0/audiences` is `to[0].audiences`.
fn fields(value: &Value, pointer: &str, name: &str, found: &mut Vec<(String, String)>) {
    let mut inner = |part: String, name: String, value: &Value| {
        let pointer = format!("{pointer}/{part}");
        found.push((pointer.clone(), name.clone()));
        fields(value, &pointer, &name, found);
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(key, value)| inner(key.clone(), format!("{name}.{key}"), value)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(n, value)| inner(n.to_string(), format!("{name}[{n}]"), value)),
        _ => {}
    }
}

/// What the operator says of a spec that it has from an API server with a definition that refuses nothing.
fn refusal(kind: &str, spec: &Value) -> Option<String> {
    let json = spec.to_string();
    if kind == "IdTokenGrant" {
        return match decode_spec::<IdTokenGrantSpec>(&json, str::to_owned) {
            Ok(spec) => spec_problem(&spec).map(|problem| problem.message),
            Err(error) => Some(error),
        };
    }
    match decode_spec::<IdTokenRequestSpec>(&json, str::to_owned) {
        Ok(spec) => {
            let refused = validate(&IdTokenRequest::new("row", spec)).err();
            refused.map(|error| error.to_string())
        }
        Err(error) => Some(error),
    }
}

/// Specs that together have every field of both kinds, as generators of manifests write them: with null for what is not set.
fn specs_with_nulls() -> Vec<(&'static str, Value)> {
    const ACCOUNT: &str = "caller@p.iam.gserviceaccount.com";
    const PROVIDER: &str =
        "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
    let request = |source: Value| {
        json!({
            "audience": "https://a.run.app", "serviceAccount": ACCOUNT, "includeEmail": true, "includeOrganizationNumber": false,
            "renewBefore": "10m", "suspend": false, "source": source, "target": null,
        })
    };
    let source = |name: &str, value: Value| {
        let mut source =
            json!({"impersonation": null, "federation": null, "metadataServer": null, "developer": null});
        source[name] = value;
        source
    };
    let mut whole = request(source("impersonation", json!({"delegates": [ACCOUNT]})));
    whole["target"] = json!({"name": "a", "key": "k", "creationPolicy": "Owner", "template": {
        "type": "Opaque", "metadata": {"labels": {"a": "b"}, "annotations": {"a": "b"}}, "data": {"z": "y"},
    }});
    let mut bare = request(Value::Null);
    bare["target"] = json!({"name": null, "key": null, "creationPolicy": null, "template": {
        "type": null, "metadata": {"labels": null, "annotations": null}, "data": null,
    }});
    let federation = json!({"serviceAccountRef": {"name": "a"}, "provider": PROVIDER, "tokenAudience": "b"});
    let to = json!([{"serviceAccounts": [ACCOUNT], "audiences": ["a"], "delegates": [ACCOUNT], "sources": ["Developer"]}]);
    let unset =
        json!([{"serviceAccounts": [ACCOUNT], "audiences": ["a"], "delegates": null, "sources": null}]);
    let from = |name: &str, value: Value| {
        let mut from = json!({"namespace": null, "namespaceSelector": null, "allNamespaces": null});
        from[name] = value;
        from
    };
    let selector = json!({
        "matchLabels": {"a": "b"},
        "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}, {"key": "a", "operator": "Exists", "values": null}],
    });
    let labels = json!({"matchLabels": {"a": "b"}, "matchExpressions": null});
    let expressions = json!({"matchLabels": null, "matchExpressions": [{"key": "a", "operator": "Exists"}]});
    let all = from("allNamespaces", json!(true));
    vec![
        ("IdTokenRequest", whole),
        ("IdTokenRequest", bare),
        ("IdTokenRequest", request(source("impersonation", json!({})))),
        ("IdTokenRequest", request(source("federation", federation))),
        (
            "IdTokenRequest",
            request(source("metadataServer", json!({"licenses": true}))),
        ),
        ("IdTokenRequest", request(source("developer", json!({})))),
        (
            "IdTokenGrant",
            json!({"from": [from("namespace", json!("shop")), all], "to": to}),
        ),
        (
            "IdTokenGrant",
            json!({"from": [from("namespaceSelector", selector)], "to": unset}),
        ),
        (
            "IdTokenGrant",
            json!({"from": [from("namespaceSelector", labels)], "to": unset}),
        ),
        (
            "IdTokenGrant",
            json!({"from": [from("namespaceSelector", expressions)], "to": unset}),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn null_is_unset_and_what_is_empty_is_that_or_refused_by_name() -> Result<()> {
    let cluster = cluster().await?;
    let client = cluster.client().await?;
    let requests = ApiResource::erase::<IdTokenRequest>(&());
    let requests: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &requests);
    let grants: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<IdTokenGrant>(&()));
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let mut wrong = Vec::new();
    for (kind, base) in specs_with_nulls() {
        let mut all = Vec::new();
        fields(&base, "", "spec", &mut all);
        let values = [Value::Null, json!(""), json!({}), json!([])];
        let changed = all
            .iter()
            .flat_map(|(pointer, name)| values.iter().map(move |value| (pointer, name, value)));
        let mut tried = vec![("as it is".to_owned(), String::new(), base.clone())];
        for (pointer, name, value) in changed {
            let mut spec = base.clone();
            *spec.pointer_mut(pointer).context("a field")? = value.clone();
            tried.push((format!("{name}: {value}"), name.clone(), spec));
        }
        for (what, name, spec) in tried {
            let object: DynamicObject = serde_json::from_value(json!({
                "apiVersion": "idtoken.dev/v1alpha1", "kind": kind, "metadata": {"name": "row"}, "spec": spec,
            }))?;
            let api = if kind == "IdTokenGrant" {
                &grants
            } else {
                &requests
            };
            let kept = match api.create(&dry, &object).await {
                Ok(object) => Ok(object.data["spec"].clone()),
                Err(kube::Error::Api(status)) if status.code == 422 => Err(status.message),
                Err(error) => return Err(error).context(what),
            };
            wrong.extend(fault(kind, &name, &spec, &kept).map(|fault| format!("{kind} {what}: {fault}")));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// What is wrong with what the API server `kept` of `spec`, or why it refused it, where `name` was changed.
fn fault(kind: &str, name: &str, spec: &Value, kept: &Result<Value, String>) -> Option<String> {
    // Of an entry that has nothing left, the entry is named. That an account is missing may be named where the source is.
    let named = |message: &str| {
        let mut parts = name
            .rsplit_once(['.', '['])
            .into_iter()
            .map(|(parent, _)| parent)
            .chain([name]);
        let parents = parts.any(|part| part != "spec" && message.contains(part));
        parents
            || message.contains("spec.serviceAccount")
            || (name.starts_with("spec.from") && message.contains("spec.from["))
    };
    match (kept, refusal(kind, spec)) {
        (Ok(kept), _) if kept.to_string().contains("null") => Some(format!("null is kept: {kept}")),
        (Ok(kept), _) => refusal(kind, kept)
            .map(|refusal| format!("accepted, and the operator refuses what is kept: {refusal}")),
        // serde reads an empty list as a struct without a field. No API server stores one.
        (Err(_), None) if spec.to_string().contains("[]") => None,
        (Err(message), None) => Some(format!("refused, and the operator accepts it: {message}")),
        (Err(message), Some(refusal)) => [message, &refusal]
            .into_iter()
            .find(|message| !named(message))
            .map(|message| format!("not named: {message}")),
    }
}
