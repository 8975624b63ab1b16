//! Objects that this version cannot decode, such as one with an enum value of a newer version's CRD: all others are served on, and the
//! object itself says so.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use crate::api::conditions::reason;
use crate::api::v1alpha1::{IdTokenRequest, IdTokenRequestSpec, IdTokenRequestStatus};
use crate::controller::Context;
use crate::controller::reconcile::outcome::{Failure, Outcome, Reconciled};
use crate::controller::reconcile::{event, status};
use crate::kubernetes::error::problem;
use crate::kubernetes::partial_metadata::{Metadata, metadata};
use crate::kubernetes::status as status_api;
use crate::text::redacted;

/// An IdTokenRequest as a list or watch shows it. kube's `DeserializeGuard` keeps the metadata only: the status is needed too, and the
/// operator may not `get` requests.
#[derive(Clone, Debug)]
pub(crate) struct Shown(pub(crate) Result<IdTokenRequest, Box<Unreadable>>);

/// An IdTokenRequest that cannot be decoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unreadable {
    pub(crate) metadata: ObjectMeta,
    status: Option<IdTokenRequestStatus>,
    error: String,
}

/// What is read of an IdTokenRequest.
#[derive(Deserialize)]
struct Readable {
    metadata: Metadata,
    spec: IdTokenRequestSpec,
    #[serde(default)]
    status: Option<IdTokenRequestStatus>,
}

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Told {
            #[serde(default)]
            status: Option<IdTokenRequestStatus>,
        }
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let error = match serde_json::from_str::<Readable>(json.get()) {
            Ok(read) => {
                return Ok(Self(Ok(IdTokenRequest {
                    metadata: read.metadata.into(),
                    spec: read.spec,
                    status: read.status,
                })));
            }
            // Where it is in the text helps nobody who sees the object as YAML.
            Err(error) => without_position(&error),
        };
        let metadata = metadata(json.get()).map_err(de::Error::custom)?;
        // A status that cannot be read either is written anew.
        let told: Option<Told> = serde_json::from_str(json.get()).ok();
        Ok(Self(Err(Box::new(Unreadable {
            metadata,
            status: told.and_then(|told| told.status),
            error,
        }))))
    }
}

fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&position).unwrap_or(&text).to_owned()
}

impl Resource for Shown {
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

/// The status that says so. What the Secret holds is not known to suit a spec that cannot be read, so Ready is False.
fn told(object: &Unreadable, now: Timestamp) -> IdTokenRequestStatus {
    let message = format!(
        "this version of the operator cannot read the object, so it does nothing for it: {}; upgrade the operator, or use \
         what its own CRD allows",
        redacted(&object.error, 400)
    );
    let failure = Failure {
        reason: reason::INVALID_SPEC,
        message,
        stalled: true,
        ..Failure::default()
    };
    let reconciled = Reconciled {
        outcome: Outcome::Failed(failure),
        source: None,
        grant: None,
        handled_renew: None,
    };
    let previous = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    status::next(&previous, generation, &reconciled, now)
}

/// Writes the status of `object`, where it does not say so already, and the event.
pub(crate) async fn tell(ctx: Arc<Context>, object: Box<Unreadable>) {
    let (namespace, name) = (
        object.metadata.namespace.clone().unwrap_or_default(),
        object.metadata.name.clone().unwrap_or_default(),
    );
    tracing::warn!(
        namespace,
        name,
        source = "Unknown",
        reason = reason::INVALID_SPEC,
        "an IdTokenRequest cannot be read: {}",
        redacted(&object.error, 400)
    );
    let previous = object.status.clone().unwrap_or_default();
    let next = told(&object, Timestamp::now());
    let version = object.metadata.resource_version.clone().unwrap_or_default();
    let written = match status_api::write(&ctx.client, &object.metadata, &version, &previous, &next).await {
        Ok(written) => written,
        Err(fault) => {
            tracing::warn!(namespace, name, "the status was not written: {fault}");
            return;
        }
    };
    if written.is_some()
        && let Some(event) = event::between(&previous, &next)
        && let Err(error) = ctx
            .events
            .publish(&event, &Shown(Err(object)).object_ref(&()))
            .await
    {
        tracing::debug!(namespace, name, "the event was not written: {}", problem(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn shown(spec: Value, status: Value) -> Shown {
        let object = json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "billing", "namespace": "shop", "generation": 3}, "spec": spec, "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn what_cannot_be_read_is_told_and_told_once() {
        let newer = json!({"audience": "a", "target": {"creationPolicy": "Merge"}});
        let object = shown(newer.clone(), json!({"observedGeneration": -1}))
            .0
            .unwrap_err();
        let status = told(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(status.observed_generation, Some(3));
        for type_ in ["Ready", "Stalled"] {
            let found = status.conditions.iter().find(|c| c.type_ == type_).unwrap();
            assert_eq!(found.reason, reason::INVALID_SPEC);
            assert!(found.message.contains("Merge"), "{}", found.message);
        }
        let again = shown(newer, serde_json::to_value(&status).unwrap())
            .0
            .unwrap_err();
        assert_eq!(told(&again, Timestamp::MAX), status);
    }

    #[test]
    fn what_can_be_read_is_and_a_strange_status_is_no_obstacle() {
        assert!(shown(json!({"audience": "a"}), Value::Null).0.is_ok());
        assert!(
            shown(json!({"audience": 7}), json!({"conditions": "none"}))
                .0
                .is_err()
        );
    }
}
