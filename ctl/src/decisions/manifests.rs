//! Pure: the text of manifests → the requests, grants and labels of namespaces in them, as a cluster would have them.

use std::collections::BTreeMap;

use idtoken_operator::api::RESERVED_PREFIX;
use idtoken_operator::api::v1alpha1::{GrantRef, IdTokenGrantSpec, IdTokenRequest};
use idtoken_operator::grants::index::Grant;
use idtoken_operator::text::error_chain;
use k8s_openapi::api::core::v1::ConfigMap;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::decisions::grant_sets;
use crate::output::redacted;

/// How deep a List may hold Lists.
const MAX_LISTS: usize = 4;

/// Why manifests cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ManifestsError {
    /// Not YAML and not JSON.
    #[error("it is neither YAML nor JSON: {0}")]
    Syntax(String),
    /// An object of ours without the form of its kind. What is left out could change the verdict.
    #[error("{kind} {name}: {problem}")]
    Object {
        kind: &'static str,
        name: String,
        problem: String,
    },
}

/// What is read of manifests.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    pub(crate) requests: Vec<IdTokenRequest>,
    pub(crate) grants: Vec<Grant>,
    /// Labels by the name of the namespace.
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Those with the grants of the chart's values.
    pub(crate) config_maps: Vec<ConfigMap>,
}

impl Manifests {
    /// Adds the objects of one file. Those of other kinds are ignored.
    ///
    /// # Errors
    /// [`ManifestsError`]. The text is quoted nowhere but in the names of fields.
    pub(crate) fn add(&mut self, text: &str) -> Result<(), ManifestsError> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text)
            .map_err(|error| ManifestsError::Syntax(redacted(&error_chain(&error))))?;
        for document in documents {
            self.add_object(document, 0)?;
        }
        Ok(())
    }

    /// The labels of a namespace. Kubernetes itself sets one, so a namespace without a manifest has unknown labels.
    pub(crate) fn labels(&self, namespace: &str) -> Option<BTreeMap<String, String>> {
        let mut labels = self.namespaces.get(namespace)?.clone();
        labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
        Some(labels)
    }

    fn add_object(&mut self, mut object: Value, depth: usize) -> Result<(), ManifestsError> {
        let field = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
        let (api, kind) = (field("apiVersion"), field("kind"));
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let ours = api.starts_with(RESERVED_PREFIX);
        match kind.as_str() {
            "IdTokenRequest" if ours => self.requests.push(decode("IdTokenRequest", &name, object)?),
            "IdTokenGrant" if ours => {
                let spec: IdTokenGrantSpec = decode("IdTokenGrant", &name, object["spec"].take())?;
                self.grants.push(Grant {
                    id: GrantRef { name, uid: None },
                    spec: spec.into(),
                });
            }
            "Namespace" if api == "v1" => {
                #[derive(Deserialize)]
                struct Labels(Option<BTreeMap<String, String>>);
                let labels: Labels = decode("Namespace", &name, object["metadata"]["labels"].clone())?;
                self.namespaces.insert(name, labels.0.unwrap_or_default());
            }
            "ConfigMap" if api == "v1" => {
                let (key, value) = grant_sets::LABEL.split_once('=').unwrap_or_default();
                if object["metadata"]["labels"][key] == value {
                    self.config_maps.push(decode("ConfigMap", &name, object)?);
                }
            }
            "List" | "IdTokenRequestList" | "IdTokenGrantList" if depth >= MAX_LISTS => {
                return Err(ManifestsError::Object {
                    kind: "List",
                    name: redacted(&name),
                    problem: format!("more than {MAX_LISTS} Lists in each other"),
                });
            }
            "List" | "IdTokenRequestList" | "IdTokenGrantList" => {
                if let Value::Array(items) = object["items"].take() {
                    for item in items {
                        self.add_object(item, depth + 1)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn decode<T: serde::de::DeserializeOwned>(
    kind: &'static str,
    name: &str,
    object: Value,
) -> Result<T, ManifestsError> {
    serde_json::from_value(object).map_err(|error| ManifestsError::Object {
        kind,
        name: redacted(name),
        problem: redacted(&error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "apiVersion: idtoken.dev/v1alpha1\nkind: IdTokenRequest\nmetadata: {name: billing, namespace: shop}\n\
                           spec: {audience: https://a, serviceAccount: '1'}\n";

    #[test]
    fn objects_of_ours_are_read_and_others_are_ignored() {
        let mut found = Manifests::default();
        found
            .add(&format!(
                "{REQUEST}---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{team: a}}}}}}\n---\n\
                 {{apiVersion: v1, kind: Namespace, metadata: {{name: plain}}}}\n---\n\
                 {{apiVersion: apps/v1, kind: Deployment, metadata: {{name: x}}, spec: 7}}\n---\n# nothing\n---\n\
                 {{apiVersion: other.example/v1, kind: IdTokenGrant, metadata: {{name: foreign}}}}"
            ))
            .unwrap();
        found
            .add(
                r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant",
                "metadata": {"name": "g"}, "spec": {"from": [{"namespace": "shop"}], "to": []}}]}"#,
            )
            .unwrap();
        assert_eq!((found.requests.len(), found.grants.len()), (1, 1));
        assert_eq!(found.grants[0].id.name, "g");
        let labels = found.labels("shop").unwrap();
        assert_eq!(
            (
                labels["team"].as_str(),
                labels["kubernetes.io/metadata.name"].as_str()
            ),
            ("a", "shop")
        );
        assert_eq!(found.labels("plain").unwrap().len(), 1);
        assert_eq!(found.labels("elsewhere"), None);
    }

    #[test]
    fn a_config_map_counts_by_its_label() {
        let map = |label: &str| {
            format!(
                "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: g, labels: {{{label}}}}}, data: {{grants.yaml: '[]'}}}}"
            )
        };
        let mut found = Manifests::default();
        found.add(&map("idtoken.dev/config: grants")).unwrap();
        found.add(&map("idtoken.dev/config: other")).unwrap();
        assert_eq!(found.config_maps.len(), 1);
    }

    #[test]
    fn what_could_change_the_verdict_is_an_error() {
        let add = |text: &str| Manifests::default().add(text).unwrap_err().to_string();
        let error = add(
            "{apiVersion: idtoken.dev/v1alpha1, kind: IdTokenGrant, metadata: {name: g}, \
             spec: {from: [{cluster: shop}], to: []}}",
        );
        assert!(
            error.contains("IdTokenGrant g: unknown field `cluster`"),
            "{error}"
        );
        assert!(add("{{ .Values.name }}: [").starts_with("it is neither YAML nor JSON"));
        let error = add(&REQUEST.replace("https://a", "[]"));
        assert!(error.starts_with("IdTokenRequest billing: "), "{error}");
        let nested = (0..=MAX_LISTS).fold(REQUEST.to_owned(), |inner, _| {
            let items: Value = serde_saphyr::from_str(&inner).unwrap();
            serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [items]}).to_string()
        });
        assert!(add(&nested).contains("Lists in each other"));
    }

    #[test]
    fn metadata_that_is_no_object_is_no_reason_to_panic() {
        for metadata in ["foo", "[]", "[a]", "7", "null"] {
            let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {metadata}}}");
            let _ = Manifests::default().add(&namespace);
        }
    }
}
