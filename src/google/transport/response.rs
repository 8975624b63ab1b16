//! A whole response, and the error that an unsuccessful one stands for.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use zeroize::Zeroizing;

use super::error_body::GoogleError;
use crate::google::vocabulary::{Endpoint, Error, ErrorClass, MAX_RETRY_AFTER, Reason};
use crate::text;

/// A whole response. The body is wiped on drop, because it may contain a token.
pub(crate) struct Response {
    pub(crate) received_at: Timestamp,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Response {
    /// How long `Retry-After` asks to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        parse_retry_after(
            self.headers.get(RETRY_AFTER)?.to_str().ok()?,
            self.received_at.into(),
        )
    }

    /// The error of an unsuccessful response of one of Google's APIs.
    pub(crate) fn error(&self, endpoint: Endpoint) -> Error {
        let google = GoogleError::parse(&self.body);
        let message = match &google {
            Some(google) => google.to_string(),
            None if self.status.is_redirection() => "a redirect, which is not followed".to_owned(),
            None => "no error message of Google's".to_owned(),
        };
        let error = self.classified(endpoint, google.as_ref(), &message);
        match google {
            Some(google) => error
                .with_unexplained(google.is_unexplained())
                .with_consumer(google.refused_consumer(), google.is_quota_project_denied())
                .with_permission(google.permission),
            None => error,
        }
    }

    /// The error of an unsuccessful response in another format. `message` is safe to show.
    pub(crate) fn error_from_text(&self, endpoint: Endpoint, message: &str) -> Error {
        self.classified(endpoint, None, message)
    }

    fn classified(&self, endpoint: Endpoint, google: Option<&GoogleError>, message: &str) -> Error {
        let status = self.status.as_u16();
        let (reason, class) = classify(endpoint, status, google);
        let message = format!("{} answered {status}: {message}", endpoint.title());
        let error = Error::new(endpoint, reason, &message)
            .with_class(class)
            .with_status(status);
        match self.retry_after() {
            Some(after) => error.with_retry_after(after),
            None => error,
        }
    }
}

/// The error of a call without a response. The URL is left out: it can contain the audience.
pub(crate) fn transport_error(endpoint: Endpoint, error: reqwest::Error) -> Error {
    let (reason, verb) = match error.is_timeout() {
        true => (Reason::UpstreamTimeout, "did not answer in time"),
        false => (Reason::UpstreamUnreachable, "could not be reached"),
    };
    let cause = error.without_url();
    let error = Error::new(
        endpoint,
        reason,
        &format!("{} {verb}: {}", endpoint.title(), text::error_chain(&cause)),
    );
    if is_unknown_issuer(&cause) {
        return error.with_remediation(
            "The certificate is from an authority that is not trusted here. If a proxy or a private endpoint has an authority \
             of its own, give its certificates with --ca-file.",
        );
    }
    error
}

/// Whether TLS failed because the server's certificate is not signed by a trusted authority. An authority whose key was replaced has the
/// name of a trusted one, and its signature is bad.
fn is_unknown_issuer(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::CertificateError::{BadSignature, UnknownIssuer};
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error is transparent: its source is the source of the error inside.
        let inside = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        let tls = inside
            .and_then(|error| error.downcast_ref())
            .or(error.downcast_ref());
        if let Some(rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature)) = tls {
            return true;
        }
        next = error.source();
    }
    false
}

fn classify(endpoint: Endpoint, status: u16, google: Option<&GoogleError>) -> (Reason, ErrorClass) {
    let reason = match status {
        400 => Reason::InvalidArgument,
        401 => Reason::CredentialsRejected,
        403 if google.is_some_and(GoogleError::is_api_disabled) => Reason::ApiDisabled,
        403 => Reason::PermissionDenied,
        // Without an error body of Google's, a 404 says that the URL is wrong, not the account.
        404 if endpoint == Endpoint::IamCredentials && google.is_some() => Reason::ServiceAccountNotFound,
        408 => Reason::UpstreamTimeout,
        429 => Reason::QuotaExceeded,
        500..=599 => Reason::UpstreamUnavailable,
        _ => Reason::UnexpectedResponse,
    };
    let class = match status {
        408 | 429 => ErrorClass::Transient,
        400..=499 => ErrorClass::Rejected,
        _ => reason.class(),
    };
    (reason, class)
}

