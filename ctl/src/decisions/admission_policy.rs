//! Pure: the admission policies of a cluster → since when they check the authors of requests with source.federation.

use idtoken_operator::api::group;
use idtoken_operator::shell::quote;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingAdmissionPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::ResourceExt;

/// Label, with its value, of the policy and its binding.
pub(crate) const LABEL: &str = group!("/admission-policy=federation-authors");

/// Time in which all API servers load a policy. Requests created sooner count as unchecked.
pub(crate) const PROPAGATION: SignedDuration = SignedDuration::from_mins(1);

const POLICIES: &str = include_str!("../../../config/admission.yaml");

/// Since when a policy checks the authors.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PolicyCoverage {
    /// A policy is in effect and unchanged since a time.
    Since {
        /// Name of the policy.
        policy: String,
        /// The last change of the policy or of its binding.
        since: Timestamp,
    },
    /// No policy is in effect; with the reason.
    Missing(String),
}

/// Finds the policy that equals the bundled one and is bound without conditions.
pub(crate) fn coverage(
    policies: &[ValidatingAdmissionPolicy],
    bindings: &[ValidatingAdmissionPolicyBinding],
) -> PolicyCoverage {
    let mut problem = format!("there is none with the label {LABEL}");
    let mut best: Option<(Timestamp, String)> = None;
    for policy in policies {
        let name = policy.name_any();
        if !is_ours(policy) {
            problem = format!(
                "{} differs from the policy of this version of kubectl idtoken, so it is unknown what it checks",
                quote(&name)
            );
            continue;
        }
        let bound = bindings.iter().filter(|binding| is_bound_by(binding, &name));
        let times = bound.filter_map(|binding| {
            let times = [last_changed(&policy.metadata)?, last_changed(&binding.metadata)?];
            times.into_iter().max()
        });
        match times.min() {
            Some(since) if best.as_ref().is_none_or(|(known, _)| since < *known) => {
                best = Some((since, name))
            }
            Some(_) => {}
            None => problem = format!("{} has no binding that denies in all namespaces", quote(&name)),
        }
    }
    match best {
        Some((since, policy)) => PolicyCoverage::Since { policy, since },
        None => PolicyCoverage::Missing(problem),
    }
}

/// When the metadata or spec of an object was last changed. Only administrators write these objects.
fn last_changed(meta: &ObjectMeta) -> Option<Timestamp> {
    let fields = meta.managed_fields.iter().flatten();
    let changes = fields.filter(|entry| entry.subresource.is_none());
    let times = changes.filter_map(|entry| entry.time.as_ref());
    let created = meta.creation_timestamp.as_ref()?.0;
    Some(times.map(|time| time.0).fold(created, Timestamp::max))
}

/// Whether a binding has the policy of this name deny in all namespaces, without conditions.
pub(crate) fn is_bound_by(binding: &ValidatingAdmissionPolicyBinding, policy: &str) -> bool {
    let spec = &binding.spec;
    let denies = spec.validation_actions.iter().any(|action| action == "Deny");
    let everywhere = spec.match_resources.as_ref().is_none_or(|resources| {
        let rules = resources.resource_rules.as_ref().is_none_or(Vec::is_empty);
        rules && selects_all(resources)
    });
    denies && everywhere && spec.param_ref.is_none() && spec.policy_name == policy
}

fn selects_all(resources: &MatchResources) -> bool {
    let empty = |selector: &Option<LabelSelector>| {
        selector
            .as_ref()
            .is_none_or(|selector| *selector == LabelSelector::default())
    };
    empty(&resources.namespace_selector)
        && empty(&resources.object_selector)
        && resources
            .exclude_resource_rules
            .as_ref()
            .is_none_or(Vec::is_empty)
}

/// Whether a policy checks the same as the bundled one.
fn is_ours(policy: &ValidatingAdmissionPolicy) -> bool {
    let Some((spec, own)) = policy.spec.as_ref().zip(bundled_policy()) else {
        return false;
    };
    spec.match_constraints.as_ref().is_some_and(selects_all) && normalized(spec) == normalized(&own)
}

/// The spec without defaults of the API server and without messages to authors.
fn normalized(spec: &ValidatingAdmissionPolicySpec) -> ValidatingAdmissionPolicySpec {
    let mut spec = spec.clone();
    if let Some(resources) = &mut spec.match_constraints {
        resources.namespace_selector = None;
        resources.object_selector = None;
        resources.exclude_resource_rules = None;
    }
    for validation in spec.validations.iter_mut().flatten() {
        validation.message = None;
        validation.message_expression = None;
    }
    spec
}

fn bundled_policy() -> Option<ValidatingAdmissionPolicySpec> {
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(POLICIES).ok()?;
    let (label, value) = LABEL.split_once('=')?;
    let own = documents.into_iter().find(|document| {
        document["kind"] == "ValidatingAdmissionPolicy" && document["metadata"]["labels"][label] == value
    })?;
    serde_json::from_value(own["spec"].clone()).ok()
}

#[cfg(test)]
#[path = "admission_policy_tests.rs"]
mod tests;
