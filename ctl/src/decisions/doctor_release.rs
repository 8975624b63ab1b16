//! Pure: Deployments, pods and Leases of the operator → whether each release runs, leads, and is of the plugin's version.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::ResourceExt;

use crate::decisions::checkup::{Check, Seen, some};
use crate::decisions::doctor_health::{self, HealthLine};
use crate::decisions::doctor_identity::{self, IdentityFacts};
use crate::decisions::doctor_metrics::{self, Sample};
use crate::decisions::doctor_pods;
use crate::output::age::age;

/// Name of the operator's container in every installation.
const CONTAINER: &str = "idtoken-operator";

/// A Lease may be this much older than its duration: the clocks of this machine and of the holder differ.
const LEASE_TOLERANCE: SignedDuration = SignedDuration::from_secs(30);

/// A Deployment of the operator, with what belongs to it.
pub(crate) struct Release {
    pub(crate) deployment: Deployment,
    pub(crate) pods: Seen<Vec<Pod>>,
    pub(crate) lease: Seen<Option<Lease>>,
    /// Metrics of pods, by the pod's name.
    pub(crate) metrics: Vec<(String, Seen<Vec<Sample>>)>,
    /// What pods say of themselves, by the pod's name.
    pub(crate) health: Vec<(String, Seen<Vec<HealthLine>>)>,
    pub(crate) identity: IdentityFacts,
    /// Namespace and name of the requests that the selector of its flags selects; none without a selector.
    pub(crate) selected: Option<Seen<BTreeSet<(String, String)>>>,
}

/// What the flags of a Deployment say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ReleaseFlags {
    /// Empty means all.
    pub(crate) namespaces: Vec<String>,
    pub(crate) selector: Option<String>,
    pub(crate) lease: Option<(String, String)>,
    pub(crate) elects: bool,
    pub(crate) credentials_file: bool,
}

pub(crate) fn pod_spec(deployment: &Deployment) -> Option<&PodSpec> {
    deployment.spec.template.spec.as_ref()
}

fn container(deployment: &Deployment) -> Option<&Container> {
    let mut containers = pod_spec(deployment)?.containers.iter();
    containers.find(|container| container.name == CONTAINER)
}

/// Whether it is a Deployment of the operator.
pub(crate) fn is_operator(deployment: &Deployment) -> bool {
    container(deployment).is_some()
}

