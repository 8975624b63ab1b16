//! The Kubernetes API of the operator: the kinds, their conditions, labels and annotations.
//!
//! Imports no other module. Never calls an API and never decides: [`crate::request`] checks a spec, and [`crate::controller`] acts on it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::json;

/// Passes the API group of both kinds on to another macro: `concat!` and the derive of a kind take no constant. This is its only place; the
/// chart has it in `_helpers.tpl`.
#[macro_export]
macro_rules! with_group {
    ($then:ident! { $($rest:tt)* }) => {
        $then! { "idtoken.dev" $($rest)* }
    };
}
pub use with_group;

/// The API group with what follows it, as a literal.
#[macro_export]
macro_rules! group {
    ($($after:literal)?) => {
        $crate::api::with_group!(concat! { $(, $after)? })
    };
}
pub use group;

/// Makes a kind of a spec.
macro_rules! kind {
    ($group:literal #[kube($($kube:tt)*)] $($spec:tt)*) => {
        #[derive(kube::CustomResource)]
        #[kube(group = $group, version = "v1alpha1", $($kube)*)]
        $($spec)*
    };
}

pub mod conditions;
mod decode;
mod grant;
mod object_key;
mod request;
mod request_status;

/// The served version of both kinds.
pub mod v1alpha1 {
    pub use super::grant::*;
    pub use super::request::*;
    pub use super::request_status::*;
}

pub use decode::decode_spec;
pub use object_key::{ObjectKey, is_in_scope};

/// The API group of both kinds.
pub const GROUP: &str = group!();

/// The field manager of every write, as `managedFields` shows it.
pub const FIELD_MANAGER: &str = "idtoken-operator";

/// `status.observedGeneration` before the operator has seen a request: the default in the CRD.
pub const UNOBSERVED: i64 = -1;

/// Label on each Secret of ours; the watch of Secrets selects by it.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "idtoken-operator";

/// Label on the Secrets of a shard that selects requests by labels: the name of the shard, so that each shard watches only its own.
pub const LABEL_SHARD: &str = group!("/shard");
/// Annotation of a Lease: which requests its release reconciles.
pub const ANNOTATION_SCOPE: &str = group!("/scope");

/// Prefix that no label or annotation of a template may have.
pub const RESERVED_PREFIX: &str = group!("/");
/// Recommended prefix of the namespace labels that a grant selects.
pub const GRANT_LABEL_PREFIX: &str = concat!("grants.", group!("/"));

/// Annotations and labels of ours.
pub mod annotations {
    /// On a Secret: name of the IdTokenRequest that owns it.
    pub const REQUEST: &str = group!("/request");
    /// On a Secret: UID of the IdTokenRequest that wrote it.
    pub const REQUEST_UID: &str = group!("/request-uid");
    /// On a Secret: versioned hash of all inputs of the token.
    pub const TOKEN_HASH: &str = group!("/token-hash");
    /// On a Secret: versioned hash of all inputs of the Secret's content besides the token.
    pub const RENDER_HASH: &str = group!("/render-hash");
    /// On a Secret: the token's `iat`, RFC 3339.
    pub const ISSUED: &str = group!("/issue-time");
    /// On a Secret: the token's `exp`, RFC 3339.
    pub const EXPIRES: &str = group!("/expiration-time");
    /// On a Secret: fingerprint of the token, which shows whether another client changed it.
    pub const DIGEST: &str = group!("/token-digest");
    /// On a Secret: when the token is renewed, RFC 3339.
    pub const RENEWS: &str = group!("/renewal-time");
    /// On a Secret: comma-separated names of the keys, labels and annotations that we wrote, so that those which the template no longer has
    /// can be removed.
    pub const OWNED: &str = group!("/owned-fields");
    /// On a Secret: the Secret was adopted, and stays when its request is deleted.
    pub const ADOPTED: &str = group!("/adopted");
    /// On a Secret: hash of the last handled value of [`RENEW`].
    pub const HANDLED_RENEW: &str = group!("/handled-renew-request");
    /// On an IdTokenRequest, by its author: any new value requests a new token now.
    pub const RENEW: &str = group!("/renew");
    /// On an IdTokenRequest, by its author: the unique ID of the account that now has the e-mail of the former one. Its tokens are accepted from
    /// now on; once for each value.
    pub const ACCEPT_SUBJECT: &str = group!("/accept-subject");
    /// On a Kubernetes ServiceAccount: the Google service account that it acts as on GKE
    /// (<https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity>).
    pub const GCP_SERVICE_ACCOUNT: &str = "iam.gke.io/gcp-service-account";
    /// On a foreign Secret, by its owner: the IdTokenRequest that may adopt it.
    pub const ADOPT: &str = group!("/adopt");
}

