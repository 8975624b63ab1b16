//! Pure: whose the target Secret is.

use crate::api::annotations;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::request::ValidRequest;

/// Whose a Secret of the target's name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This request's, or one that it may take over.
    Ours,
    /// Somebody else's that is handed over by annotation.
    Adopted,
    /// Somebody else's.
    Foreign {
        /// Whose, and how to hand it over.
        why: String,
    },
}

/// Decides whose the Secret is. `controller` is another controller that owns it; `outranked` says whether a named request is one that
/// `request` comes before.
pub fn ownership(
    request: &ValidRequest,
    secret: &SecretSummary,
    adopt: Option<&str>,
    controller: Option<&str>,
    outranked: impl Fn(&str) -> bool,
) -> Ownership {
    let named = secret.request.as_deref();
    // Without its label it is still ours: somebody took the label away, and the watch lost sight of it.
    if secret.request_uid.as_ref() == Some(&request.uid) || (secret.managed && named == Some(&request.name)) {
        return Ownership::Ours;
    }
    if secret.managed && named.is_some_and(&outranked) {
        return Ownership::Ours;
    }
    if let Some(controller) = controller {
        return Ownership::Foreign {
            why: format!("belongs to {controller}; choose another spec.target.name"),
        };
    }
    if adopt == Some(request.name.as_str()) {
        return Ownership::Adopted;
    }
    let whose = match named.filter(|_| secret.managed) {
        Some(named) => format!("belongs to IdTokenRequest {named}"),
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

#[cfg(test)]
#[path = "ownership_tests.rs"]
mod tests;
