//! Pure: token + template → the Secret, its patch, and what of it differs from one that was read.
//!
//! May import the request, the Secret as [`crate::kubernetes`] reads it, the schedule, and the ground. Makes no call, and never decides whether
//! to write.

use std::collections::{BTreeMap, BTreeSet};

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::api::v1alpha1::CreationPolicy;
use crate::api::{GROUP, LABEL_MANAGED_BY, MANAGED_BY, annotations, conditions::reason};
use crate::kubernetes::secret::SecretContent;
use crate::request::ValidRequest;
use crate::request::fingerprint as hash;
use crate::request::template::{MAX_TOTAL, TemplateError, Values};
use crate::schedule::renewal::renewal;
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
    owner: Option<OwnerReference>,
    uid: String,
    handled_renew: Option<String>,
}

/// A Secret, or a merge patch of one, to be written as JSON. It borrows all and encodes while it is written: beside the JSON no copy of the
/// token is made.
#[derive(Serialize)]
pub struct SecretBody<'r> {
    #[serde(flatten)]
    kind: Option<TypeFields<'r>>,
    metadata: Metadata<'r>,
    #[serde(serialize_with = "encoded")]
    data: &'r BTreeMap<String, Zeroizing<Vec<u8>>>,
}

/// What only a whole Secret says.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TypeFields<'r> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(rename = "type")]
    type_: &'r str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'r> {
    #[serde(flatten)]
    identity: ObjectIdentity<'r>,
    labels: &'r BTreeMap<String, String>,
    annotations: BTreeMap<&'r str, &'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner_references: Option<&'r [OwnerReference]>,
}

/// Which Secret: a new one, or exactly that which was seen.
#[derive(Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
enum ObjectIdentity<'r> {
    New { name: &'r str, namespace: &'r str },
    Existing { uid: &'r str, resource_version: &'r str },
}

fn encoded<S: Serializer>(
    data: &BTreeMap<String, Zeroizing<Vec<u8>>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(data.iter().map(|(key, value)| (key, Encoded(value))))
}

/// Base64 of bytes, made where it is written.
struct Encoded<'r>(&'r [u8]);

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

/// Whether `owner` is an IdTokenRequest, of whichever version.
pub(crate) fn is_request(owner: &OwnerReference) -> bool {
    let group = owner.api_version.split_once('/').map(|(group, _)| group);
    group == Some(GROUP) && owner.kind == "IdTokenRequest"
}

/// How the annotation on a Secret names a value of the annotation that asks for a renewal: by its hash, since a value can be too long.
pub fn renew_request_hash(value: &str) -> String {
    hash::versioned("v1", &[value.to_owned()])
}

/// Renders the Secret that holds `token`.
///
/// # Errors
/// A template that cannot be expanded, or too large a result.
pub fn render(request: &ValidRequest, token: &IdToken) -> Result<Rendered, RenderError> {
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
    let renews = renewal(claims.iat, claims.exp, request.renew_before, &request.uid).at;
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
    let owner = OwnerReference {
        api_version: format!("{GROUP}/v1alpha1"),
        kind: "IdTokenRequest".into(),
        name: request.name.clone(),
        uid: request.uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    Ok(Rendered {
        labels,
        annotations: notes,
        data,
        type_: target.type_.clone(),
        owner: (target.creation_policy == CreationPolicy::Owner).then_some(owner),
        uid: request.uid.clone(),
        handled_renew: request.renew_request.as_deref().map(renew_request_hash),
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
    pub fn create<'r>(&'r self, namespace: &'r str, name: &'r str) -> SecretBody<'r> {
        SecretBody {
            kind: Some(TypeFields {
                api_version: "v1",
                kind: "Secret",
                type_: &self.type_,
            }),
            metadata: Metadata {
                owner_references: Some(self.owner.as_slice()),
                ..self.metadata(ObjectIdentity::New { name, namespace })
            },
            data: &self.data,
        }
    }

    /// The merge patch (RFC 7396) that puts a new token into a Secret which is otherwise as we wrote it.
    pub fn token_patch<'r>(&'r self, uid: &'r str, resource_version: &'r str) -> SecretBody<'r> {
        SecretBody {
            kind: None,
            metadata: self.metadata(ObjectIdentity::Existing {
                uid,
                resource_version,
            }),
            data: &self.data,
        }
    }

    fn metadata<'r>(&'r self, identity: ObjectIdentity<'r>) -> Metadata<'r> {
        Metadata {
            identity,
            labels: &self.labels,
            annotations: self.all_annotations(),
            owner_references: None,
        }
    }

    /// The merge patch that makes `content` ours in full: what we once wrote and want no more goes, what others wrote stays.
    pub fn full_patch(&self, content: &SecretContent, adopted: bool) -> Value {
        let mut patch = json!(self.token_patch(&content.summary.uid, &content.summary.resource_version));
        for field in orphaned_fields(self, content) {
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
        if let Some(owners) = self.desired_owners(content, adopted) {
            patch["metadata"]["ownerReferences"] = json!(owners);
        }
        patch
    }

    /// The ownerReferences as they should be; none where they are so already.
    fn desired_owners(&self, content: &SecretContent, adopted: bool) -> Option<Vec<OwnerReference>> {
        let current = content.meta.owner_references.as_deref().unwrap_or_default();
        let others = current.iter().filter(|owner| !is_request(owner));
        let own = self
            .owner
            .as_ref()
            .filter(|_| !adopted && !content.summary.adopted);
        let right = match own {
            Some(_) => current
                .iter()
                .filter(|owner| is_request(owner))
                .map(|owner| owner.uid.as_str())
                .eq([self.uid.as_str()]),
            None => !current.iter().any(is_request),
        };
        (!right).then(|| others.chain(own).cloned().collect())
    }

    /// All annotations, and the renewal that was handled. Drift detection leaves that out: the request may ask for a renewal that the Secret
    /// has not seen yet.
    fn all_annotations(&self) -> BTreeMap<&str, &str> {
        let all = self
            .annotations
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        let handled = self.handled_renew.as_deref();
        all.chain(handled.map(|hash| (annotations::HANDLED_RENEW, hash)))
            .collect()
    }

    /// The first field of ours that `content` holds otherwise, as `data[key]`.
    pub fn drift(&self, content: &SecretContent) -> Option<String> {
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
                self.desired_owners(content, false)
                    .map(|_| "metadata.ownerReferences".to_owned())
            })
            .or_else(|| orphaned_fields(self, content).into_iter().next())
    }
}

/// What `content` says we wrote and `rendered` holds no more.
fn orphaned_fields(rendered: &Rendered, content: &SecretContent) -> BTreeSet<String> {
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
#[path = "render_tests.rs"]
mod tests;
