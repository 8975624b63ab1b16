//! Pure: token + template → the Secret, its patch, and what of it differs from one that was read.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

use super::hash;
use super::observe::Content;
use super::plan::renewal;
use super::template::{MAX_TOTAL, TemplateError, Values};
use super::validate::Request;
use crate::api::v1alpha1::CreationPolicy;
use crate::api::{GROUP, LABEL_MANAGED_BY, MANAGED_BY, annotations, conditions::reason};
use crate::token::IdToken;

/// Why nothing can be rendered. Never holds a substituted value.
#[derive(Debug, Error)]
pub enum RenderError {
    /// A template that cannot be expanded.
    #[error("spec.target.template.data[{key}]: {source}")]
    Template {
        /// Key of the Secret.
        key: String,
        /// What is wrong.
        source: TemplateError,
    },
    /// All values together are too large.
    #[error("spec.target.template.data: the Secret would have {size} bytes, more than {MAX_TOTAL}")]
    TooLarge {
        /// Bytes of all values.
        size: usize,
    },
}

impl RenderError {
    /// Reason of the condition, the event and the metric.
    pub fn reason(&self) -> &'static str {
        reason::INVALID_SPEC
    }
}

/// All that the operator writes on the Secret.
pub struct Rendered {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    data: BTreeMap<String, Zeroizing<Vec<u8>>>,
    type_: String,
    owner: Option<Value>,
    uid: String,
    handled_renew: Option<String>,
}

/// How the annotation on a Secret names a value of the annotation that asks for a renewal: by its hash, since a value can be too long.
pub fn hash_of_renewal(value: &str) -> String {
    hash::versioned("v1", &[value.to_owned()])
}

/// Renders the Secret that holds `token`.
///
/// # Errors
/// A template that cannot be expanded, or too large a result.
pub fn render(request: &Request, token: &IdToken) -> Result<Rendered, RenderError> {
    let claims = token.claims();
    let target = &request.target;
    let expiration_time = claims.exp.to_string();
    let values = Values {
        token,
        audience: &claims.aud,
        email: claims.email.as_deref(),
        expiration_time: &expiration_time,
    };
    let mut data = BTreeMap::new();
    for (key, template) in &target.data {
        let value = template.expand(&values).map_err(|source| RenderError::Template {
            key: key.clone(),
            source,
        })?;
        data.insert(key.clone(), value);
    }
    data.insert(
        target.key.clone(),
        Zeroizing::new(token.expose().as_bytes().to_vec()),
    );
    let size = data.values().map(|value| value.len()).sum();
    if size > MAX_TOTAL {
        return Err(RenderError::TooLarge { size });
    }
    let mut labels = target.labels.clone();
    labels.insert(LABEL_MANAGED_BY.into(), MANAGED_BY.into());
    let mut notes = target.annotations.clone();
    let owned = owned_fields(&data, &labels, &notes);
    let renews = renewal(request, claims.iat, claims.exp).at;
    for (key, value) in [
        (annotations::REQUEST, request.name.clone()),
        (annotations::REQUEST_UID, request.uid.clone()),
        (annotations::TOKEN_HASH, request.token_hash.clone()),
        (annotations::RENDER_HASH, request.render_hash.clone()),
        (annotations::DIGEST, token.fingerprint()),
        (annotations::ISSUED, claims.iat.to_string()),
        (annotations::EXPIRES, expiration_time),
        (annotations::RENEWS, renews.to_string()),
        (annotations::OWNED, owned),
    ] {
        notes.insert(key.into(), value);
    }
    // No blockOwnerDeletion: it would need the right to update the request's finalizers.
    let owner = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "IdTokenRequest",
        "name": request.name, "uid": request.uid, "controller": true,
    });
    Ok(Rendered {
        labels,
        annotations: notes,
        data,
        type_: target.type_.clone(),
        owner: (target.policy == CreationPolicy::Owner).then_some(owner),
        uid: request.uid.clone(),
        handled_renew: request.renew_request.as_deref().map(hash_of_renewal),
    })
}

fn owned_fields(
    data: &BTreeMap<String, Zeroizing<Vec<u8>>>,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> String {
    let of = |kind: &'static str, keys: Vec<&String>| {
        keys.into_iter()
            .map(move |key| format!("{kind}:{key}"))
            .collect::<Vec<_>>()
    };
    [
        of("data", data.keys().collect()),
        of("label", labels.keys().collect()),
        of("annotation", annotations.keys().collect()),
    ]
    .concat()
    .join(",")
}

impl Rendered {
    /// The type of the Secret.
    pub fn type_(&self) -> &str {
        &self.type_
    }