/// Both CustomResourceDefinitions, as in `crds/` and as `idtoken-operator crds` prints them.
///
/// The status default makes kstatus read a new object as InProgress before the operator has seen it
/// (<https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md>).
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![v1alpha1::IdTokenRequest::crd(), v1alpha1::IdTokenGrant::crd()];
    for version in crds.iter_mut().flat_map(|crd| &mut crd.spec.versions) {
        let schema = version.schema.as_mut();
        if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            take_null_for_unset(schema);
        }
    }
    crds.iter_mut().take(1).for_each(default_status);
    crds
}

/// The API server removes an explicit null, which generators of manifests send for what is not set, before it validates a field that is not
/// nullable (<https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#defaulting-and-nullable>).
/// In one that is, null is a value: it counts as a property, is none of an enum, and fails expressions of admission policies.
fn take_null_for_unset(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    let properties = schema.properties.as_mut();
    properties
        .into_iter()
        .flat_map(|all| all.values_mut())
        .for_each(take_null_for_unset);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        take_null_for_unset(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        // A value of a map has no absence to mean: where it is nullable, a rule refuses null.
        let nullable = values.nullable;
        take_null_for_unset(values);
        values.nullable = nullable;
    }
}

fn default_status(crd: &mut CustomResourceDefinition) {
    for version in &mut crd.spec.versions {
        let status = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
            .and_then(|schema| schema.properties.as_mut())
            .and_then(|properties| properties.get_mut("status"));
        if let Some(status) = status {
            status.default = Some(JSON(json!({"observedGeneration": UNOBSERVED})));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_request_reads_in_progress() {
        let request = serde_json::to_value(&crds()[0]).unwrap();
        let default =
            &request["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["default"];
        assert_eq!(default, &json!({"observedGeneration": -1}));
    }

    #[test]
    fn every_field_is_described_and_no_spec_has_a_default() {
        fn walk(path: &str, schema: &serde_json::Value, faults: &mut Vec<String>) {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{name}");
                if property["description"].as_str().is_none_or(str::is_empty) {
                    faults.push(format!("{path} has no description"));
                }
                if property.get("nullable").is_some() {
                    faults.push(format!("{path} takes null for a value"));
                }
                if property.get("default").is_some() && path != ".status" {
                    faults.push(format!("{path} has a default"));
                }
                let bounded = ["maxLength", "enum", "format"]
                    .iter()
                    .any(|bound| !property[bound].is_null());
                if property["type"] == "string" && !bounded && path.starts_with(".spec") {
                    faults.push(format!("{path} has no maxLength"));
                }
                walk(&path, property, faults);
                walk(&format!("{path}[]"), &property["items"], faults);
            }
        }
        for crd in crds() {
            let crd = serde_json::to_value(&crd).unwrap();
            let mut faults = Vec::new();
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            for part in ["spec", "status"] {
                walk(&format!(".{part}"), &schema["properties"][part], &mut faults);
            }
            assert_eq!(faults, Vec::<String>::new());
        }
    }
}
