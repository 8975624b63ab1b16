//! Pure: whose the target Secret is.
//!
//! What a Secret says of itself is a claim: whoever may write it may write labels and annotations too. Proof is in the status of the request,
//! which no role of a tenant may write.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::api::annotations;
use crate::api::v1alpha1::SecretStatus;
use crate::kubernetes::secret::SecretContent;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::render::is_request;
use crate::request::ValidRequest;
use crate::text::printable;

/// Most characters of another client's text in a message: the longest name of an object.
const MAX_TEXT: usize = 253;

/// Whose a Secret of the target's name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This request's.
    Ours,
    /// That of an earlier request of this name, as after a restore from a backup. It is taken over, and never deleted before that.
    Inherited,
    /// Another client's that is handed over by annotation.
    Adopted,
    /// Another client's.
    Foreign {
        /// Whose, and how to hand it over.
        why: String,
    },
}

/// Whether the Secret bears our label, the request's name and its UID.
pub fn is_marked(request: &ValidRequest, secret: &SecretSummary) -> bool {
    secret.managed
        && secret.request.as_ref() == Some(&request.name)
        && secret.request_uid.as_ref() == Some(&request.uid)
}

/// Whether the status of a request records this very Secret as written, `name` being its name. A status of an older version has no UID of
/// the Secret: then only the resourceVersion proves it.
pub fn is_recorded(recorded: Option<&SecretStatus>, name: &str, secret: &SecretSummary) -> bool {
    recorded
        .filter(|recorded| recorded.name == name)
        .is_some_and(|recorded| match &recorded.uid {
            Some(uid) => *uid == secret.uid,
            None => recorded.resource_version.as_ref() == Some(&secret.resource_version),
        })
}

/// Whether the operator may delete the Secret, whose name is `name`: it bears all of our marks, and the status records it. The marks alone
/// can be forged on the Secret of another client, and a Secret without them may have been taken over.
pub fn may_delete(
    request: &ValidRequest,
    name: &str,
    secret: &SecretSummary,
    recorded: Option<&SecretStatus>,
) -> bool {
    is_marked(request, secret) && is_recorded(recorded, name, secret) && !secret.adopted
}

/// Whether another owner manages the Secret.
pub fn has_foreign_controller(request: &ValidRequest, content: &SecretContent) -> bool {
    content.has_too_many_owners || foreign_controller(request, content).is_some()
}

/// Decides whose the Secret is. `recorded` is the Secret in the request's status. `is_living` says whether a request with this UID exists.
pub fn ownership(
    request: &ValidRequest,
    content: &SecretContent,
    recorded: Option<&SecretStatus>,
    is_living: impl Fn(&str) -> bool,
) -> Ownership {
    let secret = &content.summary;
    if content.has_too_many_owners {
        return Ownership::Foreign {
            why: "has ownerReferences of more than 64 KiB; remove some of them, or choose another spec.target.name".to_owned(),
        };
    }
    // A request that is gone owns nothing.
    let controller = foreign_controller(request, content);
    let controller = controller.filter(|owner| !is_request(owner) || is_living(&owner.uid));
    if let Some(OwnerReference { kind, name, .. }) = controller {
        return Ownership::Foreign {
            why: format!(
                "belongs to {} {}; choose another spec.target.name",
                bounded(kind),
                bounded(name)
            ),
        };
    }
    // Also without its marks: if another client takes them away, the watch loses sight of the Secret, and renewal must go on.
    if is_marked(request, secret) || is_recorded(recorded, &request.target.name, secret) {
        return Ownership::Ours;
    }
    let named = secret.request.as_ref().filter(|_| secret.managed);
    if named == Some(&request.name) && !secret.request_uid.as_deref().is_some_and(is_living) {
        return Ownership::Inherited;
    }
    if content.annotation(annotations::ADOPT) == Some(request.name.as_str()) {
        return Ownership::Adopted;
    }
    let whose = match named {
        Some(named) => format!("belongs to IdTokenRequest {}", bounded(named)),
        None => "was not written by the operator".to_owned(),
    };
    Ownership::Foreign {
        why: format!(
            "{whose}; choose another spec.target.name, delete it, or hand it over: kubectl annotate secret {} -n {} {}={}",
            request.target.name,
            request.namespace,
            annotations::ADOPT,
            request.name
        ),
    }
}

/// A text of another client, as a message shows it.
fn bounded(text: &str) -> String {
    printable(text, MAX_TEXT)
}

/// The owner that manages the Secret, if it is not this request.
fn foreign_controller<'a>(request: &ValidRequest, content: &'a SecretContent) -> Option<&'a OwnerReference> {
    let mut owners = content.meta.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true) && (!is_request(owner) || owner.uid != request.uid))
}

#[cfg(test)]
#[path = "ownership_tests.rs"]
mod tests;
