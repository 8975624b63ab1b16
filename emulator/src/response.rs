//! Requests that were read in full, and responses in the shapes of Google's endpoints.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

/// An HTTP response.
pub(crate) type HttpResponse = Response;

/// The media type of JSON responses.
pub(crate) const JSON: &str = "application/json; charset=UTF-8";

/// A request that was read in full.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// The certificate that the client has shown, and whose key it has.
    pub(crate) client_certificate: Option<CertificateDer<'static>>,
}

impl Request {
    /// The first value of a query parameter. Accepts unencoded values too, up to the next `&`.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    /// A header that is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the body claims to be JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.header("content-type")
            .is_some_and(|value| value.trim_start().starts_with("application/json"))
    }
}

/// Why a call gets no regular response.
#[derive(Debug)]
pub(crate) enum Failure {
    /// This response instead.
    Response(Box<Response>),
    /// No response: the connection is reset.
    Reset,
}

impl From<Response> for Failure {
    fn from(response: Response) -> Self {
        Self::Response(Box::new(response))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        tracing::error!(%error, "internal error");
        text(StatusCode::INTERNAL_SERVER_ERROR, format!("emulator: {error:#}")).into()
    }
}

/// What the handler of an endpoint returns.
pub(crate) type HandlerResult = Result<Response, Failure>;

/// A response with a body of this type.
pub(crate) fn body(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A JSON response.
pub(crate) fn json(status: StatusCode, value: &Value) -> Response {
    body(status, JSON, value.to_string())
}

/// The answer to a path or method that Google does not serve.
pub(crate) fn not_found() -> Response {
    text(
        StatusCode::NOT_FOUND,
        "The requested URL was not found on this server.",
    )
}

/// A plain-text response.
pub(crate) fn text(status: StatusCode, message: impl Into<String>) -> Response {
    body(status, "text/plain; charset=utf-8", message.into())
}

/// An OAuth 2.0 error (RFC 6749, 5.2).
pub(crate) fn oauth_error(status: StatusCode, error: &str, description: impl Into<String>) -> Response {
    json(
        status,
        &json!({"error": error, "error_description": description.into()}),
    )
}

/// An error of a Google API: `{"error": {"code", "message", "status", "details"?}}`.
pub(crate) fn api_error(status: StatusCode, message: impl Into<String>, details: &[Value]) -> Response {
    let mut error = json!({
        "code": status.as_u16(),
        "message": message.into(),
        "status": canonical(status),
    });
    if !details.is_empty() {
        error["details"] = json!(details);
    }
    json(status, &json!({ "error": error }))
}

/// The `google.rpc.Code` that HTTP maps to this status.
fn canonical(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ABORTED",
        429 => "RESOURCE_EXHAUSTED",
        501 => "UNIMPLEMENTED",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        500..600 => "INTERNAL",
        _ => "FAILED_PRECONDITION",
    }
}

/// A `google.rpc.ErrorInfo`.
pub(crate) fn error_info(reason: &str, domain: &str, metadata: Value) -> Value {
    json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": domain, "metadata": metadata})
}
