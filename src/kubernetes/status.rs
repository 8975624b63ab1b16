//! Writes the status of an IdTokenRequest.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request as ApiRequest;
use kube::core::request::Error as BuildError;
use kube::{Client, Resource};
use serde::Serialize;
use serde_json::{Map, Value};

use super::answer::text;
use super::error::{KubeError, status_code};
use super::partial_metadata::{for_metadata, metadata};
use crate::api::v1alpha1::{IdTokenRequest, IdTokenRequestStatus};
use crate::api::{FIELD_MANAGER, UNOBSERVED};

/// The merge patch (RFC 7396) that turns `old` into `new`; none where they are equal.
pub fn merge_patch(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for (key, value) in new {
                if let Some(change) = merge_patch(old.get(key).unwrap_or(&Value::Null), value) {
                    patch.insert(key.clone(), change);
                }
            }
            patch.extend(
                old.keys()
                    .filter(|key| !new.contains_key(*key))
                    .map(|key| (key.clone(), Value::Null)),
            );
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (old, new) => (old != new).then(|| new.clone()),
    }
}

/// The patch of a status.
#[derive(Serialize)]
struct StatusPatch<'a> {
    metadata: Precondition<'a>,
    status: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Precondition<'a> {
    resource_version: &'a str,
}

/// The patch that turns `previous` into `next`; none if there is no difference in JSON.
fn status_diff(previous: &IdTokenRequestStatus, next: &IdTokenRequestStatus) -> Option<Value> {
    if previous == next {
        return None;
    }
    let json = |status| serde_json::to_value(status).unwrap_or_default();
    merge_patch(&json(previous), &json(next))
}

/// The request as the API server reads it when its status is replaced. Of the rest it reads these fields only
/// (<https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#status-subresource>).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusPut<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: ObjectId<'a>,
    status: &'a IdTokenRequestStatus,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectId<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
    resource_version: &'a str,
}

/// Writes the status if it changed, on the request as of `resource_version`: the API server ignores a UID in a patch of a status, so a
/// patch without a resourceVersion could hit another request of the same name. Returns the request's resourceVersion after the write; none
/// if nothing changed or the request is gone.
///
/// The first status replaces the one that the API server put there itself, which costs it less than a patch. All others are patches, so
/// that the fields of a newer version stay.
///
/// # Errors
/// The request changed meanwhile, or the API server rejected the call or did not answer.
pub async fn write(
    client: &Client,
    meta: &ObjectMeta,
    resource_version: &str,
    previous: &IdTokenRequestStatus,
    next: &IdTokenRequestStatus,
) -> Result<Option<String>, KubeError> {
    let [namespace, name, uid] =
        [&meta.namespace, &meta.name, &meta.uid].map(|text| text.as_deref().unwrap_or_default());
    let calls = ApiRequest::new(IdTokenRequest::url_path(&(), Some(namespace)));
    let (verb, call) = if previous.observed_generation == Some(UNOBSERVED) {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        let metadata = ObjectId {
            namespace,
            name,
            uid,
            resource_version,
        };
        let body = serde_json::to_vec(&StatusPut {
            api_version: &IdTokenRequest::api_version(&()),
            kind: &IdTokenRequest::kind(&()),
            metadata,
            status: next,
        });
        let call = body
            .map_err(BuildError::SerializeBody)
            .and_then(|body| calls.replace_subresource("status", name, &params, body));
        ("update", call)
    } else {
        let Some(status) = status_diff(previous, next) else {
            return Ok(None);
        };
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(StatusPatch {
            metadata: Precondition { resource_version },
            status,
        });
        ("patch", calls.patch_subresource("status", name, &params, &patch))
    };
    let failed = |error: &kube::Error| KubeError::new(verb, "idtokenrequests/status", namespace, error);
    let mut call = call.map_err(|error| failed(&kube::Error::BuildRequest(error)))?;
    for_metadata(&mut call);
    match text(client, call).await {
        Ok(json) => match metadata(&json) {
            Ok(written) => Ok(written.resource_version),
            Err(error) => Err(failed(&kube::Error::SerdeError(error))),
        },
        Err(error) if status_code(&error) == Some(404) => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::apply;

    /// JSON without null, which no status holds and a merge patch cannot write.
    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..5_i64).prop_map(Value::from),
            "[ab]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_merge_patch_turns_old_into_new(old in document(), new in document()) {
            match merge_patch(&old, &new) {
                None => prop_assert_eq!(old, new),
                Some(patch) => {
                    prop_assert_ne!(&old, &new);
                    let mut patched = old;
                    apply(&mut patched, &patch);
                    prop_assert_eq!(patched, new);
                }
            }
        }

        #[test]
        fn a_merge_patch_of_equals_is_none(value in document()) {
            prop_assert_eq!(merge_patch(&value, &value), None);
        }
    }
}
