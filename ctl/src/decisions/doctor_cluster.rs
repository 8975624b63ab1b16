//! Pure: kinds, policies, grants, requests and monitors of a cluster → whether the operator has what it needs.

use std::collections::{BTreeMap, BTreeSet};

use idtoken_operator::api::conditions::READY;
use idtoken_operator::api::group;
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::grants::index::Grant;
use idtoken_operator::grants::selector::{NamespaceMatch, namespace_match};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::ResourceExt;
use serde_json::Value;

use crate::decisions::admission_policy;
use crate::decisions::checkup::{Check, Seen, some};
use crate::decisions::diagnosis::is_ready;
use crate::decisions::doctor_release::{self, Release};
use crate::decisions::invalid_grants;

/// Values of the label [`POLICY_LABEL`] of the policies that the chart brings.
const POLICIES: [&str; 4] = [
    "federation-authors",
    "namespace-labels",
    "secret-writes",
    "token-requests",
];

/// Label of those policies and their bindings.
pub(crate) const POLICY_LABEL: &str = group!("/admission-policy");

/// A request that is older than this should have a status.
const NO_STATUS_AFTER: SignedDuration = SignedDuration::from_mins(2);

/// Labels of each namespace.
pub(crate) type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// Grants, and the names of those that cannot be decoded, with the reason.
pub(crate) type Grants = (Vec<Grant>, Vec<(String, String)>);

/// The check of one CustomResourceDefinition: `found` is that of the cluster, `own` the plugin's.
pub(crate) fn definition(name: &str, found: &Seen<Option<Value>>, own: &Value) -> Check {
    const AREA: &str = "definitions";
    const FIX: &str = "kubectl apply --server-side -f crds/, or crds.enabled of the chart";
    let found = match found {
        Ok(Some(found)) => found,
        Ok(None) => {
            return Check::failure(AREA, format!("there is no CustomResourceDefinition {name}"), FIX);
        }
        Err(why) => return Check::unseen(AREA, why),
    };
    let conditions = found["status"]["conditions"].as_array();
    let established = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
    if !established {
        return Check::failure(
            AREA,
            format!("{name} is not established"),
            format!("kubectl describe crd {name}"),
        );
    }
    let schema = |crd: &Value| fields(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    let missing: Vec<String> = schema(own).difference(&schema(found)).cloned().collect();
    match missing.is_empty() {
        true => Check::ok(AREA, format!("{name} has every field that this version knows")),
        false => Check::warning(
            AREA,
            format!("{name} is older than the plugin: it lacks {}", some(&missing)),
            "Upgrade the definitions with the operator: docs/upgrade-policy.md",
        ),
    }
}

/// Paths of all fields of a schema.
fn fields(schema: &Value) -> BTreeSet<String> {
    fn walk(schema: &Value, path: &str, all: &mut BTreeSet<String>) {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            walk(inner, &path, all);
            all.insert(path);
        }
        if schema["items"].is_object() {
            walk(&schema["items"], path, all);
        }
    }
    let mut all = BTreeSet::new();
    walk(schema, "", &mut all);
    all
}

/// The check of the chart's admission policies.
pub(crate) fn policies(
    found: &Seen<(
        Vec<ValidatingAdmissionPolicy>,
        Vec<ValidatingAdmissionPolicyBinding>,
    )>,
) -> Check {
    const AREA: &str = "policies";
    let (policies, bindings) = match found {
        Ok(found) => found,
        Err(why) => return Check::unseen(AREA, why),
    };
    let is_bound = |policy: &ValidatingAdmissionPolicy| {
        let name = policy.name_any();
        bindings
            .iter()
            .any(|binding| admission_policy::is_bound_by(binding, &name))
    };
    let missing: Vec<String> = POLICIES
        .iter()
        .filter(|kind| {
            let mut of_kind = policies.iter().filter(|policy| {
                policy
                    .labels()
                    .get(POLICY_LABEL)
                    .is_some_and(|label| label == **kind)
            });
            !of_kind.any(is_bound)
        })
        .map(|kind| (*kind).to_owned())
        .collect();
    match missing.is_empty() {
        true => Check::ok(AREA, "all are there, and each is bound to deny"),
        false => Check::warning(
            AREA,
            format!("absent, or not bound to deny: {}", some(&missing)),
            "Set admissionPolicies.enabled, or apply config/admission.yaml; kubectl idtoken audit -A lists the requests that are older",
        ),
    }
}

/// The checks of grants.
pub(crate) fn grants(grants: &Seen<Grants>, namespaces: &Seen<Namespaces>) -> Vec<Check> {
    const AREA: &str = "grants";
    let (grants, undecodable) = match grants {
        Ok(grants) => grants,
        Err(why) => return vec![Check::unseen(AREA, why)],
    };
    let mut checks = Vec::new();
    let invalid = invalid_grants::invalid(grants, undecodable.clone());
    if !invalid.is_empty() {
        let names: Vec<String> = invalid.iter().map(|one| one.grant.clone()).collect();
        let message = format!("parts are invalid and grant nothing: {}", some(&names));
        checks.push(Check::failure(AREA, message, "kubectl idtoken audit -A"));
    }
    match namespaces {
        Ok(namespaces) => {
            let (mut nothing, mut everything) = (Vec::new(), Vec::new());
            for grant in grants {
                let matched = matched(grant, namespaces);
                if matched == 0 {
                    nothing.push(grant.id.name.clone());
                } else if matched == namespaces.len() && namespaces.len() > 1 {
                    everything.push(grant.id.name.clone());
                }
            }
            if !nothing.is_empty() {
                checks.push(Check::warning(
                    AREA,
                    format!("no namespace that exists matches {}", some(&nothing)),
                    "Correct spec.from, or delete them",
                ));
            }
            if !everything.is_empty() {
                checks.push(Check::warning(
                    AREA,
                    format!("every namespace matches {}", some(&everything)),
                    "Name the namespaces, unless all are meant, also those that are created later",
                ));
            }
        }
        Err(why) => checks.push(Check::unseen(AREA, why)),
    }
    if grants.is_empty() && undecodable.is_empty() {
        checks.push(Check::warning(
            AREA,
            "there are none: only source.federation gets tokens",
            "docs/authorization.md#grants; kubectl idtoken grant NAME prints one",
        ));
    } else if checks.is_empty() {
        checks.push(Check::ok(AREA, format!("{}, and all are valid", grants.len())));
    }
    checks
}

