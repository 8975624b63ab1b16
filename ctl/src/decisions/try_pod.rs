//! Pure: a call → the pod that makes it, and the state of that pod → its answer.
//!
//! The pod reads the token from its file, so that it is in no spec and in no argument. What it found is in its termination message: no right
//! to read logs is needed, and no collector of logs gets the answer.

use std::time::Duration;

use idtoken_operator::text::redacted;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::json;
use thiserror::Error;

use crate::decisions::answer::{self, Answer};

/// Name of the container.
const CONTAINER: &str = "try";

/// Where the Secret is mounted.
const MOUNT: &str = "/var/run/idtoken";

/// How long the pod may take to start, beside the call.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(120);

/// Longest text of a cluster in an error, in characters.
const MAX_TEXT: usize = 1024;

/// Calls curl and writes what it answered, with the token taken out, as far as a termination message has room: the kubelet keeps
/// the last 4,096 bytes. Arguments: the name of the header for the token, and those of curl.
const SCRIPT: &str = r#"LC_ALL=C; export LC_ALL
t=; IFS= read -r t < "$TOKEN_FILE" || :
header=$1; shift
c=0; r=$(printf '%s: Bearer %s\n' "$header" "$t" | curl "$@" 2>&1) || c=$?
for x in "$t" "${t##*.}"; do
  [ ${#x} -gt 40 ] || continue
  while case $r in *"$x"*) :;; *) false;; esac; do r="${r%%"$x"*}[redacted]${r#*"$x"}"; done
