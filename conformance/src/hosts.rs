//! The public hosts: those that this crate connects to itself, and those that its sources and tokens name.

/// The base URL of Google's APIs; `{service}` stands for the first label of a host.
pub(crate) const APIS: &str = "https://{service}.googleapis.com";
/// The metadata server, as an instance reaches it.
pub(crate) const METADATA_SERVER: &str = "http://metadata.google.internal";
/// The audience of what a service account signs for the token endpoint.
pub(crate) const TOKEN_ENDPOINT: &str = "https://oauth2.googleapis.com/token";
/// What the URL of each scope begins with.
pub(crate) const SCOPES: &str = "https://www.googleapis.com/auth/";
/// Google's own documentation, and the standards that it follows.
pub(crate) const DOCUMENTATION: [&str; 5] = [
    "https://cloud.google.com/",
    "https://developers.google.com/",
    "https://docs.cloud.google.com/",
    "https://google.aip.dev/",
    "https://www.rfc-editor.org/",
];