/// How many of the namespaces a grant matches.
fn matched(grant: &Grant, namespaces: &Namespaces) -> usize {
    let matches = |name: &String, labels: &BTreeMap<String, String>| {
        grant.spec.from.iter().any(|from| match namespace_match(from) {
            Ok(NamespaceMatch::All) => true,
            Ok(NamespaceMatch::Name(named)) => named == *name,
            Ok(NamespaceMatch::Selector(selector)) => {
                selector.matches(|key| labels.get(key).map(String::as_str))
            }
            Err(_) => false,
        })
    };
    namespaces
        .iter()
        .filter(|(name, labels)| matches(name, labels))
        .count()
}

/// The checks of requests: who serves them, and whether they are ready.
pub(crate) fn requests(
    requests: &Seen<(Vec<IdTokenRequest>, usize)>,
    releases: &Seen<Vec<Release>>,
    now: Timestamp,
) -> Vec<Check> {
    const AREA: &str = "requests";
    let (requests, undecodable) = match requests {
        Ok(requests) => requests,
        Err(why) => return vec![Check::unseen(AREA, why)],
    };
    let mut checks = Vec::new();
    if *undecodable > 0 {
        checks.push(Check::failure(
            AREA,
            format!("{undecodable} cannot be decoded by this version"),
            "Install the plugin and the operator of the definitions' version",
        ));
    }
    if let Ok(releases) = releases {
        let unserved: Vec<String> = requests
            .iter()
            .filter(|request| !releases.iter().any(|release| serves(release, request)))
            .map(full_name)
            .collect();
        if !unserved.is_empty() {
            checks.push(Check::failure(
                AREA,
                format!("no release serves {}", some(&unserved)),
                "Check watchNamespaces and selector of the releases: docs/operations.md#sharding",
            ));
        }
    }
    let mut reasons = BTreeMap::<String, Vec<String>>::new();
    let waiting = requests
        .iter()
        .filter(|request| !request.spec.suspend.unwrap_or(false) && !is_ready(request, now));
    for request in waiting {
        let created = request.metadata.creation_timestamp.as_ref();
        let ready = request.status.as_ref().and_then(|status| status.condition(READY));
        let reason = match ready {
            Some(ready) if ready.status == "True" => "Outdated".to_owned(),
            Some(ready) => ready.reason.clone(),
            None if created.is_some_and(|time| now.duration_since(time.0) < NO_STATUS_AFTER) => continue,
            None => "no status".to_owned(),
        };
        reasons.entry(reason).or_default().push(full_name(request));
    }
    for (reason, names) in reasons {
        checks.push(Check::warning(
            AREA,
            format!("{} not ready, {reason}: {}", names.len(), some(&names)),
            "kubectl idtoken explain NAME -n NAMESPACE",
        ));
    }
    if checks.is_empty() {
        checks.push(Check::ok(
            AREA,
            format!("{} are served and ready", requests.len()),
        ));
    }
    checks
}

fn full_name(request: &IdTokenRequest) -> String {
    format!(
        "{}/{}",
        request.namespace().unwrap_or_default(),
        request.name_any()
    )
}

/// Whether a release serves a request, by its flags. What cannot be seen counts as served.
fn serves(release: &Release, request: &IdTokenRequest) -> bool {
    let flags = doctor_release::flags(&release.deployment);
    let namespace = request.namespace().unwrap_or_default();
    let of_namespace = flags.namespaces.is_empty() || flags.namespaces.contains(&namespace);
    of_namespace
        && match &release.selected {
            None | Some(Err(_)) => true,
            Some(Ok(selected)) => selected.contains(&(namespace, request.name_any())),
        }
}

/// The check of the Prometheus operator's objects; none of a kind's definitions is no trouble.
pub(crate) fn prometheus(found: &Seen<Option<Vec<String>>>) -> Check {
    const AREA: &str = "prometheus";
    match found {
        Ok(None) => Check::ok(AREA, "the cluster has no Prometheus operator"),
        Ok(Some(objects)) if objects.is_empty() => Check::warning(
            AREA,
            "no ServiceMonitor, PodMonitor or PrometheusRule of the operator: failures raise no alert",
            "metrics.serviceMonitor.enabled and metrics.prometheusRule.enabled, with the labels that your Prometheus selects",
        ),
        Ok(Some(objects)) => Check::ok(AREA, some(objects)),
        Err(why) => Check::unseen(AREA, why),
    }
}

#[cfg(test)]
#[path = "doctor_cluster_tests.rs"]
mod tests;
