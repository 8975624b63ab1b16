//! The API server's audit log.

use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;

/// Logs every request without bodies once its response is complete, and a watch also when it starts
/// ([`AuditEvent::stage`] is `ResponseStarted`).
pub(crate) const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
";

/// One request in the API server's audit log (`audit.k8s.io/v1`, level Metadata).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// The request's id; the stages of one request share it.
    pub audit_id: String,
    /// `ResponseStarted` (long-running requests), `ResponseComplete` or `Panic`.
    pub stage: String,
    /// The user who sent the request.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
    /// The request's verb, such as `get`, `list`, `watch`, `create`, `update`, `patch` or `delete`.
    pub verb: String,
    /// The resource, such as `secrets`; empty for a request without one, such as `/readyz`.
    pub resource: String,
    /// The resource's API group; empty for the core group.
    pub api_group: String,
    /// The subresource, such as `token` or `status`; empty if there is none.
    pub subresource: String,
    /// The namespace; empty if there is none.
    pub namespace: String,
    /// The object's name; empty if the request has none, as most creates.
    pub name: String,
    /// The HTTP status of the response; 0 if there was none.
    pub code: u16,
    /// When the request was received.
    pub timestamp: Timestamp,
    /// The client's user agent; empty if it sent none.
    pub user_agent: String,
    /// The request's path and query.
    pub uri: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: String,
    verb: String,
    user: RawUser,
    #[serde(default)]
    user_agent: String,
    #[serde(default, rename = "requestURI")]
    uri: String,
    object_ref: Option<RawObject>,
    response_status: Option<RawStatus>,
    request_received_timestamp: Timestamp,
}

#[derive(Deserialize)]
struct RawUser {
    #[serde(default)]
    username: String,
    #[serde(default)]
    groups: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawObject {
    resource: String,
    api_group: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct RawStatus {
    #[serde(default)]
    code: u16,
}

/// Reads the audit log. Skips an incomplete last line, which is still being written. A log that does not exist yet is empty.
pub(crate) fn read(path: &Path) -> Result<Vec<AuditEvent>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    parse(&text).with_context(|| format!("{} is not an audit log", path.display()))
}

fn parse(text: &[u8]) -> Result<Vec<AuditEvent>> {
    let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else {
        return Ok(Vec::new());
    };
    text[..end]
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .filter_map(|(index, line)| match serde_json::from_slice::<Raw>(line) {
            Ok(raw) => Some(Ok(raw.into())),
            // A killed API server left an incomplete line, and the next one appended its first event to it.
            Err(_) if event_after_incomplete(line).is_some() => event_after_incomplete(line).map(Ok),
            Err(error) if error.is_eof() => None,
            Err(error) => Some(Err(error).with_context(|| format!("line {}", index + 1))),
        })
        .collect()
}

/// The event at the end of a line that begins with an incomplete one.
fn event_after_incomplete(line: &[u8]) -> Option<AuditEvent> {
    const START: &[u8] = b"{\"kind\":\"Event\"";
    let last = line.windows(START.len()).rposition(|window| window == START)?;
    let raw: Raw = serde_json::from_slice(line.get(last..)?).ok()?;
    (last > 0).then(|| raw.into())
}

impl From<Raw> for AuditEvent {
    fn from(raw: Raw) -> Self {
        let object = raw.object_ref.unwrap_or_default();
        Self {
            audit_id: raw.audit_id,
            stage: raw.stage,
            user: raw.user.username,
            groups: raw.user.groups,
            verb: raw.verb,
            resource: object.resource,
            api_group: object.api_group,
            subresource: object.subresource,
            namespace: object.namespace,
            name: object.name,
            code: raw.response_status.map_or(0, |status| status.code),
            timestamp: raw.request_received_timestamp,
            user_agent: raw.user_agent,
            uri: raw.uri,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"a","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/shop/serviceaccounts/billing/token","verb":"create","user":{"username":"jane","groups":["g"]},"userAgent":"kubectl","objectRef":{"resource":"serviceaccounts","namespace":"shop","name":"billing","apiVersion":"v1","subresource":"token"},"responseStatus":{"metadata":{},"code":201},"requestReceivedTimestamp":"2026-01-02T03:04:05.678901Z","stageTimestamp":"2026-01-02T03:04:05.7Z"}"#;

    #[test]
    fn reads_the_fields() {
        let events = parse(format!("{LINE}\n").as_bytes()).unwrap();
        assert_eq!(events.len(), 1);
        let event = &events[0];
        assert_eq!(
            (event.user.as_str(), event.verb.as_str(), event.code),
            ("jane", "create", 201)
        );
        assert_eq!(
            (event.resource.as_str(), event.subresource.as_str()),
            ("serviceaccounts", "token")
        );
        assert_eq!(
            (event.namespace.as_str(), event.name.as_str()),
            ("shop", "billing")
        );
        assert_eq!(event.timestamp, "2026-01-02T03:04:05.678901Z".parse().unwrap());
    }

    #[test]
    fn incomplete_lines_are_skipped() {
        let cut = &LINE[..LINE.len() / 2];
        assert_eq!(parse(cut.as_bytes()).unwrap().len(), 0);
        assert_eq!(parse(format!("{LINE}\n{cut}").as_bytes()).unwrap().len(), 1);
        assert_eq!(
            parse(format!("{LINE}\n{cut}{LINE}\n").as_bytes()).unwrap().len(),
            2
        );
        assert_eq!(parse(format!("{cut}\n{LINE}\n").as_bytes()).unwrap().len(), 1);
        assert!(parse(b"not JSON\n").is_err());
    }
}