/// Parses a `Retry-After` (RFC 9110, 10.2.3): seconds or an HTTP date, at most [`MAX_RETRY_AFTER`]; a date in the past is zero; anything
/// else is none.
#[must_use]
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let after = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // A number that does not fit is longer than the maximum.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(value)
            .ok()?
            .duration_since(now)
            .unwrap_or(Duration::ZERO)
    };
    Some(after.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
impl Response {
    /// A response without headers.
    pub(crate) fn of(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self {
            received_at: Timestamp::UNIX_EPOCH,
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: Zeroizing::new(body.as_ref().to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;
    use crate::google::vocabulary::MAX_MESSAGE_CHARS;

    fn error_of(status: u16, body: &str) -> Error {
        Response::of(status, body).error(Endpoint::IamCredentials)
    }

    #[test]
    fn classes_and_reasons() {
        let body = r#"{"error":{"code":1,"message":"m","status":"S"}}"#;
        for (status, reason, class) in [
            (302, "UnexpectedResponse", ErrorClass::Transient),
            (400, "InvalidArgument", ErrorClass::Rejected),
            (401, "CredentialsRejected", ErrorClass::Rejected),
            (403, "PermissionDenied", ErrorClass::Rejected),
            (404, "ServiceAccountNotFound", ErrorClass::Rejected),
            (405, "UnexpectedResponse", ErrorClass::Rejected),
            (408, "UpstreamTimeout", ErrorClass::Transient),
            (429, "QuotaExceeded", ErrorClass::Transient),
            (500, "UpstreamUnavailable", ErrorClass::Transient),
            (503, "UpstreamUnavailable", ErrorClass::Transient),
        ] {
            let error = error_of(status, body);
            assert_eq!(
                (error.reason().as_str(), error.class()),
                (reason, class),
                "{status}"
            );
            assert_eq!(error.status(), Some(status));
        }
        assert_eq!(
            error_of(404, "<html>nothing here</html>").reason().as_str(),
            "UnexpectedResponse"
        );
    }

    #[test]
    fn api_disabled_in_words_and_in_details() {
        let in_words = error_of(
            403,
            r#"{"error":{"code":403,"status":"PERMISSION_DENIED","message":"IAM Service Account Credentials API has not been used in project 12 before or it is disabled."}}"#,
        );
        assert_eq!(in_words.reason().as_str(), "ApiDisabled");
        let in_details = error_of(
            403,
            r#"{"error":{"code":403,"message":"no","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"SERVICE_DISABLED"}]}}"#,
        );
        assert_eq!(in_details.reason().as_str(), "ApiDisabled");
    }

    #[test]
    fn raw_bodies_and_tokens_stay_out() {
        let error = error_of(502, "<html>secret page ya29.abcdefghijkl</html>");
        assert!(!error.to_string().contains("secret page"), "{error}");
        let error = error_of(
            400,
            r#"{"error":{"code":400,"message":"bad token eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2ln\u001b[31m"}}"#,
        );
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("eyJ") && !shown.contains('\u{1b}'), "{shown}");
        let error = error_of(
            400,
            &format!(r#"{{"error":{{"message":"{}"}}}}"#, "long ".repeat(1000)),
        );
        assert!(error.to_string().chars().count() <= MAX_MESSAGE_CHARS + 1);
    }

    #[test]
    fn a_date_of_retry_after_counts_from_the_response() {
        let date = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:47 GMT");
        let mut response = Response::of(503, "");
        response.received_at = Timestamp::from_second(784_111_777).expect("a time");
        response.headers.insert(RETRY_AFTER, date);
        let after = response.error(Endpoint::IamCredentials).retry_after();
        assert_eq!(after, Some(Duration::from_secs(10)));
    }

    #[test]
    fn retry_after() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |value| parse_retry_after(value, now).map(|after| after.as_secs());
        assert_eq!(read("7"), Some(7));
        assert_eq!(read(" 7 "), Some(7));
        assert_eq!(read("999999999999999999999999"), Some(3600));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:47 GMT"), Some(10));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:07 GMT"), Some(0));
        assert_eq!(read("Sat, 06 Nov 2094 08:49:47 GMT"), Some(3600));
        assert_eq!(read("-1"), None);
        assert_eq!(read("1.5"), None);
        assert_eq!(read(""), None);
    }
}