done
cr=$(printf '\r')
o=$(printf '%s\n' "$r" | { h=1; while IFS= read -r l; do
  if [ $h = 0 ]; then printf '%s\n' "$l"; continue; fi
  l=${l%"$cr"}
  case $l in
    '') h=0; echo;;
    [Hh][Tt][Tt][Pp]/*|[Ss]erver:*|[Cc]ontent-[Tt]ype:*|[Ll]ocation:*|[Ww][Ww][Ww]-[Aa]uthenticate:*|[Xx]-[Gg]oog-*|curl:*) printf '%.600s\n' "$l";;
  esac
done; })
printf 'curl %s\n%.4000s' "$c" "$o" > "$RESULT_FILE"
"#;

/// A call from inside the cluster.
pub(crate) struct PodCall<'a> {
    pub(crate) image: &'a str,
    pub(crate) secret: &'a str,
    pub(crate) key: &'a str,
    pub(crate) url: &'a str,
    pub(crate) method: &'a str,
    pub(crate) authorization_header: &'a str,
    /// `NAME: VALUE` each.
    pub(crate) headers: &'a [String],
    pub(crate) timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum PodError {
    /// The pod cannot start, or ended by itself.
    #[error("the pod made no call: {0}")]
    NotRun(String),
    /// curl got no answer; with its exit code and message.
    #[error(
        "the pod got no answer (curl exits with {code}): {message}; check DNS, egress and NetworkPolicies of the namespace, and proxies"
    )]
    NoAnswer { code: String, message: String },
}

/// How far the pod is.
#[derive(Debug)]
pub(crate) enum PodProgress {
    Pending(String),
    Done(Result<Answer, PodError>),
}

/// The pod. It passes the Pod Security Standard *restricted*.
pub(crate) fn pod(call: &PodCall<'_>) -> serde_json::Value {
    let seconds = call.timeout.as_secs().max(1);
    let arguments = [
        vec!["-c".to_owned(), SCRIPT.to_owned(), "try".to_owned()],
        vec![call.authorization_header.to_owned()],
        curl_arguments(call, seconds),
    ]
    .concat();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "idtoken-try-",
            "labels": {"app.kubernetes.io/name": "idtoken-try", "app.kubernetes.io/managed-by": "kubectl-idtoken"},
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            // A pod that is left behind by a killed process ends by itself.
            "activeDeadlineSeconds": START_LIMIT.as_secs() + seconds,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": CONTAINER,
                "image": call.image,
                "command": ["sh"],
                "args": arguments,
                "env": [
                    {"name": "TOKEN_FILE", "value": format!("{MOUNT}/token")},
                    {"name": "RESULT_FILE", "value": "/dev/termination-log"},
                ],
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
                "resources": {
                    "requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"},
                },
                "volumeMounts": [{"name": "token", "mountPath": MOUNT, "readOnly": true}],
            }],
            "volumes": [{
                "name": "token",
                "secret": {"secretName": call.secret, "items": [{"key": call.key, "path": "token"}]},
            }],
        },
    })
}

fn curl_arguments(call: &PodCall<'_>, seconds: u64) -> Vec<String> {
    let timeout = seconds.to_string();
    let mut arguments = vec!["-sS", "-i", "--http1.1", "--suppress-connect-headers"];
    arguments.extend([
        "--proto",
        "=http,https",
        "--max-redirs",
        "0",
        "--max-filesize",
        "262144",
    ]);
    arguments.extend(["--max-time", &timeout, "-H", "@-"]);
    for header in call.headers {
        arguments.extend(["-H", header]);
    }
    match call.method {
        "HEAD" => arguments.push("--head"),
        "GET" => {}
        method => arguments.extend(["-X", method, "-H", "Content-Length: 0"]),
    }
    arguments.extend(["--url", call.url]);
    arguments.into_iter().map(str::to_owned).collect()
}

/// What the status of the pod says.
pub(crate) fn progress(pod: &Pod) -> PodProgress {
    let status = pod.status.as_ref();
    let ours = status
        .and_then(|status| status.container_statuses.as_ref())
        .and_then(|all| all.iter().find(|container| container.name == CONTAINER));
    if let Some(done) = ours.and_then(terminated) {
        return PodProgress::Done(done);
    }
    let failed = |why: &str| PodProgress::Done(Err(PodError::NotRun(redacted(why, MAX_TEXT))));
    let waiting = ours
        .and_then(|container| container.state.as_ref())
        .and_then(|state| state.waiting.as_ref());
    if let Some(waiting) = waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let text = format!("{reason}: {}", waiting.message.as_deref().unwrap_or_default());
        return match reason {
            "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "CreateContainerConfigError"
            | "CreateContainerError" => failed(&text),
            _ => PodProgress::Pending(redacted(&text, MAX_TEXT)),
        };
    }
    let Some(status) = status else {
        return PodProgress::Pending("it has no status yet".to_owned());
    };
    if status.phase.as_deref() == Some("Failed") {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        return failed(&format!("{} {}", text(&status.reason), text(&status.message)));
    }
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    PodProgress::Pending(match unscheduled {
        Some(condition) => redacted(
            &format!(
                "it is not scheduled: {}",
                condition.message.as_deref().unwrap_or_default()
            ),
            MAX_TEXT,
        ),
        None => "it has not started".to_owned(),
    })
}

fn terminated(container: &ContainerStatus) -> Option<Result<Answer, PodError>> {
    let ended = container.state.as_ref()?.terminated.as_ref()?;
    let message = ended.message.as_deref().unwrap_or_default();
    let Some((head, rest)) = message
        .strip_prefix("curl ")
        .and_then(|message| message.split_once('\n'))
    else {
        let why = match ended.exit_code {
            127 => "the image has no sh or no curl".to_owned(),
            code => format!(
                "{} with exit code {code}; the image needs sh and curl",
                ended.reason.as_deref().unwrap_or("it ended")
            ),
        };
        return Some(Err(PodError::NotRun(redacted(&why, MAX_TEXT))));
    };
    Some(match answer::parse(rest) {
        // curl fails for a body that is larger than it may be, and has printed the head by then.
        Some(answer) => Ok(answer),
        None if head == "127" => Err(PodError::NotRun("the image has no curl".to_owned())),
        None => Err(PodError::NoAnswer {
            code: redacted(head, 8),
            message: redacted(rest.trim(), MAX_TEXT),
        }),
    })
}

#[cfg(test)]
#[path = "try_pod_tests.rs"]
mod tests;
