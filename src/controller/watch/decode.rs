//! Decodes IdTokenRequests. An object that this version cannot decode, such as one with an enum value of a newer version's CRD,
//! must not fail the list or the watch that shows it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::decode_spec;
use crate::api::v1alpha1::IdTokenRequest;
use crate::controller::cache::unserved::Unserved;
use crate::controller::watch::stream::Watched;
use crate::kubernetes::partial_metadata::Metadata;

/// An IdTokenRequest as a list or watch shows it. Without its spec the metadata and the status are needed too: the operator may not `get`
/// requests.
#[derive(Clone, Debug)]
pub(super) struct MaybeDecoded(pub(super) Result<IdTokenRequest, Box<Unserved>>);

/// The parts of an IdTokenRequest, each of which is decoded by itself, and once.
#[derive(Deserialize)]
struct WireRequest<'a> {
    metadata: Metadata,
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
}

impl Watched for MaybeDecoded {
    const RESOURCE: &'static str = "idtokenrequests";

    fn decode(json: &str) -> Result<Self, serde_json::Error> {
        let wire: WireRequest<'_> = serde_json::from_str(json)?;
        let metadata = wire.metadata.into();
        // A status that cannot be decoded is replaced.
        let status = wire
            .status
            .and_then(|status| serde_json::from_str(status.get()).ok());
        Ok(Self(
            match decode_spec(wire.spec.map_or("null", RawValue::get), str::to_owned) {
                Ok(spec) => Ok(IdTokenRequest {
                    metadata,
                    spec,
                    status,
                }),
                Err(error) => Err(Box::new(Unserved::undecodable(metadata, status, &error))),
            },
        ))
    }

    fn resource_version(&self) -> Option<&str> {
        self.meta().resource_version.as_deref()
    }
}

impl MaybeDecoded {
    /// Its metadata.
    pub(super) fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => &object.metadata,
            Err(object) => &object.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn decode(spec: Value, status: Value) -> MaybeDecoded {
        let object = json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "billing", "namespace": "shop", "generation": 3}, "spec": spec, "status": status,
        });
        MaybeDecoded::decode(&object.to_string()).unwrap()
    }

    #[test]
    fn what_can_be_decoded_is_decoded() {
        assert!(decode(json!({"audience": "a"}), Value::Null).0.is_ok());
    }

    #[test]
    fn an_undecodable_spec_costs_neither_metadata_nor_status() {
        let newer = json!({"audience": "a", "target": {"creationPolicy": "Merge"}});
        let object = decode(newer, json!({"observedGeneration": 2})).0.unwrap_err();
        assert_eq!(object.metadata.name.as_deref(), Some("billing"));
        assert_eq!(object.status.as_ref().unwrap().observed_generation, Some(2));
        let error = object.error.to_string();
        assert!(error.contains("Merge") && !error.contains(" at line "), "{error}");
    }

    #[test]
    fn an_undecodable_status_is_dropped() {
        let object = decode(json!({"audience": 7}), json!({"conditions": "none"}));
        assert_eq!(object.0.unwrap_err().status, None);
        // It was written by the operator, so the spec counts without it.
        let object = decode(json!({"audience": "a"}), json!({"conditions": "none"}));
        assert_eq!(object.0.unwrap().status, None);
    }

    #[test]
    fn what_other_clients_put_beside_the_spec_is_never_decoded() {
        let json = r#"{"metadata": {"name": "billing", "managedFields": [{"time": "9999-12-31T23:59:59Z"}], "finalizers": 7},
            "spec": {"audience": "a"}, "other": 7}"#;
        assert!(MaybeDecoded::decode(json).unwrap().0.is_ok());
        let error = MaybeDecoded::decode(r#"{"metadata": {"name": "billing"}}"#)
            .unwrap()
            .0
            .unwrap_err();
        assert!(error.error.to_string().contains("null"), "{}", error.error);
    }
}
