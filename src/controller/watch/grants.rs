//! The watch of IdTokenGrants.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::decode_spec;
use crate::api::v1alpha1::{GrantRef, IdTokenGrant};
use crate::controller::watch::context::{WatchContext, collection};
use crate::controller::watch::stream::{self, Event, Watched};
use crate::controller::watch::sync_state::CacheKind;
use crate::grants::object::{GrantObject, GrantProblem};
use crate::grants::store::WatchKind;
use crate::metrics::GrantOrigin;

impl Watched for GrantObject {
    const RESOURCE: &'static str = "idtokengrants";

    /// Spec and status are decoded one by one: a grant that cannot be decoded has a status too.
    fn decode(json: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct WireGrant<'a> {
            metadata: WireMetadata,
            #[serde(borrow, default)]
            spec: Option<&'a RawValue>,
            #[serde(borrow, default)]
            status: Option<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct WireMetadata {
            name: String,
            uid: Option<String>,
            generation: Option<i64>,
        }
        let WireGrant {
            metadata,
            spec,
            status,
        } = serde_json::from_str(json)?;
        // A status that cannot be decoded is written again.
        let status = status.and_then(|status| serde_json::from_str(status.get()).ok());
        let id = GrantRef {
            name: metadata.name,
            uid: metadata.uid,
        };
        let spec = decode_spec(spec.map_or("null", RawValue::get), without_values);
        Ok(Self::new(
            id,
            metadata.generation,
            spec,
            status.unwrap_or_default(),
        ))
    }
}

/// Watches all IdTokenGrants.
pub(super) async fn watch(ctx: WatchContext) {
    let grants = &ctx.grants;
    let mut listed = Vec::new();
    // A grant of which only the status changed was reported before.
    let report_new = |object: &GrantObject| {
        if !grants.has(object) {
            report(&object.id, object.problem());
        }
    };
    let on_event = |event: Event<GrantObject>| {
        let changed = match event {
            Event::ListBegins => return listed = Vec::new(),
            Event::Listed(object) => return listed.push(object),
            Event::WatchBegins | Event::Lost | Event::Refused(_) => return,
            Event::ListEnds => {
                listed.iter().for_each(report_new);
                grants.set_objects(std::mem::take(&mut listed));
                true
            }
            // False if only the status changed, which the operator writes itself.
            Event::Applied(object) => {
                report_new(&object);
                grants.apply(object)
            }
            Event::Deleted(object) => {
                grants.delete(&object.id.name);
                true
            }
            Event::Bookmark => false,
        };
        grants.record_heartbeat(WatchKind::Grants, ctx.clock.now());
        if changed {
            ctx.metrics.set_grants(GrantOrigin::Object, grants.object_count());
        }
        ctx.mark_synced(CacheKind::Grants);
        if changed {
            ctx.enqueuer.all();
        }
    };
    stream::watch(&ctx, &collection::<IdTokenGrant>(""), on_event).await;
}

/// Logs what is wrong with a grant, if anything is.
pub(super) fn report(id: &GrantRef, problem: Option<&GrantProblem>) {
    if let Some(GrantProblem { reason, message }) = problem {
        tracing::error!(name = id.name, reason, "invalid grant: {message}");
    }
}

/// The text of a decoding error without a value that it quotes. It names the field.
fn without_values(error: &str) -> String {
    let Some((before, quoted)) = error.split_once(": string \"") else {
        return error.to_owned();
    };
    let mut is_escaped = false;
    let end = quoted.find(|next| {
        let is_end = next == '"' && !is_escaped;
        is_escaped = next == '\\' && !is_escaped;
        is_end
    });
    // Without an end, the text was cut within the value.
    let after = end.map_or("", |end| &quoted[end + 1..]);
    format!("{before}: a string{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_shown_however_long_it_is() {
        let long = |part: &str| part.repeat(5000 / part.len());
        for value in [
            long("hunter2"),
            // The part that is cut off has the closing quote, and the rest has other quotes.
            long("hunter2\""),
            format!("{}\"{}", "h".repeat(4000), long("hunter2")),
            "hunter2\" hunter2".to_owned(),
        ] {
            let json = serde_json::json!({"metadata": {"name": "shop"}, "spec": {"from": value}});
            let found = GrantObject::decode(&json.to_string()).unwrap();
            let error = found.spec.unwrap_err();
            assert!(
                error.starts_with("spec.from: invalid type: a string") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_grant_that_cannot_be_decoded_is_named_with_the_field_and_without_the_value() {
        for (spec, expected) in [
            (r#"{"from": "hunter2"}"#, "a string, expected a sequence"),
            (r#"{"form": []}"#, "unknown field `form`"),
            ("7", "invalid type: integer `7`"),
        ] {
            let json = format!(r#"{{"metadata": {{"name": "shop", "managedFields": 7}}, "spec": {spec}}}"#);
            let found = GrantObject::decode(&json).unwrap();
            assert_eq!(found.id.name, "shop");
            let message = found.problem().unwrap().message.clone();
            assert!(
                message.contains(expected) && !message.contains("hunter2"),
                "{message}"
            );
        }
        let absent = GrantObject::decode(r#"{"metadata": {"name": "shop"}}"#).unwrap();
        assert!(absent.problem().is_some());
    }
}