    /// The whole Secret, to be created.
    pub fn create(&self, namespace: &str, name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": self.type_,
            "metadata": {
                "name": name, "namespace": namespace, "labels": self.labels, "annotations": self.noted(),
                "ownerReferences": self.owner.iter().collect::<Vec<_>>(),
            },
            "data": self.encoded(),
        })
    }

    /// The merge patch (RFC 7396) that puts a new token into a Secret which is otherwise as we wrote it.
    pub fn renew(&self, uid: &str, resource_version: &str) -> Value {
        json!({
            "metadata": {"uid": uid, "resourceVersion": resource_version, "labels": self.labels, "annotations": self.noted()},
            "data": self.encoded(),
        })
    }

    /// The merge patch that makes `content` ours in full: what we once wrote and want no more goes, what others wrote stays.
    pub fn replace(&self, content: &Content, adopted: bool) -> Value {
        let mut patch = self.renew(&content.summary.uid, &content.summary.resource_version);
        for field in stale_fields(self, content) {
            let (kind, key) = field.split_once(':').unwrap_or_default();
            match kind {
                "data" => patch["data"][key] = Value::Null,
                "label" => patch["metadata"]["labels"][key] = Value::Null,
                _ => patch["metadata"]["annotations"][key] = Value::Null,
            }
        }
        if adopted {
            patch["metadata"]["annotations"][annotations::ADOPT] = Value::Null;
            patch["metadata"]["annotations"][annotations::ADOPTED] = "true".into();
        }
        if let Some(owners) = self.owners(content, adopted) {
            patch["metadata"]["ownerReferences"] = owners;
        }
        patch
    }

    /// The ownerReferences as they should be; none where they are so already.
    fn owners(&self, content: &Content, adopted: bool) -> Option<Value> {
        let current = content.meta.owner_references.as_deref().unwrap_or_default();
        let ours = |owner: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
            owner.kind == "IdTokenRequest" && owner.api_version.starts_with(GROUP)
        };
        let mut wanted: Vec<Value> = current
            .iter()
            .filter(|owner| !ours(owner))
            .filter_map(|owner| serde_json::to_value(owner).ok())
            .collect();
        let own = self
            .owner
            .as_ref()
            .filter(|_| !adopted && !content.summary.adopted);
        let right = match own {
            Some(_) => current
                .iter()
                .filter(|owner| ours(owner))
                .map(|owner| owner.uid.as_str())
                .eq([self.uid.as_str()]),
            None => !current.iter().any(ours),
        };
        wanted.extend(own.cloned());
        (!right).then_some(Value::Array(wanted))
    }

    /// The annotations and what is written beside them only: the renewal that was asked for can be ahead of the Secret, which is then
    /// as it should be all the same.
    fn noted(&self) -> BTreeMap<&str, &str> {
        let all = self
            .annotations
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        let handled = self.handled_renew.as_deref();
        all.chain(handled.map(|hash| (annotations::HANDLED_RENEW, hash)))
            .collect()
    }

    fn encoded(&self) -> BTreeMap<&str, String> {
        self.data
            .iter()
            .map(|(key, value)| (key.as_str(), STANDARD.encode(value)))
            .collect()
    }

    /// The first field of ours that `content` holds otherwise, as `data[key]`.
    pub fn drift(&self, content: &Content) -> Option<String> {
        let text = |map: &Option<BTreeMap<String, String>>, wanted: &BTreeMap<String, String>, kind: &str| {
            let differs = |(key, value): (&String, &String)| {
                (map.as_ref().and_then(|map| map.get(key)) != Some(value))
                    .then(|| format!("metadata.{kind}[{key}]"))
            };
            wanted.iter().find_map(differs)
        };
        let data = self
            .data
            .iter()
            .find(|(key, value)| content.data.get(*key) != Some(*value));
        data.map(|(key, _)| format!("data[{key}]"))
            .or_else(|| text(&content.meta.labels, &self.labels, "labels"))
            .or_else(|| text(&content.meta.annotations, &self.annotations, "annotations"))
            .or_else(|| {
                self.owners(content, false)
                    .map(|_| "metadata.ownerReferences".to_owned())
            })
            .or_else(|| stale_fields(self, content).into_iter().next())
    }
}

/// What `content` says we wrote and `rendered` holds no more.
fn stale_fields(rendered: &Rendered, content: &Content) -> BTreeSet<String> {
    let wanted: BTreeSet<&str> = rendered
        .annotations
        .get(annotations::OWNED)
        .map(|owned| owned.split(',').collect())
        .unwrap_or_default();
    let once = content.annotation(annotations::OWNED).unwrap_or_default();
    let gone = once.split(',').filter(|field| !wanted.contains(field));
    gone.filter(|field| match field.split_once(':') {
        Some(("data", key)) => content.data.contains_key(key),
        Some(("label", key)) => content
            .meta
            .labels
            .as_ref()
            .is_some_and(|labels| labels.contains_key(key)),
        Some(("annotation", key)) => {
            !key.starts_with(crate::api::RESERVED_PREFIX) && content.annotation(key).is_some()
        }
        _ => false,
    })
    .map(str::to_owned)
    .collect()
}

#[cfg(test)]
#[path = "fixtures.rs"]
pub(super) mod fixtures;
#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
