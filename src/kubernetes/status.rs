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

/// The merge patch that turns `previous` into `next`; none if there is no difference in JSON. Only fields that differ are serialized.
pub fn status_patch(previous: &IdTokenRequestStatus, next: &IdTokenRequestStatus) -> Option<Value> {
    // Without `..`, so that no field is forgotten.
    let IdTokenRequestStatus {
        observed_generation,
        conditions,
        source,
        secret,
        token,
        renewal_time,
        last_handled_renew_request,
        grant,
    } = next;
    let fields = [
        (
            "observedGeneration",
            change(&previous.observed_generation, observed_generation),
        ),
        ("conditions", change(&previous.conditions, conditions)),
        ("source", change(&previous.source, source)),
        ("secret", change(&previous.secret, secret)),
        ("token", change(&previous.token, token)),
        ("renewalTime", change(&previous.renewal_time, renewal_time)),
        (
            "lastHandledRenewRequest",
            change(&previous.last_handled_renew_request, last_handled_renew_request),
        ),
        ("grant", change(&previous.grant, grant)),
    ];
    let changes = fields
        .into_iter()
        .filter_map(|(name, change)| Some((name.to_owned(), change?)));
    let patch: Map<_, _> = changes.collect();
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn change<T: PartialEq + Serialize>(old: &T, new: &T) -> Option<Value> {
    if old == new {
        return None;
    }
    let json = |value| serde_json::to_value(value).unwrap_or_default();
    merge_patch(&json(old), &json(new))
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
        let Some(status) = status_patch(previous, next) else {
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
    use serde_json::json;

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

    #[test]
    fn the_patch_of_a_status_is_the_merge_patch_of_its_json() {
        let empty = json!({});
        let full = json!({
            "observedGeneration": 1, "source": "Impersonation", "renewalTime": "2026-01-01T00:40:00Z", "lastHandledRenewRequest": "a",
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Issued", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "secret": {"name": "s", "uid": "u", "resourceVersion": "1"},
            "token": {"audience": "a", "digest": "d", "issueTime": "2026-01-01T00:00:00Z", "expirationTime": "2026-01-01T01:00:00Z"},
            "grant": {"name": "g", "uid": "u"},
        });
        let mut others: Vec<Value> = Vec::new();
        for (name, value) in full.as_object().unwrap() {
            let mut without = full.clone();
            without.as_object_mut().unwrap().remove(name);
            others.push(without);
            others.push(json!({ name: value }));
        }
        let mut renewed = full.clone();
        renewed["token"]["digest"] = json!("e");
        renewed["secret"]["resourceVersion"] = json!("2");
        others.extend([empty, renewed, full.clone()]);
        for (old, new) in others.iter().flat_map(|other| [(&full, other), (other, &full)]) {
            let status = |json: &Value| serde_json::from_value(json.clone()).unwrap();
            let mut patched = old.clone();
            match status_patch(&status(old), &status(new)) {
                Some(patch) => apply(&mut patched, &patch),
                None => assert_eq!(old, new),
            }
            let (patched, new): (IdTokenRequestStatus, _) = (status(&patched), status(new));
            assert_eq!(patched, new);
        }
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
