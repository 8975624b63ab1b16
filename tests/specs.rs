//! The API server agrees with the table of specs that the operator's own checks are held against.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use idtoken_operator::api::{crds, v1alpha1::IdTokenRequest};
use idtoken_testenv::{ControlPlane, Options};
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
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
    let established = [
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ];
    cluster.kubectl(established).await?;
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
