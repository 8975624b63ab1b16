//! The error bodies of Google's APIs (<https://cloud.google.com/apis/design/errors>) and of OAuth's token endpoints.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::google::vocabulary::MAX_MESSAGE_CHARS;
use crate::text;

/// The longest status, reason or permission that is kept, in characters.
const MAX_WORD_CHARS: usize = 128;

/// `{"error": {code, message, status, details}}`, with every text redacted, escaped and bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GoogleError {
    /// A name of `google.rpc.Code`, such as `PERMISSION_DENIED`.
    pub(crate) status: Option<String>,
    /// Google's message.
    pub(crate) message: String,
    /// `google.rpc.ErrorInfo.reason`, such as `IAM_PERMISSION_DENIED`.
    pub(crate) reason: Option<String>,
    /// `google.rpc.ErrorInfo.metadata.permission`.
    pub(crate) permission: Option<String>,
    /// `google.rpc.ErrorInfo.metadata.consumer`, a project by ID or number.
    consumer: Option<String>,
    /// The first link in `google.rpc.Help` that leads to Google.
    pub(crate) help: Option<String>,
    /// Whether `google.rpc.PreconditionFailure` says which rule is violated, as VPC Service Controls do.
    has_violations: bool,
}

#[derive(Deserialize)]
struct Body {
    error: RawError,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(default)]
    message: String,
    status: Option<String>,
    #[serde(default)]
    details: Vec<Value>,
}

impl GoogleError {
    /// Parses a body; `None` if it is not an error of a Google API.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let Body { error } = serde_json::from_slice(body).ok()?;
        let word = |value: &Value| value.as_str().map(|text| text::redacted(text, MAX_WORD_CHARS));
        let info = error
            .details
            .iter()
            .find(|detail| is_type(detail, "google.rpc.ErrorInfo"));
        let help = error
            .details
            .iter()
            .filter(|detail| is_type(detail, "google.rpc.Help"));
        Some(Self {
            status: error.status.map(|status| text::redacted(&status, MAX_WORD_CHARS)),
            message: text::redacted(&error.message, MAX_MESSAGE_CHARS),
            reason: info.and_then(|info| word(&info["reason"])),
            permission: info.and_then(|info| word(&info["metadata"]["permission"])),
            consumer: info
                .and_then(|info| word(&info["metadata"]["consumer"]))
                .and_then(|consumer| consumer.strip_prefix("projects/").map(str::to_owned)),
            help: help
                .flat_map(|help| help["links"].as_array())
                .flatten()
                .find_map(|link| google_link(&link["url"])),
            has_violations: error
                .details
                .iter()
                .any(|detail| is_type(detail, "google.rpc.PreconditionFailure")),
        })
    }

    /// Whether a 403 names neither a permission nor another cause, so that a missing binding is the likely one.
    pub(crate) fn is_unexplained(&self) -> bool {
        let says = |words: &str| self.message.contains(words);
        self.permission.is_none()
            && !self.has_violations
            && matches!(self.reason.as_deref(), None | Some("IAM_PERMISSION_DENIED"))
            && !says("ermission '")
            && !says("roles/")
            && !blames_another_rule(&self.message)
    }

    /// Whether the caller may not name the project for the quota.
    pub(crate) fn is_quota_project_denied(&self) -> bool {
        match self.reason.as_deref() {
            Some(reason) => reason == "USER_PROJECT_DENIED",
            None => self.message.contains("required permission to use project "),
        }
    }

    /// The project for whose sake Google refuses: the API is off there, or the caller may not use it.
    pub(crate) fn refused_consumer(&self) -> Option<String> {
        if !self.is_api_disabled() && !self.is_quota_project_denied() {
            return None;
        }
        self.consumer.clone().or_else(|| {
            let (_, rest) = self.message.split_once(" project ")?;
            let project = rest.split([' ', ',']).next()?.trim_end_matches('.');
            (!project.is_empty()).then(|| project.to_owned())
        })
    }

    /// Whether the API is not enabled in the caller's project.
    pub(crate) fn is_api_disabled(&self) -> bool {
        self.reason.as_deref() == Some("SERVICE_DISABLED")
            || (self.reason.is_none()
                && (self.message.contains("has not been used in project")
                    || self.message.contains("or it is disabled")))
    }
}

impl fmt::Display for GoogleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(status) = &self.status {
            write!(f, "{status} ")?;
        }
        match self.message.trim() {
            "" => f.write_str("(no message)")?,
            message => f.write_str(message)?,
        }
        match &self.help {
            Some(link) if !self.message.contains(link.as_str()) => write!(f, " See {link}"),
            _ => Ok(()),
        }
    }
}