/// The labels of its pods, as a selector.
pub(crate) fn pod_selector(deployment: &Deployment) -> String {
    let labels = deployment.spec.selector.match_labels.as_ref();
    let pairs = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// The port that serves metrics.
pub(crate) fn port(deployment: &Deployment) -> i32 {
    let ports = container(deployment).and_then(|container| container.ports.as_ref());
    ports
        .into_iter()
        .flatten()
        .next()
        .map_or(8080, |port| port.container_port)
}

/// Reads the flags. Namespaces add up; of other flags the last counts.
pub(crate) fn flags(deployment: &Deployment) -> ReleaseFlags {
    let mut found = ReleaseFlags::default();
    let (mut lease_name, mut lease_namespace) = (None, deployment.namespace());
    let arguments = container(deployment).and_then(|container| container.args.as_ref());
    let mut arguments = arguments.into_iter().flatten().map(String::as_str).peekable();
    while let Some(argument) = arguments.next() {
        let (flag, value) = match argument.split_once('=') {
            Some(both) => both,
            None => {
                let value = arguments.next_if(|next| !next.starts_with('-'));
                (argument, value.unwrap_or("true"))
            }
        };
        let value = value.to_owned();
        match flag {
            "--namespace" => found.namespaces.extend(value.split(',').map(str::to_owned)),
            "--selector" => found.selector = Some(value),
            "--lease-name" => lease_name = Some(value),
            "--lease-namespace" => lease_namespace = Some(value),
            "--leader-elect" => found.elects = value == "true",
            "--credentials-file" => found.credentials_file = true,
            _ => {}
        }
    }
    found.lease = lease_namespace.zip(lease_name).filter(|_| found.elects);
    found
}

impl Release {
    /// `NAMESPACE/NAME` of the Deployment.
    pub(crate) fn name(&self) -> String {
        format!(
            "{}/{}",
            self.deployment.namespace().unwrap_or_default(),
            self.deployment.name_any()
        )
    }

    fn namespace(&self) -> String {
        self.deployment.namespace().unwrap_or_default()
    }
}

/// The checks of a release.
pub(crate) fn checks(release: &Release, plugin: &str, now: Timestamp) -> Vec<Check> {
    let mut checks = vec![version(release, plugin), replicas(release)];
    checks.extend(pods(release));
    checks.extend(leader(release, now));
    checks.push(doctor_identity::check(
        &release.name(),
        &release.namespace(),
        pod_spec(&release.deployment),
        flags(&release.deployment).credentials_file,
        &release.identity,
    ));
    checks.extend(doctor_health::checks(&release.namespace(), &release.health));
    let mut measured = metrics(release, now);
    if doctor_health::is_seen(&release.health) {
        // The pods themselves have said more about them.
        measured.retain(|check| !doctor_metrics::OF_HEALTH.contains(&check.area));
    }
    checks.extend(measured);
    checks
}

/// The version that a replica says, or else that of the Deployment's label, or of its image's tag.
fn version(release: &Release, plugin: &str) -> Check {
    const AREA: &str = "version";
    let said = release
        .metrics
        .iter()
        .filter_map(|(_, samples)| samples.as_ref().ok())
        .find_map(|samples| doctor_metrics::version(samples));
    let labels = release.deployment.labels();
    let image = container(&release.deployment).and_then(|container| container.image.as_deref());
    let tag = image
        .filter(|image| !image.contains('@'))
        .and_then(|image| image.rsplit('/').next()?.split_once(':'))
        .map(|(_, tag)| tag);
    let labelled = labels.get("app.kubernetes.io/version").map(String::as_str);
    match said.or(labelled).or(tag) {
        None => Check::unseen(
            AREA,
            format!("neither metrics, label nor tag of {} say it", release.name()),
        ),
        Some(version) if version.trim_start_matches('v') == plugin => {
            Check::ok(AREA, format!("{} is {version}, as the plugin", release.name()))
        }
        Some(version) => Check::warning(
            AREA,
            format!("{} is {version}, the plugin is {plugin}", release.name()),
            "Install the plugin of the operator's version, or upgrade the operator: docs/upgrade-policy.md",
        ),
    }
}

fn replicas(release: &Release) -> Check {
    const AREA: &str = "replicas";
    let wanted = release.deployment.spec.replicas.unwrap_or(1);
    let ready = release
        .deployment
        .status
        .as_ref()
        .and_then(|status| status.ready_replicas)
        .unwrap_or(0);
    let message = format!("{ready} of {wanted} pods of {} are ready", release.name());
    let fix = format!(
        "kubectl describe pods -n {} -l {}",
        release.namespace(),
        pod_selector(&release.deployment)
    );
    match (wanted, ready) {
        (0, _) => Check::failure(
            AREA,
            format!("{} is scaled to 0", release.name()),
            "Scale it to 1 or more",
        ),
        (_, 0) => Check::failure(AREA, message, fix),
        (wanted, ready) if ready < wanted => Check::warning(AREA, message, fix),
        _ => Check::ok(AREA, message),
    }
}

fn pods(release: &Release) -> Vec<Check> {
    match &release.pods {
        Ok(pods) => doctor_pods::checks(&release.namespace(), pods),
        Err(why) => vec![Check::unseen("pods", why)],
    }
}

fn leader(release: &Release, now: Timestamp) -> Option<Check> {
    const AREA: &str = "leader";
    let (namespace, name) = flags(&release.deployment).lease?;
    let fix = "docs/metrics.md#idtokennoleader";
    let lease = match &release.lease {
        Ok(Some(lease)) => lease,
        Ok(None) => {
            let message = format!("there is no Lease {namespace}/{name}");
            return Some(Check::failure(AREA, message, fix));
        }
        Err(why) => return Some(Check::unseen(AREA, why)),
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let Some(holder) = spec.holder_identity.filter(|holder| !holder.is_empty()) else {
        let message = format!("the Lease {namespace}/{name} has no holder");
        return Some(Check::failure(AREA, message, fix));
    };
    let duration = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or(15).into());
    let since = spec.renew_time.map(|time| now.duration_since(time.0));
    if since.is_none_or(|since| since > duration + LEASE_TOLERANCE) {
        let when = since.map_or_else(|| "never".to_owned(), |since| format!("{} ago", age(since)));
        let message = format!("{holder} holds the Lease {namespace}/{name}, and renewed it {when}");
        return Some(Check::failure(AREA, message, fix));
    }
    let pods = release.pods.as_ref().ok();
    let is_known = pods.is_none_or(|pods| pods.iter().any(|pod| holder.contains(&pod.name_any())));
    Some(match is_known {
        true => Check::ok(AREA, format!("{holder}, by the Lease {namespace}/{name}")),
        false => Check::warning(
            AREA,
            format!(
                "{holder} holds the Lease {namespace}/{name}, and is no pod of {}",
                release.name()
            ),
            "Give each release its own leaderElection.leaseName",
        ),
    })
}

/// The checks of the metrics of the leader, or why there are none.
fn metrics(release: &Release, now: Timestamp) -> Vec<Check> {
    const AREA: &str = "metrics";
    let seen = release
        .metrics
        .iter()
        .filter_map(|(_, samples)| samples.as_ref().ok());
    if let Some(samples) = seen.into_iter().find(|samples| doctor_metrics::leads(samples)) {
        return doctor_metrics::checks(samples, now);
    }
    let why: Vec<String> = release
        .metrics
        .iter()
        .map(|(pod, samples)| match samples {
            Ok(_) => format!("{pod} does not lead"),
            Err(why) => format!("{pod}: {why}"),
        })
        .collect();
    match why.is_empty() {
        true => vec![Check::unseen(AREA, "no pod is ready")],
        false => vec![Check::unseen(AREA, some(&why))],
    }
}

#[cfg(test)]
#[path = "doctor_release_tests.rs"]
mod tests;
