//! Decodes IdTokenRequests one by one. An object that this version cannot decode, such as one with an enum value of a newer version's CRD,
//! must not fail the list or the watch that shows it.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use crate::api::v1alpha1::{IdTokenRequest, IdTokenRequestSpec, IdTokenRequestStatus};
use crate::controller::cache::unserved::Unserved;
use crate::kubernetes::partial_metadata::{Metadata, metadata};

/// An IdTokenRequest as a list or watch shows it. kube's `DeserializeGuard` keeps the metadata only. The status is needed too, and the
/// operator may not `get` requests.
#[derive(Clone, Debug)]
pub(super) struct MaybeDecoded(pub(super) Result<IdTokenRequest, Box<Unserved>>);

/// The parts of an IdTokenRequest that are decoded.
#[derive(Deserialize)]
struct WireRequest {
    metadata: Metadata,
    spec: IdTokenRequestSpec,
    #[serde(default)]
    status: Option<IdTokenRequestStatus>,
}

impl<'de> Deserialize<'de> for MaybeDecoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct StatusOnly {
            #[serde(default)]
            status: Option<IdTokenRequestStatus>,
        }
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let error = match serde_json::from_str::<WireRequest>(json.get()) {
            Ok(decoded) => {
                return Ok(Self(Ok(IdTokenRequest {
                    metadata: decoded.metadata.into(),
                    spec: decoded.spec,
                    status: decoded.status,
                })));
            }
            Err(error) => without_position(&error),
        };
        let metadata = metadata(json.get()).map_err(de::Error::custom)?;
        // A status that cannot be decoded either is replaced.
        let decoded: Option<StatusOnly> = serde_json::from_str(json.get()).ok();
        let status = decoded.and_then(|decoded| decoded.status);
        Ok(Self(Err(Box::new(Unserved::undecodable(
            metadata, status, &error,
        )))))
    }
}

/// The position in the JSON is of no use to a user who sees the object as YAML.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&position).unwrap_or(&text).to_owned()
}

impl Resource for MaybeDecoded {
    type DynamicType = ();
    type Scope = <IdTokenRequest as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        IdTokenRequest::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        IdTokenRequest::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        IdTokenRequest::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        IdTokenRequest::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => &object.metadata,
            Err(object) => &object.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => &mut object.metadata,
            Err(object) => &mut object.metadata,
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
        serde_json::from_value(object).unwrap()
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
    fn an_undecodable_status_is_left_out() {
        let object = decode(json!({"audience": 7}), json!({"conditions": "none"}));
        assert_eq!(object.0.unwrap_err().status, None);
    }
}