/// `{"error", "error_description"}` (RFC 6749, 5.2), with every text redacted, escaped and bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OauthError {
    /// A code such as `invalid_grant`.
    pub(crate) code: String,
    /// The endpoint's message.
    pub(crate) description: String,
}

#[derive(Deserialize)]
struct RawOauthError {
    error: String,
    #[serde(default)]
    error_description: String,
}

impl OauthError {
    /// Parses a body; `None` if it has another format.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let raw: RawOauthError = serde_json::from_slice(body).ok()?;
        Some(Self {
            code: text::redacted(&raw.error, MAX_WORD_CHARS),
            description: text::redacted(&raw.error_description, MAX_MESSAGE_CHARS),
        })
    }
}

impl fmt::Display for OauthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.description.trim() {
            "" => f.write_str(&self.code),
            description => write!(f, "{}: {description}", self.code),
        }
    }
}

/// Whether Google's words are about a rule that no binding changes: a perimeter of VPC Service Controls, an organization's policy, a boundary of
/// principals, a scope, or a bill.
pub(crate) fn blames_another_rule(message: &str) -> bool {
    const WORDS: [&str; 9] = [
        "organization",
        "org policy",
        "constraint",
        "perimeter",
        "servicecontrols",
        "service controls",
        "access boundary",
        "authentication scopes",
        "billing",
    ];
    let message = message.to_ascii_lowercase();
    WORDS.iter().any(|words| message.contains(words))
}

fn is_type(detail: &Value, name: &str) -> bool {
    detail["@type"]
        .as_str()
        .is_some_and(|kind| kind.rsplit('/').next() == Some(name))
}

/// A link is shown only if it leads to Google: another server that answers instead of Google must not send users elsewhere.
fn google_link(link: &Value) -> Option<String> {
    let link = url::Url::parse(link.as_str()?).ok()?;
    let host = link.host_str()?;
    let is_google = host == "google.com" || host.ends_with(".google.com");
    let text = text::redacted(link.as_str(), MAX_WORD_CHARS * 2);
    (link.scheme() == "https" && link.username().is_empty() && is_google && text == link.as_str())
        .then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_details() {
        let body =
            br#"{"error":{"code":403,"status":"PERMISSION_DENIED","message":"Permission denied.","details":[
            {"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"IAM_PERMISSION_DENIED",
             "domain":"iam.googleapis.com","metadata":{"permission":"iam.serviceAccounts.getOpenIdToken"}},
            {"@type":"type.googleapis.com/google.rpc.Help","links":[
              {"url":"https://evil.example/x"},{"url":"javascript:alert(1)"},
              {"url":"https://console.developers.google.com/apis?project=1"}]}]}}"#;
        let error = GoogleError::parse(body).expect("Google's");
        assert_eq!(
            error.permission.as_deref(),
            Some("iam.serviceAccounts.getOpenIdToken")
        );
        assert_eq!(error.reason.as_deref(), Some("IAM_PERMISSION_DENIED"));
        assert_eq!(
            error.to_string(),
            "PERMISSION_DENIED Permission denied. See https://console.developers.google.com/apis?project=1"
        );
    }

    #[test]
    fn other_bodies_are_not_googles() {
        for body in [
            &b""[..],
            b"{}",
            b"[]",
            b"<html>",
            b"{\"error\":\"invalid_grant\"}",
            b"\xff\xfe",
            b"{\"error\":null}",
        ] {
            assert_eq!(GoogleError::parse(body), None);
        }
    }

    #[test]
    fn parses_oauth() {
        let parse = |body: &str| OauthError::parse(body.as_bytes()).map(|error| error.to_string());
        assert_eq!(
            parse(r#"{"error":"invalid_grant","error_description":"Bad","x":"ya29.secret"}"#).as_deref(),
            Some("invalid_grant: Bad")
        );
        assert_eq!(
            parse(r#"{"error":"invalid_grant"}"#).as_deref(),
            Some("invalid_grant")
        );
        assert_eq!(parse(r#"{"error":{"message":"m"}}"#), None);
        let redacted = parse(r#"{"error":"e","error_description":"no 1//0abcdefghijkl\n"}"#);
        assert_eq!(redacted.as_deref(), Some("e: no [redacted]\\n"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(body in proptest::prelude::any::<Vec<u8>>(), message in ".*") {
            let _ = GoogleError::parse(&body);
            let _ = OauthError::parse(&body);
            let body = serde_json::json!({"error": {"message": message, "details": [null, 1, {"links": 3}]}});
            let error = GoogleError::parse(body.to_string().as_bytes()).expect("Google's");
            proptest::prop_assert!(!error.to_string().contains(char::is_control));
        }
    }
}
