//! Pure: pods of the operator → which are not ready or were restarted, and why.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use kube::ResourceExt;

use crate::decisions::checkup::Check;

const AREA: &str = "pods";

/// Longest reason of a state that is shown, in characters. Kubernetes' own are one word.
const MAX_REASON: usize = 64;

/// Whether its condition Ready is True.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready") == Some("True")
}

/// Whether a process of it may answer: it runs, and has not been asked to end.
pub(crate) fn runs(pod: &Pod) -> bool {
    phase(pod) == "Running" && pod.metadata.deletion_timestamp.is_none()
}

/// The checks of the pods of a release.
pub(crate) fn checks(namespace: &str, pods: &[Pod]) -> Vec<Check> {
    let is_meant = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none() && phase(pod) != "Succeeded";
    pods.iter()
        .filter(is_meant)
        .flat_map(|pod| of_pod(namespace, pod))
        .collect()
}

fn of_pod(namespace: &str, pod: &Pod) -> Vec<Check> {
    let name = pod.name_any();
    let describe = format!("kubectl describe pod -n {namespace} {name}");
    if phase(pod) == "Failed" {
        let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
        let message = format!("{name} has failed: {}", word(reason));
        return vec![Check::warning(AREA, message, describe)];
    }
    if let Some(trouble) = statuses(pod).find_map(|status| trouble(namespace, &name, status)) {
        return vec![trouble];
    }
    let restarted = statuses(pod).filter_map(|status| restarted(namespace, &name, status));
    let mut checks: Vec<Check> = restarted.collect();
    if !is_ready(pod) {
        checks.push(match condition(pod, "PodScheduled") {
            Some("False") => Check::failure(
                AREA,
                format!(
                    "{name} has no node: {}",
                    word(condition_reason(pod, "PodScheduled"))
                ),
                describe,
            ),
            _ => Check::warning(
                AREA,
                format!("{name} is not ready, and none of its containers waits"),
                format!("{describe}; the check health has what it says of itself"),
            ),
        });
    }
    checks
}

/// Why a container does not run.
fn trouble(namespace: &str, pod: &str, status: &ContainerStatus) -> Option<Check> {
    let state = status.state.as_ref()?;
    let describe = format!("kubectl describe pod -n {namespace} {pod}");
    let logs = |more: &str| format!("kubectl logs -n {namespace} {pod} -c {}{more}", status.name);
    if let Some(waiting) = &state.waiting {
        let reason = word(waiting.reason.as_deref());
        let message = format!("{pod} is not ready: container {} waits: {reason}", status.name);
        return Some(match reason {
            "ContainerCreating" | "PodInitializing" => Check::warning(AREA, message, describe),
            "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull" => {
                let fix = format!(
                    "Correct image.repository, image.tag or imagePullSecrets: {describe} has the registry's answer"
                );
                Check::failure(AREA, message, fix)
            }
            "CreateContainerConfigError" | "CreateContainerError" => {
                let fix = format!("{describe} names the Secret or ConfigMap that is missing");
                Check::failure(AREA, message, fix)
            }
            _ => match last(status) {
                Some(last) => {
                    let message = format!("{message}, last for {}", ended(last));
                    Check::failure(AREA, message, fix_of_end(last, logs(" --previous")))
                }
                None => Check::failure(AREA, message, describe),
            },
        });
    }
    let init_is_done = |ended: &&ContainerStateTerminated| ended.exit_code != 0;
    let terminated = state.terminated.as_ref().filter(init_is_done)?;
    Some(Check::failure(
        AREA,
        format!(
            "{pod} is not ready: container {} has ended for {}",
            status.name,
            ended(terminated)
        ),
        fix_of_end(terminated, logs("")),
    ))
}

fn restarted(namespace: &str, pod: &str, status: &ContainerStatus) -> Option<Check> {
    let last = last(status).filter(|_| status.restart_count > 0)?;
    let message = format!(
        "{pod} restarted {} times, last for {}",
        status.restart_count,
        ended(last)
    );
    let logs = format!("kubectl logs -n {namespace} {pod} -c {} --previous", status.name);
    Some(Check::warning(AREA, message, fix_of_end(last, logs)))
}

fn fix_of_end(ended: &ContainerStateTerminated, logs: String) -> String {
    match ended.reason.as_deref() {
        Some("OOMKilled") => {
            "Raise resources.limits.memory and maxCacheMiB: docs/operations.md#memory".to_owned()
        }
        _ => logs,
    }
}

fn ended(ended: &ContainerStateTerminated) -> String {
    let reason = word(ended.reason.as_deref());
    format!("{reason} (exit code {})", ended.exit_code)
}

fn last(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref()?.terminated.as_ref()
}

/// Of the init containers, and then of the others.
fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let own = status.and_then(|status| status.container_statuses.as_ref());
    init.into_iter().flatten().chain(own.into_iter().flatten())
}

fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

fn condition<'p>(pod: &'p Pod, type_: &str) -> Option<&'p str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == type_)?;
    Some(&found.status)
}

fn condition_reason<'p>(pod: &'p Pod, type_: &str) -> Option<&'p str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == type_)?;
    found.reason.as_deref()
}

/// A reason, which is one word. The messages beside reasons are never shown: they may quote what a container wrote.
fn word(reason: Option<&str>) -> &str {
    let is_word = |text: &&str| {
        (1..=MAX_REASON).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    reason.filter(is_word).unwrap_or("no known reason")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::decisions::checkup::Level;

    fn found(status: Value) -> Vec<Check> {
        let pod = json!({"metadata": {"name": "operator-a"}, "status": status});
        checks("ops", &[serde_json::from_value(pod).unwrap()])
    }

    /// A pod whose container has this state.
    fn container(more: Value) -> Vec<Check> {
        let mut status = json!({"name": "idtoken-operator", "image": "", "imageID": "", "ready": false, "restartCount": 3});
        status
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        found(json!({"phase": "Running", "containerStatuses": [status]}))
    }

    #[test]
    fn a_pod_that_is_not_ready_is_shown_with_its_reason_and_a_fix() {
        let crash = json!({
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "token=eyJsecret"}},
        });
        let memory = json!({
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        });
        for (state, level, says, fix) in [
            (
                crash,
                Level::Failure,
                "waits: CrashLoopBackOff, last for Error (exit code 1)",
                "--previous",
            ),
            (
                memory,
                Level::Failure,
                "last for OOMKilled (exit code 137)",
                "maxCacheMiB",
            ),
            (
                json!({"state": {"waiting": {"reason": "ImagePullBackOff", "message": "401: <html>secret"}}}),
                Level::Failure,
                "waits: ImagePullBackOff",
                "imagePullSecrets",
            ),
            (
                json!({"state": {"waiting": {"reason": "CreateContainerConfigError"}}}),
                Level::Failure,
                "CreateContainerConfigError",
                "Secret or ConfigMap",
            ),
            (
                json!({"state": {"waiting": {"reason": "ContainerCreating"}}}),
                Level::Warning,
                "ContainerCreating",
                "kubectl describe pod -n ops operator-a",
            ),
            (
                json!({"state": {"terminated": {"exitCode": 2, "reason": "Error"}}}),
                Level::Failure,
                "has ended for Error (exit code 2)",
                "kubectl logs -n ops operator-a -c idtoken-operator",
            ),
            (
                json!({"state": {"waiting": {"reason": format!("a{}", "b".repeat(64))}}}),
                Level::Failure,
                "waits: no known reason",
                "kubectl describe pod",
            ),
            (
                json!({"state": {"waiting": {"reason": "a\u{1b}[2J"}}}),
                Level::Failure,
                "waits: no known reason",
                "kubectl describe pod",
            ),
        ] {
            let checks = container(state.clone());
            assert_eq!(checks.len(), 1, "{state}: {checks:?}");
            let check = &checks[0];
            assert_eq!(check.level, level, "{check:?}");
            assert!(check.message.contains(says), "no {says:?} in {check:?}");
            assert!(check.fix.contains(fix), "no {fix:?} in {check:?}");
            // No message, which others may have written.
            let all = format!("{}{}", check.message, check.fix);
            assert!(!all.contains("secret") && !all.contains("back-off"), "{check:?}");
        }
    }

    #[test]
    fn a_pod_without_a_container_that_waits_is_shown_too() {
        let unscheduled = found(json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"},
        ]}));
        assert_eq!(unscheduled[0].level, Level::Failure);
        assert_eq!(unscheduled[0].message, "operator-a has no node: Unschedulable");
        let unready = json!([{"type": "Ready", "status": "False"}]);
        let running = found(json!({"phase": "Running", "conditions": unready}));
        assert_eq!(running[0].level, Level::Warning);
        assert!(running[0].fix.contains("check health"), "{running:?}");
        let evicted = found(json!({"phase": "Failed", "reason": "Evicted"}));
        assert_eq!(evicted[0].message, "operator-a has failed: Evicted");
        assert_eq!(found(json!({"phase": "Succeeded"})), []);
        let ready = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(found(json!({"phase": "Running", "conditions": ready})), []);
    }
}
